"""Dependencies: who waits for whom, what they get, and how failures travel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.conformance.kit import AGEING_MS, OUTPUT, Factory, Port, error, new, opened, state, status, statuses, submit

from mainspring.errors import InvalidInput, TaskNotFound
from mainspring.store.base import (
    CANCELLED,
    COMPLETED,
    FAILED,
    HAS_REFS,
    RELEASED,
    RETRY,
    STANDS_FOR,
    TIMEOUT,
    URGENT,
    NewTask,
)
from mainspring.store.sql import upkeep
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio

REQUIRE, ALLOW_FAILURE, SKIP = 0, 1, 2
FAILURES = {"failed": FAILED, "timeout": TIMEOUT, "cancelled": CANCELLED}


def ids(claims: list[Any]) -> list[bytes]:
    return [claim.id for claim in claims]


async def test_a_chain_runs_in_order(store: Any, port: Port) -> None:
    """No task is handed over before the one it waits for has completed; each is ready in that same commit."""
    chain = [new()]
    for _ in range(9):
        chain.append(new(after=[chain[-1].id]))
    await store.submit(chain)
    await port.room(5)
    for task in chain:
        assert ids(list(port.held.values())) == [task.id]
        port.end(port.held[task.id])
        await port.settle()
    assert await statuses(store, (task.id for task in chain)) == ["completed"] * 10


async def test_a_diamond_waits_for_both_sides(store: Any, port: Port) -> None:
    """The bottom is released once, by the side that ends last."""
    top = new()
    left, right = new(after=[top.id]), new(after=[top.id])
    bottom = new(after=[left.id, right.id])
    await store.submit([top, left, right, bottom])
    await port.finish(await port.take())
    one, other = await port.room(2)
    await port.finish(other)
    assert str(await state(store, bottom.id)) == "PENDING (parents)"
    await port.finish(one)
    assert str(await state(store, bottom.id)) == "PENDING (ready)"
    assert ids(await port.room(3)) == [bottom.id]


@pytest.mark.parametrize("backwards", [False, True])
async def test_fan_in_of_a_thousand(store: Any, port: Port, backwards: bool) -> None:
    """A task with 1,000 parents waits for the very last one, in whatever order they end."""
    parents = [new() for _ in range(1000)]
    child = new(after=[parent.id for parent in parents])
    await store.submit([*parents, child])
    port.lanes["async"].limit = 1000
    await port.settle()
    await port.settle()
    claims = sorted(port.order, key=lambda claim: claim.seq, reverse=backwards)
    assert len(claims) == 1000
    port.lanes["async"].limit = 0
    for claim in claims[:-1]:
        port.end(claim)
    await port.settle()
    assert str(await state(store, child.id)) == "PENDING (parents)"
    port.end(claims[-1])
    await port.settle()
    assert str(await state(store, child.id)) == "PENDING (ready)"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ends", FAILURES)
@pytest.mark.parametrize(
    ("policy", "state_then", "error_type"),
    [
        (REQUIRE, "FAILED", "DependencyNotMet"),
        (ALLOW_FAILURE, "PENDING (ready)", None),
        (SKIP, "CANCELLED", "TaskCancelled"),
    ],
)
async def test_policies(
    store: Any, port: Port, when: str, ends: str, policy: int, state_then: str, error_type: str | None
) -> None:
    """What a parent's failure does to its child is the child's choice, also where the parent had failed already."""
    parent = new()
    child = new(after=[parent.id], policy=policy)
    await store.submit([parent, child] if when == "before" else [parent])
    await port.finish(await port.take(), FAILURES[ends], error=error())
    if when == "after":
        await store.submit([child])
    assert str(await state(store, child.id)) == state_then
    result = await store.result(child.id)
    assert (result and result.error.type) == error_type
    if error_type:
        assert ends in result.error.message
        assert port.ended_as()[child.id] == (3 if policy == REQUIRE else 4)


async def test_a_failure_travels_at_once(store: Any, port: Port) -> None:
    """A child fails with its first failing parent, though others are unfinished, and takes its own children along."""
    good, bad = new(), new()
    child = new(after=[good.id, bad.id])
    grandchild = new(after=[child.id])
    spared = new(after=[child.id], policy=ALLOW_FAILURE)
    await store.submit([good, bad, child, grandchild, spared])
    claims = {claim.id: claim for claim in await port.room(2)}
    await port.finish(claims[bad.id], FAILED)
    assert await statuses(store, [child.id, grandchild.id]) == ["failed", "failed"]
    assert str(await state(store, spared.id)) == "PENDING (ready)"
    await port.finish(claims[good.id])
    assert await statuses(store, [child.id, grandchild.id]) == ["failed", "failed"]


def family(shape: str, n: int, root: NewTask, policy: int = REQUIRE) -> list[NewTask]:
    """A root and n tasks below it."""
    tasks = [root]
    for at in range(n):
        above = {"wide": root, "deep": tasks[-1], "bushy": tasks[at // 2]}[shape]
        tasks.append(new(after=[above.id], policy=policy))
    return tasks


@pytest.mark.parametrize("shape", ["wide", "deep", "bushy"])
async def test_a_failure_reaches_thousands(store: Any, port: Port, shape: str) -> None:
    """All descendants end, however many, each once, without anybody asking."""
    tasks = family(shape, 2500, new())
    await store.submit(tasks)
    await port.finish(await port.take(), FAILED)
    await port.until(lambda: len(port.ended_as()) == len(tasks))
    await port.settle()
    assert (await store.stats())["types"]["custom:work"] == {"failed": 2501}
    assert Counter(ended.id for ended in port.ends) == Counter(task.id for task in tasks)


@pytest.mark.parametrize(("outcome", "policy"), [(COMPLETED, REQUIRE), (FAILED, ALLOW_FAILURE)])
async def test_an_end_releases_thousands(store: Any, port: Port, outcome: int, policy: int) -> None:
    """All children of one parent become ready, however many, in order, each once; those that wait for others too go on
    waiting."""
    root, other = new(), new(type="custom:unserved")
    both = new(after=[root.id, other.id], policy=policy)
    children = family("wide", 2500, root, policy)[1:]
    await store.submit([root, other, *children[:1200], both, *children[1200:]])
    await port.finish(await port.take(), outcome)
    port.lanes["async"].limit += 5_000
    store.demand()
    await port.until(lambda: len(port.held) == len(children))
    await port.settle()
    assert ids(port.order[1:]) == [task.id for task in children]
    assert str(await state(store, both.id)) == "PENDING (parents)"


@pytest.mark.parametrize("shape", ["wide", "deep"])
async def test_a_failure_survives_the_process(factory: Factory, shape: str) -> None:
    """If the process dies while a failure travels, the next one goes on with it; none hears of it twice."""
    first = factory.make()
    await first.open()
    port = Port(first)
    await port.serve()
    tasks = family(shape, 3000, new())
    await first.submit(tasks)
    claim = await port.take()
    await factory.die_with(first, lambda: port.end(claim, FAILED))
    left = {id for id, state in factory.states().items() if state.status is TaskStatus.PENDING}
    assert 0 < len(left) < 3000
    second = factory.make()
    port = Port(second)
    async with opened(second):
        await port.until(lambda: len(port.ended_as()) == len(left))
        await port.settle()
        assert Counter(ended.id for ended in port.ends) == Counter(left)
    assert {state.status for state in factory.states().values()} == {TaskStatus.FAILED}


async def test_a_release_survives_the_process(factory: Factory) -> None:
    """If the process dies while children of a completed parent become ready, the next one goes on with that."""
    first = factory.make()
    await first.open()
    port = Port(first)
    await port.serve()
    root, *children = family("wide", 3000, new())
    await first.submit([root, *children])
    claim = await port.take()
    await factory.die_with(first, lambda: port.end(claim))
    left = sum(state.reason == "parents" for state in factory.states().values())
    assert 0 < left < 3000
    async with opened(factory.make()) as second:
        port = Port(second, 5_000)
        await port.serve()
        await port.until(lambda: len(port.held) == len(children))
        assert Counter(ids(port.order)) == Counter(task.id for task in children)


async def test_results_come_with_the_claim(store: Any, port: Port) -> None:
    """The claim of a task whose input refers to its parents brings how each ended, with its output."""
    good, bad = new(), new()
    child = new(after=[good.id, bad.id], policy=ALLOW_FAILURE, flags=HAS_REFS)
    await store.submit([good, bad, child])
    for claim in await port.room(2):
        await port.finish(claim, COMPLETED if claim.id == good.id else FAILED)
    claim = await port.take()
    assert claim.parents is not None
    assert list(claim.parents) == [good.id, bad.id]
    assert (claim.parents[good.id].status, claim.parents[good.id].output) == (2, OUTPUT)
    assert (claim.parents[bad.id].status, claim.parents[bad.id].output) == (3, None)


async def test_a_late_child_of_a_completed_parent_is_ready(store: Any, port: Port) -> None:
    """A parent that has completed already is met; the child gets its result like any other."""
    (parent,) = await submit(store, new())
    await port.finish(await port.take())
    (child,) = await submit(store, new(after=[parent], flags=HAS_REFS))
    claim = await port.take()
    assert claim.id == child
    assert claim.parents is not None
    assert claim.parents[parent].output == OUTPUT


async def test_a_released_child_waits_for_its_time(factory: Factory, store: Any, port: Port) -> None:
    """When its parents are done before its not_before, it's delayed until then."""
    parent = new()
    child = new(after=[parent.id], not_before_ms=store.now_ms() + 5_000)
    await store.submit([parent, child])
    await port.finish(await port.take())
    assert str(await state(store, child.id)) == "PENDING (delayed)"
    factory.clock.advance(5)
    assert (await port.take()).id == child.id


