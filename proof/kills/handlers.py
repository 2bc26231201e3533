"""The handlers that are killed: all lanes, short and long, with children, retries and results of parents.

What a handler returns says which attempt made it, so that a recorded result can be compared with the ledger.
"""

from __future__ import annotations

import asyncio
import os
import time
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
    StoreUnavailable,
    TaskManagerConfig,
)
from mainspring.config import is_server
from mainspring.processors.calls import handler_of
from mainspring.processors.custom import Handler
from proof.kills.ledger import FOLDER, noted

_AGAIN_S = 0.1
SOON = Retry(max_retries=5, delay="20ms", max_delay="100ms")


def _made(ctx: Context, n: int, parents: Any = None) -> dict[str, Any]:
    return {"task": str(ctx.id), "attempt": ctx.attempt, "pid": os.getpid(), "n": n, "parents": parents}


async def waits(ctx: Context, n: int, seconds: float, parents: Any = None) -> dict[str, Any]:
    with noted(ctx):
        await asyncio.sleep(seconds)
        return _made(ctx, n, parents)


def blocks(ctx: Context, n: int, seconds: float, parents: Any = None) -> dict[str, Any]:
    with noted(ctx):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ctx.cancelled:
            time.sleep(0.005)
        return _made(ctx, n, parents)


def computes(ctx: Context, n: int, seconds: float, parents: Any = None) -> dict[str, Any]:
    with noted(ctx):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1_000))
        return _made(ctx, n, parents)


async def fails_first(ctx: Context, n: int, times: int) -> dict[str, Any]:
    with noted(ctx):
        await asyncio.sleep(0.002)
        if ctx.retry_count < times:
            raise ValueError(f"retry {ctx.retry_count} of {times}")
        return _made(ctx, n)


async def never_works(ctx: Context, n: int) -> None:
    with noted(ctx):
        raise Permanent(f"number {n} never works")


async def has_children(ctx: Context, n: int, children: int) -> list[Any]:
    """Returns its children's handles, every other one stored at once: who depends on it gets their results."""
    with noted(ctx):
        made = [ctx.submit(waits, child, 0.01, str(ctx.id), now=bool(child % 2)) for child in range(children)]
        await asyncio.sleep(0.01)
        return made


HANDLERS = (waits, blocks, computes, fails_first, never_works, has_children)
for _handler in HANDLERS:  # as a decorator does: a child process that imports this may submit them too
    vars(_handler)["__mainspring__"] = Handler(_handler, lane="process" if _handler is computes else None, retry=SOON)


def engine_on(store: str, *, worker: bool, stall_s: float) -> Engine:
    """The engine that workers and submitters share."""
    blobs = Path(os.environ[FOLDER]).with_name("blobs") if is_server(store) else None
    config = EngineConfig(
        manager=TaskManagerConfig(async_slots=8, thread_slots=2, process_slots=1, grace_s=0.3, drain_s=1.0),
        executor=ExecutorConfig(child_recycle_tasks=20),
        store=StoreConfig(stall_s=stall_s, blobs=blobs),
    )
    engine = Engine(store, config, worker=worker)
    for handler in HANDLERS:
        declared = handler_of(handler)
        engine.task(retry=declared.retry, lane=declared.lane)(handler)
    return engine


async def started(store: str, *, worker: bool, stall_s: float) -> Engine:
    """Start such an engine. While the server is down it is tried again, as whatever runs a program does."""
    while True:
        try:
            return await engine_on(store, worker=worker, stall_s=stall_s).start()
        except StoreUnavailable:
            if not is_server(store):
                raise
            await asyncio.sleep(_AGAIN_S)
