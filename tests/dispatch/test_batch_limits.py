"""Calls that can't become as large as `max_size` says: they begin with what there can be."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch.test_batches import Gate
from tests.engine.support import LIMIT_S, engine_on, shows, until

from mainspring import Batch, Engine

pytestmark = pytest.mark.anyio

POLICY = Batch(max_size=64, max_wait="1h")


def counting(engine: Engine, calls: list[list[int]], policy: Batch = POLICY) -> Any:
    @engine.task(batch=policy)
    async def count(items: list[int]) -> list[int]:
        calls.append(items)
        return items

    return count


async def test_a_call_holds_all_that_its_group_may_hold(tmp_path: Path) -> None:
    """It waits for no more than that, whether it came at once or one by one; the next one is as large."""
    calls: list[list[int]] = []
    async with engine_on(tmp_path / "work.db") as engine:
        count = counting(engine, calls)
        await engine.limit("tenant-a", concurrency=4)
        handles = await engine.map(count, range(8), group="tenant-a")
        assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [*range(8)]
        one_by_one = [await engine.submit(count, n, group="tenant-a") for n in range(3)]
        await shows(one_by_one[2], reason="batch")
        assert len(calls) == 2
        await engine.submit(count, 3, group="tenant-a")
        assert [await handle.result(timeout=LIMIT_S) for handle in one_by_one] == [0, 1, 2]
        closed = (await engine.manager.stats())["batches"]["custom:count"]["closed"]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert closed == {"limit": 3}


async def test_two_processes_share_the_places_of_a_group(tmp_path: Path) -> None:
    """Whoever gets the last one waits for nobody."""
    calls: list[list[int]] = []
    async with engine_on(tmp_path / "work.db") as first, engine_on(tmp_path / "work.db") as second:
        counts = [counting(engine, calls) for engine in (first, second)]
        await first.limit("tenant-a", concurrency=4)
        waits = [await first.submit(counts[0], n, group="tenant-a") for n in range(3)]
        await shows(waits[2], reason="batch")
        last = await second.submit(counts[1], 3, group="tenant-a")
        assert await last.result(timeout=LIMIT_S) == 3
        (call,) = calls  # those of the others that had gone over to it before are in there too
        assert 3 in call
        again = [await first.submit(counts[0], 4 + n, group="tenant-a") for n in range(len(call))]
        assert await again[-1].result(timeout=LIMIT_S) == 3 + len(call)
    assert len(calls) == 2


async def test_others_are_waited_for(tmp_path: Path) -> None:
    """Where tasks of another group came lately that may have more, or of none, a batch does not close for a limit."""
    calls: list[list[int]] = []
    async with engine_on(tmp_path / "work.db") as engine:
        count = counting(engine, calls)
        for tenant in range(3):
            await engine.limit(f"tenant-{tenant}", concurrency=1)
        free = await engine.submit(count, 9)
        await shows(free, reason="batch")
        handles = [await engine.submit(count, n, group=f"tenant-{n}") for n in range(3)]
        await shows(handles[2], reason="batch")
        assert "batch 4/64, which closes in 3," in await handles[0].explain()
        urgent = await engine.submit(count, 10, priority="HIGH")
        assert await urgent.result(timeout=LIMIT_S) == 10
    assert [sorted(call) for call in calls] == [[0, 1, 2, 9, 10]]


async def test_who_runs_here_is_waited_for(tmp_path: Path) -> None:
    """Places that a running call of the group will leave are worth the wait: calls are not cut smaller and smaller."""
    calls: list[list[int]] = []
    go = asyncio.Event()
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task(batch=POLICY)
        async def count(items: list[int]) -> list[int]:
            calls.append(items)
            if len(calls) == 1:
                await go.wait()
            return items

        await engine.limit("tenant-a", concurrency=4)
        handles = [await engine.submit(count, n, group="tenant-a", priority="HIGH") for n in range(1)]
        await until(lambda: bool(calls))
        handles += await engine.map(count, range(1, 9), group="tenant-a")
        await shows(handles[3], reason="batch")
        assert len(calls) == 1
        go.set()
        assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [*range(9)]
    assert calls == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


async def test_a_task_tells_why_its_batch_waits_for_no_more(tmp_path: Path) -> None:
    calls: list[list[int]] = []
    async with engine_on(tmp_path / "work.db", async_slots=1) as engine:
        count = counting(engine, calls)
        await engine.limit("tenant-a", concurrency=2)
        async with Gate(engine):
            handles = await engine.map(count, range(3), group="tenant-a")
            await shows(handles[1], reason="batch")
            said = "It waits in batch 2/64, which begins when a slot falls free, as no more can come."
            assert await handles[0].explain() == said
            assert (
                "Group tenant-a is at its limit: 2/2 are claimed or run; 0 of its tasks go first"
                in await handles[2].explain()
            )
        assert await handles[1].result(timeout=LIMIT_S) == 1
        await handles[2].cancel()


async def test_a_queue_that_is_shorter_than_a_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told when the worker starts; a call begins with all tasks that there may be."""
    calls: list[list[int]] = []
    with caplog.at_level(logging.WARNING, "mainspring.dispatch"):
        async with engine_on(tmp_path / "work.db", queue_size=4) as engine:
            count = counting(engine, calls)
            handles = await engine.map(count, range(12))
            assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [*range(12)]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [record.getMessage() for record in caplog.records] == [
        "custom:count: batch.max_size = 64 can't be reached, queue_size = 4 tasks are all that wait: raise that one"
    ]
