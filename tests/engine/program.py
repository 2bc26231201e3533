"""A program around an engine, as users write it. Tests run it as a process: `program.py STORE FOLDER`.

It works until SIGTERM, like a worker service. Its handlers leave marks in FOLDER.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mainspring import Engine, EngineConfig, TaskManagerConfig

store, folder = sys.argv[1], Path(sys.argv[2])
engine = Engine(store, EngineConfig(manager=TaskManagerConfig(async_slots=4, grace_s=0.2, drain_s=10)))


@engine.task
async def hold(name: str) -> int:
    """Runs until a file says that it may end."""
    (folder / f"{name}.started").touch()
    while not (folder / f"{name}.go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return os.getpid()


@engine.task
async def step(n: int) -> int:
    return n + 1


@engine.task
async def suicide() -> None:
    os.kill(os.getpid(), 9)


async def main() -> None:
    (folder / f"{os.getpid()}.pid").touch()
    await engine.run()


if __name__ == "__main__":
    asyncio.run(main())