async def test_a_retry_of_the_parent_keeps_the_child_waiting(store: Any, port: Port) -> None:
    """Only the final outcome counts."""
    parent = new()
    child = new(after=[parent.id])
    await store.submit([parent, child])
    await port.finish(await port.take(), RETRY, error=error())
    assert str(await state(store, child.id)) == "PENDING (parents)"
    await port.finish(await port.take())
    assert str(await state(store, child.id)) == "PENDING (ready)"


async def test_one_edge_is_enough(store: Any, port: Port) -> None:
    """A parent named twice counts once."""
    parent = new()
    child = new(after=[parent.id, parent.id])
    await store.submit([parent, child])
    await port.finish(await port.take())
    assert str(await state(store, child.id)) == "PENDING (ready)"


# Order


async def test_a_parent_is_as_urgent_as_its_most_urgent_child(store: Any, port: Port) -> None:
    """What an urgent task waits for, at whatever distance, goes before what is less urgent than that task."""
    (far,) = await submit(store, new(priority=0))
    (near,) = await submit(store, new(priority=0, after=[far]))
    (beside,) = await submit(store, new(priority=2))
    assert str(await state(store, near)) == "PENDING (parents)"
    await submit(store, new(priority=3, after=[near]))
    first = await port.take()
    assert first.id == far
    await port.finish(first)
    assert ids(await port.room(2)) == [near, beside]


