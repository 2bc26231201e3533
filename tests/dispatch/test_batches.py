"""Tasks that run together: which join, when a call begins, and that each gets an outcome of its own."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections import UserDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dispatch import batched
from tests.engine.support import LIMIT_S, engine_on, shows, until

from mainspring import (
    Batch,
    Context,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Retry,
    RetryAfter,
    TaskCancelled,
    TaskHandle,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
)
from mainspring.dispatch import lane

pytestmark = pytest.mark.anyio


class Gate:
    """A handler that holds its lane's only slot until it is opened, so that what is submitted meanwhile waits."""

    def __init__(self, engine: Engine) -> None:
        self._opened = asyncio.Event()
        self._entered = asyncio.Event()

        @engine.task(name="gate")
        async def gate() -> None:
            self._entered.set()
            await self._opened.wait()

        self._engine, self._handler = engine, gate

    async def __aenter__(self) -> None:
        self._opened.clear()
        self._entered.clear()
        self._handle = await self._engine.submit(self._handler, priority=TaskPriority.CRITICAL)
        await self._entered.wait()

    async def __aexit__(self, *exc: Any) -> None:
        self._opened.set()
        await self._handle.result(timeout=LIMIT_S)


def one_slot(path: Path | str = ":memory:", **config: Any) -> Engine:
    return engine_on(path, async_slots=1, **config)


async def values(handles: Sequence[TaskHandle]) -> list[Any]:
    return [await handle.result(timeout=LIMIT_S) for handle in handles]


async def test_what_waits_when_a_slot_falls_free_runs_together() -> None:
    """In one call up to `max_size`, in the order of submission; each task gets its own item's result."""
    calls: list[list[str]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=4))
        async def up(texts: list[str]) -> list[str]:
            calls.append(texts)
            return [text.upper() for text in texts]

        async with Gate(engine):
            handles = await engine.map(up, list("abcdefghij"))
        assert await values(handles) == list("ABCDEFGHIJ")
        assert calls == [list("abcd"), list("efgh"), list("ij")]
        batches = (await engine.manager.stats())["batches"]["custom:up"]
    closed = {"full": 2, "wait": 1}
    assert batches == {"calls": 3, "items": 10, "fill": 10 / 12, "padding": None, "learned": [], "closed": closed}


async def test_only_equal_arguments_join() -> None:
    """All arguments but the item, and the timeout, are one for all of a call."""
    calls: list[tuple[list[str], str]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch())
        async def translate(texts: list[str], to: str = "en") -> list[str]:
            calls.append((texts, to))
            return [f"{text}>{to}" for text in texts]

        async with Gate(engine):
            asked = ("a", "de"), ("b", "en"), ("c", "de"), ("d", "en")
            handles = [await engine.submit(translate, text, to=to) for text, to in asked]
            timeouts = {"e": LIMIT_S, "f": LIMIT_S + 1, "g": LIMIT_S}
            handles += [await engine.submit(translate, text, to="en", timeout=s) for text, s in timeouts.items()]
        assert await values(handles) == ["a>de", "b>en", "c>de", "d>en", "e>en", "f>en", "g>en"]
    assert sorted(calls) == [(["a", "c"], "de"), (["b", "d"], "en"), (["e", "g"], "en"), (["f"], "en")]


async def test_costs_and_shapes() -> None:
    """A call takes what `max_cost` allows, what is too large alone, and only items of one shape."""
    calls: list[list[str]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_cost=10, cost=len, shape=str.isupper))
        async def read(texts: list[str]) -> list[int]:
            calls.append(texts)
            return [len(text) for text in texts]

        async with Gate(engine):
            handles = await engine.map(read, ["aaaa", "bbbb", "cccc", "X", "d" * 50, "eeee"])
        assert await values(handles) == [4, 4, 4, 1, 50, 4]
        batches = (await engine.manager.stats())["batches"]["custom:read"]
    assert batches["padding"] == 0  # what joined cost the same
    assert batches["closed"] == {"cost": 3, "wait": 2}
    assert calls == [["aaaa", "bbbb"], ["cccc"], ["X"], ["d" * 50], ["eeee"]]


