"""What a submit promises."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, new, opened, state, submit

from mainspring.errors import Conflict, InvalidInput, QueueFull, TaskNotFound
from mainspring.store.base import BLOB_INPUT, FAILED, Accepted
from mainspring.tasks import TaskId, TaskStatus

pytestmark = pytest.mark.anyio


async def test_accepted_is_durable(factory: Factory) -> None:
    """When submit returns, another connection reads the task; it's still there after the process died."""
    store = factory.make()
    await store.open()
    (accepted,) = await store.submit([new("hello")])
    assert factory.durable_status(accepted.id) == 0
    await factory.die(store)
    async with opened(factory.make()) as other:
        info = await other.info(accepted.id)
        assert info.task.input.text == "hello"


async def test_all_or_none(factory: Factory, store: Any) -> None:
    """One bad task keeps the whole call out, whatever came before it in the call."""
    good, bad = new(), new(after=[TaskId().bytes])
    with pytest.raises(TaskNotFound, match="dependencies"):
        await store.submit([good, bad])
    assert factory.states() == {}
    with pytest.raises(TaskNotFound):
        await store.info(good.id)


async def test_a_bad_submit_fails_alone(factory: Factory, store: Any) -> None:
    """Of submits that are given at once, and share a commit, only the bad one is refused."""
    tasks = [new(), new(after=[TaskId().bytes]), new(), new()]
    answers = await asyncio.gather(*(store.submit([task]) for task in tasks), return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, TaskNotFound, list, list]
    assert set(factory.states()) == {tasks[0].id, tasks[2].id, tasks[3].id}


async def test_same_id_and_payload_is_the_same_task(factory: Factory, store: Any) -> None:
    """A repeated submit is harmless: it's told that the task existed, and nothing is stored twice."""
    task = new("a")
    assert await store.submit([task]) == [Accepted(task.id, False)]
    assert await store.submit([task]) == [Accepted(task.id, True)]
    assert await store.submit([task, task]) == [Accepted(task.id, True)] * 2
    assert len(factory.states()) == 1


async def test_the_id_of_no_task_is_refused(factory: Factory, store: Any) -> None:
    """All zeros are what an id that was never set looks like: who leave it so must not share one task."""
    with pytest.raises(InvalidInput, match="is the id of no task; leave it out"):
        await store.submit([new(), new(id=bytes(16))])
    assert factory.states() == {}


async def test_same_id_with_another_payload_is_a_conflict(store: Any) -> None:
    """An id names one task for ever: other input or another type under it is refused and nothing else of that call
    is kept."""
    task = new("a")
    await store.submit([task])
    for other in (new("b", id=task.id), new("a", id=task.id, type=OTHER)):
        beside = new()
        with pytest.raises(Conflict):
            await store.submit([beside, other])
        with pytest.raises(TaskNotFound):
            await store.info(beside.id)


async def test_an_idempotency_key_gives_one_task(factory: Factory, store: Any) -> None:
    """Many submits under one key at the same time make one task, and all get its id."""
    answers = await asyncio.gather(*(store.submit([new("a", key="k")]) for _ in range(50)))
    assert len({answer[0].id for answer in answers}) == 1
    assert sorted(answer[0].existed for answer in answers) == [False] + [True] * 49
    assert len(factory.states()) == 1


async def test_an_idempotency_key_belongs_to_its_namespace(store: Any) -> None:
    """The same key in two namespaces means two tasks; with another payload in the same namespace it's a conflict."""
    a, b = await submit(store, new("a", key="k"), new("b", key="k", namespace="tenant"))
    assert a != b
    with pytest.raises(Conflict, match="'k'"):
        await store.submit([new("b", key="k")])
    assert await submit(store, new("b", key="k", namespace="tenant")) == [b]


