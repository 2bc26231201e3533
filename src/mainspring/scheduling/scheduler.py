"""The scheduler: refuses what the machine has no room for, and hands the rest to the manager."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.config import SchedulerConfig
from mainspring.dispatch.manager import TaskManager
from mainspring.errors import InsufficientResources, invalid
from mainspring.processors.calls import id_of
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage
from mainspring.scheduling.explain import explain
from mainspring.tasks import Task, TaskId

_SHARE = 0.95
"""How full memory and storage may be where nothing else is configured."""
_RETRY_AFTER_S = 5.0


class TaskScheduler:
    """Admission by what the machine has left.

    Dependencies need not have ended: a task waits for its parents in the store. Unknown parents and cycles are refused
    there, so a task can only name parents that exist or come before it in the same call.
    """

    def __init__(
        self,
        manager: TaskManager,
        monitor: ResourceMonitor | None = None,
        config: SchedulerConfig | None = None,
    ) -> None:
        if isinstance(monitor, SchedulerConfig):
            raise invalid("monitor", monitor, "is a SchedulerConfig", "pass config=SchedulerConfig(...)")
        self._manager = manager
        self._config = config or SchedulerConfig()
        self._monitor = monitor or ResourceMonitor(manager.parts.folder)

    async def schedule_task(self, task: Task) -> TaskId:
        """Store the task if the machine has room for it; durable on return.

        Raises: InsufficientResources (with figures and `retry_after`), QueueFull, InvalidInput, UnsupportedTaskType,
        TaskNotFound (an unknown parent), Conflict, StoreUnavailable, SubmitIndeterminate.
        """
        return (await self.schedule_tasks([task]))[0]

    async def schedule_tasks(self, tasks: Sequence[Task]) -> list[TaskId]:
        """Store all of them or none. Raises what `schedule_task` raises."""
        self._refuse_when_full(await self._monitor.current_usage())
        return await self._manager.submit_tasks(tasks)

    def refuse_without_storage(self) -> None:
        """What every way of submitting checks: a full disk. Cheap: the monitor samples at intervals.

        Raises: InsufficientResources.
        """
        usage = self._monitor.sample()
        _refuse("storage", usage.storage_bytes, self._config.max_storage_bytes, usage.storage_limit_bytes)

    async def explain(self, task_id: TaskId | str) -> str:
        """Return one sentence that says why the task is not running, or how it ended. Raises TaskNotFound."""
        return await explain(self._manager, id_of(task_id))

    def _refuse_when_full(self, usage: ResourceUsage) -> None:
        config = self._config
        if config.max_cpu_usage is not None and usage.cpu_usage is not None and usage.cpu_usage > config.max_cpu_usage:
            raise InsufficientResources(
                f"CPU usage is {usage.cpu_usage:.0%}, above max_cpu_usage = {config.max_cpu_usage:.0%}; "
                "try again later",
                retry_after=_RETRY_AFTER_S,
            )
        _refuse("memory", usage.memory_bytes, config.max_memory_bytes, usage.memory_limit_bytes)
        _refuse("storage", usage.storage_bytes, config.max_storage_bytes, usage.storage_limit_bytes)


def _refuse(name: str, used: int | None, limit: int | None, whole: int | None) -> None:
    if used is None:
        return
    if limit is None:
        limit = None if whole is None else int(whole * _SHARE)
    if limit is not None and used > limit:
        raise InsufficientResources(
            f"{name} in use is {used / 1e9:.2f} GB, above max_{name}_bytes = {limit / 1e9:.2f} GB; "
            f"free some, or raise max_{name}_bytes",
            retry_after=_RETRY_AFTER_S,
        )
