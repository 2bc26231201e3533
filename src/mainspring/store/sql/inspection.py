"""What there is to know of tasks from outside, wherever a store is. Facts only; `doctor` judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from mainspring.store.sql.shortages import decoded, too_little
from mainspring.tasks import Rate, TaskId

COUNT_LIMIT: Final = 10_000
"""Ready tasks of one class that are counted; more are said to be more."""
_OVERRUN_LIMIT: Final = 100
_NEVER_LIMIT: Final = 100


class _Options(msgspec.Struct):
    timeout: float | None = None


_options = msgspec.json.Decoder(_Options)


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
    deadlines: int = 0  # unfinished ones that wait and have a deadline, of those that come first
    deadline_ms: int | None = None  # the first of them


class EndFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How tasks of one type ended that are not pruned yet."""

    type: str
    completed: int
    failed: int  # or out of time


class HandlerFacts(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    version: str
    lane: str
    timeout_s: float | None  # None also where its options can't be read
    seen_ms: int


class Overrun(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that may have run for longer than it may."""

    task: str  # its id
    type: str
    worker: str
    timeout_ms: int
    at_most_ms: int  # that it has run


class GroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A group whose tasks may begin only so often."""

    group: str
    namespace: str  # empty: in all of them together
    rate: str
    a_second: float


class FollowerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that wait for equal work of another kind, which is queued."""

    namespace: str
    type: str
    group: str  # of the one that they wait for
    waiting: int
    pause: str | None  # what keeps that one from starting


class NeverFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A task that needs more than workers ever have."""

    task: str  # its id
    type: str
    why: dict[str, str]  # by worker


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
    rates: tuple[GroupFacts, ...] = ()
    followers: tuple[FollowerFacts, ...] = ()
    never: tuple[NeverFacts, ...] = ()


class Facts(Queue, frozen=True, kw_only=True):
    """The same with those who work on it."""

    workers: tuple[WorkerFacts, ...]
    is_led: bool | None  # a process does the upkeep, or none is alive; None where that can't be told


def look_at_queue(ask: Callable[..., Sequence[Any]], now_ms: int, grace_s: float) -> Queue:
    """Return what there is. `ask` runs a statement by its name, with values; the caller holds the moment still."""
    pauses = ask("pauses")
    tables = {str(row[0]) for row in ask("known_tables")}  # an older store lacks some
    deadlines = {tuple(kind): (n, first) for *kind, n, first in ask("deadlines", COUNT_LIMIT)}
    return Queue(
        now_ms=now_ms,
        newest_ms=_first(ask("newest")),
        unfinished=_first(ask("unfinished")),
        classes=tuple(
            _class(row, pauses, *deadlines.get(tuple(row[:3]), (0, None))) for row in ask("classes", COUNT_LIMIT)
        ),
        ends=tuple(EndFacts(type=kind, completed=done, failed=failed) for kind, done, failed in ask("ends")),
        handlers=tuple(_handler(row) for row in ask("handlers")),
        overruns=tuple(_overrun(row) for row in ask("overrun", now_ms, int(grace_s * 1000), _OVERRUN_LIMIT)),
        travelling=_first(ask("travelling")),
        late_ms=min((ms for ms in ask("late")[0] if ms is not None), default=None),
        rates=tuple(_rate(row) for row in ask("rates")) if "group_limit" in tables else (),
        followers=tuple(_followers(row, pauses) for row in ask("following")) if "flight" in tables else (),
        never=tuple(_never(ask)) if "offer" in tables else (),
    )


def _first(rows: Sequence[Any]) -> int:
    return int(rows[0][0] or 0)


def _pause(pauses: Sequence[Any], *names: str) -> str | None:
    """Return what keeps tasks of a class from starting."""
    return next(
        (
            ", ".join(value for value in one if value) or "everything"
            for one in pauses
            if all(a in ("", b) for a, b in zip(one, names, strict=True))
        ),
        None,
    )


def _rate(row: Any) -> GroupFacts:
    group, namespace, n, ms = row
    return GroupFacts(group=group, namespace=namespace, rate=str(Rate(n, ms)), a_second=n * 1_000 / ms)


def _followers(row: Any, pauses: Sequence[Any]) -> FollowerFacts:
    namespace, kind, group, n = row
    pause = _pause(pauses, namespace, kind, group)
    return FollowerFacts(namespace=namespace, type=kind, group=group, waiting=n, pause=pause)


def _never(ask: Callable[..., Sequence[Any]]) -> Iterator[NeverFacts]:
    """Yield those among the first tasks of types of which workers have met some that need more than they have."""
    offers = decoded(ask("offers"))
    for kind in sorted({kind for offer in offers.values() for kind in offer.passes.types}):
        for id, spec in ask("first_of_type", kind, _NEVER_LIMIT):
            if short := too_little(kind, spec, offers):
                why = {worker: str(one) for worker, one in short.items()}
                yield NeverFacts(task=str(TaskId(id)), type=kind, why=why)


def _class(row: Any, pauses: Sequence[Any], deadlines: int, deadline_ms: int | None) -> ClassFacts:
    namespace, kind, group, unfinished, ready, since = row
    return ClassFacts(
        namespace=namespace,
        type=kind,
        group=group,
        unfinished=unfinished,
        ready=ready,
        ready_since_ms=since,
        pause=_pause(pauses, namespace, kind, group),
        deadlines=deadlines,
        deadline_ms=deadline_ms,
    )


def _overrun(row: Any) -> Overrun:
    id, kind, worker, timeout, most = row
    return Overrun(task=str(TaskId(id)), type=kind, worker=worker, timeout_ms=timeout, at_most_ms=most)


def _handler(row: Any) -> HandlerFacts:
    kind, version, lane, options, seen_ms = row
    try:
        timeout = _options.decode(options).timeout
    except msgspec.DecodeError:
        timeout = None
    return HandlerFacts(type=kind, version=version, lane=lane, timeout_s=timeout, seen_ms=seen_ms)