async def test_what_is_too_large_is_refused_where_that_is_wanted(tmp_path: Path) -> None:
    """At submit, and where the item comes from a parent when it is known: that task alone fails."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task(batch=Batch(max_cost=3, cost=len, oversize="refuse"))
        def read(texts: list[str]) -> list[int]:
            return [len(text) for text in texts]

        @engine.task
        async def parent(n: int) -> str:
            return "a" * n

        with pytest.raises(InvalidInput, match="costs 4, above max_cost = 3"):
            await engine.submit(read, "aaaa")
        good, bad = [await engine.submit(read, await engine.submit(parent, n)) for n in (3, 4)]
        assert await good.result(timeout=LIMIT_S) == 3
        with pytest.raises(InvalidInput, match="costs 4, above max_cost = 3"):
            await bad.result(timeout=LIMIT_S)


async def test_waiting_for_more() -> None:
    """With `max_wait` a call begins when it is full, or when its first task has waited so long."""
    calls: list[int] = []
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=3, max_wait=0.15))
        async def count(items: list[int]) -> list[int]:
            calls.append(len(items))
            return items

        loop = asyncio.get_running_loop()
        began = loop.time()
        await values(await engine.map(count, range(2)))
        assert loop.time() - began >= 0.15
        assert calls == [2]
        await values(await engine.map(count, range(3)))
        assert calls == [2, 3]
        closed = (await engine.manager.stats())["batches"]["custom:count"]["closed"]
    assert closed == {"wait": 1, "full": 1}


async def test_nobody_waits_past_a_deadline() -> None:
    """A batch that a task with a deadline joins waits for half of the time which that has left, and no longer."""
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=8, max_wait="4h"))
        async def count(items: list[int]) -> list[int]:
            return items

        patient = await engine.submit(count, 1)
        await shows(patient, reason="batch")
        alone = engine.manager.forming(patient.id.bytes)
        assert alone is not None
        assert alone.closes_s is not None
        assert alone.closes_s > 3 * 3600
        hurried = await engine.submit(count, 2, deadline=datetime.now(UTC) + timedelta(hours=1.99))
        await shows(hurried, reason="batch")
        for handle in (patient, hurried):
            forming = engine.manager.forming(handle.id.bytes)
            assert forming is not None
            assert forming.closes_s is not None
            assert 0 < forming.closes_s <= 3600
        assert await (await engine.submit(count, 3, priority="HIGH")).result(timeout=LIMIT_S) == 3


async def test_urgent_tasks_do_not_wait() -> None:
    """They begin at once, with all that waits, and that is told as the reason where the call is not full."""
    calls: list[list[int]] = []
    for most, why in ((3, "urgent"), (2, "full")):
        calls.clear()
        async with engine_on() as engine:

            @engine.task(batch=Batch(max_size=most, max_wait=3600))
            async def count(items: list[int]) -> list[int]:
                calls.append(items)
                return items

            patient = await engine.submit(count, 1)
            await shows(patient, reason="batch")
            assert await (await engine.submit(count, 2, priority="HIGH")).result(timeout=LIMIT_S) == 2
            assert await patient.result(timeout=LIMIT_S) == 1
            assert calls == [[2, 1]]
            assert (await engine.manager.stats())["batches"]["custom:count"]["closed"] == {why: 1}


async def test_urgent_tasks_go_first_where_not_all_fit() -> None:
    """The next call has what was there before them."""
    calls: list[list[int]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=4, max_cost=2, cost=lambda item: 1))
        async def count(items: list[int]) -> list[int]:
            calls.append(items)
            return items

        async with Gate(engine):
            handles = [*await engine.map(count, [1, 2, 3]), await engine.submit(count, 4, priority="HIGH")]
            for handle in handles:
                await shows(handle, reason="batch")
        assert await values(handles) == [1, 2, 3, 4]
    assert calls == [[4, 1], [2, 3]]


@pytest.mark.parametrize("how", ["raises", "returns"])
@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_bad_item_fails_alone(lane: str, how: str) -> None:
    """Where the call raises only what can't be done fails; an exception in an item's place is that item's."""

    def checked(items: list[int]) -> list[Any]:
        if how == "raises" and 5 in items:
            raise ValueError("five")
        return [ValueError("five") if n == 5 else n * n for n in items]

    async def checked_async(items: list[int]) -> list[Any]:
        return checked(items)

    async with engine_on() as engine:
        square = engine.task(name="square", batch=Batch(), retry=0)(checked_async if lane == "async" else checked)
        handles = await engine.map(square, range(10))
        for n, handle in enumerate(handles):
            if n == 5:
                with pytest.raises(ProcessingFailed, match="five"):
                    await handle.result(timeout=LIMIT_S)
                error = (await handle.info()).error
                assert error is not None
                assert ("checked" in (error.traceback or "")) == (how == "raises")
            else:
                assert await handle.result(timeout=LIMIT_S) == n * n


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (lambda items: [1], r"gave back 1 results for 2 items"),
        (lambda items: "ab", "gave back a str"),
        (lambda items: None, "gave back a NoneType"),
        (lambda items: {1: 2, 3: 4}, "gave back a dict"),
        (lambda items: UserDict({1: 2, 3: 4}), "gave back a UserDict"),
        (lambda items: {1: 2, 3: 4}.keys(), "gave back a dict_keys"),
        (set, "gave back a set"),
        (frozenset, "gave back a frozenset"),
        (lambda items: bytearray(2), "gave back a bytearray"),
    ],
)
async def test_one_result_for_each_item(gives: Callable[[Any], Any], says: str) -> None:
    """Anything else fails all of them, and is not tried again in halves: that might seem to go well."""
    calls = []
    async with one_slot() as engine:

        @engine.task(batch=Batch())
        async def wrong(items: list[int]) -> Any:
            calls.append(len(items))
            return gives(items)

        async with Gate(engine):
            handles = await engine.map(wrong, range(2))
        for handle in handles:
            with pytest.raises(InvalidInput, match=says):
                await handle.result(timeout=LIMIT_S)
    assert calls == [2]