async def test_urgency_passes_on_to_what_a_parent_stands_for(store: Any, port: Port) -> None:
    """Tasks that a parent hands over to are as urgent as those that now wait for them."""
    (parent,) = await submit(store, new())
    await submit(store, new(priority=3, after=[parent]))
    claim = await port.take()
    (beside,) = await submit(store, new(priority=2))
    inner = new(priority=0)
    await port.finish(claim, children=(inner,), refs=(inner.id,))
    assert ids(await port.room(2)) == [inner.id, beside]


async def test_what_an_urgent_task_waits_for_is_flagged(store: Any, port: Port) -> None:
    """However it came to wait: by its submission, as its parent hands over to another task, and when it is retried."""
    parent, other = await submit(store, new(max_retries=0), new())
    calm = await submit(store, new(after=[other]))
    await submit(store, new(priority=3, after=[parent]))
    claims = {claim.id: claim for claim in await port.room(2)}
    assert {id: claim.flags & URGENT for id, claim in claims.items()} == {parent: URGENT, other: 0}
    inner = new(max_retries=0)
    await port.finish(claims[parent], children=(inner,), refs=(inner.id,))
    claim = await port.take()
    assert (claim.id, claim.flags & URGENT) == (inner.id, URGENT)
    await port.finish(claim, FAILED, error=error())
    await store.retry(inner.id)
    claim = await port.take()
    assert claim.flags & URGENT
    assert port.urgent == []
    await submit(store, new(priority=2, after=calm))
    assert [id for id, _ in port.urgent] == [other]


