"""TaskScheduler: what is refused when the machine is full, and why a task is not running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, value

from mainspring import (
    Engine,
    EngineConfig,
    InsufficientResources,
    InvalidInput,
    Retry,
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


@pytest.mark.parametrize(
    ("limit", "named"),
    [({"max_memory_bytes": 1}, "memory"), ({"max_storage_bytes": 1}, "storage")],
    ids=["memory", "storage"],
)
async def test_a_full_machine_refuses(limit: dict[str, int], named: str, tmp_path: Path) -> None:
    """InsufficientResources with figures, the setting's name and a time to come back; nothing is stored."""
    async with Engine(tmp_path / "work.db", EngineConfig(scheduler=SchedulerConfig(**limit))) as engine:
        with pytest.raises(
            InsufficientResources, match=rf"{named} in use.* is .* GB, above max_{named}_bytes"
        ) as caught:
            await engine.scheduler.schedule_task(text())
        assert caught.value.is_retryable
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= engine.monitor.fresh_in_s() > 0  # when there are new figures
        if named == "storage":
            with pytest.raises(InsufficientResources):
                await engine.submit(text())
            assert (await engine.manager.stats())["types"] == {}
        else:
            await value(await engine.submit(text()))


def test_settings() -> None:
    """A share beyond the machine is refused."""
    for bad in (0, -1, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="max_cpu_usage"):
            SchedulerConfig(max_cpu_usage=bad)


async def test_explain_says_why_a_task_waits() -> None:
    """One sentence for each reason, with its figures."""
    async with engine_on(async_slots=1) as engine:
        go, started = asyncio.Event(), asyncio.Event()

        @engine.task
        async def hold() -> None:
            started.set()
            await go.wait()

        @engine.task(retry=Retry(max_retries=1, delay=3600, max_delay=3600))
        async def fails() -> None:
            raise ValueError("the disk is on fire")

        @engine.task
        async def idle(n: int = 0) -> None: ...

        bad = await engine.submit(fails)
        await shows(bad, reason="retry")
        holder = await engine.submit(hold)
        await started.wait()
        delayed = await engine.submit(idle, delay=3600)
        child = await engine.submit(idle, after=[holder, delayed])
        queued = await engine.map(idle, range(30))
        assert "failed (the disk is on fire); the next one comes at" in await bad.explain()
        assert "not to start before" in await delayed.explain()
        assert f"waits for 2 of its parents: {holder.id}, {delayed.id}" in await child.explain()
        assert "has claimed it" in await queued[0].explain()
        last = await queued[-1].explain()
        assert "It is ready and" in last
        assert "go first" in last
        go.set()
        await engine.gather(queued)
        assert await queued[0].explain() == "It ended as completed."
        await bad.cancel()
        assert "It ended as cancelled" in await bad.explain()


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
