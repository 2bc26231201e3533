"""A process that submits, works, and tells each task once it was accepted, until it is killed: `load.py STORE`."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from mainspring import Engine, EngineConfig, StoreConfig


async def main(store: Path) -> None:
    engine = Engine(store, EngineConfig(store=StoreConfig(inline_bytes=1_000)))

    @engine.task
    async def step(text: str) -> str:
        return text

    async with engine:
        for n in count():
            first = await engine.submit(step, f"{n} " * (1_000 if n % 20 == 0 else 1))
            second = await engine.submit(step, first)
            print(first.id, second.id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
