"""Tasks that need more than a worker has: what fits is handed over at once, wherever it stands among them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import msgspec
import pytest
from tests.conformance.kit import AGEING_MS, OTHER, WORK, Factory, Port, new, opened, submit

from mainspring.store.base import COMPLETED, RELEASED, RESERVES, RETRY, Accepted, Claimed, NewTask, Spec
from mainspring.store.sql import weighing
from mainspring.store.sql.queueing import Submission
from mainspring.tasks import Resources
from mainspring.tasks.needs import NOTHING, Passes

pytestmark = pytest.mark.anyio
BIG = msgspec.msgpack.encode(Spec(resources=Resources(cpu=0, custom={"seat": 5})))
FEW, MANY = 500, 10_000


def small(store: Any, at: int, **options: Any) -> NewTask:
    """A task that fits. Those with a larger `at` go first; each has a rank of its own."""
    return new(priority=0, deadline_ms=store.now_ms() + AGEING_MS - at, **options)


def big(store: Any, at: int) -> NewTask:
    return small(store, at, spec=BIG, flags=RESERVES)


async def passing(store: Any, *types: str) -> Port:
    """A worker with two seats that has met a task which needs five."""
    port = Port(store, 0, *types)
    port.lanes["async"].passing.passes = Passes({"seat": 2.0}, {WORK: {}})
    await port.serve()
    return port


async def crowd(store: Any, port: Port, n: int = FEW) -> None:
    """Many that don't fit have been looked at; every other rank is theirs."""
    await submit(store, *(big(store, 2 * at) for at in range(1, n + 1)))
    assert await looked(port, n) == []