async def test_an_ended_dependent_lends_no_urgency(store: Any, port: Port) -> None:
    """What a parent stands for is not hurried for a dependent that has been cancelled."""
    (parent,) = await submit(store, new())
    (urgent,) = await submit(store, new(priority=3, after=[parent]))
    claim = await port.take()
    (beside,) = await submit(store, new(priority=2))
    await store.cancel(urgent)
    inner = new(priority=0)
    await port.finish(claim, children=(inner,), refs=(inner.id,))
    assert ids(await port.room(2)) == [beside, inner.id]


async def test_a_parent_that_comes_back_is_as_urgent_as_its_child(store: Any, port: Port) -> None:
    """Also where the child came while the parent ran: handed back, the parent goes before what is less urgent."""
    (parent,) = await submit(store, new(priority=0))
    claim = await port.take()
    store.started(claim, store.now_ms())
    await submit(store, new(priority=3, after=[parent]))
    (beside,) = await submit(store, new(priority=2))
    await port.finish(claim, RELEASED)
    assert ids(await port.room(2)) == [parent, beside]


# Outputs that stand for other tasks


async def test_dependents_wait_for_what_a_parent_refers_to(store: Any, port: Port) -> None:
    """A handler that returns tasks hands its dependents over to them: these wait, and get the values of all."""
    (parent,) = await submit(store, new())
    (child,) = await submit(store, new(after=[parent], flags=HAS_REFS))
    parts = [new(), new()]
    await port.finish(await port.take(), children=tuple(parts), refs=tuple(part.id for part in parts))
    assert str(await state(store, child)) == "PENDING (parents)"
    claims = await port.room(2)
    assert ids(claims) == [part.id for part in parts]
    await port.finish(claims[0])
    assert str(await state(store, child)) == "PENDING (parents)"
    await port.finish(claims[1])
    claim = await port.take()
    assert claim.id == child
    assert claim.parents is not None
    assert set(claim.parents) == {parent, parts[0].id, parts[1].id}
    assert claim.parents[parent].flags & STANDS_FOR


async def test_standing_for_is_nested(store: Any, port: Port) -> None:
    """If such a task refers to others in turn, the dependents wait for those too."""
    (parent,) = await submit(store, new())
    (child,) = await submit(store, new(after=[parent]))
    middle, inner = new(), new()
    await port.finish(await port.take(), children=(middle,), refs=(middle.id,))
    await port.finish(await port.take(), children=(inner,), refs=(inner.id,))
    assert str(await state(store, child)) == "PENDING (parents)"
    await port.finish(await port.take())
    assert str(await state(store, child)) == "PENDING (ready)"


@pytest.mark.parametrize("done", [False, True])
async def test_late_dependents_wait_too(store: Any, port: Port, done: bool) -> None:
    """A child that comes after its parent has completed waits for what the parent stands for, nested as well."""
    (parent,) = await submit(store, new())
    middle, inner = new(), new()
    await port.finish(await port.take(), children=(middle,), refs=(middle.id,))
    await port.finish(await port.take(), children=(inner,), refs=(inner.id,))
    if done:
        await port.finish(await port.take())
    (child,) = await submit(store, new(after=[parent], flags=HAS_REFS))
    if not done:
        assert str(await state(store, child)) == "PENDING (parents)"
        await port.finish(await port.take())
    claim = await port.take()
    assert claim.id == child
    assert claim.parents is not None
    assert set(claim.parents) == {parent, middle.id, inner.id}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failure_of_what_a_parent_stands_for_counts(store: Any, port: Port, when: str) -> None:
    """It's as if the parent had failed: the dependents' policy decides."""
    (parent, part) = await submit(store, new(), new())
    (strict, lenient) = await submit(store, new(after=[parent]), new(after=[parent], policy=ALLOW_FAILURE))
    claims = {claim.id: claim for claim in await port.room(2)}
    if when == "before":
        await port.finish(claims[part], FAILED)
    await port.finish(claims[parent], refs=(part,))
    if when == "after":
        await port.finish(claims[part], FAILED)
    assert str(await state(store, strict)) == "FAILED"
    assert str(await state(store, lenient)) == "PENDING (ready)"


