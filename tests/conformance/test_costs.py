"""Limits of groups by cost: what tasks are to cost is reserved before they begin, and settled when they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import FACTORIES, OTHER, WORK, Factory, Note, Port, error, new, opened, submit

from mainspring.errors import InvalidInput
from mainspring.store.base import COMPLETED, COSTS, CRASHED, FAILED, RELEASED, RETRY, Claimed, NewTask, Spec
from mainspring.tasks import CostRate, Rate, Usage

pytestmark = pytest.mark.anyio

MINUTE = 60_000
RATE = CostRate(6_000, MINUTE)  # a hundred each second


def costing(cost: float | None, *, group: str = "a", **options: Any) -> NewTask:
    """A task that is to cost so much; None: it does not say."""
    if cost is None:
        return new(group=group, **options)
    return new(group=group, flags=COSTS, spec=msgspec.msgpack.encode(Spec(cost=cost)), **options)


def ids(claims: Sequence[Claimed]) -> list[bytes]:
    return [claim.id for claim in claims]


async def left(store: Any) -> float:
    (limit,) = await store.limits()
    return float(round(limit.cost_left, 3))


async def end(port: Port, claim: Claimed, cost: float | None, outcome: int = COMPLETED, **fields: Any) -> None:
    """End an attempt that says what it has cost."""
    fields.setdefault("started_ms", port.store.now_ms())
    await port.finish(claim, outcome, usage=Usage(cost=cost), **fields)


async def look(store: Any, port: Port) -> None:
    store.demand()
    await port.settle()


@pytest.mark.parametrize("is_fresh", [True, False], ids=["handed over", "from the queue"])
async def test_no_more_begins_than_there_is(factory: Factory, store: Any, port: Port, is_fresh: bool) -> None:
    """The estimates of what begins are taken from what there is; the next begins at the moment when its own is there,
    and others go by."""
    await store.limit("a", cost_rate=RATE)
    if is_fresh:
        port.lanes["async"].limit = 100
    sent = await submit(store, *(costing(cost) for cost in (4_000, 1_500, 1_200, 100)), new())
    if is_fresh:
        await port.settle()
    else:
        await port.room(100)
    assert ids(port.order) == [sent[0], sent[1], sent[4]]
    assert await left(store) == 500
    assert store._timer_ms == store.now_ms() + 7_000  # it wakes up by itself, and not before
    (limit,) = await store.limits()
    assert (limit.cost_rate, limit.cost_next, limit.next_in) == ("6000/m", 1_200, 7)
    assert (await store.standing(sent[3])).reason == "limit"
    for passed, begun in ((6.9, 3), (0.1, 4), (0.9, 4), (0.2, 5)):
        factory.clock.advance(passed)
        await look(store, port)
        assert len(port.order) == begun
    factory.clock.advance(3_600)
    assert await left(store) == 6_000


async def test_who_does_not_say_costs_one(store: Any, port: Port) -> None:
    """A task without an estimate counts as one, and with its real cost when it ends."""
    await store.limit("a", cost_rate=CostRate(2, MINUTE))
    sent = await submit(store, *(costing(None) for _ in range(3)))
    assert ids(await port.room(5)) == sent[:2]
    await end(port, port.order[0], 7)
    assert await left(store) == -6


@pytest.mark.parametrize("outcome", [COMPLETED, FAILED, RETRY])
@pytest.mark.parametrize("is_plain", [True, False])
async def test_the_end_settles(factory: Factory, store: Any, port: Port, outcome: int, is_plain: bool) -> None:
    """Less than the estimate gives the difference back in the same breath; more is taken, also below nothing, and then
    nothing begins until that is paid."""
    fields: dict[str, Any] = {} if outcome == COMPLETED else {"error": error(), "delay_ms": 10**9}
    if outcome == COMPLETED and not is_plain:
        fields["effects"] = (Note("x"),)
    await store.limit("a", cost_rate=RATE)
    sent = await submit(store, *(costing(cost) for cost in (6_000, 2_000, 0)))
    assert ids(await port.room(3)) == sent[:1]
    await end(port, port.order[0], 3_500, outcome, **fields)
    assert ids(port.order[1:]) == sent[1:]
    assert await left(store) == 500
    await end(port, port.order[1], 4_000, outcome, **fields)
    assert await left(store) == -1_500
    (last,) = await submit(store, costing(0))
    await port.room(2)
    assert (await store.standing(last)).reason == "limit"
    factory.clock.advance(14.9)
    await look(store, port)
    assert last not in ids(port.order)
    factory.clock.advance(0.2)
    await look(store, port)
    assert last in ids(port.order)


@pytest.mark.parametrize("how", ["released", "withdrawn", "cancelled", "closed"])
async def test_what_never_began_is_given_back(factory: Factory, store: Any, port: Port, how: str) -> None:
    """A claim that is handed back, cancelled or dropped before its start costs nothing."""
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(4_000))
    await port.room(1)
    claim = port.order[0]
    assert await left(store) == 2_000
    if how == "closed":
        async with opened(factory.make()) as other:
            await store.close()
            assert await left(other) == 6_000
        return
    await store.pause()  # or it is claimed again
    if how == "withdrawn":
        assert await store.withdraw(claim)
    elif how == "cancelled":
        assert await store.cancel(claim.id) == "held"
        await port.finish(claim, RELEASED, is_counted=False)
    else:
        await port.finish(claim, RELEASED, is_counted=False)
    assert await left(store) == 6_000


async def test_what_has_begun_keeps_its_estimate(factory: Factory, store: Any, port: Port) -> None:
    """An attempt that says nothing keeps what was reserved, also one that is handed back in the middle; the next one
    reserves again."""
    await store.limit("a", cost_rate=RATE)
    (id,) = await submit(store, costing(2_000, max_retries=5))
    await port.room(1)
    for outcome, rest in ((RETRY, 2_000), (CRASHED, 0)):
        await port.finish(port.order[-1], outcome, error=error(), started_ms=store.now_ms())
        await port.room(1)
        await look(store, port)
        assert await left(store) == rest
    assert ids(port.order) == [id] * 3
    await end(port, port.order[-1], 500, RELEASED)
    assert await left(store) == 1_500


async def test_the_dead_keep_what_they_held(factory: Factory) -> None:
    """What a dead process held stays taken: nobody knows what had begun there and come back before it died."""
    async with opened(factory.make()) as two:
        await two.limit("a", cost_rate=RATE)
        one = factory.make()
        await one.open()
        dying = Port(one, 0)
        await dying.serve()
        await submit(two, costing(1_000), costing(2_000))
        claims = await dying.room(2)
        one.started(claims[0], one.now_ms())
        one.mark(0, claims[0].seq, claims[0].attempt)
        await dying.settle()
        assert await left(two) == 3_000
        await factory.die(one)
        await factory.rescue(two)
        assert await left(two) == 3_000
        assert factory.contents().violations == []


async def test_more_than_there_can_be_is_refused(store: Any, port: Port) -> None:
    """Where the limit is known, with its figures; nothing of the call is stored, other calls are."""
    await store.limit("a", cost_rate=RATE)
    with pytest.raises(InvalidInput, match=r"cost = 6001 is more than group 'a' may use at once \(cost_rate 6000/m\)"):
        await submit(store, costing(1), costing(6_001))
    for task in (costing(6_000), costing(9_000, group="b")):
        assert len(await submit(store, task)) == 1


async def test_more_than_there_can_be_runs_when_all_is_there(factory: Factory, store: Any, port: Port) -> None:
    """Where the limit came later: it begins with a full bucket, in debt, and is never stuck."""
    sent = await submit(store, costing(9_000), costing(1))
    await store.limit("a", cost_rate=RATE)
    assert ids(await port.room(3)) == sent[:1]
    assert await left(store) == -3_000
    factory.clock.advance(30.02)
    await look(store, port)
    assert ids(port.order) == sent


async def test_a_task_that_is_made_anew_is_to_cost_the_same(store: Any, port: Port) -> None:
    """It takes over what the failed one was to cost."""
    await store.limit("a", cost_rate=RATE)
    (id,) = await submit(store, costing(2_000))
    await port.finish(await port.take(), FAILED, started_ms=store.now_ms())
    await store.retry(id)
    await port.take()
    assert await left(store) == 2_000


async def test_repeated_submits_are_recognised_all_the_same(store: Any, port: Port) -> None:
    """A task that is there already is not refused, whatever has become of the limit since."""
    task = costing(5_000, key="k")
    await submit(store, task)
    await store.limit("a", cost_rate=CostRate(100, MINUTE))
    (again,) = await store.submit([costing(5_000, key="k")])
    assert (again.id, again.existed) == (task.id, True)


async def test_small_ones_keep_no_large_one_waiting(factory: Factory, store: Any) -> None:
    """While what a large one needs comes in nobody of its group goes by, in whatever lane; then lanes take turns."""
    port = Port(store, 200, two=(OTHER,), one=(WORK,))  # the small ones look first
    await port.serve()
    await store.limit("a", cost_rate=RATE)
    await submit(store, *(costing(0, type=OTHER) for _ in range(60)), *(costing(2_000, type=OTHER) for _ in range(3)))
    await port.settle()
    (large,) = await submit(store, costing(5_000))
    ended = 0
    while large not in port.held:
        assert ended < 54
        await submit(store, costing(100, type=OTHER))
        factory.clock.advance(1)
        port.end(port.order[ended], lane="two", started_ms=store.now_ms())  # so that all are looked into again
        ended += 1
        await look(store, port)
    assert len(port.order) <= 66
    factory.clock.advance(60)
    await look(store, port)
    assert len(port.order) == 64 + ended  # then all that waited behind it


@pytest.mark.parametrize("how", ["cancelled", "overtaken", "elsewhere"])
async def test_what_is_saved_up_for_nobody_is_free(factory: Factory, store: Any, port: Port, how: str) -> None:
    """When the one that is waited for is cancelled, those behind it begin at once; one that goes before it does too."""
    await store.limit("a", cost_rate=RATE)
    sent = await submit(store, *(costing(cost) for cost in (5_000, 3_000, 400)))
    assert ids(await port.room(5)) == sent[:1]
    if how == "overtaken":
        sent += await submit(store, costing(300, priority=3), costing(700, priority=3, type=OTHER), costing(1))
        await port.settle()
        assert ids(port.order[1:]) == sent[3:5]
        assert await left(store) == 0
        return
    if how == "elsewhere":
        async with opened(factory.make()) as other:
            assert await other.cancel(sent[1]) == "cancelled"
            await port.until(lambda: len(port.order) > 1)
    else:
        assert await store.cancel(sent[1]) == "cancelled"
    await port.settle()
    assert ids(port.order[1:]) == sent[2:]


async def test_limits_hold_together(factory: Factory, store: Any, port: Port) -> None:
    """A rate, a cost rate, a number at once, and those of one namespace beside those of all: each holds."""
    await store.limit("a", cost_rate=RATE, rate=Rate(3, MINUTE), concurrency=2)
    await store.limit("a", namespace="x", cost_rate=CostRate(1_000, MINUTE))
    sent = await submit(store, *(costing(800, namespace="x") for _ in range(2)), *(costing(800) for _ in range(3)))
    assert ids(await port.room(9)) == [sent[0], sent[2]]
    assert [round(one.cost_left) for one in await store.limits()] == [4_400, 200]
    await end(port, port.order[0], 900)
    assert ids(port.order[2:]) == [sent[3]]
    assert [round(one.cost_left) for one in await store.limits()] == [3_500, 100]
    await end(port, port.order[1], 800)
    assert len(port.order) == 3
    factory.clock.advance(21)
    await look(store, port)
    assert ids(port.order[3:]) == [sent[4]]


async def test_processes_share_what_there_is(factory: Factory) -> None:
    """What one has taken counts for the other; what it gives back the other takes at once, and setting the same limit
    again gives nothing back."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        ports = [Port(one, 0), Port(two, 0)]
        for port in ports:
            await port.serve()
        await one.limit("a", cost_rate=RATE)
        sent = await submit(two, *(costing(2_500) for _ in range(4)))
        assert ids(await ports[0].room(1)) == sent[:1]
        assert ids(await ports[1].room(5)) == sent[1:2]
        await two.limit("a", cost_rate=RATE)
        assert await left(two) == 1_000
        await end(ports[0], ports[0].order[0], 500)
        await ports[1].until(lambda: len(ports[1].order) == 2)
        assert ids(ports[1].order[1:]) == sent[2:3]
        assert await left(one) == 500


