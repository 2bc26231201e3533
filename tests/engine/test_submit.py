"""Submitting and getting results: submit, map, as_completed, gather, handles as arguments, options."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engine.support import engine_on, shows, until, value

from mainspring import (
    Conflict,
    Context,
    Custom,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Ref,
    StoreUnavailable,
    Task,
    TaskCancelled,
    TaskId,
    TaskNotFound,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
    TaskType,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


@pytest.fixture(scope="module")
def add(engine: Engine) -> Any:
    @engine.task
    async def add(a: int, b: int = 10) -> int:
        return a + b

    return add


@pytest.fixture(scope="module")
def same(engine: Engine) -> Any:
    @engine.task
    async def same(value):
        return value

    return same


@pytest.fixture(scope="module")
def boom(engine: Engine) -> Any:
    @engine.task(retry=0)
    async def boom(message: str = "bad luck") -> None:
        raise ValueError(message)

    return boom


async def test_a_decorated_function_stays_a_function(engine: Engine, add: Any) -> None:
    """Bare and with options, the decorator gives back the very function."""

    def shout(text: str) -> str:
        return text.upper()

    assert engine.task(shout) is shout
    assert shout("a") == "A"
    assert await add(1, 2) == 3

    @engine.task(name="quiet", version="2", timeout="5s", priority=TaskPriority.LOW)
    def whisper(text: str) -> str:
        return text.lower()

    assert whisper("A") == "a"
    handle = await engine.submit(whisper, "ABC")
    assert await value(handle) == "abc"
    task = (await handle.info()).task
    assert (task.task_type, task.timeout, task.priority) == ("custom:quiet", 5.0, TaskPriority.LOW)


async def test_arguments_by_place_by_name_and_by_default(engine: Engine, add: Any) -> None:
    """A call binds as Python's own does."""
    handles = [await engine.submit(add, 1), await engine.submit(add, 1, 2), await engine.submit(add, b=3, a=1)]
    assert await engine.gather(handles) == [11, 3, 4]


async def test_handles_at_any_depth_become_results(engine: Engine, add: Any, same: Any) -> None:
    """A handle inside lists and mappings is a dependency, and its place holds the result when the task runs."""
    one, two = await engine.submit(add, 0, 1), await engine.submit(add, 1, 1)
    nested = {"one": one, "list": [two, [one, {"deep": two}]], "plain": 7}
    handle = await engine.submit(same, nested)
    assert await value(handle) == {"one": 1, "list": [2, [1, {"deep": 2}]], "plain": 7}
    assert set((await handle.info()).task.dependencies) == {one.id, two.id}


async def test_a_chain_passes_results_on(engine: Engine, add: Any) -> None:
    """Each link gets what the one before returned."""
    handle = await engine.submit(add, 0, 1)
    for _ in range(10):
        handle = await engine.submit(add, handle, 1)
    assert await value(handle) == 11


async def test_a_failed_parent_fails_its_dependents(engine: Engine, boom: Any, same: Any) -> None:
    """By default a child of a failed task fails with DependencyNotMet that names the parent; it never runs."""
    parent = await engine.submit(boom)
    child = await engine.submit(same, parent)
    grandchild = await engine.submit(same, [child])
    info = None
    with pytest.raises(Exception, match=str(parent.id)) as caught:
        await value(child)
    assert type(caught.value).__name__ == "DependencyNotMet"
    with pytest.raises(Exception, match=str(child.id)):
        await value(grandchild)
    info = await child.info()
    assert (info.status, info.attempt) == (TaskStatus.FAILED, 0)


async def test_dependency_policies(engine: Engine, boom: Any, same: Any) -> None:
    """allow_failure runs with None in the place of what failed; skip cancels."""
    parent = await engine.submit(boom)
    allowed = await engine.submit(same, [parent, 1], on_dependency_failure="allow_failure")
    skipped = await engine.submit(same, parent, on_dependency_failure="skip")
    assert await value(allowed) == [None, 1]
    with pytest.raises(TaskCancelled):
        await value(skipped)