async def test_a_key_still_names_its_task_when_that_has_ended(store: Any, port: Port) -> None:
    """A key is not free again when its task completes: the task with its result is the answer."""
    (id,) = await submit(store, new("a", key="k"))
    await port.finish(await port.take())
    assert await store.submit([new("a", key="k")]) == [Accepted(id, True)]


async def test_unknown_parents_are_refused(store: Any) -> None:
    """A dependency on what nobody has stored is an error that names it."""
    parent = TaskId()
    with pytest.raises(TaskNotFound, match=str(parent)):
        await store.submit([new(after=[parent.bytes])])


async def test_parents_may_stand_in_the_same_call_before_their_children(store: Any) -> None:
    """Order within a call counts: a child before its parent is refused."""
    parent = new()
    await store.submit([parent, new(after=[parent.id])])
    late = new()
    with pytest.raises(TaskNotFound):
        await store.submit([new(after=[late.id]), late])


async def test_a_task_can_not_wait_for_itself(store: Any) -> None:
    """The only cycle a submit could make is refused."""
    id = TaskId().bytes
    with pytest.raises(InvalidInput, match="itself"):
        await store.submit([new(id=id, after=[id])])


async def test_a_pruned_task_is_not_run_again(factory: Factory) -> None:
    """Submitting the same id again is harmless, also after the task has ended and was pruned."""
    async with opened(factory.make(keep_completed_s=10.0)) as store:
        port = Port(store, 5)
        await port.serve()
        task = new()
        await submit(store, task)
        await port.until(lambda: port.held)
        await port.run_all()
        factory.clock.advance(100)
        await factory.prune(store)
        assert await store.submit([task]) == [Accepted(task.id, True)]


async def test_a_pruned_parent_is_refused_as_such(factory: Factory, store: Any, port: Port) -> None:
    """A parent whose result is gone is not met and not unknown: the error says that it was pruned."""
    (parent,) = await submit(store, new())
    await port.finish(await port.take())
    factory.clock.advance(30 * 86400)
    await factory.prune(store)
    with pytest.raises(TaskNotFound, match="pruned"):
        await store.submit([new(after=[parent])])


async def test_a_full_queue_refuses(factory: Factory) -> None:
    """Above queue_size unfinished tasks nothing is stored, not even a part of a call; ends make room again."""
    async with opened(factory.make(queue_size=3)) as store:
        port = Port(store)
        await port.serve()
        await store.submit([new(), new()])
        with pytest.raises(QueueFull, match="queue_size = 3") as refused:
            await store.submit([new(), new()])
        assert refused.value.retry_after is not None
        assert len(factory.states()) == 2
        await store.submit([new()])
        await port.finish(await port.take(), FAILED)
        await store.submit([new()])
        with pytest.raises(QueueFull):
            await store.submit([new()])


