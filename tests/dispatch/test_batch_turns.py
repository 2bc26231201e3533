"""When calls of a batch handler begin, and how large they become, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median_low
from typing import Any

import pytest

from mainspring import Batch, Engine, EngineConfig, TaskManagerConfig
from mainspring.tasks.lifecycle import FAILED


@pytest.fixture
def engine(mainspring_engine_for: Callable[[Engine], Any]) -> Any:
    return mainspring_engine_for(Engine(":memory:", EngineConfig(manager=TaskManagerConfig(async_slots=2))))


@pytest.fixture
def narrow(mainspring_engine_for: Callable[[Engine], Any]) -> Any:
    """One that may hold few tasks ahead."""
    config = EngineConfig(manager=TaskManagerConfig(async_slots=2, prefetch_max=32))
    return mainspring_engine_for(Engine(":memory:", config))


async def test_a_busy_lane_looks_for_calls_too(engine: Any) -> None:
    """What goes first begins with one of the next slots that fall free, in a lane that is never idle."""
    done: list[str] = []

    @engine.task
    async def single(n: int) -> None:
        await asyncio.sleep(0.01)
        done.append("single")

    @engine.task(batch=Batch())
    async def joined(items: list[str]) -> list[str]:
        done.extend(items)
        return items

    await engine.map(single, range(1000))
    await asyncio.sleep(0.1)
    low = await engine.submit(joined, "low", priority="LOW")
    await asyncio.sleep(1)  # long enough to find that it does not begin soon
    before = len(done)
    high = await engine.submit(joined, "high", priority="CRITICAL")
    await high.result()
    assert done.index("high") - before < 10
    await low.result()


@pytest.mark.parametrize("max_wait", [0.0, 1.0])
async def test_calls_fill_up_where_kinds_alternate(engine: Any, max_wait: float) -> None:
    """Those that join stand far apart in the queue, further than the slots by themselves would claim."""

    @engine.task(batch=Batch(max_size=8, max_wait=max_wait, shape=lambda n: n % 64))
    async def joined(items: list[int]) -> list[int]:
        await asyncio.sleep(0.1)
        return items

    assert await engine.gather(await engine.map(joined, range(512))) == list(range(512))
    batches = (await engine.manager.stats())["batches"]["custom:joined"]
    assert batches["fill"] > 0.9


async def test_what_a_lane_may_hold_is_bounded(narrow: Any) -> None:
    """Where it holds as much as it may of kinds that wait for others, the first of them begin: nobody else can come."""
    done: list[int] = []

    @narrow.task(batch=Batch(max_size=8, max_wait="1h", shape=lambda n: n))
    async def joined(items: list[int]) -> list[int]:
        done.extend(items)
        return items

    handles = await narrow.map(joined, range(100))
    await asyncio.sleep(60)
    assert done == list(range(100 - 31))
    await narrow.gather(handles)
    closed = (await narrow.manager.stats())["batches"]["custom:joined"]["closed"]
    assert closed == {"room": 69, "wait": 31}


@pytest.mark.parametrize("waiting", [23, 24, 100])
async def test_an_urgent_task_is_not_kept_out_by_batches_that_wait(engine: Any, waiting: int) -> None:
    """However many wait for others, there is room for one more, and it begins at once."""

    @engine.task(batch=Batch(max_size=8, max_wait="1h", shape=lambda n: n))
    async def joined(items: list[int]) -> list[int]:
        return items

    await engine.map(joined, range(waiting))
    await asyncio.sleep(1)
    urgent = await engine.submit(joined, -1, priority="HIGH")
    assert await urgent.result(timeout=60) == -1
    hurried = await engine.submit(joined, -2, deadline=60.0)
    assert await hurried.result(timeout=31) == -2


async def test_a_far_deadline_prolongs_no_wait(engine: Any) -> None:
    """It is waited for as long as was said, or less."""

    @engine.task(batch=Batch(max_size=8, max_wait="1s"))
    async def joined(items: list[int]) -> list[int]:
        return items

    far = await engine.submit(joined, 1, deadline=3600.0)
    assert await far.result(timeout=1.5) == 1
    near = await engine.submit(joined, 2, deadline=1.0)
    assert await near.result(timeout=0.75) == 2


async def wait_in_batches(engine: Any) -> tuple[Any, Any]:
    """Return two tasks that wait for others for an hour, and the handler that they are of."""

    @engine.task(batch=Batch(max_size=8, max_wait="1h"), cache="1d")
    async def joined(items: list[int]) -> list[int]:
        return items

    await engine.map(joined, [100])
    calm = await engine.submit(joined, 1)
    await asyncio.sleep(61)  # long enough for it to stand before urgent ones in the one order
    assert engine.manager.forming(calm.id.bytes).size == 2
    return joined, calm


@pytest.mark.parametrize("options", [{"priority": "HIGH"}, {"deadline": 30.0}], ids=["high", "near deadline"])
async def test_a_follower_that_is_urgent_cuts_the_wait_of_its_leader(engine: Any, options: dict[str, Any]) -> None:
    """Although the leader waits in a batch by then."""
    joined, calm = await wait_in_batches(engine)
    follower = await engine.submit(joined, 1, priority="LOW")
    await asyncio.sleep(60)
    assert (await follower.info()).reason == "same_work"
    assert (await calm.info()).reason == "batch"
    urgent = await engine.submit(joined, 1, **options)
    assert await urgent.result(timeout=10) == 1
    assert [await handle.result(timeout=0) for handle in (calm, follower)] == [1, 1]


async def test_a_child_that_is_urgent_cuts_the_wait_of_its_parent(engine: Any) -> None:
    """Also of what its parent waits for in turn."""
    _, calm = await wait_in_batches(engine)

    @engine.task
    async def child(value: int) -> int:
        return value + 1

    between = await engine.submit(child, calm)
    urgent = await engine.submit(child, between, priority="HIGH")
    assert await urgent.result(timeout=10) == 3
    closed = (await engine.manager.stats())["batches"]["custom:joined"]["closed"]
    assert closed == {"urgent": 1}


async def test_what_becomes_urgent_before_it_is_claimed_waits_for_nobody(engine: Any) -> None:
    """The one that leads stands in the queue when an urgent one follows it, and is claimed later."""

    @engine.task(batch=Batch(max_size=8, max_wait="1h"), cache="1d")
    async def joined(items: list[int]) -> list[int]:
        return items

    await engine.manager.pause(type="custom:joined")
    await engine.submit(joined, 1)
    urgent = await engine.submit(joined, 1, priority="HIGH")
    await asyncio.sleep(1)
    await engine.manager.resume(type="custom:joined")
    assert await urgent.result(timeout=10) == 1


async def test_calls_stay_full_behind_long_ones(engine: Any) -> None:
    """What waits for a slot for long is not given back in between, to come again in pieces."""
    sizes: list[int] = []

    @engine.task(batch=Batch(max_size=8, shape=lambda n: n % 16))
    async def joined(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(60)
        return items

    await engine.gather(await engine.map(joined, range(128)))
    assert sorted(sizes)[4:] == [8] * (len(sizes) - 4)


@pytest.mark.parametrize(("unit_s", "learned"), [(lambda n: 0.1 + n * n / 500, 8), (lambda n: 1.0, 64)])
async def test_the_size_of_calls_is_learned(engine: Any, unit_s: Callable[[int], float], learned: int) -> None:
    """Where large calls are slower than small ones, smaller ones are made; where they are not they stay large."""
    sizes: list[int] = []

    @engine.task(batch=Batch(max_size=64))
    async def joined(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(unit_s(len(items)))
        return items

    assert await engine.gather(await engine.map(joined, range(8000))) == list(range(8000))
    assert max(sizes) == 64
    assert sorted(sizes[-200:])[100] == learned
    batches = (await engine.manager.stats())["batches"]["custom:joined"]
    assert batches["learned"] == ([] if learned == 64 else [learned])


FILLED = [
    pytest.param(Batch(max_size=64, max_cost=16_384, cost=lambda n: 60), 64, 4, id="by count, where costs are counted"),
    pytest.param(Batch(max_size=10_000, max_cost=64, cost=lambda n: 1), 64, 4, id="by cost"),
    pytest.param(Batch(max_size=10_000, max_cost=1.0, cost=lambda n: 1 / 64), 64, 4, id="by cost, in fractions"),
    pytest.param(Batch(max_size=64, max_cost=16_384, cost=lambda n: 3_000), 5, 1, id="by cost, dear"),
]


@pytest.mark.parametrize(("policy", "most", "best"), FILLED)
async def test_whatever_fills_calls_is_learned(engine: Any, policy: Batch, most: int, best: int) -> None:
    """Calls get as small as pays, whether count or cost fills them, and large again when that pays."""
    sizes: list[int] = []
    pays = best

    @engine.task(batch=policy)
    async def joined(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(0.1 * max(len(items) / pays, pays / len(items)) * len(items))
        return items

    await engine.gather(await engine.map(joined, range(600)))
    assert max(sizes) == most
    assert median_low(sizes[-20:]) == best
    pays = most
    await engine.gather(await engine.map(joined, range(2_000 + 50 * most)))
    assert median_low(sizes[-20:]) == most


@pytest.mark.parametrize("bad", [20, 2])
async def test_the_size_of_calls_is_learned_where_items_fail(engine: Any, bad: int) -> None:
    """A call that has an outcome for each of its items speaks for its size, whatever some of these outcomes are."""
    sizes: list[int] = []

    @engine.task(batch=Batch(max_size=64), retry=0)
    async def joined(items: list[int]) -> list[int | Exception]:
        sizes.append(len(items))
        await asyncio.sleep(len(items) ** 2 / 500)
        return [ValueError("bad") if n % bad == 0 else n for n in items]

    handles = await engine.map(joined, range(1_500))
    ended = [handle.ended.status async for handle in engine.as_completed(handles)]
    assert ended.count(FAILED) == 1_500 // bad
    assert median_low(sizes[-20:]) == 1


@pytest.mark.parametrize("bad", [20, 2])
async def test_calls_grow_again_after_memory_ran_out_where_items_fail(engine: Any, bad: int) -> None:
    """Also where one of two items fails."""
    sizes: list[int] = []

    @engine.task(batch=Batch(max_size=64), retry=0)
    async def joined(items: list[int]) -> list[int | Exception]:
        sizes.append(len(items))
        if len(sizes) < 7:
            raise MemoryError
        await asyncio.sleep(1)
        return [ValueError("bad") if n % bad == 0 else n for n in items]

    handles = await engine.map(joined, range(1_500))
    async for _ in engine.as_completed(handles):
        pass
    assert max(sizes[-10:]) == 64
