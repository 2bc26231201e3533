"""Looking without touching: everything that only reads, on connections of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.errors import StoreDamaged, TaskError, TaskNotFound
from mainspring.store.base import (
    BLOB_INPUT,
    BLOB_OUTPUT,
    CANCEL_ASKED,
    OUTCOMES,
    RETRY,
    SHARED,
    Ended,
    HostUsage,
    Kept,
    Spec,
)
from mainspring.store.sql.transaction import Row
from mainspring.tasks import (
    Attempt,
    Custom,
    ErrorInfo,
    Task,
    TaskId,
    TaskInfo,
    TaskInput,
    TaskMetrics,
    TaskPriority,
    TaskResult,
    TaskStatus,
    TaskType,
)
from mainspring.tasks.codec import blob_named, decode_input, stored_error, stored_output
from mainspring.tasks.lifecycle import RUNNING, STATUS_CODE, STATUS_OF, STORED_REASONS


class View(Protocol):
    """A connection that only reads, with the statements of its store."""

    def one(self, name: str, *values: Any) -> Any:
        """Return the first row of a named statement, or None."""

    def rows(self, name: str, *values: Any) -> list[Row]: ...

    def of_ids(self, name: str, ids: Sequence[bytes]) -> list[Row]:
        """Return what a statement finds for each of these tasks, all at one moment."""

    def snapshot(self) -> AbstractContextManager[Any]:
        """All that is read inside is of one moment."""


_spec_decoder = msgspec.msgpack.Decoder(Spec)


def when(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _when(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def error_of(id: bytes, raw: bytes | None) -> ErrorInfo | None:
    """Return an error, or what is wrong with it: how a task ended is known without."""
    try:
        return None if raw is None else stored_error(id, raw)
    except StoreDamaged as exc:
        return ErrorInfo(type=type(exc).__name__, message=str(exc))


def _payload(id: bytes, field: str, raw: bytes, is_blob: bool, blobs: BlobStore) -> bytes:
    return blobs.get(blob_named(id, field, raw)) if is_blob else raw


def not_found(view: View, id: bytes) -> TaskNotFound:
    pruned = view.one("tombstone_by_id", id)
    if pruned is None:
        why = f"there is no task {TaskId(id)} in this store; check the id and the store's path"
        return TaskNotFound(why, field="task id", value=TaskId(id))
    why = f"task {TaskId(id)} ended as {STATUS_OF[pruned[0]].value} and was pruned since"
    return TaskNotFound(why, field="task id", value=TaskId(id))


def info(view: View, blobs: BlobStore, id: bytes) -> TaskInfo:
    """Return all there is to know about a task, from one consistent view."""
    with view.snapshot():
        row = view.one("whole_task", id)
        if row is None:
            raise not_found(view, id)
        seq, status = row[0], STATUS_OF[row[4]]
        tries = view.rows("attempts_of", seq)
        parents = [TaskId(parent) for parent, *_ in view.rows("parents_ids", seq)]
        progress = view.one("progress_of", seq, row[6])
        before, after = view.one("retry_links", seq)
    return TaskInfo(
        task=_task(row, parents, blobs),
        status=status,
        reason=None if row[5] is None else STORED_REASONS[row[5]],
        attempt=row[6],
        submitted=_when(row[14]),
        started=when(next((started for *_, started in [(t[3],) for t in reversed(tries)] if started), None)),
        ended=when(row[20]),
        due=when(row[17]),
        cancel_requested=bool(row[8] & CANCEL_ASKED),
        progress=None if progress is None else (progress[0], progress[1]),
        retry_of=None if before is None else TaskId(before),
        retried_as=None if after is None else TaskId(after),
        worker=row[29],
        error=error_of(id, row[25]),
        attempts=_attempts(id, tries),
    )


def _spec(raw: bytes | None) -> Spec:
    if raw is None:
        return Spec()
    try:
        return _spec_decoder.decode(raw)
    except msgspec.ValidationError:  # shown as it stands there: whoever looks for what is wrong must see it
        return Spec(**msgspec.msgpack.decode(raw))
    except msgspec.DecodeError as exc:
        return Spec(metadata={"unreadable": str(exc)})


def _input(id: bytes, raw: bytes, is_blob: bool, blobs: BlobStore) -> TaskInput:
    """Return the input, or what is wrong with it: one that can't be read must not hide the task, nor its neighbours."""
    try:
        return decode_input(_payload(id, "input", raw, is_blob, blobs))
    except TaskError as exc:
        return Custom({"unreadable": str(exc)})