async def test_after_orders_without_passing_anything(engine: Engine) -> None:
    """`after` waits for tasks whose result is not needed; handles, ids and texts of ids are taken."""
    order: list[str] = []

    @engine.task
    async def note(word: str) -> None:
        order.append(word)

    first = await engine.submit(note, "first", delay="20ms")
    second = await engine.submit(note, "second", after=first)
    third = await engine.submit(note, "third", after=[second.id])
    fourth = await engine.submit(note, "fourth", after=str(third.id))
    await value(fourth)
    assert order == ["first", "second", "third", "fourth"]


async def test_map_keeps_the_order(engine: Engine, add: Any) -> None:
    """More items than go into one chunk: one task for each, handles in the order of the items, options for all."""
    handles = await engine.map(add, range(2_500), b=1, priority="low")
    assert await engine.gather(handles) == [i + 1 for i in range(2_500)]
    assert (await handles[0].info()).task.priority is TaskPriority.LOW
    assert await engine.map(add, []) == []


async def test_map_keeps_the_order_of_large_items(tmp_path: Path) -> None:
    """A chunk whose payloads go into files first is not overtaken by those after it."""
    begun: list[int] = []
    engine = engine_on(tmp_path / "work.db", async_slots=1)

    @engine.task
    async def first_of(item: list[Any]) -> None:
        begun.append(item[0])

    async with engine:
        await engine.manager.pause()
        items = [[n, "x" * 100_000 if n == 0 else ""] for n in range(2_500)]
        handles = await engine.map(first_of, items)
        await engine.manager.resume()
        await engine.gather(handles)
    assert begun == sorted(begun)


async def test_a_function_that_is_a_handler_of_two_engines(tmp_path: Path) -> None:
    """Each engine submits it, also from within handlers, as it was declared there."""
    engines = [engine_on(tmp_path / f"{n}.db") for n in range(2)]

    async def shared(n: int) -> int:
        return n

    async def parent(ctx: Context) -> Any:
        return ctx.submit(shared, 1)

    for n, engine in enumerate(engines):
        engine.task(name=f"shared{n}", priority=TaskPriority(n))(shared)
        engine.task(name=f"parent{n}")(parent)
    for n, engine in enumerate(engines):
        async with engine:
            handles = [await engine.submit(shared, 1), *await engine.map(shared, [1])]
            assert await value(await engine.submit(parent)) == 1
            for handle in handles:
                task = (await handle.info()).task
                assert (task.task_type, task.priority) == (f"custom:shared{n}", n)
            counts = (await engine.manager.stats())["types"]
            assert {kind: sum(by_status.values()) for kind, by_status in counts.items()} == {
                f"custom:shared{n}": 3,
                f"custom:parent{n}": 1,
            }


async def test_a_handler_may_submit_while_the_engine_drains(tmp_path: Path) -> None:
    """What is stored then runs when the store is opened next."""
    engine = engine_on(tmp_path / "work.db")
    begun, go = asyncio.Event(), asyncio.Event()

    async def late(n: int) -> int:
        return n

    async def last(n: int) -> Any:
        begun.set()
        await go.wait()
        return await engine.submit(late, n)

    engine.task(late)
    await engine.start()
    handle = await engine.submit(engine.task(last), 7)
    await begun.wait()
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    go.set()
    await stopping
    again = engine_on(tmp_path / "work.db")
    again.task(late)
    async with again:
        assert await value(again.handle(handle.id)) == 7


async def test_as_completed_yields_each_once_however_it_ends(engine: Engine, add: Any, boom: Any) -> None:
    """Ended, failed, delayed and foreign handles all come, in the order of their ends."""
    await engine.manager.pause(group="slow")
    slow = await engine.submit(add, 2, group="slow", delay="60ms")
    quick = await engine.submit(add, 1)
    bad = await engine.submit(boom)
    known = engine.handle(str((await engine.submit(add, 3)).id))
    seen = []
    async for handle in engine.as_completed([slow, quick, bad, known]):
        seen.append(handle)
        if len(seen) == 3:
            assert await engine.manager.resume(group="slow")
    assert sorted(handle.id for handle in seen) == sorted(handle.id for handle in (slow, quick, bad, known))
    assert seen[-1] is slow
    assert [handle async for handle in engine.as_completed([])] == []
    again = [handle async for handle in engine.as_completed([engine.handle(quick.id), engine.handle(quick.id)])]
    assert [handle.id for handle in again] == [quick.id, quick.id]