async def test_standing_for_a_failure_travels_at_once(store: Any, port: Port) -> None:
    """A dependent fails with what its parent hands it over to, though other parts are unfinished."""
    (parent, slow, bad) = await submit(store, new(), new(), new())
    (child,) = await submit(store, new(after=[parent]))
    (below,) = await submit(store, new(after=[child]))
    claims = {claim.id: claim for claim in await port.room(3)}
    await port.finish(claims[bad], FAILED)
    await port.finish(claims[parent], refs=(slow, bad))
    assert await statuses(store, [parent, child, below]) == ["completed", "failed", "failed"]
    assert port.ended_as().keys() == {bad, parent, child, below}


async def test_children_submitted_by_an_attempt_may_depend_on_each_other(store: Any, port: Port) -> None:
    """A handler can build a whole graph in one outcome, and hand over to its end."""
    (parent,) = await submit(store, new())
    (child,) = await submit(store, new(after=[parent]))
    a, side = new(), new()
    b = new(after=[a.id, side.id])
    await port.finish(await port.take(), children=(a, side, b), refs=(b.id,))
    assert [str(await state(store, task.id)) for task in (a, side, b)] == ["PENDING (ready)"] * 2 + [
        "PENDING (parents)"
    ]
    await port.room(2)
    assert ids(await port.run_all())[-2:] == [b.id, child]
    assert await statuses(store, [parent, a.id, side.id, b.id, child]) == ["completed"] * 5


@pytest.mark.parametrize("far", [False, True])
async def test_standing_for_a_dependent_of_ones_own_is_refused(store: Any, port: Port, far: bool) -> None:
    """An outcome after which two tasks would wait for each other fails its attempt; nothing hangs for ever."""
    (parent,) = await submit(store, new())
    (child,) = await submit(store, new(after=[parent]))
    end = new(after=[child])
    if far:
        await store.submit([end])
    await port.finish(await port.take(), children=() if far else (end,), refs=(end.id,))
    result = await store.result(parent)
    assert (result.status, result.error.type) == (TaskStatus.FAILED, "InvalidInput")
    assert await status(store, child) is TaskStatus.FAILED


async def test_standing_for_a_failure_ends_all_dependents(store: Any, port: Port) -> None:
    """Also where one of them waits for another of them: each ends once."""
    (parent, bad) = await submit(store, new(), new())
    (first,) = await submit(store, new(after=[parent]))
    (second,) = await submit(store, new(after=[first, parent]))
    claims = {claim.id: claim for claim in await port.room(2)}
    await port.finish(claims[bad], FAILED)
    await port.finish(claims[parent], refs=(bad,))
    assert await statuses(store, [parent, first, second]) == ["completed", "failed", "failed"]
    assert len(port.ends) == 4


async def test_standing_for_an_ended_dependent_is_refused(store: Any, port: Port) -> None:
    """What depends on a task can't be its result, ended or not: made anew, each would wait for the other."""
    (parent, other) = await submit(store, new(), new())
    (child,) = await submit(store, new(after=[parent]))
    (below,) = await submit(store, new(after=[other, child]))
    claims = {claim.id: claim for claim in await port.room(2)}
    await port.finish(claims[other], FAILED)
    await port.finish(claims[parent], refs=(below,))
    assert await statuses(store, [parent, child, below]) == ["failed"] * 3
    assert (await store.result(parent)).error.type == "InvalidInput"
    await store.retry(other)
    assert (await store.info(below)).retried_as is not None


