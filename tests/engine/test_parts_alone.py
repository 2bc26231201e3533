"""The parts of the engine used by themselves, as the design's sketches do: each works, or says what it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on

from mainspring import (
    Custom,
    ExecutorConfig,
    InvalidInput,
    ResourceMonitor,
    SearchQuery,
    Task,
    TaskExecutor,
    TaskId,
    TaskManager,
    TaskManagerConfig,
    TaskNotFound,
    TaskScheduler,
    TaskStatus,
    TaskType,
    Text,
    TextOutput,
)
from mainspring.tasks import VectorRecord

pytestmark = pytest.mark.anyio


def text(value: str = "a  b", **fields: Any) -> Task:
    return Task(task_type=TaskType.TEXT_PROCESSING, input=Text(value), **fields)


async def test_a_manager_that_was_not_started() -> None:
    """Whatever is asked of it says that it must be; what is never started leaves nothing behind."""
    manager = TaskManager()
    for call in (
        manager.submit_task(text()),
        manager.stats(),
        manager.get_task(TaskId()),
        manager.get_task_result(TaskId()),
        manager.cancel_task(TaskId()),
        manager.retry_task(TaskId()),
        manager.pause(),
        manager.resume(),
        TaskScheduler(manager).schedule_task(text()),
    ):
        with pytest.raises(InvalidInput, match="not open yet"):
            await call
    assert manager.running_tasks() == []
    await manager.start()
    await manager.stop()
    with pytest.raises(InvalidInput, match="make a new TaskManager"):
        await manager.start()


async def test_a_manager_over_a_file(tmp_path: Path) -> None:
    """A path is a store of its own."""
    manager = TaskManager(TaskManagerConfig(), tmp_path / "work.db")
    await manager.start()
    id = await manager.submit_task(text())
    assert (await manager.get_task_result(id, timeout=LIMIT_S)).output == TextOutput("a b")
    await manager.stop()
    async with engine_on(tmp_path / "work.db", worker=False) as engine:
        assert await engine.handle(id).result() == "a b"


async def test_ids_as_text() -> None:
    """Whatever takes an id takes its text, and a handle too."""
    async with engine_on() as engine:
        manager = engine.manager
        handle = await engine.submit(text())
        await handle.result(timeout=LIMIT_S)
        for id in (handle.id, str(handle.id), handle):
            assert (await manager.get_task(id)).task.id == handle.id  # type: ignore[arg-type]
            assert (await manager.get_task_result(id)).status is TaskStatus.COMPLETED  # type: ignore[arg-type]
            assert await manager.cancel_task(id) == "already(completed)"  # type: ignore[arg-type]
            assert "completed" in await engine.scheduler.explain(id)  # type: ignore[arg-type]
        for call in (manager.get_task, manager.get_task_result, manager.cancel_task, manager.retry_task):
            with pytest.raises(InvalidInput, match="is no UUID"):
                await call("zz")
            with pytest.raises(TaskNotFound):
                await call(str(TaskId()))


async def test_an_executor_alone() -> None:
    """It knows the types that need no store."""
    for executor in (TaskExecutor(), TaskExecutor(ExecutorConfig())):
        assert (await executor.execute_task(text())).output == TextOutput("a b")
        with pytest.raises(InvalidInput, match="is no Task"):
            await executor.execute_task("x")  # type: ignore[arg-type]
        await executor.close()


async def test_an_executor_holds_the_time_limit() -> None:
    """The task's own, else the handler's; the handler is stopped."""
    async with engine_on() as engine:
        ended: list[str] = []

        @engine.task(timeout="10ms")
        async def sleeps(name: str) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(name)

        for name, limits in (("handler", {}), ("task", {"timeout": 0.02})):
            task = Task(task_type=TaskType.custom("sleeps"), input=Custom({"name": name}), **limits)  # type: ignore[arg-type]
            result = await engine.executor.execute_task(task)
            assert result.status is TaskStatus.TIMEOUT
            assert result.error is not None
            assert result.error.type == "TaskTimeout"
        assert ended == ["handler", "task"]
        with pytest.raises(InvalidInput, match="timeout"):
            await engine.executor.execute_task(text(timeout=-1))


async def test_a_monitor_alone() -> None:
    """It watches the disk that the program runs on."""
    assert (await ResourceMonitor().current_usage()).storage_limit_bytes > 0


async def test_vectors_by_hand() -> None:
    """One query has one answer; records are put in and taken out by plain calls, from a thread."""
    pytest.importorskip("numpy")
    async with engine_on() as engine:
        vectors = engine.vectors

        def work() -> list[str]:
            assert vectors.upsert("c", [VectorRecord("a", [1.0, 0.0]), VectorRecord("b", [0.0, 1.0])]) == 2
            assert vectors.delete("c", ["b"]) == 1
            return [hit.id for hit in vectors.search(SearchQuery(vector=[1.0, 0.0], collection="c")).hits]

        assert await asyncio.to_thread(work) == ["a"]
        with pytest.raises(InvalidInput, match="would block the event loop"):
            vectors.delete("c", ["a"])
