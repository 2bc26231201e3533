"""The design's own two tests, in Python syntax."""

from __future__ import annotations

import pytest

from mainspring import Task, TaskId, TaskManager, TaskManagerConfig, TaskScheduler, TaskStatus, TaskType, Text

pytestmark = pytest.mark.anyio


async def test_task_scheduling() -> None:
    """A scheduled task completes."""
    config = TaskManagerConfig()
    task_manager = await TaskManager.new(config)
    scheduler = TaskScheduler(task_manager)

    task = Task(
        id=TaskId.new(),
        task_type=TaskType.TEXT_PROCESSING,
        input=Text("Test"),
    )

    task_id = await scheduler.schedule_task(task)
    result = await task_manager.get_task_result(task_id)

    assert result.status == TaskStatus.COMPLETED


async def test_task_dependencies() -> None:
    """A task that depends on another one ends after it."""
    config = TaskManagerConfig()
    task_manager = await TaskManager.new(config)
    scheduler = TaskScheduler(task_manager)

    # Create dependent tasks
    task1 = Task(
        id=TaskId.new(),
        task_type=TaskType.TEXT_PROCESSING,
        input=Text("Task 1"),
    )

    task2 = Task(
        id=TaskId.new(),
        task_type=TaskType.TEXT_PROCESSING,
        input=Text("Task 2"),
        dependencies=(task1.id,),
    )

    # Schedule tasks
    task1_id = await scheduler.schedule_task(task1)
    task2_id = await scheduler.schedule_task(task2)

    # Verify execution order
    result1 = await task_manager.get_task_result(task1_id)
    result2 = await task_manager.get_task_result(task2_id)

    assert result1.timestamp <= result2.timestamp
