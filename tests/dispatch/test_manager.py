"""TaskManager used by itself, and the executor alone."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.engine import process_work
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import (
    Batch,
    Context,
    Custom,
    CustomOutput,
    InvalidInput,
    Task,
    TaskCancelled,
    TaskId,
    TaskManager,
    TaskManagerConfig,
    TaskNotFound,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
    TaskType,
    Text,
    TextOutput,
    UnsupportedTaskType,
)
from mainspring.dispatch.lane import LaneDesk
from mainspring.processors.custom import Handler
from mainspring.store.liveness import SLOTS

pytestmark = pytest.mark.anyio


def text(words: str, **fields: Any) -> Task:
    return Task(task_type=TaskType.TEXT_PROCESSING, input=Text(words), **fields)


async def test_a_manager_by_itself() -> None:
    """Its own private store: submit, wait, look, count, stop."""
    manager = await TaskManager.new(TaskManagerConfig(thread_slots=2))
    try:
        first = text("  one   two ", priority=TaskPriority.HIGH)
        second = text("x", dependencies=(first.id,))
        assert await manager.submit_tasks([first, second]) == [first.id, second.id]
        result = await manager.get_task_result(second.id, timeout=LIMIT_S)
        assert (result.status, result.task_id) == (TaskStatus.COMPLETED, second.id)
        done = await manager.get_task_result(first.id)
        assert done.output == TextOutput("one two")
        assert done.metrics.lane == "thread"
        assert done.timestamp <= result.timestamp
        assert (await manager.get_task(first.id)).status is TaskStatus.COMPLETED
        assert manager.running_tasks() == []
        assert (await manager.stats())["completed"] == 2
        with pytest.raises(TaskNotFound):
            await manager.get_task(TaskId())
        with pytest.raises(TaskNotFound):
            await manager.get_task_result(TaskId())
        waiting = await manager.submit_task(text("x", dependencies=(first.id,), not_before=_later()))
        with pytest.raises(TaskTimeout):
            await manager.get_task_result(waiting, timeout=0.01)
        assert await manager.cancel_task(waiting) == "cancelled"
        assert (await manager.get_task_result(waiting)).status is TaskStatus.CANCELLED
    finally:
        await manager.stop()
    await manager.stop()


def _later() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(hours=1)


async def test_starting_twice_is_harmless() -> None:
    """The second start changes nothing."""
    manager = TaskManager()
    await manager.start()
    await manager.start()
    await manager.get_task_result(await manager.submit_task(text("a")), timeout=LIMIT_S)
    await manager.stop()


async def test_handlers_of_a_manager() -> None:
    """Registered on its executor; `refresh` makes a late one known."""
    manager = await TaskManager.new()

    def late(n: int) -> int:
        return n + 1

    try:
        manager.executor.register(Handler(late))
        manager.refresh()
        id = await manager.submit_task(Task(task_type=TaskType.custom("late"), input=Custom({"n": 1})))
        assert (await manager.get_task_result(id, timeout=LIMIT_S)).output == CustomOutput(2)
    finally:
        await manager.stop()


async def test_a_failure_is_a_result() -> None:
    """get_task_result does not raise for a failed task."""
    manager = TaskManager()

    def bad() -> None:
        raise ValueError("no")

    manager.executor.register(Handler(bad, retry=0))
    await manager.start()
    try:
        task = Task(task_type=TaskType.custom("bad"), input=Custom({}), max_retries=0)
        result = await manager.get_task_result(await manager.submit_task(task), timeout=LIMIT_S)
        assert (result.status, result.output) == (TaskStatus.FAILED, None)
        assert result.error is not None
        assert (result.error.type, str(result.error), result.error.attempts) == ("ValueError", "no", 1)
    finally:
        await manager.stop()


async def test_execute_task_runs_one_without_a_store() -> None:
    """In every lane: a result with output or error, nothing stored; what needs a store is refused."""
    async with engine_on() as engine:

        @engine.task
        async def soon(n: int) -> int:
            return n + 1

        @engine.task
        def bad() -> None:
            raise ValueError("no")

        engine.task(lane="process")(process_work.double)

        def task(name: str, **arguments: Any) -> Task:
            return Task(task_type=TaskType.custom(name), input=Custom(arguments))

        run = engine.executor.execute_task
        assert (await run(task("soon", n=1))).output == CustomOutput(2)
        assert (await run(task("double", n=4))).output == CustomOutput(8)
        assert (await run(text(" a  b "))).output == TextOutput("a b")
        failed = await run(task("bad"))
        assert failed.status is TaskStatus.FAILED
        assert failed.error is not None
        assert failed.error.type == "ValueError"
        assert failed.metrics.lane == "thread"
        with pytest.raises(UnsupportedTaskType):
            await run(task("ghost"))
        with pytest.raises(InvalidInput):
            await run(task("soon", n="one"))
        with pytest.raises(InvalidInput, match="need a store"):
            await run(Task(task_type=TaskType.custom("soon"), input=Custom({"n": 1}), dependencies=(TaskId(),)))
        assert (await engine.manager.stats())["types"] == {}


async def test_execute_task_before_the_engine_is_open_changes_nothing() -> None:
    """Handlers that run later have all their context."""
    engine = engine_on()

    @engine.task
    async def child() -> int:
        return 5

    @engine.task
    async def parent(ctx: Context) -> Any:
        return ctx.submit(child)

    await engine.executor.execute_task(Task(task_type=TaskType.custom("child"), input=Custom({})))
    async with engine:
        assert await value(await engine.submit(parent)) == 5


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
async def test_a_handler_that_comes_as_the_engine_stops(tmp_path: Path, turns: int) -> None:
    """The engine stops, whatever became of serving it, and holds none of its tasks."""
    path = tmp_path / "work.db"

    async def late(items: list[int]) -> list[int]:
        return items

    async with engine_on(path, worker=False) as engine:
        engine.task(batch=Batch())(late)
        handles = await engine.map(late, range(3))
    worker = engine_on(path)
    await worker.start()
    worker.task(batch=Batch())(late)
    for _ in range(turns):
        await asyncio.sleep(0)
    await worker.stop()
    async with engine_on(path, worker=False) as engine:
        infos = [await engine.handle(handle.id).info() for handle in handles]
    assert {(info.status.value, info.reason) for info in infos} <= {("pending", "no_worker"), ("completed", None)}


async def test_what_is_served_no_more_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that was being told to the store when the engine stopped brings no claims to it."""
    worker = engine_on(tmp_path / "work.db")
    await worker.start()
    store = worker.manager.store
    began, real = asyncio.Event(), store.register

    async def register(*args: Any) -> None:
        await real(*args)
        began.set()
        await until(lambda: not store._memory.lanes)

    served: list[Any] = []
    monkeypatch.setattr(store, "register", register)
    monkeypatch.setattr(store, "serve", served.append)

    @worker.task
    async def late() -> None: ...

    await began.wait()
    await worker.stop()
    assert served == []