async def test_as_completed_leaves_nothing_behind(tmp_path: Path) -> None:
    """Given up early it waits no longer; when the engine closes the handles come, and nobody is told of lost errors."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    engine = engine_on(tmp_path / "work.db")

    @engine.task
    async def now_or_later(n: int) -> int:
        return n

    await engine.start()
    late = await engine.submit(now_or_later, 1, delay="1h")
    first = engine.as_completed([late, await engine.submit(now_or_later, 0)])
    assert await (await anext(first)).result() == 0
    await first.aclose()  # type: ignore[attr-defined]
    assert not late.is_awaited
    rest = engine.as_completed([late])
    next_one = asyncio.ensure_future(anext(rest))
    await until(lambda: late.is_awaited)
    await engine.stop()
    assert await next_one is late
    with pytest.raises(StoreUnavailable, match="closed"):
        await late.result()
    await rest.aclose()  # type: ignore[attr-defined]
    gc.collect()
    assert told == []


async def test_gather_raises_the_first_error_in_order(engine: Engine, add: Any, boom: Any) -> None:
    """The error of the handle that stands first, with its message and its number of attempts."""
    handles = [await engine.submit(add, 1), await engine.submit(boom, "first"), await engine.submit(boom, "second")]
    with pytest.raises(ProcessingFailed, match="ValueError: first") as caught:
        await engine.gather(handles)
    assert caught.value.attempts == 1
    assert "raise ValueError(message)" in str(caught.value.info and caught.value.info.traceback)


async def test_a_result_can_be_asked_for_again_and_by_id(engine: Engine, add: Any) -> None:
    """As often as one likes, at the same time, and through another handle made from the id's text."""
    handle = await engine.submit(add, 5)
    waits = (value(handle), value(handle), value(engine.handle(str(handle.id))))
    assert list(await asyncio.gather(*waits)) == [15, 15, 15]


async def test_waiting_has_its_own_limit(engine: Engine, add: Any) -> None:
    """`result(timeout=)` gives up the wait, not the task; the limit is a duration like all others."""
    handle = await engine.submit(add, 1, delay=3600)
    limits: list[Any] = [0.01, "10ms", 0]
    for limit in limits:
        with pytest.raises(TaskTimeout, match="it goes on"):
            await handle.result(timeout=limit)
    assert (await handle.info()).status is TaskStatus.PENDING
    nonsense: list[Any] = [-1, float("nan"), "soon"]
    for wrong in nonsense:
        with pytest.raises(InvalidInput, match="timeout"):
            await handle.result(timeout=wrong)
    assert await handle.cancel() == "cancelled"


async def test_unknown_ids(engine: Engine, same: Any) -> None:
    """A handle of a task that does not exist says so when it is used, and can't be a parent."""
    ghost = engine.handle(TaskId())
    for call in (ghost.result, ghost.info, ghost.cancel, ghost.explain):
        with pytest.raises(TaskNotFound, match=str(ghost.id)):
            await call()
    with pytest.raises(TaskNotFound, match=str(ghost.id)):
        _ = [handle async for handle in engine.as_completed([ghost])]
    with pytest.raises(TaskNotFound, match="submit parents before their children"):
        await engine.submit(same, ghost)
    with pytest.raises(InvalidInput, match="is no UUID"):
        engine.handle("nonsense")


async def test_submitting_the_same_task_again_is_harmless(engine: Engine, add: Any) -> None:
    """The same id and payload is stored once, while it waits and after it has ended; all handles get the result."""
    runs: list[int] = []

    @engine.task
    async def counted(n: int) -> int:
        runs.append(n)
        return n

    task = engine.build(counted, (4,), {"delay": "20ms"})
    first = await engine.submit(task)
    second = await engine.submit(task)
    assert list(await asyncio.gather(value(first), value(second))) == [4, 4]
    third = await engine.submit(task)
    assert await value(third) == 4
    assert [await value(handle) for handle in await engine.submit_all([task])] == [4]
    assert runs == [4]


