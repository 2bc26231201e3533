"""The engine under test, and the work that benchmarks give it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from mainspring import Engine, EngineConfig, StoreConfig, TaskManagerConfig

PAYLOAD = "x" * 100
SUBMITTERS = 64
WAITS_S = 0.005


async def noop(text: str) -> str:
    """Do nothing, durably."""
    return text


async def waits(text: str) -> str:
    """Wait for 5 ms, as for a service that answers quickly."""
    await asyncio.sleep(WAITS_S)
    return text


@contextlib.asynccontextmanager
async def opened(
    path: Path | str, *, worker: bool = True, blobs: Path | None = None, slots: int | None = None,
    children: int | None = None,
) -> AsyncIterator[Engine]:  # fmt: skip
    """Give an open engine as users have it: full durability, every default, but no limit to the queue.

    `noop` is registered with a timeout, so that the watch over running tasks is part of what is measured. With `slots`
    the async lane has so many, and `waits` is registered too; with `children` the process lane has so many.
    """
    manager = TaskManagerConfig(queue_size=None)
    if slots is not None:
        manager = msgspec.structs.replace(manager, async_slots=slots)
    if children is not None:
        manager = msgspec.structs.replace(manager, process_slots=children)
    engine = Engine(path, EngineConfig(manager=manager, store=StoreConfig(blobs=blobs)), worker=worker)
    engine.task(timeout=30)(noop)
    if slots is not None:
        engine.task(timeout=30)(waits)
    async with engine:
        yield engine


async def by_map(engine: Engine, n: int) -> None:
    """Store n tasks in bulk; back when all results are known."""
    await engine.gather(await engine.map(noop, [PAYLOAD] * n))


async def by_submitters(engine: Engine, n: int) -> None:
    """64 coroutines, each storing one task and awaiting its result before the next."""

    async def one(count: int) -> None:
        for _ in range(count):
            await (await engine.submit(noop, PAYLOAD)).result()

    shares = [n // SUBMITTERS + (i < n % SUBMITTERS) for i in range(SUBMITTERS)]
    await asyncio.gather(*(one(share) for share in shares))


async def latencies_ms(engine: Engine, n: int) -> tuple[list[float], list[float]]:
    """Store and await n tasks one at a time: how long until each was durable, and until its result was known."""
    durable, known = [], []
    for _ in range(n):
        at = time.perf_counter()
        handle = await engine.submit(noop, PAYLOAD)
        durable.append((time.perf_counter() - at) * 1e3)
        await handle.result()
        known.append((time.perf_counter() - at) * 1e3)
    return durable, known
