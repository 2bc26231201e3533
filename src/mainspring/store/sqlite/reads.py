"""Looking without touching: everything that only reads, on connections of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import apsw
import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.errors import TaskNotFound
from mainspring.store.base import BLOB_INPUT, BLOB_OUTPUT, CANCEL_ASKED, OUTCOMES, Ended, Spec, Standing
from mainspring.store.sqlite.statements import SQL
from mainspring.store.sqlite.transaction import Row
from mainspring.tasks import (
    Attempt,
    ErrorInfo,
    Task,
    TaskId,
    TaskInfo,
    TaskMetrics,
    TaskPriority,
    TaskResult,
    TaskStatus,
    TaskType,
)
from mainspring.tasks.codec import decode_input, decode_output
from mainspring.tasks.lifecycle import RUNNING, STATUS_CODE, STATUS_OF, STORED_REASONS

_error_decoder = msgspec.msgpack.Decoder(ErrorInfo)
_spec_decoder = msgspec.msgpack.Decoder(Spec)


def when(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _when(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _error(raw: bytes | None) -> ErrorInfo | None:
    return None if raw is None else _error_decoder.decode(raw)


def _payload(raw: bytes, is_blob: bool, blobs: BlobStore) -> bytes:
    return blobs.get(raw.decode()) if is_blob else raw


def one(connection: apsw.Connection, name: str, *values: Any) -> Any:
    return connection.execute(SQL[name], values).fetchone()


def rows(connection: apsw.Connection, sql: str) -> list[Row]:
    return connection.execute(sql).fetchall()


def not_found(connection: apsw.Connection, id: bytes) -> TaskNotFound:
    pruned = one(connection, "tombstone_by_id", id)
    if pruned is None:
        return TaskNotFound(f"there is no task {TaskId(id)} in this store; check the id and the store's path")
    return TaskNotFound(f"task {TaskId(id)} ended as {STATUS_OF[pruned[0]].value} and was pruned since")


def info(connection: apsw.Connection, blobs: BlobStore, id: bytes) -> TaskInfo:
    """Return all there is to know about a task, from one consistent view."""
    with connection:
        row = one(connection, "whole_task", id)
        if row is None:
            raise not_found(connection, id)
        seq, status = row[0], STATUS_OF[row[4]]
        tries = connection.execute(SQL["attempts_of"], (seq,)).fetchall()
        parents = [TaskId(parent) for parent, _ in connection.execute(SQL["parents_ids"], (seq,))]
        progress = one(connection, "progress_of", seq, row[6])
        before, after = one(connection, "retry_links", seq)
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
        error=_error(row[25]),
        attempts=tuple(_attempt(row) for row in tries),
    )


def _task(row: Any, parents: Sequence[TaskId], blobs: BlobStore) -> Task:
    spec = Spec() if row[23] is None else _spec_decoder.decode(row[23])
    return Task(
        id=TaskId(row[1]),
        task_type=TaskType(row[27]),
        input=decode_input(_payload(row[22], bool(row[8] & BLOB_INPUT), blobs)),
        priority=TaskPriority(row[9]),
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
        group=row[28] or None,
        namespace=row[26],
        on_dependency_failure=spec.on_dependency_failure,
        params=spec.params,
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        number=row[0],
        outcome=OUTCOMES[row[1]],
        worker=row[2],
        started=when(row[3]),
        ended=_when(row[4]),
        cpu_time=None if row[6] is None else row[6] / 1e6,
        memory_bytes=row[7],
        error=_error(row[12]),
    )


def result(connection: apsw.Connection, blobs: BlobStore, id: bytes) -> TaskResult | None:
    """Return how a task ended, or None while it has not. Raises TaskNotFound."""
    with connection:
        row = one(connection, "whole_task", id)
        if row is None:
            raise not_found(connection, id)
        tries = connection.execute(SQL["attempts_of"], (row[0],)).fetchall()
    status = STATUS_OF[row[4]]
    if not status.is_final:
        return None
    output = None
    if status is TaskStatus.COMPLETED:
        output = decode_output(_payload(row[24], bool(row[8] & BLOB_OUTPUT), blobs))
    return TaskResult(
        task_id=TaskId(id),
        status=status,
        output=output,
        error=_error(row[25]),
        metrics=_metrics(tries[-1] if tries else None, row[10]),
        timestamp=_when(row[20]),
    )


def _metrics(row: Any, retry_count: int) -> TaskMetrics:
    if row is None:
        return TaskMetrics(retry_count=retry_count)
    duration = (row[5] or 0) / 1e6
    cpu = None if row[6] is None else row[6] / 1e6
    return TaskMetrics(
        duration=duration,
        memory_bytes=row[7],
        cpu_usage=None if cpu is None or duration == 0 else cpu / duration,
        network_bytes=row[8],
        retry_count=retry_count,
        cpu_time=cpu,
        queue_wait=None if row[10] is None else row[10] / 1000,
        batch_size=row[9],
        lane=row[11],
    )


def ended(connection: apsw.Connection, ids: Sequence[bytes]) -> list[Ended]:
    """Return those of the tasks that have ended."""
    cursor = connection.cursor()
    found: list[Ended] = []
    with connection:
        for id in ids:
            found += (Ended(*row) for row in cursor.execute(SQL["outcome_by_id"], (id,)))
    return found


def asked_to_stop(connection: apsw.Connection, owner: int) -> list[bytes]:
    """Return the tasks of a worker that somebody wants cancelled."""
    return [row[0] for row in connection.execute("SELECT id FROM task WHERE owner = ? AND flags & 1", (owner,))]


_AHEAD_LIMIT = 10_000


def standing(connection: apsw.Connection, id: bytes) -> Standing:
    """Return where a task stands, with the reasons that only a look at everything tells."""
    with connection:
        row = one(connection, "whole_task", id)
        if row is None:
            raise not_found(connection, id)
        seq, class_id, rank, reason = row[0], row[2], row[3], None if row[5] is None else STORED_REASONS[row[5]]
        namespace, kind, group = row[26:29]
        parents: list[bytes] = []
        if reason == "parents":
            parents = [p for p, status in connection.execute(SQL["parents_ids"], (seq,)) if status < 2]
        ahead, pause = 0, None
        if reason == "ready":
            ahead = one(connection, "ahead", class_id, rank, seq, _AHEAD_LIMIT)[0]
            pause = _pause_of(connection, namespace, kind, group)
            served = {name for (name,) in connection.execute(SQL["served_types"])}
            reason = "paused" if pause is not None else "ready" if kind in served else "no_worker"
    return Standing(
        status=STATUS_OF[row[4]],
        reason=reason,
        type=kind,
        attempt=row[6],
        worker=row[29],
        due=when(row[17]),
        error=_error(row[25]),
        parents=parents,
        parents_left=len(parents),
        ahead=ahead,
        ahead_is_more=ahead == _AHEAD_LIMIT,
        pause=pause,
    )


def _pause_of(connection: apsw.Connection, namespace: str, kind: str, group: str) -> str | None:
    for a, b, c in connection.execute(SQL["pauses"]):
        if a in ("", namespace) and b in ("", kind) and c in ("", group):
            named = (("namespace", a), ("type", b), ("group", c))
            return ", ".join(f"{name} {value}" for name, value in named if value) or "everything"
    return None


def registered_types(connection: apsw.Connection) -> list[str]:
    return [row[0] for row in rows(connection, "SELECT type FROM handler UNION SELECT type FROM serves")]


def stats(connection: apsw.Connection) -> dict[str, Any]:
    """Count by what is kept in step with every write; nothing here looks at each task but the unfinished ones."""
    with connection:
        totals: dict[int, int] = dict(rows(connection, "SELECT status, n FROM tally WHERE class = 0"))
        held: dict[int, int] = dict(
            rows(connection, "SELECT status, count(*) FROM task WHERE owner IS NOT NULL GROUP BY status")
        )
        kinds = rows(connection, SQL["tallies"])
    running = held.get(1, 0)
    status = {STATUS_OF[code].value: n for code, n in totals.items() if code > 1}
    types: dict[str, dict[str, int]] = {}
    for _, kind, _, code, n in kinds:
        counts = types.setdefault(kind, {})
        name = "unfinished" if code == 0 else STATUS_OF[code].value
        counts[name] = counts.get(name, 0) + n
    return {"pending": totals.get(0, 0) - running, "running": running, **status, "types": types}


def open_workers(connection: apsw.Connection) -> list[tuple[int, str, int]]:
    return [(row[0], row[1], row[2]) for row in connection.execute(SQL["open_workers"])]


def overstayed(
    connection: apsw.Connection, owner: int, limit_ms: int | None, running: frozenset[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return (seq, attempt) of what a silent worker held for too long: of what runs, all with a timeout up to the
    limit; without a limit everything."""
    rows = connection.execute("SELECT seq, attempt, status, timeout_ms FROM task WHERE owner = ?", (owner,))
    return [
        (seq, attempt)
        for seq, attempt, status, timeout_ms in rows
        if limit_ms is None
        or (timeout_ms is not None and timeout_ms <= limit_ms and (status == RUNNING or (seq, attempt) in running))
    ]


def without_payload(connection: apsw.Connection, digests: Sequence[str]) -> list[str]:
    """Return those blobs that no task's payload refers to."""
    return [digest for digest in digests if one(connection, "blob_in_use", digest) is None]


def missing(connection: apsw.Connection, ids: Sequence[bytes]) -> list[bytes]:
    """Return those of the ids that the store does not know."""
    cursor = connection.cursor()
    return [id for id in ids if cursor.execute("SELECT 1 FROM task WHERE id = ?", (id,)).fetchone() is None]


def page(
    connection: apsw.Connection,
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
    ids = [row[0] for row in connection.execute(SQL["page"], values)]
    return [info(connection, blobs, id) for id in ids]
