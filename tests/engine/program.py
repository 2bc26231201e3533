"""A program around an engine, as users write it. Tests run it: `program.py STORE FOLDER [STALL_S [DEAD_S]]`.

It works until SIGTERM, like a worker service. Its handlers leave marks in FOLDER.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from mainspring import Engine, EngineConfig, StoreConfig, TaskManagerConfig

store, folder = sys.argv[1], Path(sys.argv[2])
manager = TaskManagerConfig(async_slots=8, grace_s=0.2, drain_s=10)
stall_s = float(sys.argv[3]) if len(sys.argv) > 3 else 600.0
dead_s = float(sys.argv[4]) if len(sys.argv) > 4 else 10.0
settings = StoreConfig(stall_s=stall_s, dead_s=dead_s, blobs=folder / "blobs")
engine = Engine(store, EngineConfig(manager=manager, store=settings))
pid = os.getpid()


@engine.task
async def hold(name: str) -> int:
    """Runs until a file says that it may end, in any process or in this one."""
    (folder / f"{name}.{pid}.ran").touch()
    (folder / f"{name}.started").touch()
    try:
        while not (folder / f"{name}.go").exists() and not (folder / f"{name}.{pid}.go").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        (folder / f"{name}.{pid}.stopped").touch()
        raise
    return pid


@engine.task
async def block(name: str) -> int:
    """The same without letting anybody else run: what was claimed with it does not begin."""
    (folder / f"{name}.{pid}.ran").touch()
    while not (folder / f"{name}.go").exists():
        time.sleep(0.01)  # noqa: ASYNC251
    return pid


@engine.task
async def step(n: int) -> int:
    return n + 1


@engine.task
async def hog(n: int) -> int:
    """Keeps the interpreter to itself: no other thread of this process runs meanwhile."""
    (folder / "hog.started").touch()
    sum(range(n))
    return pid


@engine.task
async def suicide() -> None:
    os.kill(os.getpid(), 9)


async def main() -> None:
    (folder / f"{os.getpid()}.pid").touch()
    await engine.run()


if __name__ == "__main__":
    asyncio.run(main())