async def test_a_jump_of_the_clock_parks_nothing(factory: Factory) -> None:
    """What was written while the wall clock was a day ahead holds nobody up for longer than it takes to be paid."""
    factory.clock.jump(86_400)
    async with opened(factory.make()) as store:
        await store.limit("a", cost_rate=RATE)
        port = Port(store, 0)
        await port.serve()
        await submit(store, costing(6_000), costing(3_000))
        await end(port, await port.take(), 9_000)
    factory.clock.jump(-86_400)
    async with opened(factory.make()) as store:
        port = Port(store, 0)
        await port.serve()
        assert await port.room(1) == []
        factory.clock.advance(59)
        await look(store, port)
        assert port.order == []
        factory.clock.advance(2)
        await look(store, port)
        assert len(port.order) == 1


async def test_a_clock_that_is_ahead_parks_nothing(factory: Factory) -> None:
    """What a process has written whose clock is an hour ahead is paid in the time of those who look at it."""
    async with opened(factory.make()) as behind:
        await behind.limit("a", cost_rate=RATE)
        port = Port(behind, 0)
        await port.serve()
        factory.clock.jump(3_600)
        async with opened(factory.make()) as ahead:
            other = Port(ahead, 0)
            await other.serve()
            sent = await submit(behind, costing(6_000), costing(3_000))
            await end(other, await other.take(), 6_000)
            assert await port.room(1) == []
            factory.clock.advance(31)
            await look(behind, port)
            assert ids(port.order) == sent[1:]


