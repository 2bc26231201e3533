"""Limits of groups: in all processes together no more of a group's tasks are held than it may have, and no fewer than
there is room for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import (
    AGEING_MS,
    FACTORIES,
    OTHER,
    WORK,
    Factory,
    Port,
    error,
    new,
    opened,
    submit,
)

from mainspring.errors import StoreUnavailable
from mainspring.store.base import COMPLETED, FAILED, RELEASED, RETRY, Claimed
from mainspring.store.sql import claims
from mainspring.tasks import Rate

pytestmark = pytest.mark.anyio


def ids(claims: list[Claimed]) -> list[bytes]:
    return [claim.id for claim in claims]


async def held(store: Any, group: str = "a") -> int:
    (limit,) = [one for one in await store.limits() if one.group == group]
    return int(limit.held)


async def why(store: Any, id: bytes) -> str | None:
    standing = await store.standing(id)
    return None if standing.reason is None else str(standing.reason)


async def test_fresh_tasks_enter_claimed_up_to_the_limit(store: Any, port: Port) -> None:
    """Of tasks that are handed over as they enter no more begin than the limit allows; others are not held up."""
    await store.limit("a", concurrency=3)
    port.lanes["async"].limit = 10
    sent = await submit(store, *(new(group="a") for _ in range(5)), new(), new(group="b"))
    await port.settle()
    assert ids(port.order) == [*sent[:3], *sent[5:]]
    assert await why(store, sent[3]) == "limit"
    more = await submit(store, new(group="a"))
    assert await why(store, more[0]) == "limit"
    await port.settle()
    assert await held(store) == 3


async def test_queued_tasks_are_claimed_up_to_the_limit(store: Any, port: Port) -> None:
    """The same for tasks that wait in the queue: they are passed over in favour of all that may run."""
    await store.limit("a", concurrency=3)
    sent = await submit(store, *(new(group="a") for _ in range(5)), new(), new(group="b"))
    assert ids(await port.room(10)) == [*sent[:3], *sent[5:]]


async def test_each_task_takes_one_place(store: Any, port: Port) -> None:
    """A kind with fewer tasks than places leaves the others to the rest of its group, in the one order."""
    await store.limit("a", concurrency=2)
    sent = await submit(store, new(group="a", type=OTHER), new(group="a"), new(), new())
    assert ids(await port.room(3)) == sent[:3]


@pytest.mark.parametrize("how", ["completed", "failed", "retry", "released", "withdrawn", "cancelled"])
async def test_whoever_lets_go_makes_room_for_the_next(store: Any, port: Port, how: str) -> None:
    """However a member of the group ends, the next is claimed in the same breath."""
    await store.limit("a", concurrency=1)
    port.lanes["async"].limit = 5
    sent = await submit(store, *(new(group="a", max_retries=1) for _ in range(3)))
    await port.settle()
    assert ids(port.order) == sent[:1]
    first = port.order[0]
    if how == "withdrawn":
        port.lanes["async"].released += 1
        assert await store.withdraw(first)
    elif how == "cancelled":
        assert await store.cancel(first.id) == "held"
        port.end(first)
    elif how == "completed":
        port.end(first)
    elif how == "failed":
        port.end(first, FAILED)
    elif how == "retry":
        port.end(first, RETRY, error=error(), delay_ms=60_000)
    else:
        port.end(first, RELEASED)
    await port.settle()
    expected = sent[0] if how == "released" else sent[1]  # it goes first again
    assert ids(port.order[1:]) == [expected]
    assert await held(store) == 1


async def test_a_group_counts_over_types_and_namespaces(store: Any) -> None:
    """A limit without a namespace is for the group wherever it is named; one with it counts that namespace's tasks."""
    port = Port(store, 0)
    await port.serve()
    await store.limit("a", concurrency=3)
    await store.limit("a", namespace="x", concurrency=1)
    sent = await submit(
        store,
        new(group="a", namespace="x"),
        new(group="a", namespace="x", type=OTHER),
        new(group="a", namespace="y"),
        new(group="a", type=OTHER),
        new(group="a", namespace="y"),
    )
    assert ids(await port.room(5)) == [sent[0], sent[2], sent[3]]
    port.end(port.order[1])  # y leaves: of those that may have its place y's own goes first, as x is full by itself
    await port.settle()
    assert ids(port.order[3:]) == [sent[4]]
    port.end(port.order[0])
    await port.settle()
    assert ids(port.order[4:]) == [sent[1]]


