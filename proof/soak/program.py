"""A process that watches itself: `python -m proof.soak.program STORE ROLE SECONDS SAMPLES LEAK SEED`.

ROLE: alone (submits and works), submits, works. It writes a line a sample; one that works alone works until SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psutil

from mainspring import Engine
from proof.soak.load import Load, engine_on

PERIOD_S = 0.5
_REST_S = 3.0
"""How long a process is watched after the load has ended: what it still has then it does not give back."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    at: float  # seconds since this process began
    done: int  # operations of this process so far
    loaded: bool
    rss: int
    descriptors: int
    threads: int
    tasks: int  # of asyncio
    cpu: float  # seconds that this process has worked so far
    file: int  # bytes of the store that are in use
    log: int  # bytes of its write-ahead log
    latencies: list[float]  # since the last sample


class Watcher:
    """Samples this process until it ends."""

    def __init__(self, engine: Engine, samples: Path) -> None:
        self._store = engine.path
        self._rows: Any = engine.manager.store
        self._out = samples.open("wb", buffering=0)
        self._process = psutil.Process()
        self._began = time.monotonic()
        self.load: Load | None = None
        self.loaded = True

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            in_use = await self._rows.read(_in_use)
            self._out.write(msgspec.json.encode(self._sample(in_use)) + b"\n")

    def _sample(self, in_use: int) -> Sample:
        latencies: list[float] = []
        if self.load is not None:
            latencies, self.load.latencies = self.load.latencies, []
        return Sample(
            at=time.monotonic() - self._began,
            done=0 if self.load is None else self.load.done,
            loaded=self.loaded,
            rss=self._process.memory_info().rss,
            descriptors=self._process.num_fds(),
            threads=self._process.num_threads(),
            tasks=len(asyncio.all_tasks()),
            cpu=time.process_time(),
            file=in_use,
            log=_size(self._store.with_name(self._store.name + "-wal")),
            latencies=latencies,
        )


def _in_use(rows: apsw.Connection) -> int:
    """What is free inside the file stays from the busiest moment on, and would hide what is kept for ever."""
    pages, free, size = (int(rows.pragma(name)) for name in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def main(store: Path, role: str, seconds: float, samples: Path, leak: int, seed: int) -> None:
    async with engine_on(store, worker=role != "submits", leak=leak) as engine:
        watcher = Watcher(engine, samples)
        watching = asyncio.create_task(watcher.run())
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
        if role == "works":
            await asked.wait()
        else:
            watcher.load = Load(engine, seed)
            asyncio.get_running_loop().call_later(seconds, asked.set)
            await watcher.load.run(asked)
            watcher.loaded = False
            gc.collect()
            await asyncio.sleep(_REST_S)
        watching.cancel()


if __name__ == "__main__":
    store, role, seconds, samples, leak, seed = sys.argv[1:]
    asyncio.run(main(Path(store), role, float(seconds), Path(samples), int(leak), int(seed)))