async def test_a_limit_that_came_later_settles_nothing(store: Any, port: Port) -> None:
    """What was claimed before has reserved nothing of it: its end gives nothing back and takes nothing, whatever it
    says. What was claimed since is settled, and none of it is remembered for longer."""
    await submit(store, *(costing(3_000) for _ in range(3)))
    early = await port.room(3)
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(6_000))
    (late,) = await port.room(1)
    assert await left(store) == 0
    for claim, cost in zip(early, (0, 5_000), strict=False):
        await end(port, claim, cost)
        assert await left(store) == 0
    assert await store.withdraw(early[2])
    assert await left(store) == 0
    await end(port, late, 1_000)
    assert await left(store) == 5_000
    assert store._memory.limits.reserved == {}


async def test_what_comes_back_never_makes_more_than_all(factory: Factory, store: Any, port: Port) -> None:
    """What is given back and what begins for it in one transaction are counted one after the other."""
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(2_000))
    await port.room(1)
    factory.clock.advance(15)
    await submit(store, costing(50))
    port.end(port.order[0], started_ms=store.now_ms(), usage=Usage(cost=0))
    await port.settle()
    assert len(port.order) == 2
    assert await left(store) == 5_950


class World:
    """Two processes that share what one group may cost, and a bucket beside them that is told what they do."""

    def __init__(self, stores: Sequence[Any], factory: Factory) -> None:
        self.ports = [Port(store, 0) for store in stores]
        self.costs: dict[bytes, float] = {}
        self.left = float(RATE.n)
        self._factory = factory
        self._seen = [0, 0]

    async def act(self, what: str, port: Port, detail: Any) -> None:
        before = self.left
        if what == "submit":
            tasks = [costing(cost, priority=priority, type=kind) for cost, priority, kind in detail]
            self.costs |= {task.id: cost for task, (cost, *_) in zip(tasks, detail, strict=True)}
            await submit(port.store, *tasks)
        elif what == "room":
            await port.room(detail)
        elif what == "pass":
            self._factory.clock.advance(detail)
            self.left = min(RATE.n, self.left + detail * 100)
        elif port.held:
            n, outcome, cost = detail
            claim = list(port.held.values())[n % len(port.held)]
            started = None if outcome == RELEASED else port.store.now_ms()
            real = 0 if outcome == RELEASED else self.costs[claim.id] if cost is None else cost
            self.left = min(RATE.n, self.left + self.costs[claim.id] - real)
            fields = {"error": error()} if outcome == RETRY else {}
            port.end(claim, outcome, is_counted=False, started_ms=started, usage=Usage(cost=cost), **fields)  # type: ignore[arg-type]
        for one in self.ports * 2:  # what one lets go of the other hears of
            await look(one.store, one)
        for n, one in enumerate(self.ports):
            for claim in one.order[self._seen[n] :]:
                assert max(before, self.left) >= 0
                self.left -= self.costs[claim.id]
            began = len(one.order) > self._seen[n]
            self._seen[n] = len(one.order)
            assert not began or self.left > -1e-6

    async def check(self) -> None:
        (limit,) = await self.ports[0].store.limits()
        assert limit.cost_left is not None
        assert abs(limit.cost_left - self.left) < 1
        if await self._waiting() and any(port.lanes["async"].room() > 0 for port in self.ports):
            assert limit.cost_next is not None

    async def run_out(self) -> None:
        """Nothing is stuck: whatever waits runs once time has passed."""
        for port in self.ports:
            port.lanes["async"].limit += 100
        for _ in range(len(self.costs) + 1):
            await self.act("pass", self.ports[0], 200)
        assert await self._waiting() == 0
        assert self._factory.contents().violations == []

    async def _waiting(self) -> int:
        return int((await self.ports[0].store.stats())["pending"]) - sum(len(port.held) for port in self.ports)


