"""What is seen of a store from outside, and whether the store agrees with it.

`at` orders events: any number that grows, read from one clock by all observers (`time.monotonic_ns()` is one clock for
all processes of a machine). Task ids are text, so that a ledger can be lines of JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from mainspring.tasks import TaskId
from mainspring.tasks.identity import TaskStatus
from mainspring.tasks.lifecycle import CANCELLED, STATUS_CODE, STATUS_OF
from mainspring.testing.rows import Row, Rows
from mainspring.testing.violation import Violation


class Submitted(msgspec.Struct, frozen=True, tag="submitted"):
    """A submit of this task was called."""

    task: str
    at: int


class Acknowledged(msgspec.Struct, frozen=True, tag="acknowledged"):
    """The submit returned: the task is durable."""

    task: str
    at: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The submit raised an error that says that nothing was stored."""

    task: str
    at: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A handler began with this attempt."""

    task: str
    at: int
    attempt: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The handler of this attempt returned or raised; whether that is recorded is another matter."""

    task: str
    at: int
    attempt: int


class CancelAnswered(msgspec.Struct, frozen=True, tag="cancel_answered"):
    """A cancel returned `cancelled`, `requested` or `already(STATUS)`."""

    task: str
    at: int
    answer: str


class ResultSeen(msgspec.Struct, frozen=True, tag="result_seen"):
    """Somebody was told that the task has ended so."""

    task: str
    at: int
    status: TaskStatus


Event: TypeAlias = Submitted | Acknowledged | Refused | Started | Ended | CancelAnswered | ResultSeen

_ROW = "SELECT status, attempt FROM task WHERE id = $1"
_PRUNED = "SELECT status, NULL FROM tombstone WHERE id = $1"


def check_events(rows: Rows, events: Iterable[Event]) -> Iterator[Violation]:
    """Yield where the rows, or the events among themselves, contradict what was seen."""
    cancelled: dict[str, int] = {}
    started: set[tuple[str, int]] = set()
    for event in sorted(events, key=lambda event: event.at):
        if isinstance(event, Started):
            yield from _check_start(event, cancelled, started)
        if isinstance(event, CancelAnswered) and event.answer == "cancelled":
            cancelled.setdefault(event.task, event.at)
        check = _CHECKS.get(type(event))
        if check is not None:
            yield from check(event, _row_of(rows, TaskId(event.task).bytes))


def _row_of(rows: Rows, id: bytes) -> Row | None:
    """Return status and attempt of a task; no attempt is known of one that was pruned."""
    for sql in (_ROW, _PRUNED):
        for row in rows.ask(sql, id):
            return row
    return None


def _violation(invariant: str, event: Event, what: str, **figures: Any) -> Violation:
    return Violation(invariant=invariant, task=event.task, what=what, figures={"at": event.at, **figures})


def _check_start(event: Started, cancelled: dict[str, int], started: set[tuple[str, int]]) -> Iterator[Violation]:
    if event.task in cancelled:
        yield _violation(
            "cancel", event, "started after it was cancelled", attempt=event.attempt, cancelled_at=cancelled[event.task]
        )
    if (event.task, event.attempt) in started:
        yield _violation("fencing", event, "one attempt started twice", attempt=event.attempt)
    started.add((event.task, event.attempt))


def _is_there(event: Acknowledged, row: Any) -> Iterator[Violation]:
    if row is None:
        yield _violation("durability", event, "was accepted and is not there")


def _is_not_there(event: Refused, row: Any) -> Iterator[Violation]:
    if row is not None:
        yield _violation("submit", event, "was refused and is there", status=row[0])


def _is_claimed(event: Started, row: Any) -> Iterator[Violation]:
    if row is None:
        yield _violation("durability", event, "started and is not there", attempt=event.attempt)
    elif row[1] is not None and event.attempt > row[1]:
        yield _violation("fencing", event, "an attempt started that was never claimed", attempt=row[1])


def _is_cancelled(event: CancelAnswered, row: Any) -> Iterator[Violation]:
    status = None if row is None else row[0]
    if event.answer == "cancelled" or (event.answer == "requested" and status is not None and status > 1):
        told = CANCELLED
    elif event.answer.startswith("already("):
        told = STATUS_CODE[TaskStatus(event.answer[8:-1])]
    else:
        return
    if status != told:
        yield _violation("cancel", event, f"was answered {event.answer!r}, the row says otherwise", status=status)


def _is_final(event: ResultSeen, row: Any) -> Iterator[Violation]:
    status = None if row is None else STATUS_OF[row[0]]
    if status is not event.status:
        now = None if status is None else status.value
        yield _violation("one_outcome", event, f"was seen {event.status.value}, the row says otherwise", status=now)


_CHECKS: dict[type, Callable[[Any, Any], Iterator[Violation]]] = {
    Acknowledged: _is_there,
    Refused: _is_not_there,
    Started: _is_claimed,
    CancelAnswered: _is_cancelled,
    ResultSeen: _is_final,
}
