"""Tasks as the command line shows them: flat mappings for programs, short words for people."""

from __future__ import annotations

from typing import Any

from mainspring.cli.screen import span
from mainspring.environment import SYSTEM
from mainspring.tasks import ErrorInfo, SearchHit, StoredRef, TaskId, TaskInfo, TaskResult
from mainspring.tasks.codec import to_json

_SHORT_ID = 12
_SUMMARY_CHARS = 200


def short(id: TaskId | None) -> str:
    """Return the end of an id, which every command takes for the whole."""
    return "" if id is None else str(id)[-_SHORT_ID:]


def as_row(info: TaskInfo) -> dict[str, Any]:
    """Return what lists tell of a task."""
    task = info.task
    return {
        "id": task.id,
        "type": task.task_type,
        "status": info.status,
        "reason": info.reason,
        "priority": task.priority.name.lower(),
        "namespace": task.namespace,
        "group": task.group,
        "attempt": info.attempt,
        "retry_count": task.retry_count,
        "max_retries": task.max_retries,
        "submitted": info.submitted,
        "ended": info.ended,
        "due": info.due,
        "deadline": task.deadline,
        "progress": info.progress,
        "worker": info.worker,
        "error": brief_error(info.error),
    }


def as_whole(info: TaskInfo, result: TaskResult | None) -> dict[str, Any]:
    """Return everything the store knows of a task."""
    task = info.task
    return {
        **as_row(info),
        "model_id": task.model_id,
        "params": task.params,
        "metadata": task.metadata,
        "resources": task.resources,
        "timeout": task.timeout,
        "not_before": task.not_before,
        "idempotency_key": task.idempotency_key,
        "dependencies": task.dependencies,
        "on_dependency_failure": task.on_dependency_failure,
        "cancel_requested": info.cancel_requested,
        "retry_of": info.retry_of,
        "retried_as": info.retried_as,
        "input": task.input,
        "output": None if result is None else result.output,
        "error": info.error,
        "metrics": None if result is None else result.metrics,
        "attempts": info.attempts,
    }


def as_outcome(result: TaskResult) -> dict[str, Any]:
    """Return how a task ended."""
    return {
        "id": result.task_id,
        "status": result.status,
        "error": brief_error(result.error),
        "duration": result.metrics.duration,
        "retry_count": result.metrics.retry_count,
        "ended": result.timestamp,
    }


def brief_error(error: ErrorInfo | None) -> dict[str, Any] | None:
    """Return an error without its traceback."""
    return None if error is None else {"type": error.type, "message": error.message, "attempts": error.attempts}


def error_line(error: ErrorInfo | None) -> str:
    return "" if error is None else f"{error.type}: {error.message}"


def state(info: TaskInfo) -> str:
    """Return status and, while it waits, why."""
    asked = ", cancel asked" if info.cancel_requested and not info.status.is_final else ""
    reason = "" if info.reason is None else f" ({info.reason})"
    return f"{info.status.value}{reason}{asked}"


def age(info: TaskInfo) -> str:
    """Return for how long the task has been there."""
    return span(SYSTEM.wall_ms() / 1000 - info.submitted.timestamp())


def progress(info: TaskInfo) -> str:
    """Return the share that a running handler reported."""
    if info.progress is None or info.status.is_final:
        return ""
    done, total = info.progress
    return f"{done / total:.0%}" if total else f"{done:g}"


def summary(value: Any) -> str:
    """Return a value in a line: what it is and how it begins."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if hasattr(value, "dtype"):
        return f"{value.dtype} array of shape {value.shape}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], SearchHit):
        return f"{len(value)} hits, best {value[0].id} ({value[0].score:.3f})"
    if isinstance(value, StoredRef):
        return f"stored under {value.key}"
    text = value if isinstance(value, str) else to_json(value)
    return text if len(text) <= _SUMMARY_CHARS else f"{text[:_SUMMARY_CHARS]}… ({len(text):,} characters)"
