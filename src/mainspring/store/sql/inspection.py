"""What there is to know of tasks from outside, wherever a store is. Facts only; `doctor` judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from mainspring.tasks import TaskId

COUNT_LIMIT: Final = 10_000
"""Ready tasks of one class that are counted; more are said to be more."""
_OVERRUN_LIMIT: Final = 100


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A process that opened the store and has not signed off."""

    name: str
    pid: int
    host: str
    started_ms: int
    held: int  # claims
    types: tuple[str, ...]  # that it serves
    is_alive: bool
    turns: bool | None  # its loop read a wake-up in time; None where that can't be told


class ClassFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Unfinished tasks of one kind."""

    namespace: str
    type: str
    group: str
    unfinished: int
    ready: int  # up to COUNT_LIMIT
    ready_since_ms: int | None  # of the next one in line
    pause: str | None  # what keeps it from starting


class EndFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How tasks of one type ended that are not pruned yet."""

    type: str
    completed: int
    failed: int  # or out of time


class HandlerFacts(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    version: str
    lane: str
    timeout_s: float | None
    seen_ms: int


class Overrun(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that may have run for longer than it may."""

    task: str  # its id
    type: str
    worker: str
    timeout_ms: int
    at_most_ms: int  # that it has run


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows tell at one moment."""

    now_ms: int  # by the clock that the store goes by
    newest_ms: int  # the newest time in the store
    unfinished: int
    classes: tuple[ClassFacts, ...]
    ends: tuple[EndFacts, ...]
    handlers: tuple[HandlerFacts, ...]
    overruns: tuple[Overrun, ...]
    travelling: int  # ends that have not reached all descendants
    late_ms: int | None  # when the first delay or deadline fell due that still waits


class Facts(Queue, frozen=True, kw_only=True):
    """The same with those who work on it."""

    workers: tuple[WorkerFacts, ...]
    is_led: bool | None  # a process does the upkeep, or none is alive; None where that can't be told


def look_at_queue(ask: Callable[..., Sequence[Any]], now_ms: int, grace_s: float) -> Queue:
    """Return what there is. `ask` runs a statement by its name, with values; the caller holds the moment still."""
    pauses = ask("pauses")
    return Queue(
        now_ms=now_ms,
        newest_ms=_first(ask("newest")),
        unfinished=_first(ask("unfinished")),
        classes=tuple(_class(row, pauses) for row in ask("classes", COUNT_LIMIT)),
        ends=tuple(EndFacts(type=kind, completed=done, failed=failed) for kind, done, failed in ask("ends")),
        handlers=tuple(_handler(row) for row in ask("handlers")),
        overruns=tuple(_overrun(row) for row in ask("overrun", now_ms, int(grace_s * 1000), _OVERRUN_LIMIT)),
        travelling=_first(ask("travelling")),
        late_ms=min((ms for ms in ask("late")[0] if ms is not None), default=None),
    )


def _first(rows: Sequence[Any]) -> int:
    return int(rows[0][0] or 0)


def _class(row: Any, pauses: Sequence[Any]) -> ClassFacts:
    namespace, kind, group, unfinished, ready, since = row
    pause = next(
        (
            ", ".join(value for value in one if value) or "everything"
            for one in pauses
            if all(a in ("", b) for a, b in zip(one, (namespace, kind, group), strict=True))
        ),
        None,
    )
    return ClassFacts(
        namespace=namespace,
        type=kind,
        group=group,
        unfinished=unfinished,
        ready=ready,
        ready_since_ms=since,
        pause=pause,
    )


def _overrun(row: Any) -> Overrun:
    id, kind, worker, timeout, most = row
    return Overrun(task=str(TaskId(id)), type=kind, worker=worker, timeout_ms=timeout, at_most_ms=most)


def _handler(row: Any) -> HandlerFacts:
    kind, version, lane, options, seen_ms = row
    timeout = msgspec.json.decode(options).get("timeout")
    return HandlerFacts(type=kind, version=version, lane=lane, timeout_s=timeout, seen_ms=seen_ms)