async def test_standing_for_a_dependent_through_a_completed_task_is_refused(store: Any, port: Port) -> None:
    """Nobody comes to wait for itself by way of a task that has handed over already."""
    (parent, middle) = await submit(store, new(), new())
    (child,) = await submit(store, new(after=[parent]))
    (end,) = await submit(store, new(after=[child]))
    claims = {claim.id: claim for claim in await port.room(2)}
    await port.finish(claims[middle], refs=(end,))
    await port.finish(claims[parent], refs=(middle,))
    assert await statuses(store, [middle, parent, child, end]) == ["completed", "failed", "failed", "failed"]
    assert (await store.result(parent)).error.type == "InvalidInput"


# Retried by hand


async def test_retry_makes_a_new_task(store: Any, port: Port) -> None:
    """The new one has the old one's work and a clean slate; both say so; what the old one records stays."""
    (old,) = await submit(store, new("work", priority=2, group="g", max_retries=5, timeout_ms=100))
    await port.finish(await port.take(), FAILED)
    again = await store.retry(old)
    assert again != old
    before, after = await store.info(old), await store.info(again)
    assert (before.status, before.retried_as.bytes) == (TaskStatus.FAILED, again)
    assert (after.status, after.retry_of.bytes, after.attempt) == (TaskStatus.PENDING, old, 0)
    for field in ("input", "priority", "group", "max_retries", "timeout", "task_type", "namespace"):
        assert getattr(before.task, field) == getattr(after.task, field)
    await port.finish(await port.take())
    assert await statuses(store, [old, again]) == ["failed", "completed"]


async def test_a_task_is_retried_by_hand_once(store: Any, port: Port) -> None:
    """A second retry of the same task is refused and names the first."""
    (old,) = await submit(store, new())
    await port.finish(await port.take(), FAILED)
    await store.retry(old)
    with pytest.raises(InvalidInput, match="already"):
        await store.retry(old)


async def test_retry_takes_over_the_key(store: Any, port: Port) -> None:
    """The idempotency key names the new task from then on."""
    (old,) = await submit(store, new("a", key="k"))
    await port.finish(await port.take(), FAILED)
    again = await store.retry(old)
    assert await submit(store, new("a", key="k")) == [again]


async def test_retry_brings_back_what_failed_for_it(store: Any, port: Port) -> None:
    """Descendants that never ran because of it are made anew, with their edges and policies; others are left alone."""
    from mainspring.tasks import Ref, TaskId, Text
    from mainspring.tasks.codec import encode, refs_in

    root = new()
    child = new(after=[root.id], flags=HAS_REFS)
    child.input = encode(Text(Ref(TaskId(root.id))))[0]
    skipped = new(after=[root.id], policy=SKIP)
    grandchild = new(after=[child.id, skipped.id], policy=ALLOW_FAILURE)
    strict = new(after=[child.id])
    by_hand = new(after=[root.id])
    await store.submit([root, child, skipped, grandchild, strict, by_hand])
    assert await store.cancel(by_hand.id) == "cancelled"
    await port.finish(await port.take(), FAILED)
    await port.finish(await port.take())  # the grandchild, which allows for failures
    again = await store.retry(root.id)

    async def heir(id: bytes) -> Any:
        found = (await store.info(id)).retried_as
        return None if found is None else found.bytes

    new_child, new_skipped, new_strict = [await heir(task.id) for task in (child, skipped, strict)]
    assert None not in (new_child, new_skipped, new_strict)
    assert await heir(by_hand.id) is None
    claim = await port.take()
    assert claim.id == again
    await port.finish(claim)
    claims = {claim.id: claim for claim in await port.room(2)}
    assert set(claims) == {new_child, new_skipped}
    assert [ref.bytes for ref in refs_in(claims[new_child].input)] == [again]
    assert set(claims[new_child].parents or ()) == {again}
    await port.finish(claims[new_child])
    await port.finish(claims[new_skipped])
    assert new_strict in ids(await port.room(5))
    assert await statuses(store, [root.id, child.id, skipped.id, strict.id]) == [
        "failed",
        "failed",
        "cancelled",
        "failed",
    ]


