"""The lifecycle table is the truth: everything in it happens, and nothing else does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.conformance.kit import FACTORIES, Clock, Factory, Port, error, new, opened, submit

from mainspring.store.base import (
    CANCELLED,
    COMPLETED,
    CRASHED,
    FAILED,
    MAX_CRASHES,
    OUTCOMES,
    RELEASED,
    RETRY,
    TIMEOUT,
    WANTS_KEPT,
    Claimed,
    NewTask,
    WorkName,
)
from mainspring.tasks import TaskId, TaskStatus
from mainspring.tasks.lifecycle import ALLOWED, State

pytestmark = pytest.mark.anyio

Seen = set[tuple[State | None, State]]
SECOND, MINUTE = 1_000, 60_000
LATER = 10 * MINUTE


class Scene:
    """A store with one task brought to a state, and what it takes to move it on."""

    def __init__(self, factory: Factory, store: Any, port: Port) -> None:
        self.factory, self.store, self.port = factory, store, port
        self.id = b""
        self.claim: Claimed | None = None
        self.parent: Claimed | None = None
        self.key = TaskId().bytes  # of equal work
        self.leader: Claimed | None = None  # which does it
        self.seen: Seen = set()

    @property
    def clock(self) -> Clock:
        return self.factory.clock

    def state(self) -> State:
        return self.factory.states()[self.id]

    async def enter(self, **options: Any) -> None:
        """Submit the task that all is about."""
        self.id = (await submit(self.store, new(deadline_ms=self.store.now_ms() + LATER, **options)))[0]
        self.seen.add((None, self.state()))

    async def move(self, act: Callable[[Scene], Awaitable[Any]]) -> None:
        """Do something, and note what became of the task."""
        before = self.state()
        await act(self)
        await self.port.settle()
        after = self.state()
        if after != before:
            self.seen.add((before, after))


# How to bring a task to each state


async def ready(s: Scene) -> None:
    await s.enter()


async def parents(s: Scene, policy: int = 0, **options: Any) -> None:
    (parent,) = await submit(s.store, new(priority=3))
    s.parent = await s.port.take()
    assert s.parent.id == parent
    await s.enter(after=[parent], policy=policy, **options)


async def parents_skip(s: Scene) -> None:
    await parents(s, policy=2)


async def parents_allow(s: Scene) -> None:
    await parents(s, policy=1)


async def parents_then_later(s: Scene) -> None:
    await parents(s, not_before_ms=s.store.now_ms() + MINUTE)


async def delayed(s: Scene) -> None:
    await s.enter(not_before_ms=s.store.now_ms() + MINUTE)


async def claimed(s: Scene) -> None:
    await s.enter()
    await s.move(take)


async def direct(s: Scene) -> None:
    s.port.lanes["async"].limit += 1
    await s.enter()
    s.claim = s.port.order[-1]


async def running(s: Scene) -> None:
    await claimed(s)
    await s.move(start)


async def crashed_twice(s: Scene) -> None:
    await s.enter()
    for _ in range(MAX_CRASHES - 1):
        await s.move(take)
        await s.move(finish(CRASHED))
        await s.move(wait)
    await s.move(take)


async def crashed_twice_and_running(s: Scene) -> None:
    await crashed_twice(s)
    await s.move(start)


async def retry(s: Scene) -> None:
    await claimed(s)
    await s.move(finish(RETRY))


def equal(s: Scene, **options: Any) -> NewTask:
    """A task that does the same as every other of the scene."""
    return new(work=s.key, keep_ms=LATER, flags=WANTS_KEPT, **options)


async def enter_equal(s: Scene, **options: Any) -> None:
    task = equal(s, deadline_ms=s.store.now_ms() + LATER, **options)
    (s.id,) = await submit(s.store, task)
    s.seen.add((None, s.state()))


async def same_work(s: Scene) -> None:
    (leader,) = await submit(s.store, equal(s, priority=3))
    s.leader = await s.port.take()
    assert s.leader.id == leader
    await enter_equal(s)


async def kept_already(s: Scene) -> None:
    await submit(s.store, equal(s, priority=3))
    s.leader = await s.port.take()
    await leader_ends(COMPLETED)(s)
    await enter_equal(s)


async def claimed_beside_equal(s: Scene) -> None:
    (leader,) = await submit(s.store, equal(s, priority=3))
    s.leader = await s.port.take()
    assert s.leader.id == leader
    await s.enter(flags=WANTS_KEPT, keep_ms=LATER)
    await s.move(take)


async def ended(s: Scene, outcome: int) -> None:
    await claimed(s)
    await s.move(finish(outcome))


async def completed(s: Scene) -> None:
    await ended(s, COMPLETED)


async def failed(s: Scene) -> None:
    await ended(s, FAILED)


async def cancelled(s: Scene) -> None:
    await ended(s, CANCELLED)


async def timed_out(s: Scene) -> None:
    await ended(s, TIMEOUT)


async def failed_at_submit(s: Scene, policy: int = 0) -> None:
    (parent,) = await submit(s.store, new())
    await s.port.finish(await s.port.take(), FAILED)
    await s.enter(after=[parent], policy=policy)


async def cancelled_at_submit(s: Scene) -> None:
    await failed_at_submit(s, policy=2)


async def overdue_at_submit(s: Scene) -> None:
    s.id = (await submit(s.store, new(deadline_ms=s.store.now_ms() - 1)))[0]
    s.seen.add((None, s.state()))


ORIGINS = (
    ready, parents, parents_skip, parents_allow, parents_then_later, delayed, claimed, direct, running, crashed_twice,
    crashed_twice_and_running, retry, completed, failed, cancelled, timed_out, failed_at_submit, cancelled_at_submit,
    overdue_at_submit, same_work, kept_already, claimed_beside_equal,
)  # fmt: skip

# What can be done to it


async def take(s: Scene) -> None:
    claims = await s.port.room(1)
    s.claim = next((claim for claim in claims if claim.id == s.id), s.claim)


async def start(s: Scene) -> None:
    if s.claim is not None:
        s.store.started(s.claim, s.store.now_ms())


def finish(outcome: int) -> Callable[[Scene], Awaitable[None]]:
    async def act(s: Scene) -> None:
        if s.claim is None:
            return
        delay_ms = MINUTE if outcome in (RETRY, CRASHED) else 0
        fields = {} if outcome in (COMPLETED, RELEASED) else {"error": error()}
        await s.port.finish(s.claim, outcome, delay_ms=delay_ms, **fields)

    act.__name__ = f"finish_{OUTCOMES[outcome]}"
    return act


async def withdraw(s: Scene) -> None:
    """Only what has not started may be withdrawn."""
    if s.claim is not None and s.state().status is not TaskStatus.RUNNING:
        await s.store.withdraw(s.claim)


async def cancel(s: Scene) -> None:
    await s.store.cancel(s.id)


async def cancel_and_finish(s: Scene) -> None:
    await s.store.cancel(s.id)
    await finish(COMPLETED)(s)


async def parent_completes(s: Scene) -> None:
    if s.parent is not None:
        await s.port.finish(s.parent)


async def parent_fails(s: Scene) -> None:
    if s.parent is not None:
        await s.port.finish(s.parent, FAILED)


def leader_ends(outcome: int) -> Callable[[Scene], Awaitable[None]]:
    async def act(s: Scene) -> None:
        if s.leader is not None:
            s.leader.work = WorkName(s.key, "1")
            fields = {} if outcome == COMPLETED else {"error": error(), "started_ms": s.store.now_ms()}
            await s.port.finish(s.leader, outcome, **fields)

    act.__name__ = f"leader_ends_{OUTCOMES[outcome]}"
    return act


async def compare(s: Scene) -> None:
    """Only what has not started is compared."""
    if s.claim is not None and s.state().status is not TaskStatus.RUNNING:
        s.claim.work = WorkName(s.key, "1")
        await s.store.join(s.claim, LATER)


async def wait(s: Scene) -> None:
    s.clock.advance(MINUTE / 1000)
    await s.port.settle()


async def miss_the_deadline(s: Scene) -> None:
    s.clock.advance(2 * LATER / 1000)
    await s.port.settle()
    if s.claim is not None and s.state().reason == "claimed":
        await finish(TIMEOUT)(s)  # whoever holds it looks at the deadline before it begins


async def retry_by_hand(s: Scene) -> None:
    if s.state().status in (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMEOUT):
        await s.store.retry(s.id)


async def prune_nothing(s: Scene) -> None:
    await s.factory.prune(s.store)


async def die(s: Scene) -> None:
    """The process dies, with this task's handler as the only one that runs, if it does; another comes."""
    if s.claim is not None:
        s.store.mark(0, s.claim.seq, s.claim.attempt)
    await s.factory.die(s.store)
    s.store = s.factory.make(durability="relaxed")
    await s.store.open()
    s.port = Port(s.store)
    await s.port.serve()