async def test_a_pause_takes_a_task_type() -> None:
    """It is its own text: what is paused by one is resumed by the other."""
    async with engine_on() as engine:

        @engine.task
        async def double(n: int) -> int:
            return 2 * n

        await engine.manager.pause(type=TaskType.custom("double"))
        handle = await engine.submit(double, 2)
        await shows(handle, reason="paused")
        assert await engine.manager.resume(type="custom:double")
        assert await value(handle) == 4
        await engine.manager.pause(type="custom:double")
        assert await engine.manager.resume(type=TaskType.custom("double"))


async def test_a_slot_survives_what_cancels_its_own_task() -> None:
    """A handler that cancels the asyncio task it runs in fails alone; the slot serves the next one."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(retry=0)
        async def self_cancel() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        @engine.task
        async def after() -> str:
            return "served"

        handle = await engine.submit(self_cancel)
        with pytest.raises(Exception, match=r".") as caught:
            await handle.result(timeout=LIMIT_S)
        assert not isinstance(caught.value, TaskTimeout)
        assert await (await engine.submit(after)).result(timeout=LIMIT_S) == "served"


async def test_many_tasks_in_every_lane_at_once() -> None:
    """Two thousand tasks over three lanes, with failures and cancels between: each ends once, and counts agree."""
    async with engine_on(thread_slots=2, process_slots=2) as engine:

        @engine.task(retry=0)
        async def on_loop(n: int) -> int:
            if n % 7 == 0:
                raise ValueError(n)
            return n

        @engine.task(retry=0)
        def in_thread(n: int) -> int:
            return on_thread(n)

        engine.task(lane="process", retry=0)(process_work.double)
        handles = [
            *await engine.map(on_loop, range(1_000)),
            *await engine.map(in_thread, range(900)),
            *await engine.map(process_work.double, range(100)),
        ]
        for handle in handles[::50]:
            await handle.cancel()
        ended = [handle async for handle in engine.as_completed(handles)]
        assert sorted(handle.id for handle in ended) == sorted(handle.id for handle in handles)
        stats = await engine.manager.stats()
        assert stats["pending"] == stats["running"] == 0
        assert sum(stats.get(name, 0) for name in ("completed", "failed", "cancelled", "timeout")) == 2_000
        assert stats["failed"] <= 143
        results = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
        assert sum(isinstance(result, TaskCancelled) for result in results) == stats.get("cancelled", 0)


def on_thread(n: int) -> int:
    assert threading.current_thread() is not threading.main_thread()
    return n


async def test_marks_of_many_slots_do_not_collide() -> None:
    """Whoever judges after a crash tells the slots of all lanes apart, however many there are."""
    config = TaskManagerConfig(async_slots=10_000, thread_slots=1_500, process_slots=1)
    manager = await TaskManager.new(config)
    try:
        desks = [desk for desk in manager._desks.values() if isinstance(desk, LaneDesk)]
        firsts = sorted(desk._next_mark - desk.slots for desk in desks)
        assert all(b - a >= 2 * 10_000 for a, b in pairwise(firsts))
        assert firsts[-1] + 2 * 10_000 <= SLOTS
    finally:
        await manager.stop()
    with pytest.raises(InvalidInput, match=r"async_slots = 10001: is above 10,000"):
        TaskManagerConfig(async_slots=10_001)
