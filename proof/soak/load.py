"""The load: every kind of work at a steady mix, over keys and records that come again, so that nothing has to grow."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mainspring import (
    Context,
    Engine,
    EngineConfig,
    ExecutorConfig,
    Permanent,
    Retry,
    StoreConfig,
    TaskError,
    TaskManagerConfig,
    TaskNotFound,
    TaskPriority,
)

AT_ONCE = 64
"""Clients that each have one thing under way."""
WAL_LIMIT_BYTES = 8 << 20
KEEP_S = 3.0
_KEYS = 200
_RECORDS = 50
_SOON = Retry(max_retries=3, delay="2ms", max_delay="10ms")
_kept: list[bytes] = []


async def nothing(n: int) -> int:
    return n


def leaking(size: int) -> Callable[[int], Awaitable[int]]:
    """A handler that keeps so many bytes of each call for ever."""

    async def nothing(n: int) -> int:
        _kept.append(bytes(size))
        return n

    return nothing


def in_thread(n: int) -> int:
    return n


def in_process(n: int) -> int:
    return n


async def fails_once(ctx: Context, n: int) -> int:
    if not ctx.retry_count:
        raise ValueError(f"number {n} fails at first")
    return n


async def never_works(n: int) -> None:
    raise Permanent(f"number {n} never works")


async def sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def has_children(ctx: Context, n: int) -> list[Any]:
    return [ctx.submit(nothing, child, now=bool(child % 2)) for child in range(n)]


def echoes(text: str) -> str:
    return text


def engine_on(store: Path, *, worker: bool, leak: int = 0) -> Engine:
    """An engine with short retention; the most frequent handler leaks so many bytes a call."""
    config = EngineConfig(
        store=StoreConfig(
            keep_completed_s=KEEP_S, keep_failed_s=KEEP_S, keep_tombstones_s=KEEP_S, wal_limit_bytes=WAL_LIMIT_BYTES
        ),
        manager=TaskManagerConfig(process_slots=1, thread_slots=2, drain_s=10.0),
        executor=ExecutorConfig(child_recycle_tasks=200),
    )
    engine = Engine(store, config, worker=worker)
    often = engine.task(retry=_SOON)(leaking(leak) if leak else nothing)
    vars(nothing)["__mainspring__"] = vars(often)["__mainspring__"]
    for handler in (in_thread, fails_once, never_works, sleeps, has_children, echoes):
        engine.task(retry=_SOON)(handler)
    engine.task(lane="process", retry=_SOON)(in_process)
    return engine


class Load:
    """Clients that submit, await, cancel and ask, as fast as they get answers."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._rng = random.Random(seed)
        self.done = 0  # operations
        self.latencies: list[float] = []  # seconds, of single urgent tasks; taken by whoever samples
        self._kinds: list[Callable[[], Awaitable[Any]]] = [
            *[self._plain] * 40, *[self._thread] * 4, self._process, *[self._retried] * 3, self._failed, self._timed,
            *[self._family] * 2, *[self._chain] * 4, *[self._cancelled] * 2, *[self._key] * 3, self._large,
            self._stored, self._vectors, *[self._asks] * 2,
        ]  # fmt: skip

    async def run(self, until: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as clients:
            clients.create_task(self._urgent(until))
            for _ in range(AT_ONCE):
                clients.create_task(self._client(until))

    async def _client(self, until: asyncio.Event) -> None:
        while not until.is_set():
            await self._rng.choice(self._kinds)()
            self.done += 1

    async def _urgent(self, until: asyncio.Event) -> None:
        """One at a time, ahead of all others: what it takes is what a claim takes."""
        while not until.is_set():
            began = time.monotonic()
            await (await self._engine.submit(nothing, 0, priority=TaskPriority.CRITICAL)).result()
            self.latencies.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    async def _plain(self) -> None:
        await (await self._engine.submit(nothing, 1)).result()

    async def _thread(self) -> None:
        await (await self._engine.submit(in_thread, 1)).result()

    async def _process(self) -> None:
        await (await self._engine.submit(in_process, 1)).result()

    async def _retried(self) -> None:
        await (await self._engine.submit(fails_once, 1)).result()

    async def _failed(self) -> None:
        parent = await self._engine.submit(never_works, 1)
        child = await self._engine.submit(nothing, 2, after=parent)
        for handle in (parent, child):
            with contextlib.suppress(TaskError):
                await handle.result()

    async def _timed(self) -> None:
        with contextlib.suppress(TaskError):
            await (await self._engine.submit(sleeps, 0.05, timeout=0.01, max_retries=1)).result()

    async def _family(self) -> None:
        parent = await self._engine.submit(has_children, 3)
        await (await self._engine.submit(nothing, 1, after=parent)).result()

    async def _chain(self) -> None:
        handle = await self._engine.submit(nothing, 1)
        for _ in range(3):
            handle = await self._engine.submit(nothing, handle)
        await handle.result()

    async def _cancelled(self) -> None:
        handle = await self._engine.submit(sleeps, 0.02, delay=self._rng.choice((0, 60)))
        await handle.cancel()
        with contextlib.suppress(TaskError):
            await handle.result()

    async def _key(self) -> None:
        handle = await self._engine.submit(nothing, 7, idempotency_key=f"key {self._rng.randrange(_KEYS)}")
        with contextlib.suppress(TaskNotFound):  # an older one, pruned since
            await handle.result()

    async def _large(self) -> None:
        await (await self._engine.submit(echoes, "x" * 100_000)).result()

    async def _stored(self) -> None:
        await self._engine.store(f"text {self._rng.randrange(_KEYS)}", f"name {self._rng.randrange(_KEYS)}")

    async def _vectors(self) -> None:
        vectors = [[self._rng.random() for _ in range(8)]]
        await self._engine.upsert("soak", vectors, ids=[f"record {self._rng.randrange(_RECORDS)}"])

    async def _asks(self) -> None:
        handle = await self._engine.submit(nothing, 1)
        await handle.explain()
        await handle.info()
        await self._engine.manager.stats()
        await handle.result()