async def test_a_change_holds_from_the_next_claim_on(store: Any, port: Port) -> None:
    """What runs goes on under a lower limit, until it has ended nothing new begins; a higher one or none lets the
    waiting begin at once."""
    port.lanes["async"].limit = 20
    await submit(store, *(new(group="a") for _ in range(3)))
    await port.settle()
    await store.limit("a", concurrency=2)
    sent = await submit(store, *(new(group="a") for _ in range(6)))
    await port.settle()
    assert len(port.order) == 3
    port.end(port.order[0])
    await port.settle()
    assert len(port.order) == 3
    port.end(port.order[1])
    await port.settle()
    assert ids(port.order[3:]) == sent[:1]
    await store.limit("a", concurrency=4)
    await port.settle()
    assert ids(port.order[4:]) == sent[1:3]
    await store.limit("a")
    await port.settle()
    assert ids(port.order[6:]) == sent[3:]
    assert await store.limits() == []


async def test_processes_share_a_limit(factory: Factory) -> None:
    """Two processes together hold no more than the limit; a place that one lets go of the other takes."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        ports = [Port(one, 0), Port(two, 0)]
        for port in ports:
            await port.serve()
        await one.limit("a", concurrency=3)
        sent = await submit(two, *(new(group="a") for _ in range(7)))
        assert ids(await ports[0].room(2)) == sent[:2]
        assert ids(await ports[1].room(5)) == sent[2:3]
        assert await why(one, sent[3]) == "limit"
        await ports[0].finish(ports[0].order[0])
        await ports[1].until(lambda: len(ports[1].order) == 2)
        assert await held(one) == 3
        await one.limit("a", concurrency=5)
        await ports[1].until(lambda: len(ports[1].order) == 4)
        assert await held(two) == 5


async def test_the_dead_take_no_places_along(factory: Factory) -> None:
    """What a process held when it died is its group's until that is taken back; then others have the places."""
    async with opened(factory.make()) as two:
        port = Port(two, 0)
        await port.serve()
        await two.limit("a", concurrency=2)
        one = factory.make()
        await one.open()
        dying = Port(one, 0)
        await dying.serve()
        sent = await submit(two, *(new(group="a") for _ in range(4)))
        assert ids(await dying.room(2)) == sent[:2]
        assert await port.room(4) == []
        await factory.die(one)
        await factory.rescue(two)
        await port.until(lambda: len(port.order) == 2)
        assert await held(two) == 2
        assert factory.contents().violations == []


@pytest.mark.parametrize("is_fresh", [True, False], ids=["handed over", "from the queue"])
async def test_claims_tell_that_their_group_may_hold_no_more(store: Any, is_fresh: bool) -> None:
    """Those of the transaction that takes the last place; not where it is a rate alone that lets no more begin."""
    port = Port(store, 20 if is_fresh else 0)
    await port.serve()
    for group, concurrency, rate in (("a", 3, None), ("b", 9, Rate(2, 60_000)), ("c", 2, Rate(9, 60_000))):
        await store.limit(group, concurrency=concurrency, rate=rate)
    await store.limit("d", concurrency=2)
    await store.limit("d", namespace="x", concurrency=9)
    sent = [
        await submit(store, *some)
        for some in (
            [new(group="a"), new(group="a", type=OTHER)], [new(group="a"), new(group="a")],
            [new(group="b"), new(group="b"), new(group="b")],
            [new(group="c")], [new(group="c")],
            [new(group="d")], [new(group="d", namespace="x")],
            [new(), new(group="e")],
        )
    ]  # fmt: skip
    for _ in range(1 if is_fresh else 12):  # one at a time, so that each is the last one of its transaction
        await (port.settle() if is_fresh else port.room(1))
    told = {claim.id: claim.is_last for claim in port.order}
    expected = [[False, False], [True], [False, False], [False], [True], [False], [True], [False, False]]
    assert told == {
        id: is_last for ids, lasts in zip(sent, expected, strict=True) for id, is_last in zip(ids, lasts, strict=False)
    }


