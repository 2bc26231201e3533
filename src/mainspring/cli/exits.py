"""Exit codes, and how an error is told: one line on stderr, or one JSON document there with --json."""

from __future__ import annotations

import sys
from typing import Any, Final

from mainspring.cli.screen import printable
from mainspring.errors import (
    Conflict,
    InvalidInput,
    ResourceLimitExceeded,
    StoreRefused,
    StoreUnavailable,
    SubmitIndeterminate,
    TaskError,
    TaskNotFound,
    TaskTimeout,
    UnsupportedTaskType,
)

OK: Final = 0
NOT_COMPLETED: Final = 1
INVALID: Final = 2
NOT_FOUND: Final = 3
STORE: Final = 4
TIMEOUT: Final = 5

_CODES: Final[tuple[tuple[type[TaskError], int], ...]] = (
    (InvalidInput, INVALID),
    (UnsupportedTaskType, INVALID),
    (Conflict, INVALID),
    (TaskNotFound, NOT_FOUND),
    (StoreRefused, STORE),
    (StoreUnavailable, STORE),
    (SubmitIndeterminate, STORE),
    (ResourceLimitExceeded, STORE),
    (TaskTimeout, TIMEOUT),
)


def code_of(error: TaskError) -> int:
    """Return the exit code for an error. One that records a task's end says that the task did not complete."""
    if error.info is not None:
        return NOT_COMPLETED
    return next((code for kind, code in _CODES if isinstance(error, kind)), NOT_COMPLETED)


def tell(error: TaskError, *, as_json: bool) -> int:
    """Write the error to stderr and return its exit code."""
    code = code_of(error)
    details: dict[str, Any] = {"retryable": error.is_retryable}
    if error.field is not None:
        details["field"] = error.field
    if isinstance(error, ResourceLimitExceeded) and error.retry_after is not None:
        details["retry_after"] = error.retry_after
    if isinstance(error, SubmitIndeterminate) and error.task_id is not None:
        details["task_id"] = str(error.task_id)
    if error.attempts is not None:
        details["attempts"] = error.attempts
    _write(type(error).__name__, str(error), code, details, as_json=as_json)
    return code


def tell_usage(message: str, command: str, *, as_json: bool) -> int:
    """Write a mistake in the command's words to stderr, with where to look it up, and return the exit code."""
    remedy = f"see `mainspring{command} --help`"
    _write("UsageError", f"{message.rstrip('.')}; {remedy}", INVALID, {"retryable": False}, as_json=as_json)
    return INVALID


def _write(kind: str, message: str, code: int, details: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from mainspring.tasks.codec import to_json

        print(to_json({"error": {"type": kind, "message": message, "exit_code": code, **details}}), file=sys.stderr)
    else:
        print(f"mainspring: {printable(' '.join(message.split()))}", file=sys.stderr)
