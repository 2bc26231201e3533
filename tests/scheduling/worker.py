"""A program that works, on a machine whose memory is as full as a file says: `worker.py STORE FOLDER NAME [CPU]`.

FOLDER/NAME holds the bytes in use of a GiB; without it the machine is the real one. CPU is its `max_cpu_usage`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mainspring import Engine, EngineConfig, ResourceMonitor, SchedulerConfig, StoreConfig
from mainspring.environment import Environment
from mainspring.resources import Cgroup, MemoryLimit

store, folder, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
MIB = 1 << 20


class Told(Cgroup):
    def memory(self) -> MemoryLimit | None:
        path = folder / name
        return MemoryLimit(1024 * MIB, int(path.read_text())) if path.exists() else super().memory()


class Named(Environment):
    """A machine of that name."""

    def host(self) -> str:
        return name


class Working(Engine):
    def _watch_resources(self, env: Environment) -> ResourceMonitor:
        return ResourceMonitor(folder, limits=self.config.scheduler, cgroup=Told(), env=env)


limits = SchedulerConfig(
    max_cpu_usage=float(sys.argv[4]) if len(sys.argv) > 4 else None,
    max_memory_bytes=700 * MIB if (folder / name).exists() else None,
)
config = EngineConfig(scheduler=limits, store=StoreConfig(blobs=folder / "blobs"))
engine = Working(store, config, env=Named())


@engine.task
async def step(n: int) -> int:
    return n + 1


async def main() -> None:
    working = asyncio.ensure_future(engine.run())
    while engine.manager.lanes == {}:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    (folder / f"{os.getpid()}.pid").touch()
    await working


asyncio.run(main())