async def test_one_id_for_two_payloads_is_a_conflict(engine: Engine, add: Any) -> None:
    """An id is never given to other work."""
    handle = await engine.submit(add, 1)
    with pytest.raises(Conflict, match="exists already with another payload"):
        await engine.submit(add, 2, task_id=handle.id)
    assert await value(handle) == 11


async def test_idempotency_key(engine: Engine, add: Any, same: Any) -> None:
    """The same key and payload is the same task, before and after its end; another payload or type is a Conflict."""
    first = await engine.submit(add, 1, idempotency_key="k1", delay="20ms")
    again = await engine.submit(add, 1, idempotency_key="k1")
    assert again.id == first.id
    assert list(await asyncio.gather(value(first), value(again))) == [11, 11]
    late = await engine.submit(add, 1, idempotency_key="k1")
    assert (late.id, await value(late)) == (first.id, 11)
    with pytest.raises(Conflict, match="'k1'"):
        await engine.submit(add, 2, idempotency_key="k1")
    with pytest.raises(Conflict, match="'k1'"):
        await engine.submit(same, 1, idempotency_key="k1")
    other = await engine.submit(add, 2, idempotency_key="k1", namespace="elsewhere")
    assert other.id != first.id
    assert await value(other) == 12
    assert (await other.info()).task.idempotency_key == "k1"


async def test_a_key_covers_the_options_of_the_work(engine: Engine) -> None:
    """Other steps over the same text under the same key are another payload."""
    first = await engine.submit(engine.text, " Ünï ", "normalize", idempotency_key="steps")
    assert (await engine.submit(engine.text, " Ünï ", "normalize", idempotency_key="steps")).id == first.id
    with pytest.raises(Conflict, match="'steps'"):
        await engine.submit(engine.text, " Ünï ", "fix", idempotency_key="steps")


async def test_two_at_the_same_time_under_one_key(engine: Engine, add: Any) -> None:
    """Of simultaneous submits with one key, one makes the task and all get it."""
    handles = await asyncio.gather(*(engine.submit(add, 7, idempotency_key="race") for _ in range(20)))
    assert len({handle.id for handle in handles}) == 1
    assert await engine.gather(handles) == [17] * 20


async def test_a_conflict_harms_no_neighbour(engine: Engine, add: Any) -> None:
    """Submits that share a commit succeed or fail each by itself."""
    await engine.submit(add, 1, idempotency_key="taken")
    results = await asyncio.gather(
        *(engine.submit(add, i, idempotency_key="taken" if i == 5 else None) for i in range(10)), return_exceptions=True
    )
    assert [type(result).__name__ for result in results].count("Conflict") == 1
    assert await engine.gather([handle for handle in results if not isinstance(handle, BaseException)]) == [
        i + 10 for i in range(10) if i != 5
    ]


async def test_submit_all_takes_parents_and_children_together(engine: Engine, add: Any) -> None:
    """Parents may stand before their children in one list; it is stored as a whole."""
    first = engine.build(add, (1,), {})
    second = engine.build(add, (engine.handle(first.id),), {})
    handles = await engine.submit_all([first, second])
    assert await engine.gather(handles) == [11, 21]


async def test_submit_all_stores_all_or_none(engine: Engine, add: Any) -> None:
    """Children before their parents, and so every cycle, are refused, and nothing of the list is stored."""
    ids = [TaskId() for _ in range(3)]
    kind = TaskType.custom("add")

    def task(n: int, *parents: int) -> Task:
        return Task(
            id=ids[n], task_type=kind, input=Custom({"a": 1}), dependencies=tuple(ids[parent] for parent in parents)
        )

    for tasks in ([task(0), task(1, 2), task(2)], [task(0, 1), task(1, 0)], [task(0), task(1, 1)]):
        with pytest.raises((TaskNotFound, InvalidInput), match="dependencies"):
            await engine.submit_all(tasks)
        for id in ids:
            with pytest.raises(TaskNotFound):
                await engine.handle(id).info()
    with pytest.raises(InvalidInput, match="is the task itself"):
        await engine.submit(task(0, 0))