async def test_arrays_are_results_row_by_row() -> None:
    async with engine_on() as engine:

        @engine.task(batch=Batch())
        def vectors(texts: list[str]) -> np.ndarray[Any, Any]:
            return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

        assert [row.tolist() for row in await values(await engine.map(vectors, ["a", "bcd"]))] == [[1, 1], [3, 1]]


async def test_all_are_tried_again_after_a_pause() -> None:
    """RetryAfter speaks for the whole call: nobody asks again before."""
    calls: list[int] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(), retry=Retry(max_retries=1))
        async def limited(items: list[int]) -> list[int]:
            calls.append(len(items))
            if len(calls) == 1:
                raise RetryAfter(0.05)
            return items

        async with Gate(engine):
            handles = await engine.map(limited, range(4))
        assert await values(handles) == [0, 1, 2, 3]
        assert {(await handle.info()).task.retry_count for handle in handles} == {1}
    assert calls[0] == 4


async def test_memory_that_ran_out_is_remembered() -> None:
    """Calls stay as small as what went through."""
    calls: list[int] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=16))
        async def hungry(items: list[int]) -> list[int]:
            calls.append(len(items))
            if len(items) > 5:
                raise MemoryError
            return items

        async with Gate(engine):
            handles = await engine.map(hungry, range(48))
        assert await values(handles) == list(range(48))
    assert calls == [16, 8, 4, 4, 8, 4, 4] + [4] * 8


async def test_memory_that_is_there_again_is_used() -> None:
    """After some full calls larger ones are tried, up to what is allowed."""
    calls: list[int] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=8))
        async def hungry(items: list[int]) -> list[int]:
            calls.append(len(items))
            if len(calls) < 3 and len(items) > 2:
                raise MemoryError
            return items

        async with Gate(engine):
            handles = await engine.map(hungry, range(400))
        assert await values(handles) == list(range(400))
        assert not engine.manager._gatherings["custom:hungry"]._fits
    assert calls[:5] == [8, 4, 2, 2, 4]
    larger = next(n for n, size in enumerate(calls) if n and size > 4)
    assert calls[5:larger].count(4) == 8


async def test_an_item_that_is_too_much_alone_makes_no_calls_smaller() -> None:
    """Neither in a call with others nor by itself; what is kept of kinds is bounded."""
    calls: list[list[int]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=8), retry=Retry(max_retries=1, delay=0))
        async def hungry(items: list[int], kind: int = 0) -> list[int]:
            calls.append(items)
            if -1 in items or (kind and len(items) > 1):
                raise MemoryError
            return items

        gate = Gate(engine)
        async with gate:
            handles = await engine.map(hungry, [0, 1, 2, -1, 4, 5, 6, 7])
        assert await values([*handles[:3], *handles[4:]]) == [0, 1, 2, 4, 5, 6, 7]
        for large in (handles[3], await engine.submit(hungry, -1)):
            with pytest.raises(ProcessingFailed, match="MemoryError"):
                await large.result(timeout=LIMIT_S)
        calls.clear()
        async with gate:
            handles = await engine.map(hungry, range(32))
        assert await values(handles) == list(range(32))
        assert [len(items) for items in calls] == [8] * 4
        async with gate:
            handles = [await engine.submit(hungry, n, kind=kind) for kind in range(1, 301) for n in (1, 2)]
        await values(handles)
        assert len(engine.manager._gatherings["custom:hungry"]._fits) == 256