async def test_retry_makes_parents_before_children(store: Any, port: Port) -> None:
    """Also where a child is older than what its parent came to stand for: nobody is made to wait for a failed one."""
    (parent,) = await submit(store, new())
    (child,) = await submit(store, new(after=[parent]))
    root, part = new(), new()
    part.after = [root.id]
    await port.finish(await port.take(), children=(root, part), refs=(part.id,))
    await port.finish(await port.take(), FAILED)
    assert await statuses(store, [root.id, part.id, child]) == ["failed"] * 3
    await store.retry(root.id)
    heirs = [(await store.info(id)).retried_as.bytes for id in (root.id, part.id, child)]
    assert [str(await state(store, id)) for id in heirs] == ["PENDING (ready)"] + ["PENDING (parents)"] * 2
    await port.room(1)
    assert ids(await port.run_all()) == heirs[1:]


async def test_what_is_made_anew_has_its_place_in_the_one_order(factory: Factory, store: Any, port: Port) -> None:
    """A renewed parent is as urgent as its renewed child; a delay that lies ahead counts as at submit."""
    (root,) = await submit(store, new(priority=0))
    await submit(store, new(priority=3, after=[root]))
    await port.finish(await port.take(), FAILED)
    (beside,) = await submit(store, new(priority=2))
    again = await store.retry(root)
    assert ids(await port.room(2)) == [again, beside]
    (late,) = await submit(store, new(not_before_ms=store.now_ms() + 2_000))
    await store.cancel(late)
    again = await store.retry(late)
    factory.clock.advance(1)
    (early,) = await submit(store, new())
    factory.clock.advance(1)
    assert ids(await port.room(2)) == [early, again]


async def test_retry_leaves_alone_what_was_cancelled_by_hand(store: Any, port: Port) -> None:
    """Also where the policy of a cancelled task would have skipped it."""
    (root,) = await submit(store, new())
    by_hand, skipped = await submit(store, new(after=[root], policy=SKIP), new(after=[root], policy=SKIP))
    await store.cancel(by_hand)
    await port.finish(await port.take(), FAILED)
    await store.retry(root)
    assert (await store.info(by_hand)).retried_as is None
    assert (await store.info(skipped)).retried_as is not None