async def test_delay_and_not_before(engine: Engine, add: Any) -> None:
    """A task does not start before its time: a duration from now, or a moment."""
    long = await engine.submit(add, 1, delay="1h")
    info = await long.info()
    assert (info.status, info.reason) == (TaskStatus.PENDING, "delayed")
    assert "not to start before" in await long.explain()
    assert await long.cancel() == "cancelled"
    start = datetime.now(UTC)
    delayed = await engine.submit(add, 1, delay="50ms")
    moment = await engine.submit(add, 1, not_before=start + timedelta(milliseconds=80))
    await value(delayed)
    await value(moment)
    for handle, wait in ((delayed, 0.05), (moment, 0.08)):
        attempt = (await handle.info()).attempts[0]
        assert attempt.started is not None
        assert (attempt.started - start).total_seconds() >= wait - 0.002


async def test_deadline_before_start(engine: Engine, add: Any) -> None:
    """What has not started by its deadline ends as TIMEOUT and never runs."""
    await engine.manager.pause(namespace="held")
    handle = await engine.submit(add, 1, namespace="held", deadline="40ms")
    with pytest.raises(TaskTimeout, match="deadline passed before start"):
        await value(handle)
    info = await handle.info()
    assert (info.status, info.attempts) == (TaskStatus.TIMEOUT, ())
    assert await engine.manager.resume(namespace="held")


async def test_options_are_kept(engine: Engine, add: Any) -> None:
    """Everything said at submit can be read back."""
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    handle = await engine.submit(
        add,
        1,
        priority="high",
        deadline=deadline,
        timeout="30s",
        max_retries=7,
        metadata={"who": "me"},
        group="tenant-a",
        namespace="lab",
        on_dependency_failure="allow_failure",
    )
    await value(handle)
    task = (await handle.info()).task
    assert task.priority is TaskPriority.HIGH
    assert (task.deadline, task.timeout, task.max_retries) == (deadline, 30.0, 7)
    assert (task.metadata, task.group, task.namespace) == ({"who": "me"}, "tenant-a", "lab")
    assert task.on_dependency_failure == "allow_failure"


async def test_pause_and_resume(engine: Engine, add: Any) -> None:
    """Nothing of a paused kind starts, other kinds do; resume tells whether there was a pause."""
    for kind in ({"group": "g"}, {"namespace": "n"}, {"type": "custom:add"}):
        options: dict[str, Any] = {name: word for name, word in kind.items() if name != "type"}
        await engine.manager.pause(**kind)
        held = await engine.submit(add, 1, **options)
        other = await engine.submit(engine.text, "x")
        await value(other)
        assert (await held.info()).status is TaskStatus.PENDING
        assert "paused" in await held.explain()
        assert await engine.manager.resume(**kind)
        assert not await engine.manager.resume(**kind)
        assert await value(held) == 11


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ({"type": "add"}, "task_type"),
        ({"type": None}, "task_type"),
        ({"group": None}, "group"),
        ({"group": "a\0b"}, "group"),
        ({"namespace": "n" * 10_000}, "namespace"),
        ({"namespace": "\ud800"}, "namespace"),
    ],
)
async def test_what_can_t_be_paused(engine: Engine, kind: dict[str, Any], field: str) -> None:
    """It is named before anything is written; the same can't be resumed either."""
    for call in (engine.manager.pause, engine.manager.resume):
        with pytest.raises(InvalidInput) as caught:
            await call(**kind)
        assert caught.value.field == field
    assert await value(await engine.submit(engine.text, "x"))