async def test_memory_that_runs_out_for_each_item_alone() -> None:
    """All fail, one by one: their lane does not stand still over calls that nothing may go into."""
    calls: list[int] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=4), retry=Retry(max_retries=1, delay=0))
        async def gorged(items: list[int]) -> list[int]:
            calls.append(len(items))
            raise MemoryError

        async with Gate(engine):
            handles = await engine.map(gorged, range(2))
        for handle in handles:
            with pytest.raises(ProcessingFailed, match="MemoryError"):
                await handle.result(timeout=LIMIT_S)
    assert calls == [2, 1, 1, 1, 1]


async def test_cancelled_and_late_tasks_leave_before_the_call() -> None:
    calls: list[list[int]] = []
    async with one_slot() as engine:

        @engine.task(batch=Batch())
        async def count(items: list[int]) -> list[int]:
            calls.append(items)
            return items

        async with Gate(engine):
            handles = [await engine.submit(count, n, deadline=0.05 if n == 2 else None) for n in range(4)]
            assert await handles[1].cancel() == "cancelled"
            await asyncio.sleep(0.06)
        assert await values([handles[0], handles[3]]) == [0, 3]
        with pytest.raises(TaskTimeout):
            await handles[2].result(timeout=LIMIT_S)
        with pytest.raises(TaskCancelled):
            await handles[1].result(timeout=LIMIT_S)
    assert calls == [[0, 3]]


async def test_a_member_that_is_cancelled_ends_no_call() -> None:
    """The others get their results; only when nobody wants it any more the call is stopped."""
    go, stopped = asyncio.Event(), []
    async with one_slot() as engine:

        @engine.task(batch=Batch())
        async def held(items: list[int]) -> list[int]:
            try:
                await go.wait()
            except asyncio.CancelledError:
                stopped.append(items)
                raise
            return items

        async with Gate(engine):
            handles = await engine.map(held, range(3))
        await shows(handles[0], status=TaskStatus.RUNNING)
        assert await handles[0].cancel() == "requested"
        go.set()
        assert await values(handles[1:]) == [1, 2]
        await shows(handles[0], status=TaskStatus.CANCELLED)
        assert stopped == []
        go.clear()
        handles = await engine.map(held, range(2))
        await shows(handles[1], status=TaskStatus.RUNNING)
        for handle in handles:
            assert await handle.cancel() == "requested"
        for handle in handles:
            await shows(handle, status=TaskStatus.CANCELLED)
    assert len(stopped) in (1, 2)  # one call, or the first task began before the second came


async def test_whoever_hangs_times_out_alone() -> None:
    """A call that runs out of time comes again in halves, uncharged, until only the guilty one is left."""
    calls: list[int] = []
    async with one_slot(grace_s=0.1) as engine:

        @engine.task(batch=Batch(max_size=8), timeout=0.3, retry=0)
        async def slow(items: list[int]) -> list[int]:
            calls.append(len(items))
            await asyncio.sleep(60 if 5 in items else 0)
            return items

        async with Gate(engine):
            handles = await engine.map(slow, range(8))
        for n, handle in enumerate(handles):
            if n == 5:
                with pytest.raises(TaskTimeout):
                    await handle.result(timeout=LIMIT_S)
            else:
                assert await handle.result(timeout=LIMIT_S) == n
                assert (await handle.info()).task.retry_count == 0
    assert sorted(calls, reverse=True) == [8, 4, 4, 2, 2, 1, 1]


async def test_a_call_that_ends_late_by_itself() -> None:
    """Nobody came to ask it to stop, as it kept the loop: its tasks come again in halves, uncharged, all the same."""
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=2), timeout=0.2, retry=0)
        async def blocks(items: list[int]) -> list[int]:
            time.sleep(0.3 if len(items) == 2 else 0)  # noqa: ASYNC251 - that is what is looked at
            return items

        async with Gate(engine):
            handles = await engine.map(blocks, range(2))
        assert await values(handles) == [0, 1]
        for handle in handles:
            assert [attempt.outcome for attempt in (await handle.info()).attempts] == ["released", "completed"]


