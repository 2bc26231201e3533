"""The task itself, as a submitter writes it, and what comes back."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import force_setattr

from mainspring.config import plain
from mainspring.tasks.identity import Reason, TaskId, TaskPriority, TaskStatus, TaskType
from mainspring.tasks.payloads import TaskInput, TaskOutput

OnDependencyFailure = Literal["require", "allow_failure", "skip"]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential backoff with full jitter: before retry n the wait is uniform(0, min(max_delay, delay * factor ** n)).
    Numbers of other libraries, as numpy's, become Python's own.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
    """

    max_retries: int = 3  # tries after the first one
    delay: float | str = 1.0  # seconds before the first retry, at most
    factor: float = 2.0  # growth per retry
    max_delay: float | str = 300.0  # seconds, cap of a wait

    def __post_init__(self) -> None:
        for name in ("max_retries", "factor"):
            force_setattr(self, name, plain(getattr(self, name)))


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt needs while it runs. Numbers of other libraries, as numpy's, become Python's own."""

    cpu: float = 1.0  # cores
    memory: int = 0  # bytes
    gpu: float = 0.0  # devices
    custom: dict[str, float] = {}

    def __post_init__(self) -> None:
        for name in ("cpu", "memory", "gpu"):
            amount = getattr(self, name)
            if (number := plain(amount)) is not amount:
                force_setattr(self, name, number)
        if isinstance(self.custom, dict):
            force_setattr(self, "custom", {kind: plain(amount) for kind, amount in self.custom.items()})


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of work. Immutable: what the engine learns about it is in `TaskInfo` and `TaskResult`."""

    task_type: TaskType
    input: TaskInput
    id: TaskId = msgspec.field(default_factory=TaskId)
    priority: TaskPriority = TaskPriority.NORMAL
    model_id: str | None = None  # which model, for the types that use one
    deadline: datetime | None = None  # not started after it; aware
    retry_count: int = 0  # retries charged so far; set by the engine
    max_retries: int = 3  # tries after the first one
    dependencies: tuple[TaskId, ...] = ()  # tasks that must end first
    metadata: dict[str, str] = {}  # the user's own labels
    timeout: float | None = None  # seconds for one attempt; None: the handler's own, else unlimited
    not_before: datetime | None = None  # not started before it; aware
    idempotency_key: str | None = None  # one task per (namespace, key)
    resources: Resources | None = None
    group: str | None = None  # tenant or other label that limits are counted by
    namespace: str = "default"
    on_dependency_failure: OnDependencyFailure = "require"
    params: dict[str, Any] = {}  # options of the task's type
    cache: str | float | None = None  # keep the result for this long and reuse it for equal work
    cost: float | None = None  # what it is to cost its group, in the unit of the limit; None: the handler's own, else 1


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task did not complete; `str()` is the message."""

    type: str  # name of the exception's class
    message: str
    traceback: str | None = None  # its tail, without local variables
    attempts: int = 1  # that failed, timed out or crashed, with the one that ended it; handed back ones don't count
    field: str | None = None  # which value was wrong, where it was one

    def __str__(self) -> str:
        return self.message


class TaskMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What the last attempt cost. None means unknown, never zero.

    `docs/metrics.md` tells for each lane how a field is measured.
    """

    duration: float | None = None  # seconds, wall time of the last attempt; None where none ran
    memory_bytes: int | None = None  # peak of the attempt, or of the call that it shared: process lane only
    cpu_usage: float | None = None  # cores kept busy: cpu_time / duration
    network_bytes: int | None = None  # through `ctx.http`, and to models behind HTTP
    retry_count: int = 0
    cpu_time: float | None = None  # seconds
    queue_wait: float | None = None  # seconds from ready to start, pauses, limits and resources included
    batch_size: int = 1  # attempts in the same call
    cache_hit: bool = False
    lane: str | None = None


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ended."""

    task_id: TaskId
    status: TaskStatus
    output: TaskOutput | None = None  # None unless COMPLETED
    error: ErrorInfo | None = None
    metrics: TaskMetrics = TaskMetrics()
    timestamp: datetime  # UTC, when it ended


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try, as recorded when it ended. None means unknown, never zero; `docs/metrics.md` tells why."""

    number: int
    outcome: str  # completed, failed, retry, timeout, cancelled, released, crashed
    worker: str | None = None
    started: datetime | None = None
    ended: datetime
    duration: float | None = None  # seconds of wall time
    queue_wait: float | None = None  # seconds from ready to start, pauses, limits and resources included
    cpu_time: float | None = None  # seconds; of a batch its equal share
    memory_bytes: int | None = None  # peak; of a batch that of the whole call
    network_bytes: int | None = None  # through `ctx.http`, which batches have not, and to models behind HTTP
    batch_size: int = 1  # attempts in the same call
    retry_count: int = 0  # retries charged before it
    lane: str | None = None
    error: ErrorInfo | None = None


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All the store knows about a task now."""

    task: Task
    status: TaskStatus
    reason: Reason | None = None  # why it waits, while PENDING
    attempt: int = 0  # number of the newest attempt
    submitted: datetime
    started: datetime | None = None
    ended: datetime | None = None
    due: datetime | None = None  # when a delayed task or a retry becomes ready
    cancel_requested: bool = False
    progress: tuple[float, float] | None = None  # done, total
    retry_of: TaskId | None = None
    retried_as: TaskId | None = None
    worker: str | None = None
    error: ErrorInfo | None = None
    attempts: tuple[Attempt, ...] = ()


class RunningTask(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that runs in this process now."""

    task_id: TaskId
    task_type: TaskType
    attempt: int
    priority: TaskPriority
    start_time: datetime
    worker_id: str
    lane: str
