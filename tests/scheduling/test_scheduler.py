"""TaskScheduler: what is refused when the machine is full, and why a task is not running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, engine_on, value

from mainspring import (
    Engine,
    EngineConfig,
    InsufficientResources,
    InvalidInput,
    ResourceMonitor,
    SchedulerConfig,
    Task,
    TaskId,
    TaskManager,
    TaskNotFound,
    TaskScheduler,
    TaskStatus,
    TaskType,
    Text,
)

pytestmark = pytest.mark.anyio


def text(words: str = "x", **fields: object) -> Task:
    return Task(task_type=TaskType.TEXT_PROCESSING, input=Text(words), **fields)  # type: ignore[arg-type]


async def test_scheduling_by_itself() -> None:
    """A scheduler over a manager stores what there is room for; dependencies wait instead of being refused."""
    manager = await TaskManager.new()
    scheduler = TaskScheduler(manager)
    try:
        first = text("a")
        ids = await scheduler.schedule_tasks([first, text("b", dependencies=(first.id,))])
        assert await scheduler.schedule_task(text("c")) not in ids
        for id in ids:
            assert (await manager.get_task_result(id, timeout=LIMIT_S)).status is TaskStatus.COMPLETED
        with pytest.raises(TaskNotFound):
            await scheduler.schedule_task(text(dependencies=(TaskId(),)))
        with pytest.raises(TaskNotFound):
            await scheduler.explain(TaskId())
        with pytest.raises(InvalidInput, match="pass config="):
            TaskScheduler(manager, SchedulerConfig())  # type: ignore[arg-type]
    finally:
        await manager.stop()


async def test_a_scheduler_beside_the_engines(tmp_path: Path) -> None:
    """It judges by its own limits; what others hear of the worker stays what the worker goes by."""
    async with Engine(tmp_path / "work.db") as engine, asyncio.timeout(LIMIT_S):
        store = engine.manager.store
        while not (before := await store.usages()):  # noqa: ASYNC110 - it is told at intervals
            await asyncio.sleep(0.02)
        strict = TaskScheduler(engine.manager, ResourceMonitor(limits=SchedulerConfig(max_storage_bytes=1)))
        with pytest.raises(InsufficientResources, match="max_storage_bytes"):
            await strict.schedule_task(text())
        while (after := await store.usages()) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert '"max_storage_bytes":1,' not in str(after)
        assert await value(engine.handle(await engine.scheduler.schedule_task(text("a")))) == "a"


@pytest.mark.parametrize(
    ("limit", "named"),
    [({"max_memory_bytes": 1}, "memory"), ({"max_storage_bytes": 1}, "storage")],
    ids=["memory", "storage"],
)
async def test_a_full_machine_refuses(limit: dict[str, int], named: str, tmp_path: Path) -> None:
    """InsufficientResources with figures, the setting's name and a time to come back; nothing is stored."""
    async with Engine(tmp_path / "work.db", EngineConfig(scheduler=SchedulerConfig(**limit))) as engine:
        with pytest.raises(
            InsufficientResources, match=rf"{named} in use.* is .* [MG]B, above max_{named}_bytes = 1 byte;"
        ) as caught:
            await engine.scheduler.schedule_task(text())
        assert caught.value.is_retryable
        assert (caught.value.field, caught.value.value) == (f"max_{named}_bytes", 1)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= engine.monitor.fresh_in_s() > 0  # when there are new figures
        if named == "storage":
            with pytest.raises(InsufficientResources) as refused:
                await engine.submit(text())
            assert (refused.value.field, refused.value.value) == ("max_storage_bytes", 1)
            assert (await engine.manager.stats())["types"] == {}
        else:
            assert not (await (await engine.submit(text())).info()).status.is_final  # it runs when there is room


def test_settings() -> None:
    """A share beyond the machine is refused."""
    for bad in (0, -1, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="max_cpu_usage"):
            SchedulerConfig(max_cpu_usage=bad)


async def test_explain_names_a_missing_worker(tmp_path: Path) -> None:
    """A type that was served once, by nobody now."""
    path = tmp_path / "work.db"
    first = engine_on(path)

    @first.task
    async def rare() -> None: ...

    async with first:
        await value(await first.submit(rare))
    async with engine_on(path, worker=False) as engine:
        handle = await engine.submit(Task(task_type=TaskType.custom("rare"), input=first.build(rare, (), {}).input))
        assert "No living worker serves custom:rare" in await handle.explain()
