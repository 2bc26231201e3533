"""What the tests of engine and dispatch share: quick settings, fixed chance, and waiting for a condition."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring import Engine, EngineConfig, ExecutorConfig, Retry, StoreConfig, TaskHandle, TaskManagerConfig
from mainspring.config import is_server
from mainspring.environment import Environment

SOON = Retry(max_retries=3, delay="2ms", max_delay="5ms")
"""Retries that cost a test no time."""
LIMIT_S = 60.0
"""How long a test waits for what should come at once, also where five processes have to start for it on a busy machine:
a hang becomes a failure with its place."""


class FullJitter(Environment):
    """The real machine, but chance always gives the upper bound and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def uniform(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return high


def quick(store: StoreConfig | None = None, executor: ExecutorConfig | None = None, **manager: Any) -> EngineConfig:
    """Settings with a short grace and few slots."""
    chosen: dict[str, Any] = {"grace_s": 0.1, "thread_slots": 2, "process_slots": 2, "drain_s": 5.0, **manager}
    return EngineConfig(
        manager=TaskManagerConfig(**chosen), store=store or StoreConfig(), executor=executor or ExecutorConfig()
    )


def engine_on(path: str | Path = ":memory:", *, worker: bool = True, **manager: Any) -> Engine:
    store = StoreConfig(blobs=_blobs()) if is_server(path) else None
    return Engine(path, quick(store, **manager), worker=worker)


@functools.cache
def _blobs() -> Path:
    """A folder for what is too large for a server's tables."""
    folder = Path(tempfile.mkdtemp(prefix="mainspring-blobs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


async def value(handle: TaskHandle) -> Any:
    return await handle.result(timeout=LIMIT_S)


async def shows(handle: TaskHandle, **wanted: Any) -> None:
    """Wait until the task's info has these values: `status`, `reason`, `progress` ..."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            info = await handle.info()
            if all(getattr(info, name) == value for name, value in wanted.items()):
                return
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells: something in another thread or process."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
