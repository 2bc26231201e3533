"""What is told of calls: why they began, how much of them was padding, and what each item has used of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch import batched
from tests.dispatch.test_batches import Gate, one_slot, values
from tests.engine.support import LIMIT_S, engine_on, shows, until

from mainspring import Batch, Context, Engine, Resources, TaskPriority, TaskStatus, TaskTimeout
from mainspring.dispatch.gathering import Call, Gathering

pytestmark = pytest.mark.anyio


def told(engine: Engine, kind: str) -> dict[str, Any]:
    """Return what is told of the calls of a type."""
    return engine.manager.lane_stats()["batches"][kind]  # type: ignore[no-any-return]


async def test_padding_is_what_equal_length_would_cost_more() -> None:
    """Of all calls together: what each would take with every item as long as its longest, beside what it took."""
    async with one_slot() as engine:

        @engine.task(batch=Batch(max_size=3, max_cost=100, cost=len))
        async def read(texts: list[str]) -> list[int]:
            return [len(text) for text in texts]

        async with Gate(engine):
            handles = await engine.map(read, ["a", "aa", "aaaa", "bbb"])
        await values(handles)
        assert told(engine, "custom:read")["padding"] == pytest.approx(1 - (7 + 3) / (12 + 3))


async def test_a_call_that_costs_all_that_is_allowed() -> None:
    """It waits for nobody: neither when its cost comes to the budget, nor when the next one has no room in it."""
    calls: list[list[str]] = []
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=3, max_cost=10, cost=len, max_wait=3600))
        async def read(texts: list[str]) -> list[int]:
            calls.append(texts)
            return [len(text) for text in texts]

        assert await values(await engine.map(read, ["aaaaa", "bbbbb"])) == [5, 5]
        assert told(engine, "custom:read")["closed"] == {"cost": 1}
        first, second, third = await engine.map(read, ["aaaa", "bbbb", "cccc"])  # as many as there may be
        assert await values([first, second]) == [4, 4]
        assert told(engine, "custom:read")["closed"] == {"cost": 2}
        await shows(third, reason="batch")
    assert calls == [["aaaaa", "bbbbb"], ["aaaa", "bbbb"]]


@pytest.mark.parametrize(("most", "n"), [(1.0, 10), (0.3, 3), (0.7, 7), (100.1, 1_001)])
async def test_rounding_keeps_no_call_waiting(most: float, n: int) -> None:
    """Tenths that come to all that is allowed are one call at once, though their sum as floats is a little off."""
    calls: list[int] = []
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=10_000, max_cost=most, cost=lambda item: 0.1, max_wait=3600))
        async def same(items: list[int]) -> list[int]:
            calls.append(len(items))
            return items

        assert await values(await engine.map(same, range(n))) == list(range(n))
        assert told(engine, "custom:same")["closed"] == {"cost": 1}
    assert calls == [n]


async def test_calls_that_wait_for_resources_count_once() -> None:
    """However often they are put together: when they begin. Those in which nobody is left in time never do."""
    go = asyncio.Event()
    calls: list[list[str]] = []  # the first takes long, after which one with half as much may be tried
    async with engine_on(async_slots=2, custom_capacity={"seat": 1}) as engine:

        @engine.task(batch=Batch(max_size=2, max_cost=9, cost=len), resources=Resources(cpu=0, custom={"seat": 1}))
        async def sit(names: list[str]) -> list[int]:
            calls.append(names)
            await go.wait()
            return [len(name) for name in names]

        handles = await engine.map(sit, ["a", "aaa"] * 4)
        await until(lambda: bool(engine.manager._gatherings["custom:sit"].parked))
        late = await engine.map(sit, ["late", "late"], deadline=0.05)
        for handle in late:
            with pytest.raises(TaskTimeout):
                await handle.result(timeout=LIMIT_S)
        go.set()
        assert await values(handles) == [1, 3] * 4
        batches = told(engine, "custom:sit")
    assert (batches["closed"], batches["calls"], batches["items"]) == ({"full": len(calls)}, len(calls), 8)
    padded = sum(len(names) * max(map(len, names)) for names in calls)
    assert batches["padding"] == pytest.approx(1 - 16 / padded)


async def test_batches_that_are_given_back() -> None:
    """Each that waits when a drain begins counts once, however many tasks it has; none of them is a call."""
    engine = one_slot()
    go = asyncio.Event()

    @engine.task(batch=Batch(max_size=9, max_wait=3600))
    async def count(items: list[int], unit: str) -> list[int]:
        await go.wait()
        return items

    await engine.start()
    handles = [await engine.submit(count, n, unit) for n in range(3) for unit in ("m", "s")]
    running = await engine.submit(count, 0, "urgent", priority=TaskPriority.HIGH)
    await shows(running, status=TaskStatus.RUNNING)
    for handle in handles:
        await shows(handle, reason="batch")
    stopping = asyncio.ensure_future(engine.stop())
    await until(lambda: engine.manager._draining)
    batches = told(engine, "custom:count")
    go.set()
    await stopping
    assert (batches["closed"], batches["items"]) == ({"urgent": 1, "drain": 2}, 0)


async def test_what_was_learned_of_a_kind_is_kept_while_it_is_used() -> None:
    """Of some hundred kinds of calls, those that were made last; others begin anew with what is allowed."""
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=64))
        async def joined(items: list[int], kind: int = 0) -> list[int]:
            return items

        await values(await engine.map(joined, [1]))
        gathering = engine.manager._gatherings["custom:joined"]

        def call(kind: str, size: int, seconds: float) -> None:
            claims: list[Any] = [None] * size
            gathering.took(Call(claims, kind, size, size, "full", halvings=size == 32), seconds)

        for size, seconds in [(64, 1.0)] * 2 + [(32, 0.1)] * 2:
            call("mine", size, seconds)
        assert _learned(gathering) == [32]
        for group in "ab":
            for other in range(200):
                call(f"{group} {other}", 64, 1.0)
            call("mine", 32, 0.1)
        assert _learned(gathering) == [32]
        for other in range(300):
            call(f"c {other}", 64, 1.0)
        assert _learned(gathering) == []


def _learned(gathering: Gathering) -> list[float]:
    return gathering.stats()["learned"]  # type: ignore[no-any-return]


async def burn_async(items: list[float]) -> list[float]:
    await asyncio.sleep(0)
    return batched.burn(items)


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_items_share_the_time_of_their_call(lane: Any) -> None:
    """Each attempt has an equal part of the CPU time, so that the ledger's sum is what the call has used."""
    async with engine_on() as engine:
        batch = Batch(max_size=4, max_wait=LIMIT_S)
        burn: Any = burn_async if lane == "async" else batched.burn
        function = engine.task(name="burn", lane=lane, batch=batch)(burn)
        used = await values(await engine.map(function, [0.2] * 4))
        assert len(set(used)) == 1
        (row,) = (await engine.ledger("type")).rows
        assert row.cpu_time.known == 4
        assert 0.99 * used[0] < row.cpu_time.total < 2 * used[0]
        assert row.cpu_time.mean == pytest.approx(row.cpu_time.max)


async def raises_async(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[int]:
    return batched.last_waits(items, how, folder, contexts)


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_halves_are_calls(tmp_path: Path, lane: Any) -> None:
    """Each counts for which the handler was called. Its tasks count once; why it began, and how full it was, is of the
    call as it was formed."""
    folder = tmp_path / "calls"
    folder.mkdir()
    (tmp_path / "go").touch()
    async with engine_on() as engine:
        raises: Any = raises_async if lane == "async" else batched.last_waits
        batch = Batch(max_size=4, max_wait=LIMIT_S)
        function = engine.task(name="raises", lane=lane, retry=0, batch=batch)(raises)
        handles = await engine.map(function, range(4), how="bad", folder=str(folder))
        assert await values(handles[1:]) == [1, 2, 3]
        batches = told(engine, "custom:raises")
    assert batched.noted(folder) == ["0.1", "01.1", "0123.1", "1.1", "23.1"]
    assert (batches["calls"], batches["items"]) == (5, 4)
    assert (batches["fill"], batches["closed"]) == (1.0, {"full": 1})
