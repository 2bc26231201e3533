"""Tasks of users' transactions, after the commit: from the inbox they go the way of all others.

Whoever submitted them is gone, so none is refused: what can't enter as it is becomes a failed task that says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from mainspring.errors import TaskError, TaskNotFound
from mainspring.store.base import BLOB_INPUT, COMPLETED, Finish, NewTask
from mainspring.store.postgres.connection import CONFLICTS
from mainspring.store.postgres.transaction import PostgresTransaction
from mainspring.store.sql import graph, intake
from mainspring.store.sql.outcomes import finish_one
from mainspring.store.sql.transaction import Crowded
from mainspring.tasks import Custom, CustomOutput, ErrorInfo, Ref, TaskId
from mainspring.tasks.codec import encode
from mainspring.tasks.lifecycle import CLAIMED, FAILED, PARENTS

logger = logging.getLogger("mainspring.store")
STEP = 256
"""Tasks that one transaction takes in, so that it stays short."""
_NOWHERE = 0
"""The number of no task: stands for a parent that is not there, and keeps a refused task from being retried."""
_UNREADABLE = ("default", "custom:unreadable", "")
_decoder = msgspec.msgpack.Decoder(NewTask)
_Attempt: TypeAlias = Callable[
    [PostgresTransaction, Callable[[PostgresTransaction], None]],
    Exception | None,
]


class _Particular(Exception):
    """One of several needs a look of its own."""


def decode(raw: bytes) -> NewTask:
    return _decoder.decode(raw)


def take_in(tx: PostgresTransaction, attempt: _Attempt) -> None:
    """Move tasks from the inbox to the others, in order. What needs rows that stand still raises Crowded first."""
    rows = sorted(tx.run("take_inbox", STEP))
    tx.has_arrivals = len(rows) == STEP
    readable: list[NewTask] = []
    broken: list[tuple[bytes, Exception]] = []
    for _, id, raw in rows:
        try:
            readable.append(decode(raw))
        except msgspec.DecodeError as exc:
            broken.append((id, exc))
    if tx.is_alone:
        _enter_alone(tx, readable, attempt)
        for id, wrong in broken:
            _refuse(tx, _unreadable(id), wrong, attempt)
        return
    if broken or any(task.after for task in readable):
        raise Crowded
    try:
        _enter(tx, readable)
    except (TaskError, _Particular, *CONFLICTS) as exc:
        raise Crowded from exc


def _enter_alone(tx: PostgresTransaction, tasks: Sequence[NewTask], attempt: _Attempt) -> None:
    if not tasks or attempt(tx, partial(_enter, tasks=tasks)) is None:
        return
    for task in tasks:
        wrong = attempt(tx, partial(_enter_one, task=task))
        if wrong is not None:
            _refuse(tx, task, wrong, attempt)


def _enter(tx: PostgresTransaction, tasks: Sequence[NewTask]) -> None:
    accepted = intake.submit(tx, tasks, is_limited=False)
    if any(one.id != task.id for one, task in zip(accepted, tasks, strict=True)):
        raise _Particular


def _enter_one(tx: PostgresTransaction, task: NewTask) -> None:
    (accepted,) = intake.submit_again(tx, [task], is_limited=False)
    if accepted.id != task.id:
        _stand_in(tx, task, accepted.id)


def _stand_in(tx: PostgresTransaction, task: NewTask, other: bytes) -> None:
    """Its idempotency key has got a task since it was submitted: it completes with that one's result."""
    seq, owner = next(tx.numbers(1)), tx.memory.owner
    claim = intake.claim_of(task, seq, tx.now_ms, owner, tx.now_ms)
    _insert(tx, task, seq, reason=CLAIMED, attempt=1, owner=owner)
    output, refs = encode(CustomOutput(Ref(TaskId(other))))
    finish_one(tx, Finish(claim, COMPLETED, tx.now_ms, output=output, refs=tuple(ref.bytes for ref in refs)))


def _refuse(tx: PostgresTransaction, task: NewTask, wrong: Exception, attempt: _Attempt) -> None:
    """Record it as failed; where not even that can be, as one whose bytes can't be read."""
    namespace, kind, _ = task.class_key
    logger.warning(
        "task %s was submitted within a transaction and can't enter: %s", TaskId(task.id), wrong,
        extra={"task_id": str(TaskId(task.id)), "type": kind, "namespace": namespace},
    )  # fmt: skip
    if attempt(tx, partial(_record, task=task, wrong=wrong)) is None:
        return
    again = attempt(tx, partial(_record, task=_unreadable(task.id), wrong=wrong))
    if again is not None:
        raise again


def _record(tx: PostgresTransaction, task: NewTask, wrong: Exception) -> None:
    """Let it fail for a parent that is not there. An id that is taken stays its owner's."""
    if tx.one("task_by_id", task.id) is not None:
        task = msgspec.structs.replace(task, id=TaskId.new().bytes)
    seq = next(tx.numbers(1))
    class_id = _insert(tx, task, seq, reason=PARENTS)
    parents = [(int(row[0]), int(row[1]), id) for id in task.after if (row := tx.one("task_by_id", id)) is not None]
    edges = [(seq, edge.n, edge.parent, edge.policy) for edge in graph.link(tx, seq, parents, task.policy)]
    tx.run_wide("insert_edge", [*edges, (seq, len(edges), _NOWHERE, graph.REQUIRE)])
    graph.end_task(tx, seq, class_id, task.id, FAILED, _error(wrong))


def _insert(
    tx: PostgresTransaction, task: NewTask, seq: int, *, reason: int, attempt: int = 0, owner: int | None = None
) -> int:
    """Write a task that ends with this transaction; returns its class."""
    class_id, now = tx.class_id(task.class_key), tx.now_ms
    waits = _NOWHERE if reason == PARENTS else None
    row: tuple[Any, ...] = (
        seq, task.id, class_id, now, reason, attempt, owner, task.flags, task.priority, task.max_retries, now, now,
        task.not_before_ms, None, task.deadline_ms, task.timeout_ms, waits, waits, task.input, task.spec,
    )  # fmt: skip
    tx.run_wide("insert_task", [row])
    tx.count(class_id, 0)
    if task.flags & BLOB_INPUT:
        tx.run("add_payload_blob", task.input.decode(), seq)
    return class_id


def _unreadable(id: bytes) -> NewTask:
    return NewTask(id, _UNREADABLE, encode(Custom({}))[0])


def _error(wrong: Exception) -> ErrorInfo:
    if isinstance(wrong, TaskNotFound):
        return ErrorInfo(type="DependencyNotMet", message=str(wrong), attempts=0, field=wrong.field)
    kind = type(wrong).__name__ if isinstance(wrong, TaskError) else "InternalError"
    field = wrong.field if isinstance(wrong, TaskError) else None
    return ErrorInfo(type=kind, message=str(wrong), attempts=0, field=field)
