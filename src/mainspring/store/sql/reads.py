"""Looking without touching: everything that only reads, on connections of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
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
from mainspring.store.sql import limited
from mainspring.store.sql.line import COUNT_LIMIT, Place, line_of
from mainspring.store.sql.shortages import offers_of, shortages, takers
from mainspring.store.sql.transaction import Row
from mainspring.store.standing import Other, Pause, Standing
from mainspring.tasks import (
    Attempt,
    Custom,
    ErrorInfo,
    GroupLimit,
    Reason,
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


_COMPANY = ("alone", "first")
_MAY_LACK = ("ready", "claimed", "limit")
"""Reasons behind which may be that resources are short."""
"""Shortages of nothing that could be reserved."""


def when(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _when(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _error(id: bytes, raw: bytes | None) -> ErrorInfo | None:
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
        error=_error(id, row[25]),
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
        error=_error(id, row[12]),
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
        error=_error(id, row[25]),
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


def standing(view: View, id: bytes, now_ms: int, *, in_line: bool = False) -> Standing:
    """Return where a task stands, with the reasons that only a look at everything tells.

    With `in_line` also what goes before a ready task.
    """
    with view.snapshot():
        row = view.one("whole_task", id)
        if row is None:
            raise not_found(view, id)
        seq, class_id, rank, reason = row[0], row[2], row[3], None if row[5] is None else STORED_REASONS[row[5]]
        namespace, kind, group = row[26:29]
        parents = view.rows("parents_ids", seq) if reason == "parents" else []
        ahead, covering, leader, line, workers, in_group = 0, list[Pause](), None, None, 0, (0, False)
        limits: tuple[GroupLimit, ...] = ()
        offers = offers_of(view) if reason in ("ready", "claimed") else {}
        workers_of, stopping = takers(view, kind, row[29], offers)
        if reason == "same_work" and (found := view.one("leader_of", seq)) is not None:
            leader = _other(*found[:3])
            if leader.state == "ready" and any(_covers(pause, *found[3:]) for pause in _pauses(view)):
                leader = leader._replace(state="paused")
        if reason == "ready":
            ahead = view.one("ahead", class_id, rank, seq, COUNT_LIMIT)[0]
            pauses = _pauses(view)
            covering = [pause for pause in pauses if _covers(pause, namespace, kind, group)]
            beside = {name for (name,) in view.rows("served_beside", kind)}
            limits = limited.full(view, namespace, group, now_ms) if group else ()
            reason = _why(bool(covering), bool(beside) and not stopping, bool(limits))
            place = Place(rank, seq, kind, row[15], namespace, group)
            if reason == "no_worker":
                workers = len(view.rows("serving_workers"))
            elif reason == "ready" and in_line:
                line = line_of(view, place, beside, partial(_is_kept, view, pauses, now_ms), now_ms)
            elif reason == "limit" and in_line:
                in_group = limited.go_first(view, limits, place, partial(_is_out, view, pauses, group), now_ms)
        lacks = shortages(view, id, kind, row[23], workers_of, offers) if reason in _MAY_LACK else ()
        if reason == "limit" and not all(shortage.how == "never" for shortage in lacks):
            lacks = ()  # its turn in the group comes first
    return Standing(
        status=STATUS_OF[row[4]],
        reason="resources" if any(shortage.how not in _COMPANY for shortage in lacks) else reason,
        type=kind,
        attempt=row[6],
        worker=row[29],
        due=when(row[17]),
        error=_error(id, row[25]),
        retry_count=row[10],
        max_retries=row[11],
        cancel_asked=bool(row[8] & CANCEL_ASKED),
        parents=[_other(*parent) for parent in parents if parent[1] <= RUNNING],
        parents_all=len(parents),
        ahead=ahead,
        ahead_is_more=ahead == COUNT_LIMIT,
        pauses=tuple(covering),
        workers=workers,
        stopping=stopping,
        limits=limits,
        ahead_in_group=in_group[0],
        ahead_in_group_is_more=in_group[1],
        leader=leader,
        line=line,
        shortages=lacks,
    )


def _other(id: bytes, status: int, reason: int | None) -> Other:
    return Other(bytes(id), STATUS_OF[status].value if reason is None else STORED_REASONS[reason])


def _pauses(view: View) -> list[Pause]:
    return [Pause(a, b, c, _when(since), who) for a, b, c, since, who in view.rows("pauses_since")]


def _is_kept(view: View, pauses: Sequence[Pause], now_ms: int, namespace: str, kind: str, group: str) -> bool:
    is_paused = any(_covers(pause, namespace, kind, group) for pause in pauses)
    return is_paused or (group != "" and bool(limited.full(view, namespace, group, now_ms)))


def _is_out(view: View, pauses: Sequence[Pause], group: str, namespace: str, kind: str) -> bool:
    """Whether tasks can't start whatever their group's limits say."""
    return any(_covers(pause, namespace, kind, group) for pause in pauses) or not view.rows("serving", kind)


def _covers(pause: Pause, namespace: str, kind: str, group: str) -> bool:
    return pause.namespace in ("", namespace) and pause.type in ("", kind) and pause.group in ("", group)


def _why(is_paused: bool, is_served: bool, is_full: bool) -> Reason:
    return "paused" if is_paused else "no_worker" if not is_served else "limit" if is_full else "ready"


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
    status = {STATUS_OF[code].value: n for code, n in totals.items() if code > 1}
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
