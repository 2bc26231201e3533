"""The scheduler: refuses what the hosts that work have no room for, and hands the rest to the manager."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mainspring.config import SchedulerConfig, check_given, check_is
from mainspring.dispatch.manager import TaskManager
from mainspring.errors import invalid
from mainspring.processors.calls import id_of
from mainspring.resources.monitor import ResourceMonitor
from mainspring.scheduling.explain import explain
from mainspring.scheduling.hosts import Hosts, Telling
from mainspring.tasks import Task, TaskId


class TaskScheduler:
    """Admission by what the hosts that work have left: one with room is enough. What the engine's own processes take
    does not count against it. Where nobody works, this host is judged.

    Dependencies need not have ended: a task waits for its parents in the store. Unknown parents and cycles are refused
    there, so a task can only name parents that exist or come before it in the same call.

    Args:
        config: the limits of CPU, memory and storage; by default those of the monitor. The limits that workers run
            with hold as well, and of what a single task may have those of the manager.
    """

    def __init__(
        self,
        manager: TaskManager,
        monitor: ResourceMonitor | None = None,
        config: SchedulerConfig | None = None,
    ) -> None:
        if isinstance(monitor, SchedulerConfig):
            raise invalid("monitor", monitor, "is a SchedulerConfig", "pass config=SchedulerConfig(...)")
        check_is("manager", manager, TaskManager, "pass a TaskManager, as engine.manager")
        check_given(monitor=(monitor, ResourceMonitor), config=(config, SchedulerConfig))
        self._manager = manager
        monitor = monitor or manager.monitor
        store = manager.parts.store
        queue_size = manager.config.queue_size
        self._hosts = Hosts(store, monitor, config or monitor.limits, store.env.host(), queue_size)
        store.tell_usage(Telling(store, manager.monitor, manager.reservations.stats, queue_size).news)

    async def schedule_task(self, task: Task) -> TaskId:
        """Store the task if a host that works has room for it; durable on return.

        Raises: InsufficientResources (with figures and `retry_after`), QueueFull, InvalidInput, UnsupportedTaskType,
        TaskNotFound (an unknown parent), Conflict, StoreUnavailable, SubmitIndeterminate.
        """
        return (await self.schedule_tasks([task]))[0]

    async def schedule_tasks(self, tasks: Sequence[Task]) -> list[TaskId]:
        """Store all of them or none. Raises what `schedule_task` raises."""
        await self.look_at_limits()
        self._hosts.refuse_without_storage()
        await self._hosts.refuse_without_room(works=bool(self._manager.lanes))
        return await self._manager.submit_tasks(tasks)

    async def look_at_limits(self) -> None:
        """Learn how full the disks of those who work are, for `refuse_without_storage`, and how long the queue may be
        for them: twice a second at most."""
        hosts = self._hosts
        if hosts.look_due_ms != math.inf and self._manager.store.now_ms() >= hosts.look_due_ms:
            await hosts.look(works=bool(self._manager.lanes))

    def refuse_without_storage(self) -> None:
        """What every way of submitting checks: a full disk, here or where tasks run. Cheap: seen at intervals.

        Raises: InsufficientResources.
        """
        self._hosts.refuse_without_storage()

    async def explain(self, task_id: TaskId | str) -> str:
        """Return one sentence that says why the task is not running, or how it ended. Raises TaskNotFound."""
        return await explain(self._manager, id_of(task_id))