def _task(row: Any, parents: Sequence[TaskId], blobs: BlobStore) -> Task:
    spec = _spec(row[23])
    return Task(
        id=TaskId(row[1]),
        task_type=TaskType(row[27]),
        input=_input(row[1], row[22], bool(row[8] & BLOB_INPUT), blobs),
        priority=TaskPriority(min(max(row[9], TaskPriority.LOW), TaskPriority.CRITICAL)),  # one beyond hides no task
        model_id=spec.model_id,
        deadline=when(row[18]),
        retry_count=row[10],
        max_retries=row[11],
        dependencies=tuple(parents),
        metadata=spec.metadata,
        timeout=None if row[19] is None else row[19] / 1000,
        not_before=when(row[16]),
        idempotency_key=spec.idempotency_key,
        resources=spec.resources,
        cost=spec.cost,
        group=row[28] or None,
        namespace=row[26],
        on_dependency_failure=spec.on_dependency_failure,
        params=spec.params,
        cache=None if spec.keep_ms is None else spec.keep_ms / 1000,
    )


def _attempts(id: bytes, rows: Sequence[Any]) -> tuple[Attempt, ...]:
    found, retries = [], 0
    for row in rows:
        found.append(_attempt(id, row, retries))
        retries += row[1] == RETRY
    return tuple(found)


def _attempt(id: bytes, row: Any, retry_count: int) -> Attempt:
    return Attempt(
        number=row[0],
        outcome=OUTCOMES[row[1]],
        worker=row[2],
        started=when(row[3]),
        ended=_when(row[4]),
        duration=_scaled(row[5], 1e6),
        queue_wait=_scaled(row[10], 1e3),
        cpu_time=_scaled(row[6], 1e6),
        memory_bytes=row[7],
        network_bytes=row[8],
        batch_size=row[9],
        retry_count=retry_count,
        lane=row[11],
        error=error_of(id, row[12]),
    )


def _scaled(value: int | None, per_unit: float) -> float | None:
    return None if value is None else value / per_unit


def result(view: View, blobs: BlobStore, id: bytes) -> TaskResult | None:
    """Return how a task ended, or None while it has not.

    Raises: TaskNotFound. StoreDamaged: its output can't be read.
    """
    with view.snapshot():
        row = view.one("whole_task", id)
        if row is None:
            raise not_found(view, id)
        tries = view.rows("attempts_of", row[0])
    status = STATUS_OF[row[4]]
    if not status.is_final:
        return None
    output = None
    if status is TaskStatus.COMPLETED:
        output = stored_output(id, _payload(id, "output", row[24], bool(row[8] & BLOB_OUTPUT), blobs))
    return TaskResult(
        task_id=TaskId(id),
        status=status,
        output=output,
        error=error_of(id, row[25]),
        metrics=_metrics(tries[-1] if tries else None, row[10], is_hit=bool(row[8] & SHARED)),
        timestamp=_when(row[20]),
    )


def _metrics(row: Any, retry_count: int, *, is_hit: bool) -> TaskMetrics:
    if row is None:
        return TaskMetrics(retry_count=retry_count, cache_hit=is_hit)
    duration, cpu = _scaled(row[5], 1e6), _scaled(row[6], 1e6)
    return TaskMetrics(
        duration=duration,
        memory_bytes=row[7],
        cpu_usage=None if cpu is None or not duration else cpu / duration,
        network_bytes=row[8],
        retry_count=retry_count,
        cpu_time=cpu,
        queue_wait=_scaled(row[10], 1e3),
        batch_size=row[9],
        lane=row[11],
        cache_hit=is_hit,
    )


