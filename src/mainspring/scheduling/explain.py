"""Why a task is not running: one sentence, from what the store records."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.dispatch.gathering import Forming
from mainspring.dispatch.manager import TaskManager
from mainspring.store.base import Standing
from mainspring.tasks import TaskId, TaskStatus


async def explain(manager: TaskManager, task_id: TaskId) -> str:
    """Return the cause with its figures. Raises TaskNotFound."""
    standing = await manager.store.standing(task_id.bytes)
    if standing.status is TaskStatus.RUNNING:
        return f"It runs: attempt {standing.attempt}, on worker {standing.worker}."
    if standing.status.is_final:
        why = "" if standing.error is None else f" ({standing.error})"
        return f"It ended as {standing.status.value}{why}."
    if standing.reason == "claimed" and (forming := manager.forming(task_id.bytes)) is not None:
        return _forming(forming)
    return _PENDING[standing.reason or "ready"](standing)


def _forming(batch: Forming) -> str:
    left_s = batch.closes_s
    if left_s is None:
        ends = "begins when a slot falls free"
    else:
        ends = f"closes in {left_s * 1000:.0f} ms" if left_s < 1 else f"closes in {left_s:,.0f} s"
    return f"It waits in batch {batch.size}/{batch.most}, which {ends}."


def _parents(standing: Standing) -> str:
    shown = ", ".join(str(TaskId(id)) for id in standing.parents[:3])
    more = "" if standing.parents_left <= len(standing.parents[:3]) else f" and {standing.parents_left - 3} more"
    return f"It waits for {standing.parents_left} of its parents: {shown}{more}."


def _claimed(standing: Standing) -> str:
    return f"Worker {standing.worker} has claimed it and starts it when a slot falls free."


def _ready(standing: Standing) -> str:
    ahead = f"{standing.ahead:,}{'+' if standing.ahead_is_more else ''}"
    return f"It is ready and {ahead} tasks of its kind go first; it starts when a slot falls free."


def _resources(standing: Standing) -> str:
    first, more = standing.shortages[0], len(standing.shortages) - 1
    others = f", nor do {more} other workers run it" if more else ""
    if all(shortage.how == "never" for shortage in standing.shortages):
        return f"It can't run on any living worker: on {first.worker} it {first.why}{others}; start one that has it."
    first = next(shortage for shortage in standing.shortages if shortage.how != "never")
    if first.how == "waits":
        return f"It waits for resources: it {first.why}, on worker {first.worker}{others}."
    return (
        f"It is ready, and worker {first.worker} takes no more of its type: {first.why} tasks that go first wait there "
        f"for resources{others}."
    )


def _limit(standing: Standing) -> str:
    limit = standing.limit
    assert limit is not None
    where = "" if limit.namespace is None else f" in namespace {limit.namespace}"
    ahead = f"{standing.ahead:,}{'+' if standing.ahead_is_more else ''}"
    return (
        f"Group {limit.group}{where} is at its limit: {limit.held}/{limit.concurrency} run; {ahead} tasks of its kind "
        "go first, and it starts when one of the group ends."
    )


_PENDING: dict[str, Callable[[Standing], str]] = {
    "parents": _parents,
    "claimed": _claimed,
    "ready": _ready,
    "delayed": lambda s: f"It is not to start before {s.due:%Y-%m-%d %H:%M:%S} UTC.",
    "retry": lambda s: f"Attempt {s.attempt} failed ({s.error}); the next one comes at {s.due:%Y-%m-%d %H:%M:%S} UTC.",
    "same_work": lambda s: f"Task {TaskId(s.leader)} does the same work; what comes of it will do for this one too.",
    "resources": _resources,
    "limit": _limit,
    "paused": lambda s: f"Its kind is paused ({s.pause}); `mainspring resume` lets it go on.",
    "no_worker": lambda s: f"No living worker serves {s.type}; start one that registers it.",
}