NEW = st.tuples(st.sampled_from([0, 50, 900, 2_000, 6_000]), st.integers(0, 3), st.sampled_from([WORK, OTHER]))
OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 1), st.lists(NEW, min_size=1, max_size=4)),
    st.tuples(st.just("room"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("pass"), st.just(0), st.sampled_from([0.5, 5, 20])),
    st.tuples(
        st.just("end"), st.integers(0, 1),
        st.tuples(
            st.integers(0, 5), st.sampled_from([COMPLETED, COMPLETED, RELEASED, RETRY]),
            st.sampled_from([None, 0, 40, 1_000, 8_000]),
        ),
    ),
)  # fmt: skip


async def spend_and_check(tmp_path: Path, kind: str, program: list[Any]) -> None:
    """Whatever two processes do: no estimate begins that is not there, what is left is what a bucket says that is told
    of all that began and ended, nobody waits who could begin, and nobody for ever."""
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    factory: Factory = FACTORIES[kind](folder)
    try:
        async with opened(factory.make()) as one, opened(factory.make()) as two:
            await one.limit("a", cost_rate=RATE)
            world = World((one, two), factory)
            for port in world.ports:
                await port.serve()
            for what, who, detail in program:
                await world.act(what, world.ports[who], detail)
                await world.check()
            await world.run_out()
    finally:
        factory.drop()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=st.lists(OPERATIONS, max_size=20))
async def test_what_is_spent_is_counted_to_the_last(tmp_path: Path, program: list[Any]) -> None:
    await spend_and_check(tmp_path, "sqlite", program)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=st.lists(OPERATIONS, min_size=4, max_size=12))
async def test_what_is_spent_is_counted_to_the_last_on_a_server(tmp_path: Path, program: list[Any]) -> None:
    await spend_and_check(tmp_path, "postgres", program)
