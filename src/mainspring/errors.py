"""Every error that Mainspring raises, by what the caller can do about it.

::

    TaskError
    ├── change the call
    │   ├── InvalidInput               a field has a value that can't work
    │   ├── UnsupportedTaskType        no handler of that name
    │   ├── TaskNotFound               no task of that id
    │   ├── Conflict                   the same key with another payload
    │   └── StoreRefused               the file can't be used as a store
    │       ├── StoreNewer             written by a newer Mainspring
    │       ├── StoreForeign           not a Mainspring file
    │       ├── StoreMoved             its tasks are in another store now
    │       ├── StoreReadOnly          no right to write there
    │       └── StoreDamaged           fails SQLite's integrity check, or holds what can't be read
    ├── try again later (is_retryable)
    │   ├── ProcessingFailed           a handler raised
    │   ├── ResourceLimitExceeded
    │   │   ├── InsufficientResources  the machine is full now
    │   │   └── QueueFull              too many unfinished tasks
    │   ├── TaskTimeout                an attempt or a wait took too long
    │   ├── StoreUnavailable           the store can't be reached now
    │   └── SubmitIndeterminate        the commit's fate is unknown: ask by id
    ├── go on where it stopped
    │   └── PartlySubmitted            a bulk call stored some tasks, and tells which
    ├── the work is over
    │   ├── TaskCancelled
    │   ├── DependencyNotMet           a required parent did not complete
    │   └── ClaimLost                  somebody else owns this attempt now
    └── InternalError                  a bug of ours: please report it

Handlers raise two signals of their own, which are no errors of the engine: `Permanent` (don't retry) and `RetryAfter`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mainspring.tasks import ErrorInfo


class TaskError(Exception):
    """Base of all errors.

    `info` is the stored record of a task's failure, where there is one. `field` and `value` tell what was wrong, where
    that is one thing; of an error that a task recorded, the message alone tells the value.
    """

    is_retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, field: str | None = None, value: Any = None, info: ErrorInfo | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.info = info

    @property
    def attempts(self) -> int | None:
        """How often the task was tried, see `ErrorInfo.attempts`; None where the error is not a task's outcome."""
        return None if self.info is None else self.info.attempts


class InvalidInput(TaskError):
    """A value that can't work. The message names the field, the value and the remedy."""


def invalid(field: str, value: object, why: str, remedy: str) -> InvalidInput:
    """Build an InvalidInput whose message has always the same three parts."""
    return InvalidInput(f"{field} = {shown(value)}: {why}; {remedy}", field=field, value=value)


def shown(value: object) -> str:
    """Return a value as messages show it."""
    try:
        text = repr(value)
    except BaseException as exc:  # noqa: BLE001 - a value's own code runs in there; too deep ones fail too
        text = f"<{type(value).__name__} without repr: {type(exc).__name__}>"
    return text if len(text) <= 120 else text[:117] + "..."


class UnsupportedTaskType(TaskError):
    """Nobody has registered a handler for this type."""


class TaskNotFound(TaskError):
    """The store knows no task of this id (it may have been pruned)."""


class Conflict(TaskError):
    """The id or idempotency key exists already with another payload."""


class StoreRefused(TaskError):
    """The file can't be used as a store; it was left as it is."""


class StoreNewer(StoreRefused):
    """The file was written by a newer version of Mainspring."""


class StoreForeign(StoreRefused):
    """The file is not a Mainspring store."""


class StoreMoved(StoreRefused):
    """Its tasks were moved; `value` is where they are now. Whoever goes on here would run them a second time."""


class StoreReadOnly(StoreRefused):
    """The file or its folder can't be written."""


class StoreDamaged(StoreRefused):
    """The file fails the database's own integrity check, or has a value that can't be read: `field` of task `value`."""


class ProcessingFailed(TaskError):
    """The handler raised; `info` tells type, message and the tail of the traceback."""

    is_retryable = True


class ResourceLimitExceeded(TaskError):
    """Something is full. `retry_after` is the engine's estimate in seconds, None when it has none."""

    is_retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        field: str | None = None,
        value: Any = None,
        info: ErrorInfo | None = None,
    ) -> None:
        super().__init__(message, field=field, value=value, info=info)
        self.retry_after = retry_after


class InsufficientResources(ResourceLimitExceeded):
    """CPU, memory or storage is above the configured limit."""


class QueueFull(ResourceLimitExceeded):
    """`queue_size` unfinished tasks are stored already."""


class TaskTimeout(TaskError):
    """The attempt, the deadline or the wait ran out of time."""

    is_retryable = True


class StoreUnavailable(TaskError):
    """The store can't be reached or written now; nothing was stored."""

    is_retryable = True


class SubmitIndeterminate(TaskError):
    """The commit failed in a way that may still have stored the task: look it up by `task_id`, or submit it again.

    Submitting the same task (same id) again is safe: it is stored once.
    """

    is_retryable = True

    def __init__(self, message: str, *, task_id: object = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class PartlySubmitted(TaskError):
    """A bulk call stopped after it had stored some tasks: `accepted` are their handles, for the first items, in order.

    `__cause__` says why it stopped. To go on leave out as many items as there are handles; only where it is a
    `SubmitIndeterminate` some of those that follow may be stored too.
    """

    def __init__(self, message: str, *, accepted: Sequence[Any], retry_after: float | None = None) -> None:
        super().__init__(message)
        self.accepted = accepted
        self.retry_after = retry_after


class TaskCancelled(TaskError):
    """The task was cancelled."""


class DependencyNotMet(TaskError):
    """A parent that this task requires did not complete."""


class ClaimLost(TaskError):
    """The attempt is not this worker's any more: its write changed nothing."""


class InternalError(TaskError):
    """The engine contradicted itself."""


class Permanent(Exception):
    """Raised by a handler: this input will never work, don't try again."""


class RetryAfter(Exception):
    """Raised by a handler: try again in `seconds`, whatever the backoff says (still counted as a retry)."""

    def __init__(self, seconds: float, message: str = "") -> None:
        super().__init__(message or f"asked to be tried again after {seconds} s")
        self.seconds = seconds


BY_NAME: dict[str, type[TaskError]] = {
    cls.__name__: cls
    for cls in (
        ProcessingFailed,
        InvalidInput,
        UnsupportedTaskType,
        TaskNotFound,
        Conflict,
        ResourceLimitExceeded,
        InsufficientResources,
        QueueFull,
        StoreRefused,
        StoreUnavailable,
        TaskTimeout,
        TaskCancelled,
        DependencyNotMet,
        InternalError,
    )
}
"""The errors that a stored outcome may name; anything else a handler raised reads as ProcessingFailed."""


def from_info(info: ErrorInfo) -> TaskError:
    """Return the exception that tells a caller how its task ended. Users' own exception classes are never rebuilt."""
    cls = BY_NAME.get(info.type, ProcessingFailed)
    message = info.message if cls.__name__ == info.type else f"{info.type}: {info.message}"
    return cls(message, field=info.field, info=info)
