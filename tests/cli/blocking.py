"""A user's module whose handler keeps the event loop to itself, as no handler should."""

from __future__ import annotations

import time
from pathlib import Path

from mainspring import Engine

engine = Engine()


@engine.task(timeout="10ms")
async def block(started: str, until: str) -> None:
    Path(started).touch()  # noqa: ASYNC240
    while not Path(until).exists():  # noqa: ASYNC240
        time.sleep(0.01)  # noqa: ASYNC251