async def test_running_tasks_and_stats(engine: Engine) -> None:
    """What runs is listed with its lane; counts follow."""
    go = asyncio.Event()
    started = asyncio.Event()

    @engine.task
    async def wait() -> None:
        started.set()
        await go.wait()

    handle = await engine.submit(wait, priority=TaskPriority.HIGH)
    await started.wait()
    running = {task.task_id: task for task in engine.manager.running_tasks()}
    assert running[handle.id].lane == "async"
    assert running[handle.id].priority is TaskPriority.HIGH
    await shows(handle, status=TaskStatus.RUNNING)
    stats = await engine.manager.stats()
    assert stats["running"] == 1
    assert stats["lanes"]["async"]["running"] == 1
    assert stats["types"]["custom:wait"] == {"unfinished": 1}
    assert "It runs: attempt 1" in await handle.explain()
    go.set()
    await value(handle)
    stats = await engine.manager.stats()
    assert stats["types"]["custom:wait"] == {"completed": 1}
    assert handle.id not in {task.task_id for task in engine.manager.running_tasks()}
    assert "ended as completed" in await handle.explain()


async def test_an_engine_that_is_not_open_says_so() -> None:
    """Submitting before start and after stop is refused by a message that names the remedy."""
    engine = engine_on()

    @engine.task
    async def idle() -> None: ...

    with pytest.raises(InvalidInput, match="async with engine"):
        await engine.submit(idle)
    async with engine:
        await value(await engine.submit(idle))
    with pytest.raises(StoreUnavailable, match="async with Engine"):
        await engine.submit(idle)


async def test_a_closed_engine_stays_closed(tmp_path: Path) -> None:
    """It can't be opened a second time: the error says to make a new one, and the file is free for that."""
    engine = engine_on(tmp_path / "work.db")

    @engine.task
    async def add(a: int) -> int:
        return a + 1

    async with engine:
        first = await engine.submit(add, 1)
        assert await value(first) == 2
    with pytest.raises(InvalidInput, match="make a new Engine"):
        await engine.start()
    again = engine_on(tmp_path / "work.db")
    async with again:
        assert await value(again.handle(first.id)) == 2


async def test_handlers_may_be_registered_while_running(engine: Engine) -> None:
    """A handler that comes later is served at once."""

    @engine.task
    def late() -> str:
        return "here"

    assert await value(await engine.submit(late)) == "here"
    await until(lambda: "custom:late" in engine.executor.types)


async def test_built_in_operations_take_every_option(engine: Engine) -> None:
    """Storing and retrieving too can be given an idempotency key, beside the name that things are stored under."""
    first = await engine.submit(engine.store, b"x", "name", idempotency_key="once")
    assert (await engine.submit(engine.store, b"x", "name", idempotency_key="once")).id == first.id
    await value(first)
    assert await value(await engine.submit(engine.retrieve, "name", idempotency_key="read once")) == b"x"


async def test_tasks_of_one_handler_keep_what_each_of_them_says(engine: Engine, add: Any) -> None:
    plain = engine.build(add, (1,), {})
    urgent = msgspec.structs.replace(engine.build(add, (2,), {}), priority=TaskPriority.HIGH, metadata={"for": "me"})
    grouped = engine.build(add, (3,), {"group": "ours", "timeout": 7.0})
    child = engine.build(add, (Ref(plain.id),), {})
    handles = await engine.submit_all([plain, urgent, grouped, child])
    assert await engine.gather(handles) == [11, 12, 13, 21]
    stored = [(await handle.info()).task for handle in handles]
    assert [task.priority for task in stored] == [1, TaskPriority.HIGH, 1, 1]
    assert [task.metadata for task in stored] == [{}, {"for": "me"}, {}, {}]
    assert [task.group for task in stored] == [None, None, "ours", None]
    assert [task.timeout for task in stored] == [None, None, 7.0, None]
    assert [task.dependencies for task in stored] == [(), (), (), (plain.id,)]
    with pytest.raises(InvalidInput, match="max_retries"):
        await engine.submit_all([msgspec.structs.replace(plain, max_retries=3.0)])
    with pytest.raises(InvalidInput, match="a"):
        await engine.submit_all([msgspec.structs.replace(plain, input=Custom({"b": 1}))])