ACTS = (
    take, start, *(finish(outcome) for outcome in range(len(OUTCOMES))), withdraw, cancel, cancel_and_finish,
    parent_completes, parent_fails, *(leader_ends(outcome) for outcome in (COMPLETED, FAILED, TIMEOUT, CANCELLED)),
    compare, wait, miss_the_deadline, retry_by_hand, prune_nothing, die,
)  # fmt: skip


@pytest.mark.parametrize("kind", FACTORIES)
async def test_the_table_holds(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From every state everything is tried that anybody can ask for: what happens is exactly what the table allows."""
    seen: Seen = set()
    for number, act in enumerate(ACTS):
        factory = FACTORIES[kind](tmp_path_factory.mktemp(f"table{number}"))
        store = factory.make(durability="relaxed")  # no power will fail, and there are many commits
        await store.open()
        port = Port(store)
        await port.serve()
        for origin in ORIGINS:
            scene = Scene(factory, store, port)
            await origin(scene)
            await scene.move(act)
            assert scene.seen <= ALLOWED, (origin.__name__, act.__name__, scene.seen - ALLOWED)
            seen |= scene.seen
            store, port = scene.store, scene.port
            await clear(factory, store, port)
        await store.close()
    assert {f"{before} -> {after}" for before, after in ALLOWED - seen} == set()


async def clear(factory: Factory, store: Any, port: Port) -> None:
    """Leave nothing behind that could be handed over to the next scene."""
    port.lanes["async"].limit = -1_000
    for id, state in factory.states().items():
        if not state.status.is_final:
            await store.cancel(id)
    for claim in {claim.id: claim for claim in port.order}.values():
        await store.withdraw(claim)
    await port.settle()
    lane = port.lanes["async"]
    lane.limit = lane.taken - lane.released
    assert not [state for state in factory.states().values() if not state.status.is_final]


async def test_every_final_state_shows_as_such(factory: Factory) -> None:
    """A final state has an end, an error or an output, and nothing that only the living have."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        for origin in (
            completed,
            failed,
            cancelled,
            timed_out,
            failed_at_submit,
            cancelled_at_submit,
            overdue_at_submit,
        ):
            scene = Scene(factory, store, port)
            await origin(scene)
            info, result = await store.info(scene.id), await store.result(scene.id)
            assert info.ended is not None
            assert (info.reason, info.due, info.worker) == (None, None, None)
            assert (result.output is None) != (result.error is None)