def ended(view: View, ids: Sequence[bytes]) -> list[Ended]:
    """Return those of the tasks that have ended."""
    return [Ended(*row) for row in view.of_ids("outcome_by_id", ids)]


def asked_to_stop(view: View, owner: int) -> list[bytes]:
    """Return the tasks of a worker that somebody wants cancelled."""
    return [row[0] for row in view.rows("asked_to_stop", owner)]


def claimed_elsewhere(view: View, owner: int) -> list[tuple[int, int, tuple[str, str, str]]]:
    """Return which other workers hold claims that have not begun, as far as is known, and of which classes."""
    rows = view.rows("claimed_elsewhere", owner)
    return [(holder, class_id, (namespace, kind, group)) for holder, class_id, namespace, kind, group in rows]


def kept(view: View) -> list[Kept]:
    """Return what the result cache holds, by namespace, type and version."""
    return [Kept(*row) for row in view.rows("kept_kinds")]


def usages(view: View) -> list[HostUsage]:
    """Return what the processes that work have told of their machines."""
    return [HostUsage(*row) for row in view.rows("usages")]


def registered_types(view: View) -> list[str]:
    return [row[0] for row in view.rows("registered_types")]


def declared(view: View, kind: str) -> tuple[str, str] | None:
    """Return options and schema of a handler, as its newest worker wrote them."""
    row = view.one("newest_handler", kind)
    return None if row is None else (row[0], row[1])


def stats(view: View) -> dict[str, Any]:
    """Count by what is kept in step with every write; nothing here looks at each task but the unfinished ones."""
    with view.snapshot():
        totals: dict[int, int] = dict(view.rows("totals"))
        held: dict[int, int] = dict(view.rows("held_by_status"))
        kinds = view.rows("tallies")
    running = held.get(1, 0)
    status = {status.value: totals.get(code, 0) for code, status in enumerate(STATUS_OF) if code > 1}
    types: dict[str, dict[str, int]] = {}
    for _, kind, _, code, n in kinds:
        counts = types.setdefault(kind, {})
        name = "unfinished" if code == 0 else STATUS_OF[code].value
        counts[name] = counts.get(name, 0) + n
    return {"pending": totals.get(0, 0) - running, "running": running, **status, "types": types}


def open_workers(view: View) -> list[tuple[int, str, int]]:
    return [(row[0], row[1], row[2]) for row in view.rows("open_workers")]


def overstayed(
    view: View, owner: int, limit_ms: int | None, running: frozenset[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return (seq, attempt) of what a silent worker held for too long: of what runs, all with a timeout up to the
    limit; without a limit everything."""
    rows = view.rows("timeouts_of", owner)
    return [
        (seq, attempt)
        for seq, attempt, status, timeout_ms in rows
        if limit_ms is None
        or (timeout_ms is not None and timeout_ms <= limit_ms and (status == RUNNING or (seq, attempt) in running))
    ]


def without_payload(view: View, digests: Sequence[str]) -> list[str]:
    """Return those blobs that no task's payload refers to."""
    return [digest for digest in digests if view.one("blob_in_use", digest) is None]


def missing(view: View, ids: Sequence[bytes]) -> list[bytes]:
    """Return those of the ids that the store does not know."""
    known = {row[0] for row in view.of_ids("known_id", ids)}
    return [id for id in ids if id not in known]


def page(
    view: View,
    blobs: BlobStore,
    *,
    status: TaskStatus | None,
    type: str | None,
    namespace: str | None,
    limit: int,
    before: TaskId | None,
) -> list[TaskInfo]:
    """Return the newest tasks first, a page at a time."""
    values = (None if status is None else STATUS_CODE[status], type, namespace, before.bytes if before else None, limit)
    ids = [row[0] for row in view.rows("page", *values)]
    return [info(view, blobs, id) for id in ids]