async def test_lanes_take_turns(store: Any) -> None:
    """Where types of a group run in different lanes, none keeps its places from the other for ever."""
    port = Port(store, 2, one=(WORK,), two=(OTHER,))
    await port.serve()
    await store.limit("a", concurrency=1)
    await submit(store, *(new(group="a", type=kind) for kind in (WORK, OTHER) for _ in range(5)))
    await port.settle()
    lane = {WORK: "one", OTHER: "two"}
    for _ in range(5):
        claim = port.order[-1]
        port.end(claim, lane=lane[claim.task_type])
        await port.settle()
    assert Counter(claim.task_type for claim in port.order[1:5]) == {WORK: 2, OTHER: 2}


async def test_full_groups_ahead_cost_nothing(store: Any, port: Port) -> None:
    """Groups that are full are not looked into again before one of their places is free."""
    n = 100
    for at in range(n):
        await store.limit(f"g{at}", concurrency=1)
    port.lanes["async"].limit = 10_000
    await submit(store, *(new(group=f"g{at}") for at in range(n) for _ in range(2)))
    await port.settle()
    assert len(port.order) == n
    run: list[str] = []

    def watched(tx: Any, *args: Any) -> None:
        real = tx.run

        def note(name: str, *values: Any) -> Any:
            run.append(name)
            return real(name, *values)

        with mock.patch.object(type(tx), "run", lambda self, name, *values: note(name, *values)):
            claim(tx, *args)

    claim = claims.claim
    with mock.patch.object(claims, "claim", watched):
        await submit(store, new(group="free"), new())
        await port.settle()
        assert len(port.order) == n + 2
        assert run == []
        port.end(port.order[0])
        await port.settle()
    assert len(port.order) == n + 3
    assert 0 < len(run) < 10


class World:
    """Two processes that share their limits, and what is known of them."""

    def __init__(self, stores: Sequence[Any], factory: Factory) -> None:
        self.ports = [Port(store, 0) for store in stores]
        self._factory = factory
        self._limits: dict[str, int] = {}
        self._allowed: dict[str, int] = {}  # also what was held before a limit was lowered

    async def act(self, what: str, port: Port, detail: Any) -> None:
        if what == "submit":
            tasks = [new(group=g, priority=n, type=OTHER if other else WORK) for g, n, other in detail]
            await submit(port.store, *tasks)
        elif what == "limit":
            await self._limit(port.store, *detail)
        elif what == "room":
            await port.room(detail)
        elif port.held:
            n, outcome = detail
            claim = list(port.held.values())[n % len(port.held)]
            fields = {"error": error()} if outcome == RETRY else {}
            port.end(claim, outcome, is_counted=False, **fields)  # type: ignore[arg-type]
        for one in self.ports * 2:  # what one lets go of the other hears of
            one.store.demand()
            await one.settle()

    async def _limit(self, store: Any, group: str, n: int | None) -> None:
        await store.limit(group, concurrency=n)
        self._limits.pop(group, None)
        if n is not None:
            self._limits[group] = n
            self._allowed[group] = max(n, self._held()[group])

    def _held(self) -> Counter[str]:
        return Counter(claim.class_key[2] for port in self.ports for claim in port.held.values())

    def check(self) -> None:
        held, contents = self._held(), self._factory.contents()
        for group, n in self._limits.items():
            assert held[group] <= self._allowed[group]
            self._allowed[group] = max(n, held[group])
        assert contents.violations == []
        assert [port.overdrawn for port in self.ports] == [[], []]
        if any(port.lanes["async"].room() > 0 for port in self.ports):
            for task in contents.tasks.values():
                group = task["kind"][2]
                assert task["reason"] != "ready" or held[group] >= self._limits.get(group, held[group] + 1)