async def looked(port: Port, n: int) -> list[Claimed]:
    """Have room until so many are looked at; return what is handed over meanwhile."""
    claims = await port.room(n)
    before = len(port.order)
    for _ in range(n // 1_000):
        await port.settle()
    port.lanes["async"].limit -= n - len(claims)
    return claims + port.order[before:]


Way = Callable[[Factory, Any, Any], Awaitable[bytes]]
MIDST = FEW + 1


async def submitted(factory: Factory, store: Any, other: Any) -> bytes:
    return (await submit(store, small(store, MIDST)))[0]


async def submitted_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    return (await submit(other, small(other, MIDST)))[0]


async def submitted_behind_others(factory: Factory, store: Any, other: Any) -> bytes:
    """The first one of the call does not fit."""
    sent = await submit(store, big(store, 2 * FEW + 1), small(store, MIDST), big(store, 1))
    return sent[1]


async def submitted_behind_others_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    sent = await submit(other, big(other, 2 * FEW + 1), small(other, MIDST), big(other, 1))
    return sent[1]


async def submitted_in_many_ranks_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    sent = await submit(other, *(big(other, 2 * at + 1) for at in range(100)), small(other, MIDST))
    return sent[-1]


async def released(factory: Factory, store: Any, other: Any) -> bytes:
    """Its parent ends."""
    (parent,) = await submit(other, new(type=OTHER))
    (child,) = await submit(store, small(store, MIDST, after=[parent]))
    worker = Port(other, 0, OTHER)
    await worker.serve()
    await worker.finish(await worker.take(), COMPLETED)
    return child


async def raised(factory: Factory, store: Any, other: Any) -> bytes:
    """One that would be urgent comes to wait for it."""
    (parent,) = await submit(store, small(store, -1))
    await submit(store, small(store, MIDST, after=[parent]))
    return parent


async def held_elsewhere(other: Any) -> tuple[Port, Any]:
    worker = await passing(other)
    await submit(other, small(other, MIDST))
    return worker, await worker.take()


async def given_back_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    worker, claim = await held_elsewhere(other)
    await worker.finish(claim, RELEASED)
    return bytes(claim.id)


async def given_back_begun_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    worker, claim = await held_elsewhere(other)
    await worker.finish(claim, RELEASED, started_ms=other.now_ms(), is_counted=True)
    return bytes(claim.id)


async def tried_again_elsewhere(factory: Factory, store: Any, other: Any) -> bytes:
    worker, claim = await held_elsewhere(other)
    await worker.finish(claim, RETRY, started_ms=other.now_ms(), delay_ms=0)
    return bytes(claim.id)


async def rescued(factory: Factory, store: Any, other: Any) -> bytes:
    dying = factory.make()
    await dying.open()
    _, claim = await held_elsewhere(dying)
    await factory.die(dying)
    await factory.rescue(store)
    return bytes(claim.id)


WAYS: list[Way] = [
    submitted,
    submitted_elsewhere,
    submitted_behind_others,
    submitted_behind_others_elsewhere,
    submitted_in_many_ranks_elsewhere,
    released,
    raised,
    given_back_elsewhere,
    given_back_begun_elsewhere,
    tried_again_elsewhere,
    rescued,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_what_fits_goes_first_at_once(way: Way, factory: Factory, store: Any) -> None:
    """However it became ready: hundreds that do not fit stand before and behind it, and one of lower rank fits."""
    port = await passing(store)
    async with opened(factory.make()) as other:
        await factory.hold_upkeep(store, hears=True)
        await crowd(store, port)
        urgent = await way(factory, store, other)
        (late,) = await submit(store, small(store, 0))
        await port.settle()
        assert [claim.id for claim in await port.room(2)] == [urgent, late]


async def test_what_stands_before_costs_nothing(factory: Factory, store: Any) -> None:
    """With 10,000 of them looked at, each new task costs a look at that one."""
    port = await passing(store)
    await crowd(store, port, MANY)
    with mock.patch.object(Passes, "short", autospec=True, side_effect=Passes.short) as looks:
        for n in range(100):
            (id,) = await submit(store, small(store, 100 * n + 1))
            assert [claim.id for claim in await port.room(1)] == [id]
            await submit(store, big(store, 100 * n + 3))
    assert looks.call_count < 500


async def test_looks_at_the_same_ones_take_a_part_of_the_time(factory: Factory, store: Any) -> None:
    """Where all have one rank, what comes among them is found at once, and then, while more and more come, after a time
    in proportion to what is looked at again: here a tenth of a second."""
    await store._caretaker.stop()  # it would have it look as well
    port = await passing(store)
    at = AGEING_MS // 2
    await submit(store, *(small(store, at) for _ in range(100)), *(big(store, at) for _ in range(2_500)))
    first = await looked(port, 2_600)
    assert len(first) == 100
    with mock.patch.object(Passes, "short", autospec=True, side_effect=Passes.short) as looks:
        await port.finish(first[0], RELEASED)
        assert [claim.id for claim in await looked(port, 2_600)] == [first[0].id]
        for claim in first[1:50]:
            await port.finish(claim, RELEASED)
        assert await port.room(49) == []
        assert looks.call_count < 2_600
        factory.clock.advance(0.11)
        before = len(port.order)
        await port.until(lambda: len(port.order) == before + 49)  # a timer of the store's own has it look
    assert looks.call_count < 2 * 2_600


@pytest.mark.parametrize(("n", "rest_s"), [(12, 0.0), (60, 0.01)])
async def test_what_comes_during_a_look_of_several_transactions(
    factory: Factory, store: Any, monkeypatch: pytest.MonkeyPatch, n: int, rest_s: float
) -> None:
    """An urgent one that comes while those of a rank are looked at once more begins after that, or after the time that
    such a look rests."""
    await store._caretaker.stop()  # it would have it look as well
    port = await passing(store)
    at = AGEING_MS // 2
    await submit(store, small(store, at), *(big(store, at) for _ in range(n)))
    (first,) = await looked(port, n + 1)
    monkeypatch.setattr(weighing, "_MOST", 4)
    found: asyncio.Future[list[Accepted]] = asyncio.get_running_loop().create_future()
    urgent, real = [Submission([small(store, at + 1)], found)], Passes.short

    def short(*needs: Any) -> Any:
        if urgent:
            store._writer.put(urgent.pop())  # from its own thread: it is there before the next transaction begins
        return real(*needs)

    with mock.patch.object(Passes, "short", short):
        await port.finish(first, RELEASED)
        await port.room(2)
        for _ in range(n):
            await port.settle()
        factory.clock.advance(rest_s)
        await port.settle()
    assert [claim.id for claim in port.order[1:]] == [first.id, (await found)[0].id]


@pytest.mark.parametrize("n", [2_500, 4_500])
async def test_more_that_fit_than_are_remembered(factory: Factory, store: Any, n: int) -> None:
    """All are handed over, in their order, as many at a time as there is room for; also where a look at all of them
    takes several transactions."""
    port = await passing(store)
    await crowd(store, port, 2_000)
    sent = await submit(store, *(small(store, 2 * at + 1) for at in range(n)))
    order = [claim.id for claim in await port.room(1)]
    for _ in range(n // 500):
        order += [claim.id for claim in await port.room(500)]
    assert order == sent[::-1]


async def test_a_worker_that_passes_nothing_over_any_more(
    factory: Factory, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so while its store claims: that claim ends as it began, the next one takes all."""
    port = await passing(store)
    (fits,) = await submit(store, small(store, 1))
    (large,) = await submit(store, big(store, 2))
    real = weighing.heads

    def heads(tx: Any, lane: Any, *looks: Any) -> Any:
        lane.passing.passes = NOTHING
        return real(tx, lane, *looks)

    with mock.patch.object(weighing, "heads", heads):
        assert [claim.id for claim in await port.room(2)] == [fits]
    store.look_anew()
    await port.settle()
    assert [claim.id for claim in port.order] == [fits, large]
    assert not caplog.records
