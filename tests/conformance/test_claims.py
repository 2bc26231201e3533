"""Who is handed which attempt, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import AGEING_MS, FACTORIES, OTHER, WORK, Factory, Port, new, opened, state, submit

from mainspring.store.base import COMPLETED, RELEASED, NewTask

pytestmark = pytest.mark.anyio


def ids(claims: list[Any]) -> list[bytes]:
    return [claim.id for claim in claims]


def documented_rank(task: NewTask, submitted_ms: int, ageing_ms: int) -> int:
    """max(base - 4 A, min(base - priority A, deadline - A)), base = max(submit, not_before)."""
    base = max(submitted_ms, task.not_before_ms or 0)
    best = [base - task.priority * ageing_ms]
    if task.deadline_ms is not None:
        best.append(task.deadline_ms - ageing_ms)
    return max(base - 4 * ageing_ms, min(best))


async def test_equal_tasks_go_first_in_first_out(store: Any, port: Port) -> None:
    """Ties are broken by the order of submission, within a call and between calls."""
    sent = [*await submit(store, *(new() for _ in range(5))), *await submit(store, *(new() for _ in range(5)))]
    assert ids(await port.room(10)) == sent


async def test_higher_priority_goes_first(store: Any, port: Port) -> None:
    """Of tasks submitted together the one with the higher priority is handed over first."""
    sent = await submit(store, *(new(priority=priority) for priority in (1, 0, 3, 2)))
    assert ids(await port.room(4)) == [sent[2], sent[3], sent[0], sent[1]]


async def test_waiting_makes_up_for_priority(factory: Factory, store: Any, port: Port) -> None:
    """A task that has waited longer than the ageing steps between them goes before a newer one of higher priority."""
    (low,) = await submit(store, new(priority=0))
    factory.clock.advance(2.9 * AGEING_MS / 1000)
    (soon,) = await submit(store, new(priority=3))
    factory.clock.advance(0.2 * AGEING_MS / 1000)
    (late,) = await submit(store, new(priority=3))
    assert ids(await port.room(3)) == [soon, low, late]


async def test_a_near_deadline_goes_first(factory: Factory, store: Any, port: Port) -> None:
    """A deadline counts as if the task had waited until one step before it; one that is far away counts for nothing."""
    (older,) = await submit(store, new(priority=0))
    factory.clock.advance(1)
    now = store.now_ms()
    far, near = await submit(
        store, new(priority=0, deadline_ms=now + 50 * AGEING_MS), new(priority=0, deadline_ms=now + AGEING_MS // 2)
    )
    assert ids(await port.room(3)) == [near, older, far]


async def test_nothing_is_worth_more_than_four_steps(factory: Factory, store: Any, port: Port) -> None:
    """Starvation is bounded: what has waited five steps goes before any newcomer."""
    (old,) = await submit(store, new(priority=0))
    factory.clock.advance(4.1 * AGEING_MS / 1000)
    (urgent,) = await submit(store, new(priority=3, deadline_ms=store.now_ms() + 1))
    assert ids(await port.room(2)) == [old, urgent]


STEPS = st.sampled_from([0, 1, 1000, AGEING_MS - 1, AGEING_MS, AGEING_MS + 1, 3 * AGEING_MS, 5 * AGEING_MS])


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tasks=st.lists(
        st.tuples(
            STEPS,  # milliseconds since the one before
            st.integers(0, 3),
            st.none() | st.sampled_from([70 * AGEING_MS, 71 * AGEING_MS, 90 * AGEING_MS]),
            st.none() | st.sampled_from([-1, 0, 1, AGEING_MS - 1, AGEING_MS, 3 * AGEING_MS + 1, 5 * AGEING_MS]),
            st.sampled_from([WORK, OTHER]),
            st.sampled_from(["", "a", "b"]),
        ),
        min_size=1,
        max_size=12,
    ),
    rooms=st.lists(st.integers(1, 5), min_size=12, max_size=12),
)
@pytest.mark.parametrize("kind", FACTORIES)
async def test_claims_come_in_the_documented_order(
    kind: str, tasks: list[Any], rooms: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is submitted when, with whatever priorities, deadlines and delays, in whatever classes, and however much
    room there is at a time: the order is the documented key."""
    factory = FACTORIES[kind](Path(tmp_path_factory.mktemp("order")))
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        keys = {}
        for seq, (step, priority, deadline, delay, type, group) in enumerate(tasks):
            factory.clock.advance(step / 1000)
            now = store.now_ms()
            task = new(
                type=type, group=group, priority=priority, deadline_ms=None if deadline is None else now + deadline,
                not_before_ms=None if delay is None else now + delay,
            )  # fmt: skip
            keys[task.id] = (documented_rank(task, now, AGEING_MS), seq)
            await store.submit([task])
        factory.clock.advance(6 * AGEING_MS / 1000)  # all delays are over, no deadline has passed
        for n in rooms:
            await port.room(n)
        assert ids(port.order) == sorted(keys, key=keys.__getitem__)
        assert not port.overdrawn


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(
        st.tuples(
            st.sampled_from([0, 1_000, 4 * AGEING_MS + 1, 9 * AGEING_MS // 2]),
            st.lists(  # a flood: priority, deadline, delay
                st.tuples(
                    st.sampled_from([3, 0, 1]),
                    st.none() | st.sampled_from([1, 1_000, 2 * AGEING_MS]),
                    st.none() | st.sampled_from([1, AGEING_MS, 4 * AGEING_MS]),
                ),
                min_size=1,
                max_size=3,
            ),
            st.integers(0, 1),  # room for so many
        ),
        min_size=6,
        max_size=15,
    )
)
@example(rounds=[(0, [(0, None, None)], 0), (9 * AGEING_MS // 2, [(3, None, None)], 1)])
@pytest.mark.parametrize("kind", FACTORIES)
async def test_nobody_starves(kind: str, rounds: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Under whatever flood of urgent work: nothing is handed over that came more than four ageing steps after something
    that is left waiting."""
    factory = FACTORIES[kind](Path(tmp_path_factory.mktemp("flood")))
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        since: dict[bytes, int] = {}
        for step, flood, n in rounds:
            factory.clock.advance(step / 1000)
            now = store.now_ms()
            for priority, deadline, delay in flood:
                task = new(
                    priority=priority, deadline_ms=None if deadline is None else now + deadline,
                    not_before_ms=None if delay is None else now + delay,
                )  # fmt: skip
                since[task.id] = max(now, task.not_before_ms or 0)
                await store.submit([task])
            claims = await port.room(n)
            port.lanes["async"].limit -= port.lanes["async"].room()  # nothing is handed over between rounds
            waiting = [since[id] for id, state in factory.states().items() if state.reason == "ready"]
            assert all(since[claim.id] <= min(waiting, default=since[claim.id]) + 4 * AGEING_MS for claim in claims)
            for claim in claims:
                await port.finish(claim)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
            st.tuples(st.just("end"), st.integers(1, 3)),
            st.tuples(st.just("room"), st.integers(-2, 4)),
        ),
        min_size=3,
        max_size=15,
    )
)
@pytest.mark.parametrize("kind", FACTORIES)
async def test_nothing_better_is_passed_over(
    kind: str, steps: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where new tasks are handed over directly: after each step every held task goes before every waiting one that
    was there when it was taken, and no lane holds more than it has room for."""
    factory = FACTORIES[kind](Path(tmp_path_factory.mktemp("direct")))
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        keys: dict[bytes, tuple[int, int]] = {}
        waiting: set[bytes] = set()
        for what, value in steps:
            factory.clock.advance(1)
            seen = len(port.order)
            if what == "submit":
                fresh = [new(priority=priority) for priority in value]
                for task in fresh:
                    keys[task.id] = (documented_rank(task, store.now_ms(), AGEING_MS), len(keys))
                    waiting.add(task.id)
                await store.submit(fresh)
            elif what == "end":
                for claim in list(port.held.values())[:value]:
                    port.end(claim)
                await port.settle()
            else:
                port.lanes["async"].limit = max(0, port.lanes["async"].limit + value)
                store.demand()
                await port.settle()
            taken = {claim.id for claim in port.order[seen:]}
            waiting -= taken
            assert not taken or not waiting or max(keys[id] for id in taken) < min(keys[id] for id in waiting)
            assert not waiting or port.lanes["async"].room() <= 0
            assert not port.overdrawn


async def test_room_is_filled_at_once(store: Any, port: Port) -> None:
    """A lane with much room gets all there is, without waiting for anything else to happen."""
    sent = await submit(store, *(new() for _ in range(1500)))
    await port.room(2000)
    await port.settle()
    await port.settle()
    assert ids(port.order) == sent


async def test_new_tasks_go_straight_to_a_free_lane(store: Any, port: Port) -> None:
    """Where there is room and nothing waits, submit and hand-over are one commit."""
    await port.room(2)
    sent = await submit(store, *(new() for _ in range(3)))
    assert ids(port.order) == sent[:2]
    assert [str(await state(store, id)) for id in sent] == ["PENDING (claimed)"] * 2 + ["PENDING (ready)"]


async def test_a_better_task_of_another_process_is_not_passed_over(factory: Factory, store: Any, port: Port) -> None:
    """What another process has committed before counts, also when a new task could be handed over directly."""
    async with opened(factory.make()) as other:
        await port.settle()
        (urgent,) = await submit(other, new(priority=3))
        port.lanes["async"].limit += 1
        (low,) = await submit(store, new(priority=0))
        await port.settle()
        assert ids(port.order) == [urgent]
        assert str(await state(store, low)) == "PENDING (ready)"


async def test_lanes_take_their_own_types(store: Any) -> None:
    """A lane is handed only what it serves, up to its own room; a full one does not hold up another."""
    port = Port(store, a=[WORK], b=[OTHER])
    await port.serve()
    works = await submit(store, *(new() for _ in range(3)))
    others = await submit(store, *(new(type=OTHER) for _ in range(3)))
    assert ids(await port.room(2, lane="b")) == others[:2]
    assert ids(await port.room(1, lane="a")) == works[:1]
    assert not port.overdrawn


async def test_unserved_types_are_left_alone(store: Any, port: Port) -> None:
    """What nobody here serves stays ready, and does not keep what is served from being handed over."""
    (foreign,) = await submit(store, new(type="custom:elsewhere", priority=3))
    (ours,) = await submit(store, new())
    assert ids(await port.room(5)) == [ours]
    assert str(await state(store, foreign)) == "PENDING (ready)"
    assert (await store.standing(foreign)).reason == "no_worker"


async def test_no_claims_after_stop_serving(store: Any, port: Port) -> None:
    """What becomes ready after stop_serving stays in the store."""
    await port.room(5)
    store.stop_serving()
    (id,) = await submit(store, new())
    await port.settle()
    assert port.order == []
    assert str(await state(store, id)) == "PENDING (ready)"


@pytest.mark.parametrize(
    "what", [{"type": WORK}, {"namespace": "default"}, {"group": "g"}, {}, {"type": WORK, "namespace": "default"}]
)
async def test_what_is_paused_stays(store: Any, port: Port, what: dict[str, str]) -> None:
    """A pause holds back what it names, whatever else there is; resume lets it go in order and says that there was
    a pause."""
    await store.pause(**what)
    first, second = await submit(store, new(group="g"), new(group="g"))
    (beside,) = await submit(store, new(type=OTHER, namespace="n", group="h"))
    assert ids(await port.room(5)) == ([beside] if what else [])
    assert (await store.standing(first)).reason == "paused"
    assert await store.resume(**what) == 1
    await port.settle()
    assert set(ids(port.order)) == {first, second, beside}
    assert await store.resume(**what) == 0


async def test_a_pause_holds_from_its_own_commit_on(factory: Factory, store: Any, port: Port) -> None:
    """When pause has returned nothing that it names is handed over any more, also where there is room already."""

    def make_room(tx: Any) -> None:
        port.lanes["async"].limit = 5

    (id,) = await submit(store, new())
    async with factory.together(store, 2):
        pausing = asyncio.gather(store.pause(type=WORK), store.write(make_room))
    await pausing
    assert port.order == []
    (also,) = await submit(store, new())
    await port.settle()
    assert port.order == []
    await store.resume(type=WORK)
    await port.settle()
    assert ids(port.order) == [id, also]


async def test_what_is_resumed_is_not_passed_over(factory: Factory, store: Any, port: Port) -> None:
    """Room that comes in the same commit goes to the best of all that may run after it, though nobody looks again."""
    await factory.hold_upkeep(store)
    await store.pause(group="better")
    (better,) = await submit(store, new(priority=3, group="better"))
    (held, worse) = await submit(store, new(), new())
    claim = await port.take()
    async with factory.together(store, 2):  # the room comes in this commit, the end goes down in the next one
        resuming = asyncio.gather(store.resume(group="better"), store.write(lambda tx: port.end(claim)))
    await resuming
    await port.settle()
    assert ids(port.order) == [held, better]
    assert worse not in ids(port.order)


async def test_whoever_resumes_need_not_stay(store: Any, port: Port) -> None:
    """A call that is given up while its write is on the way acts all the same, in this process too."""
    await store.pause(type=WORK)
    (id,) = await submit(store, new())
    port.lanes["async"].limit = 5
    resuming = asyncio.create_task(store.resume(type=WORK))
    await asyncio.sleep(0)  # the write is handed over
    resuming.cancel()
    await port.until(lambda: port.order)
    assert ids(port.order) == [id]


async def test_a_pause_holds_for_other_processes(factory: Factory, store: Any, port: Port) -> None:
    """It is a fact of the store: a process that hears of nothing obeys it with its next transaction, direct
    hand-over included."""
    await port.room(5)
    async with opened(factory.make()) as other:
        await other.pause(type=WORK)
        (id,) = await submit(store, new())
        await port.settle()
        assert port.order == []
        await other.resume(type=WORK)
        store.demand()
        await port.settle()
        assert ids(port.order) == [id]


async def test_paused_tasks_ahead_do_not_hide_others(store: Any, port: Port) -> None:
    """However many paused tasks stand at the head, the next one that may run is handed over."""
    await store.pause(group="slow")
    await submit(store, *(new(priority=3, group="slow") for _ in range(600)))
    (id,) = await submit(store, new(priority=0))
    assert ids(await port.room(2)) == [id]


async def test_a_claim_brings_all_that_is_needed(store: Any, port: Port) -> None:
    """Input, class, attempt number, limits and counters come with the claim; no second look is needed."""
    task = new("a", group="g", priority=2, max_retries=5, timeout_ms=100, deadline_ms=store.now_ms() + 10_000_000)
    await store.submit([task])
    claim = await port.take()
    assert (claim.id, claim.attempt, claim.class_key, claim.input) == (task.id, 1, task.class_key, task.input)
    assert (claim.priority, claim.max_retries, claim.timeout_ms, claim.deadline_ms) == (2, 5, 100, task.deadline_ms)
    assert (claim.retry_count, claim.crashes, claim.releases, claim.parents) == (0, 0, 0, None)


async def test_direct_and_indexed_claims_are_alike(store: Any, port: Port) -> None:
    """A claim handed over with the submit has the same fields as one taken from the queue."""
    await submit(store, new("a", priority=2, group="g", timeout_ms=5))
    queued = await port.take()
    await port.room(1)
    await submit(store, new("a", priority=2, group="g", timeout_ms=5))
    direct = port.order[-1]
    differ = {"seq", "id"}
    assert {name: getattr(queued, name) for name in queued.__struct_fields__ if name not in differ} == {
        name: getattr(direct, name) for name in direct.__struct_fields__ if name not in differ
    }


async def test_a_released_task_keeps_its_place(store: Any, port: Port) -> None:
    """Handed back, a task goes before those that came after it."""
    first, second = await submit(store, new(), new())
    claim = await port.take()
    await port.finish(claim, RELEASED)
    again = await port.take()
    assert (again.id, again.attempt) == (first, 2)
    await port.finish(again, COMPLETED)
    assert (await port.take()).id == second


async def test_a_task_is_held_once(factory: Factory, store: Any, port: Port) -> None:
    """Two workers on one store never hold the same task."""
    async with opened(factory.make()) as other:
        rival = Port(other)
        await rival.serve()
        sent = await submit(store, *(new() for _ in range(60)))
        for _ in range(10):
            await port.room(4)
            await rival.room(3)
        assert sorted(ids(port.order) + ids(rival.order)) == sorted(sent)
        for one in (port, rival):
            await one.run_all()
        assert {(await store.info(id)).status.value for id in sent} == {"completed"}


async def test_what_is_ready_by_priority(store: Any, port: Port) -> None:
    """A look takes of each class those that go first, up to a number; what is held or waits is not ready."""
    tasks = [new(priority=priority) for priority in (3, 0, 0)]
    await submit(store, *tasks, new(type=OTHER, priority=2), new(priority=3, after=[tasks[0].id]))
    whole = await store.queued()
    assert {priority: n for priority, (n, _) in whole.by_priority.items()} == {3: 1, 0: 2, 2: 1}
    assert whole.is_whole
    assert all(since_ms == store.now_ms() for _, since_ms in whole.by_priority.values())
    some = await store.queued(4)
    assert {priority: n for priority, (n, _) in some.by_priority.items()} == {3: 1, 0: 1, 2: 1}
    assert not some.is_whole
    await port.room(10)
    assert (await store.queued()).by_priority == {}