NEW = st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans())
OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 1), st.lists(NEW, min_size=1, max_size=6)),
    st.tuples(st.just("limit"), st.integers(0, 1), st.tuples(st.sampled_from("ab"), st.sampled_from([None, 1, 2, 3]))),
    st.tuples(st.just("room"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(
        st.just("end"), st.integers(0, 1),
        st.tuples(st.integers(0, 5), st.sampled_from([COMPLETED, COMPLETED, RELEASED, RETRY])),
    ),
)  # fmt: skip


@pytest.mark.parametrize("kind", FACTORIES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=st.lists(OPERATIONS, max_size=25))
async def test_limits_hold_and_nothing_waits_for_free_places(tmp_path: Path, kind: str, program: list[Any]) -> None:
    """Whatever two processes do: a limit is never exceeded, and nobody waits who may run somewhere."""
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    factory: Factory = FACTORIES[kind](folder)
    try:
        async with opened(factory.make()) as one, opened(factory.make()) as two:
            world = World((one, two), factory)
            for port in world.ports:
                await port.serve()
            for what, who, detail in program:
                await world.act(what, world.ports[who], detail)
                world.check()
    finally:
        factory.drop()


# Rates


async def test_a_rate_lets_a_spurt_through_and_then_one_by_one(factory: Factory, store: Any, port: Port) -> None:
    """As many as it says at once, then evenly; others are not held up."""
    await store.limit("a", rate=Rate(3, 60_000))
    port.lanes["async"].limit = 100
    sent = await submit(store, *(new(group="a") for _ in range(6)), new())
    await port.settle()
    assert ids(port.order) == [*sent[:3], sent[6]]
    assert await why(store, sent[3]) == "limit"
    assert store._timer_ms == store.now_ms() + 20_000  # it wakes up by itself, and not before
    for claim in list(port.held.values()):  # that they end brings none of them nearer
        port.end(claim)
    await port.settle()
    for passed, begun in ((19.9, 4), (0.2, 5), (10, 5), (10, 6), (20, 7)):
        factory.clock.advance(passed)
        store.demand()
        await port.settle()
        assert len(port.order) == begun
    (limit,) = await store.limits()
    assert (limit.rate, limit.left) == ("3/m", 0)
    assert 19 < limit.next_in <= 20
    factory.clock.advance(60)
    assert (await store.limits())[0].left == 3


async def test_a_rate_counts_claims_from_the_queue(factory: Factory, store: Any, port: Port) -> None:
    """The same where tasks waited for a slot, alone in their lane or beside others."""
    await store.limit("a", rate=Rate(3, 60_000))
    sent = await submit(store, *(new(group="a") for _ in range(6)))
    assert ids(await port.room(10)) == sent[:3]
    others = await submit(store, *(new() for _ in range(2)))
    factory.clock.advance(41)
    await port.room(0)
    assert ids(port.order[3:]) == [*others, *sent[3:5]]


@pytest.mark.parametrize("how", ["released", "withdrawn", "retry"])
async def test_what_never_began_does_not_count(factory: Factory, store: Any, port: Port, how: str) -> None:
    """A claim that is handed back or cancelled before its start gives the rate back what it took; a try that failed
    does not."""
    await store.limit("a", rate=Rate(2, 60_000))
    sent = await submit(store, *(new(group="a") for _ in range(3)))
    await port.room(2)
    first = port.order[0]
    if how == "released":
        await port.finish(first, RELEASED, is_counted=False)
    elif how == "withdrawn":
        assert await store.withdraw(first)
    else:
        await port.finish(first, RETRY, error=error(), delay_ms=60_000, started_ms=store.now_ms())
    assert (await store.limits())[0].left == (0 if how == "retry" else 1)
    expected = {"released": [sent[0]], "withdrawn": [sent[2]], "retry": []}[how]
    assert ids(await port.room(2)) == expected


@pytest.mark.parametrize("how", ["before the rate", "under another rate", "filled up since"])
async def test_nothing_is_given_back_that_a_rate_does_not_lack(
    factory: Factory, store: Any, port: Port, how: str
) -> None:
    """A claim that never began gives a rate back what it took, as far as that has not been filled up meanwhile; one
    that took nothing of this rate gives nothing back."""
    if how != "before the rate":
        await store.limit("a", rate=Rate(1, 1_000))
    await submit(store, new(group="a"))
    first = await port.take()
    factory.clock.advance(5)
    if how != "filled up since":
        await store.limit("a", rate=Rate(1, 60_000))
    await submit(store, *(new(group="a") for _ in range(3)))
    second = await port.take()
    await port.finish(first, RELEASED, is_counted=False)
    assert (await store.limits())[0].left == 0
    assert await port.room(1) == []
    await port.finish(second, RELEASED, is_counted=False)  # this one took it
    assert len(port.order) == 3


async def test_what_is_given_back_adds_nothing_to_a_full_rate(factory: Factory, store: Any, port: Port) -> None:
    """Neither to what may begin in the same commit."""
    await store.limit("a", rate=Rate(2, 1_000))
    sent = await submit(store, *(new(group="a") for _ in range(6)))
    await port.room(2)
    factory.clock.advance(0.75)  # half of what the second one took is filled up
    port.lanes["async"].limit += 2
    for claim in list(port.held.values()):
        port.end(claim, RELEASED, is_counted=False)
    await port.settle()
    assert ids(port.order[2:]) == sent[:2]
    factory.clock.advance(0.49)
    assert await port.room(1) == []
    factory.clock.advance(0.02)
    assert ids(await port.room(0)) == [sent[2]]


async def test_what_the_dead_held_counts(factory: Factory) -> None:
    """Nobody knows of it that it had not begun: it may have come back when its process died."""
    async with opened(factory.make()) as two:
        port = Port(two, 0)
        await port.serve()
        await two.limit("a", rate=Rate(2, 60_000))
        one = factory.make()
        await one.open()
        dying = Port(one, 0)
        await dying.serve()
        await submit(two, *(new(group="a") for _ in range(3)))
        assert len(await dying.room(2)) == 2
        await factory.die(one)
        await factory.rescue(two)
        assert await port.room(3) == []
        assert (await two.limits())[0].left == 0


async def test_processes_share_a_rate_and_keep_it(factory: Factory) -> None:
    """What one has begun counts for the other, and for those that open the store later; setting the same limit again
    gives nothing back."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        ports = [Port(one, 0), Port(two, 0)]
        for port in ports:
            await port.serve()
        await one.limit("a", rate=Rate(3, 60_000), concurrency=5)
        sent = await submit(two, *(new(group="a") for _ in range(7)))
        assert ids(await ports[0].room(2)) == sent[:2]
        assert ids(await ports[1].room(5)) == sent[2:3]
        await two.limit("a", rate=Rate(3, 60_000), concurrency=5)
        assert await ports[1].room(0) == []
    async with opened(factory.make()) as three:
        port = Port(three, 0)
        await port.serve()
        assert len(await port.room(9)) == 3  # those that were handed back before they began
        assert factory.contents().violations == []


@pytest.mark.parametrize("waits", [True, False], ids=["a task waits", "nothing waits"])
async def test_a_faster_rate_holds_at_once(factory: Factory, store: Any, port: Port, waits: bool) -> None:
    """What a slower one would have taken an hour for keeps nobody longer than the new rate does."""
    await store.limit("a", rate=Rate(1, 3_600_000))
    await submit(store, *(new(group="a") for _ in range(4 if waits else 1)))
    assert len(await port.room(4)) == 1
    await store.limit("a", rate=Rate(10, 1_000))
    assert await port.room(0) == []  # what was begun so far counts: the bucket is empty
    factory.clock.advance(0.31)
    if waits:
        await port.room(0)
    else:
        await submit(store, *(new(group="a") for _ in range(3)))
        await port.settle()
    assert len(port.order) == 4
    assert (await store.limits())[0].left == 0


async def test_a_jump_of_the_clock_parks_no_rate(factory: Factory) -> None:
    """What was begun while the wall clock was a day ahead holds nobody up for longer than the rate's own time."""
    factory.clock.jump(86_400)
    async with opened(factory.make()) as store:
        await store.limit("a", rate=Rate(1, 60_000))
        port = Port(store, 0)
        await port.serve()
        await submit(store, *(new(group="a") for _ in range(3)))
        await port.finish(await port.take(), started_ms=store.now_ms())
    factory.clock.jump(-86_400)
    async with opened(factory.make()) as store:
        port = Port(store, 0)
        await port.serve()
        assert await port.room(1) == []
        factory.clock.advance(61)
        assert len(await port.room(0)) == 1


# Shares


def groups(claims: Sequence[Claimed]) -> list[str]:
    return [claim.class_key[2] for claim in claims]


async def one_by_one(port: Port, n: int) -> list[Claimed]:
    """Take so many, one at a time, each of them ended before the next."""
    taken = []
    for _ in range(n):
        claim = await port.take()
        taken.append(claim)
        await port.finish(claim)
    return taken


async def test_a_flood_keeps_another_share_waiting_for_a_turn_only(factory: Factory, store: Any, port: Port) -> None:
    """However much of one group came long before: the first task of another share is the next or the one after."""
    await store.share(group="a", weight=1.0)
    await submit(store, *(new(group="a", priority=3) for _ in range(500)))
    await one_by_one(port, 5)
    factory.clock.advance(AGEING_MS)
    await store.share(group="b", weight=1.0)
    await submit(store, new(group="b", priority=0))
    assert "b" in groups(await one_by_one(port, 2))


async def test_what_a_share_took_alone_is_no_credit_for_others(store: Any, port: Port) -> None:
    """Nor where many were taken at once: who comes then takes turns with it from the next one on."""
    await store.share(group="a", weight=1.0)
    await store.share(group="b", weight=1.0)
    await submit(store, *(new(group="a") for _ in range(30)))
    await port.room(20)
    await submit(store, *(new(group="b") for _ in range(30)))
    assert sorted(groups(await port.room(4))) == ["a", "a", "b", "b"]


async def test_shares_take_turns_by_weight(store: Any, port: Port) -> None:
    """Of three shares with much to do each gets what its weight says, whoever came first and however urgent; all that
    have none are one share of weight 1."""
    await store.share(group="a", weight=1.0)
    await store.share(group="b", weight=3.0)
    await submit(store, *(new(group=group, priority=3) for group in "acd" for _ in range(60)))
    await submit(store, *(new(group="b", priority=0) for _ in range(60)))
    taken = Counter(groups(await one_by_one(port, 50)))
    assert (taken["a"], taken["b"], taken["c"] + taken["d"]) == (10, 30, 10)
    many = Counter(groups(await port.room(25)))
    assert (many["a"], many["b"], many["c"] + many["d"]) == (5, 15, 5)


async def test_a_namespace_has_a_share(store: Any, port: Port) -> None:
    """A task belongs to its group's share, where that has one, else to its namespace's."""
    await store.share(namespace="x", weight=2.0)
    await store.share(group="a", weight=1.0)
    for kind in ({"namespace": "x"}, {"namespace": "x", "group": "b"}, {"namespace": "x", "group": "a"}, {}):
        await submit(store, *(new(**kind) for _ in range(40)))
    taken = await one_by_one(port, 40)
    of_x = sum(claim.class_key[0] == "x" and claim.class_key[2] != "a" for claim in taken)
    assert (of_x, groups(taken).count("a"), 40 - of_x - groups(taken).count("a")) == (20, 10, 10)


async def test_who_had_nothing_to_do_has_no_credit(store: Any, port: Port) -> None:
    """A share that comes late begins where the others are, and gets no more than its turns."""
    await store.share(group="a", weight=1.0)
    await store.share(group="b", weight=1.0)
    await submit(store, *(new(group="a") for _ in range(100)))
    await one_by_one(port, 40)
    await submit(store, *(new(group="b") for _ in range(100)))
    assert Counter(groups(await one_by_one(port, 20))) == {"a": 10, "b": 10}


async def test_a_new_weight_holds_from_the_next_turn_on(store: Any, port: Port) -> None:
    """A share that had a tiny weight at its last turn waits for one turn of its new one, not of that."""
    await store.share(group="a", weight=0.001)
    await store.share(group="b", weight=1.0)
    await submit(store, *(new(group=group) for _ in range(30) for group in "ab"))
    assert "a" in groups(await one_by_one(port, 2))
    await store.share(group="a", weight=1.0)
    assert groups(await one_by_one(port, 20)).count("a") in (9, 10, 11)


async def test_a_share_is_taken_away(factory: Factory, store: Any, port: Port) -> None:
    """Then all is one order again; limits of the group stay as they are."""
    await store.limit("a", concurrency=5)
    await store.share(group="a", weight=0.5)
    (limit,) = await store.limits()
    assert (limit.concurrency, limit.share) == (5, 0.5)
    sent = await submit(store, *(new(group="a") for _ in range(3)), *(new() for _ in range(3)))
    await store.share(group="a")
    assert ids(await one_by_one(port, 6)) == sent
    assert (await store.limits())[0].share is None


@pytest.mark.parametrize("kind", FACTORIES)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    weights=st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=1),
    tasks=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans()), min_size=1, max_size=40),
    rooms=st.lists(st.integers(1, 4), min_size=1, max_size=6),
)
async def test_shares_and_the_order(
    tmp_path: Path, kind: str, weights: dict[str, float], tasks: list[Any], rooms: list[int]
) -> None:
    """Within a share the one order holds; between shares nobody with tasks left falls behind by more than a turn; and
    all are taken in the end."""
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    factory: Factory = FACTORIES[kind](folder)
    try:
        async with opened(factory.make()) as store:
            port = Port(store, 0)
            await port.serve()
            for group, weight in weights.items():
                await store.share(group=group, weight=weight)
            await submit(store, *(new(group=g, priority=n, type=OTHER if o else WORK) for g, n, o in tasks))
            left = Counter(group if group in weights else "" for group, *_ in tasks)
            turns: dict[str, float] = dict.fromkeys(left, 0.0)
            for room in [*rooms, len(tasks)]:
                for claim in await port.room(room):
                    share = claim.class_key[2] if claim.class_key[2] in weights else ""
                    left[share] -= 1
                    turns[share] += 1 / weights.get(share, 1.0)
                rest = [share for share in left if left[share]]
                for one in rest:
                    for other in left:
                        turn = 1 / min(weights.get(one, 1.0), weights.get(other, 1.0))
                        assert turns[other] <= turns[one] + 2 * turn
            assert len(port.order) == len(tasks)
            by_share: dict[str, list[tuple[int, int]]] = {}
            for claim in port.order:
                share = claim.class_key[2] if claim.class_key[2] in weights else ""
                by_share.setdefault(share, []).append((claim.rank, claim.seq))
            assert all(places == sorted(places) for places in by_share.values())
    finally:
        factory.drop()


async def test_limited_groups_keep_the_order(factory: Factory, store: Any, port: Port) -> None:
    """Of those whose groups have places the best go first, whichever group they are of."""
    await store.limit("a", concurrency=2)
    (low,) = await submit(store, new(priority=0))
    factory.clock.advance(1.5 * AGEING_MS / 1000)
    sent = await submit(
        store, *(new(group="a", priority=1) for _ in range(3)), new(group="b", priority=1), new(priority=2)
    )
    assert ids(await port.room(10)) == [sent[4], low, sent[0], sent[1], sent[3]]


async def test_a_kind_that_came_to_nothing_is_not_waited_for(
    store: Any, port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """The first task of a kind whose group is full could not be stored: nothing waits for a place any more."""
    await store.limit("g", concurrency=1)
    await submit(store, new(group="g"))
    await port.room(3)
    broken = mock.Mock(side_effect=store._writer.OUTAGES[0]("no"))
    with mock.patch.object(store._writer, "_tell", broken), pytest.raises(StoreUnavailable):
        await submit(store, new(type=OTHER, group="g"))
    broken.assert_called()
    caplog.clear()
    await store.limit("g", concurrency=2)
    (id,) = await submit(store, new(group="g"))
    await port.settle()
    assert id in port.held
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