async def test_retention_writes_only_where_something_is_old(
    factory: Factory, store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes through tasks that stay, however many, without a turn of the writer but one a sweep: on a server each
    would have the writers of all processes wait."""
    await factory.hold_upkeep(store)
    done, *_ = await submit(store, *(new() for _ in range(3 * upkeep.STEP + 1)))
    await port.finish(await port.take())
    writes = Counter[str]()

    async def write(run: Any, *rest: Any, **options: Any) -> Any:
        writes["all"] += 1
        return await type(store).write(store, run, *rest, **options)

    monkeypatch.setattr(store, "write", write)
    await store._caretaker._sweep()
    assert writes["all"] == 1
    assert done in factory.states()
    factory.clock.advance(8 * 86400)
    await store._caretaker._sweep()
    assert writes["all"] == 2
    assert done not in factory.states()
    assert len(factory.states()) == 3 * upkeep.STEP


async def test_retry_of_what_needs_a_result_that_is_gone(factory: Factory, store: Any, port: Port) -> None:
    """It is refused where a parent was pruned; below another task that is retried it stays as it is."""
    (parent,) = await submit(store, new())
    await port.finish(await port.take())
    (root,) = await submit(store, new())
    (child,) = await submit(store, new(after=[root, parent]))
    below, beside = await submit(store, new(after=[child]), new(after=[root]))
    await port.finish(await port.take(), FAILED)
    factory.clock.advance(8 * 86400)
    await factory.prune(store)
    assert set(factory.states()) == {root, child, below, beside}
    with pytest.raises(InvalidInput, match="pruned"):
        await store.retry(child)
    await store.retry(root)
    heirs = [(await store.info(id)).retried_as for id in (child, below, beside)]
    assert [heir is not None for heir in heirs] == [False, False, True]


async def test_the_new_task_answers_for_the_old_one(store: Any, port: Port) -> None:
    """Whoever gets a result that stands for a task that was made anew gets the new one's, however often."""
    (parent,) = await submit(store, new())
    await submit(store, new(after=[parent], flags=HAS_REFS))
    part = new()
    await port.finish(await port.take(), children=(part,), refs=(part.id,))
    await port.finish(await port.take(), FAILED)
    first = await store.retry(part.id)
    await port.finish(await port.take(), FAILED)
    second = await store.retry(first)
    await port.finish(await port.take())
    claim = await port.take()
    assert claim.parents is not None
    assert set(claim.parents) == {parent, part.id, first, second}
    assert {claim.parents[id].output for id in (part.id, first, second)} == {OUTPUT}


async def test_retry_below_a_failed_parent_fails_at_once(store: Any, port: Port) -> None:
    """Retrying a descendant alone does not mend its parent."""
    root = new()
    child = new(after=[root.id])
    await store.submit([root, child])
    await port.finish(await port.take(), FAILED)
    assert await status(store, await store.retry(child.id)) is TaskStatus.FAILED


async def test_retry_of_nothing(store: Any) -> None:
    """An unknown id is not found."""
    with pytest.raises(TaskNotFound):
        await store.retry(bytes(16))


# Retention


async def test_retention_takes_only_what_is_old_and_over(factory: Factory, store: Any, port: Port) -> None:
    """Unfinished tasks stay for ever, ended ones for as long as their kind is kept; the rest leaves a tombstone."""
    (waiting,) = await submit(store, new(type="custom:unserved"))
    done, failed = await submit(store, new("a", key="k"), new())
    for claim in await port.room(2):
        await port.finish(claim, COMPLETED if claim.id == done else FAILED)
    factory.clock.advance(6 * 86400)
    (young,) = await submit(store, new())
    await port.finish(await port.take())
    await factory.prune(store)
    assert set(factory.states()) == {waiting, done, failed, young}
    factory.clock.advance(2 * 86400)
    await factory.prune(store)
    assert set(factory.states()) == {waiting, failed, young}
    with pytest.raises(TaskNotFound, match="completed and was pruned"):
        await store.info(done)
    with pytest.raises(TaskNotFound, match="pruned"):
        await store.cancel(done)
    assert (await store.submit([new("b", key="k")]))[0].existed is False
    stats = await store.stats()
    assert (stats["completed"], stats["failed"]) == (1, 1)


async def test_retention_keeps_only_so_many_completed(factory: Factory) -> None:
    """Beyond `max_completed` the first ones go, however young; what has failed is not counted among them."""
    async with opened(factory.make(max_completed=2)) as store:
        port = Port(store)
        await port.serve()
        ids = await submit(store, *(new() for _ in range(5)))
        for claim in await port.room(5):
            await port.finish(claim, FAILED if claim.id == ids[1] else COMPLETED)
        factory.clock.advance(3_600)
        await factory.prune(store)
        assert set(factory.states()) == {ids[1], *ids[-2:]}


async def test_retention_keeps_what_the_living_need(factory: Factory, store: Any, port: Port) -> None:
    """Parents of unfinished tasks stay, and so does what they stand for; when those have ended, all goes."""
    (parent,) = await submit(store, new())
    inner = new()
    await port.finish(await port.take(), children=(inner,), refs=(inner.id,))
    await port.finish(await port.take())
    child = new(after=[parent], flags=HAS_REFS, type="custom:unserved")
    await store.submit([child])
    factory.clock.advance(40 * 86400)
    await factory.prune(store)
    assert set(factory.states()) == {parent, inner.id, child.id}
    assert await store.cancel(child.id) == "cancelled"
    factory.clock.advance(40 * 86400)
    for _ in range(3):
        await factory.prune(store)
    assert factory.states() == {}


async def test_ids_of_the_pruned_are_not_used_again(factory: Factory, store: Any, port: Port) -> None:
    """Order stays the order of submission after pruning: a stale claim can never meet a new task."""
    await submit(store, new())
    stale = await port.take()
    await port.finish(stale)
    factory.clock.advance(40 * 86400)
    await factory.prune(store)
    (fresh,) = await submit(store, new())
    assert (await port.take()).seq > stale.seq
    await port.finish(stale, FAILED)
    assert (await state(store, fresh)).reason == "claimed"
    assert len(port.missed) == 1


async def test_ageing_is_what_the_suite_assumes(store: Any) -> None:
    """The suite's figures rest on steps of a minute."""
    assert store.config.ageing_s * 1000 == AGEING_MS