async def test_a_thread_that_does_not_come_back_is_given_up_with_its_call() -> None:
    """Its slot is replaced once, and what it still returns is dropped."""
    go = threading.Event()
    async with engine_on(thread_slots=1, grace_s=0.05) as engine:

        @engine.task(batch=Batch(max_size=1), retry=0)
        def stuck(items: list[int]) -> list[int]:
            if 0 in items:
                go.wait(LIMIT_S)
            return items

        late = await engine.submit(stuck, 0, timeout=0.05)
        handles = await engine.map(stuck, [1, 2])
        with pytest.raises(TaskTimeout):
            await late.result(timeout=LIMIT_S)
        assert await values(handles) == [1, 2]
        go.set()
        assert await values(await engine.map(stuck, [7, 8])) == [7, 8]


async def test_the_process_lane(tmp_path: Path) -> None:
    """A raise, a death and a kill for memory there cost only who is guilty of it."""
    async with engine_on(tmp_path / "work.db", process_slots=1) as engine:
        engine.task(lane="process", batch=Batch(max_size=8), retry=0)(batched.lengths)
        assert await values(await engine.map(batched.lengths, ["a", "bb", "ccc"])) == [1, 2, 3]
        texts = ["a", "poison", "bb", "ccc", "dddd", "large", "e", "f"]
        for text, handle in zip(texts, await engine.map(batched.lengths, texts), strict=True):
            if text == "poison":
                with pytest.raises(ProcessingFailed, match="poison"):
                    await handle.result(timeout=LIMIT_S)
            else:
                assert await handle.result(timeout=LIMIT_S) == len(text)
                assert (await handle.info()).task.retry_count == 0
        deadly = await engine.map(batched.lengths, ["a", "death", "bb"])
        assert [await deadly[0].result(timeout=LIMIT_S), await deadly[2].result(timeout=LIMIT_S)] == [1, 2]
        with pytest.raises(ProcessingFailed, match="exited with code 3"):
            await deadly[1].result(timeout=LIMIT_S)
        late = await engine.map(batched.lengths, ["slow", "a"], timeout=1.0)
        with pytest.raises(TaskTimeout):
            await late[0].result(timeout=LIMIT_S)
        assert await late[1].result(timeout=LIMIT_S) == 1