async def test_a_full_queue_refuses_also_those_that_come_at_once(factory: Factory) -> None:
    """Submits that share a commit don't get past queue_size together."""
    async with opened(factory.make(queue_size=3)) as store:
        answers = await asyncio.gather(*(store.submit([new()]) for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(answer, list) for answer in answers) == 3
        assert sum(isinstance(answer, QueueFull) for answer in answers) == 5
        assert len(factory.states()) == 3


async def test_a_full_queue_still_knows_its_tasks(factory: Factory) -> None:
    """Repeating an accepted submit adds nothing, so it's answered however full the queue is: by id and by key."""
    async with opened(factory.make(queue_size=1)) as store:
        task = new("a", key="k")
        await store.submit([task])
        assert await store.submit([task]) == [Accepted(task.id, True)]
        assert await store.submit([new("a", key="k")]) == [Accepted(task.id, True)]


async def test_what_is_there_is_answered_above_the_limit(factory: Factory) -> None:
    """Children may bring a store above queue_size: what adds nothing is answered then too."""
    async with opened(factory.make(queue_size=1)) as store:
        port = Port(store)
        await port.serve()
        (parent,) = await submit(store, new("a", key="k"))
        await port.finish(await port.take(), children=(new(), new()))
        assert await store.submit([new("a", key="k")]) == [Accepted(parent, True)]


@pytest.mark.parametrize("beside", [False, True])
async def test_a_key_goes_before_an_id(store: Any, beside: bool) -> None:
    """Whatever else is in the call: where both are known, the key says which task is meant."""
    other = new()
    by_id, by_key, _ = await submit(store, new("a"), new("a", key="k"), other)
    call = [new("a", id=by_id, key="k"), *([other] if beside else [])]
    assert (await store.submit(call))[0] == Accepted(by_key, True)


async def test_the_stored_task_is_the_submitted_one(store: Any) -> None:
    """Every field comes back as it was given."""
    now = store.now_ms()
    task = new(
        "a", type=OTHER, namespace="n", group="g", priority=3, max_retries=7, timeout_ms=1500,
        deadline_ms=now + 9000, not_before_ms=now + 5000,
    )  # fmt: skip
    await store.submit([task])
    info = await store.info(task.id)
    got = info.task
    assert (got.id.bytes, got.task_type, got.namespace, got.group) == (task.id, OTHER, "n", "g")
    assert (int(got.priority), got.max_retries, got.timeout, got.input.text) == (3, 7, 1.5, "a")
    assert got.deadline is not None
    assert got.not_before is not None
    assert (got.deadline.timestamp() * 1000, got.not_before.timestamp() * 1000) == (now + 9000, now + 5000)
    assert (info.status, info.reason, info.submitted.timestamp() * 1000) == (TaskStatus.PENDING, "delayed", now)


async def test_a_payload_in_a_blob_keeps_its_reference(factory: Factory, store: Any, port: Port) -> None:
    """A claim of a task whose input lies in a blob brings the digest and says so; so does the end of one with such
    output."""
    blob = store.blobs.put(b"x" * 100_000)
    task = new()
    task.input, task.flags = blob.digest.encode(), 16
    await store.submit([task])
    claim = await port.take()
    assert (claim.input.decode(), claim.flags & 16) == (blob.digest, 16)
    await port.finish(claim, output=blob.digest.encode(), flags=32, blobs=(blob.digest,))
    (ended,) = port.ends
    assert (ended.output, ended.flags & 32) == (blob.digest.encode(), 32)


async def test_what_can_not_be_stored_is_refused_with_an_error_of_ours(factory: Factory, store: Any) -> None:
    """A task that breaks the store's own rules is refused by a TaskError, never by a driver's, and the store goes
    on."""
    from mainspring.errors import TaskError

    with pytest.raises(TaskError):
        await store.submit([new(priority=9)])
    (id,) = await submit(store, new())
    assert str(await state(store, id)) == "PENDING (ready)"
    assert len(factory.states()) == 1


async def test_types_that_workers_serve_are_known_to_all(factory: Factory, store: Any, port: Port) -> None:
    """A submitter elsewhere sees what was registered."""
    async with opened(factory.make()) as other:
        assert set(await other.registered_types()) == {WORK, OTHER}


async def test_what_cannot_be_read_back_hides_nothing(store: Any) -> None:
    """A row whose input or options fit no type is shown with what is wrong; the rows beside it as ever."""
    broken = new()
    broken.input = msgspec.msgpack.encode({"kind": "query", "collection": 5})
    broken.spec = msgspec.msgpack.encode({"model_id": 5, "params": {1: 2}})
    missing = new()
    missing.input, missing.flags = b"0" * 64, BLOB_INPUT
    ids = await submit(store, broken, missing, new("fine"))
    first, second, third = [await store.info(id) for id in ids]
    assert "collection" in first.task.input.value["unreadable"]
    assert (first.task.model_id, first.task.params) == (5, {1: 2})
    assert "no blob" in second.task.input.value["unreadable"]
    assert third.task.input.text == "fine"
    page = await store.list_tasks(limit=10)
    assert {info.task.id.bytes for info in page} == set(ids)