async def test_what_was_claimed_and_did_not_begin_is_handed_back(tmp_path: Path) -> None:
    """A drain waits for the call that runs and for no other; nothing is charged."""
    engine = one_slot(tmp_path / "work.db")
    go = asyncio.Event()

    @engine.task(batch=Batch(max_size=2, max_wait=3600))
    async def held(items: list[int]) -> list[int]:
        await go.wait()
        return items

    await engine.start()
    handles = await engine.map(held, range(3))
    await shows(handles[0], status=TaskStatus.RUNNING)
    stopping = asyncio.ensure_future(engine.stop())
    await until(lambda: engine.manager._draining)
    go.set()
    await stopping
    async with engine_on(tmp_path / "work.db", worker=False) as looker:
        infos = [await looker.handle(handle.id).info() for handle in handles]
        assert [info.status for info in infos] == [TaskStatus.COMPLETED] * 2 + [TaskStatus.PENDING]
        assert infos[2].task.retry_count == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_size": 0}, "batch.max_size"),
        ({"max_size": True}, "batch.max_size"),
        ({"max_size": "8"}, "batch.max_size"),
        ({"max_size": 8.0}, "batch.max_size"),
        ({"max_size": np.float64(8)}, "batch.max_size"),
        ({"max_size": np.int64(0)}, "batch.max_size"),
        ({"max_cost": 5}, "batch.cost"),
        ({"cost": len}, "batch.max_cost"),
        ({"max_cost": 0, "cost": len}, "batch.max_cost"),
        ({"max_cost": "5", "cost": len}, "batch.max_cost"),
        ({"max_cost": True, "cost": len}, "batch.max_cost"),
        ({"max_cost": math.nan, "cost": len}, "batch.max_cost"),
        ({"max_cost": math.inf, "cost": len}, "batch.max_cost"),
        ({"max_cost": -1, "cost": len}, "batch.max_cost"),
        ({"max_cost": 5, "cost": 7}, "batch.cost"),
        ({"max_cost": 5, "cost": asyncio.sleep}, "batch.cost"),
        ({"max_cost": 5, "cost": lambda: 1}, "batch.cost"),
        ({"max_cost": 5, "cost": lambda item, unit: 1}, "batch.cost"),
        ({"max_cost": 5, "cost": lambda item, *, unit: 1}, "batch.cost"),
        ({"shape": lambda: 1}, "batch.shape"),
        ({"shape": "x"}, "batch.shape"),
        ({"shape": asyncio.sleep}, "batch.shape"),
        ({"oversize": "drop"}, "batch.oversize"),
        ({"oversize": "refuse"}, "batch.oversize"),
        ({"max_wait": -1}, "batch.max_wait"),
        ({"max_wait": "soon"}, "batch.max_wait"),
        ({"max_wait": True}, "batch.max_wait"),
        ({"max_wait": math.nan}, "batch.max_wait"),
        ({"max_wait": math.inf}, "batch.max_wait"),
        ({"max_wait": 10**400}, "batch.max_wait"),
        ({"max_wait": None}, "batch.max_wait"),
    ],
)
def test_contradictory_settings(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Batch(**options)
    assert caught.value.field == field


def test_numbers_of_numpy_are_numbers() -> None:
    """They stand for those of Python that they are equal to."""
    policy = Batch(max_size=np.int64(8), max_cost=np.float32(2.5), cost=len, max_wait=np.float32(0.5))  # type: ignore[arg-type]
    assert policy == Batch(max_size=8, max_cost=2.5, cost=len, max_wait=0.5)
    assert [type(value) for value in (policy.max_size, policy.max_cost, policy.wait_s)] == [int, float, float]


def test_handlers_that_can_not_be_batched() -> None:
    """Said when they are declared."""
    engine = Engine(":memory:")

    def scalar(text: str) -> str:
        return text

    def nothing() -> None: ...

    def with_context(texts: list[str], ctx: Context) -> list[str]:
        return texts

    def with_default(texts: list[str] = []) -> list[str]:  # noqa: B006 - that is what is refused
        return texts

    for handler, says in ((scalar, r"list\["), (nothing, "no items"), (with_context, "ctx"), (with_default, "default")):
        with pytest.raises(InvalidInput, match=says):
            engine.task(batch=Batch())(handler)
    with pytest.raises(InvalidInput, match="Batch"):
        engine.task(batch=64)(with_default)  # type: ignore[call-overload]


async def test_items_are_checked_at_submit() -> None:
    """By the type of one item; where it comes from a parent, when it is known: then that task fails alone."""
    async with engine_on() as engine:

        @engine.task(batch=Batch())
        def total(rows: list[list[int]]) -> list[int]:
            return [sum(row) for row in rows]

        @engine.task
        async def parent(good: bool) -> Any:
            return [1, 2] if good else "no"

        with pytest.raises(InvalidInput, match="rows"):
            await engine.submit(total, ["a"])
        good, bad = [await engine.submit(total, await engine.submit(parent, good)) for good in (True, False)]
        assert await good.result(timeout=LIMIT_S) == 3
        with pytest.raises(InvalidInput, match="rows"):
            await bad.result(timeout=LIMIT_S)


async def test_calls_that_never_wait_leave_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many stand ready, whatever else is on the loop has its turn between them."""
    monkeypatch.setattr(lane, "_SLICE_S", 0.0)
    in_a_row, most = 0, 0
    async with one_slot() as engine:

        @engine.task(batch=Batch(shape=lambda n: n))
        async def at_once(items: list[int]) -> list[int]:
            nonlocal in_a_row, most
            in_a_row += 1
            most = max(most, in_a_row)
            return items

        async def others() -> None:
            nonlocal in_a_row
            while True:
                in_a_row = 0
                await asyncio.sleep(0)

        async with Gate(engine):
            handles = await engine.map(at_once, range(50))
            await until(lambda: engine.manager._gatherings["custom:at_once"].queued == 50)
            other = asyncio.ensure_future(others())
        assert await values(handles) == list(range(50))
        other.cancel()
    assert most <= 2


async def test_a_task_tells_of_the_batch_it_waits_in() -> None:
    """How many there are and when it closes; or that it only wants a slot."""
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=8, max_wait=3600))
        async def count(items: list[int]) -> list[int]:
            return items

        async with Gate(engine):
            handles = await engine.map(count, [1, 2, 3])
            await shows(handles[0], reason="batch")
            assert re.fullmatch(r"It waits in batch 3/8, which closes in 3,[56]\d\d s\.", await handles[1].explain())
            handles += await engine.map(count, [4, 5, 6, 7, 8])
            await shows(handles[7], reason="batch")
            assert await handles[7].explain() == "It waits in batch 8/8, which begins when a slot falls free."
        assert await values(handles) == [1, 2, 3, 4, 5, 6, 7, 8]
