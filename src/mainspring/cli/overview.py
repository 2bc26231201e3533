"""What goes on in a store now, from a few reads whose cost does not grow with the queue: for `top`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mainspring.cli.lookup import PauseRow, when
from mainspring.dispatch.neighbours import SILENT_MS, Told
from mainspring.resources.monitor import ResourceUsage
from mainspring.scheduling.hosts import places
from mainspring.store.base import CRASHED, FAILED, TIMEOUT
from mainspring.store.ready import ANYWHERE
from mainspring.store.sql import limited, reads
from mainspring.store.sql.line import lanes_of
from mainspring.store.sql.obstacles import BUILT_IN_LANE
from mainspring.store.sql.shortages import Offer, offers_of, too_little
from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import RUNNING, STORED_REASONS

if TYPE_CHECKING:
    from mainspring.engine import Engine
    from mainspring.store.sql.reads import View

COUNTED: Final = 10_000
"""Of each reason so many tasks are counted; more are said to be more."""
LATELY_MS: Final = 10_000
"""Rates are of the attempts that ended within this time."""
_NEWEST: Final = 5_000
"""So many of these are looked at, which is enough for a rate."""
_WEIGHED: Final = 2_000
"""So many ready tasks of a class are looked at for what they need, where some of its type fit nowhere."""
_REST: Final = "ready"
_FAILURES: Final = frozenset({FAILED, TIMEOUT, CRASHED})
_figures = msgspec.json.Decoder(ResourceUsage)
_told = msgspec.json.Decoder(Told)
_slots = msgspec.json.Decoder(dict[str, int])


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The unfinished tasks of a type, and what became of its attempts lately."""

    type: str
    lane: str
    unfinished: int
    running: int
    waiting: dict[str, int]  # by reason; where one was counted up to the limit, in `more`
    more: tuple[str, ...]  # reasons of which there are more than is said; `never` where more of those may be
    never: int  # of those that wait for resources: they need more than any living worker has in all
    is_served: bool  # a living worker takes them
    paused: str  # what is paused of it; empty where nothing is
    ended_per_s: float  # attempts
    failed_per_s: float  # of these: failed, timed out, crashed
    calls_per_s: float  # of handlers: several attempts may share one
    mean_s: float | None  # a call took; None where none ended
    batch: float | None  # attempts that shared one; None where none ended


class LaneUse(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    slots: int | None  # of all living workers; None where one of them does not tell
    running: int  # attempts that are known to run: those that last
    busy: float  # slots that were taken on average lately
    ended_per_s: float


class WorkerUse(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int
    host: str
    started: datetime
    running: int
    claimed: int
    slots: dict[str, int] | None  # by lane
    resources: dict[str, dict[str, float]] | None  # `reserved` and `capacity` by kind; None where it does not tell
    starts_nothing: str  # why; empty where it does


class HostUse(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    works: bool  # a worker told it; else it is that of this command
    usage: ResourceUsage


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    tasks: dict[str, int]  # by status
    queues: tuple[Queue, ...]  # of types with unfinished tasks or recent attempts, the longest first
    lanes: tuple[LaneUse, ...]
    workers: tuple[WorkerUse, ...]
    hosts: tuple[HostUse, ...]
    pauses: tuple[PauseRow, ...]
    counted_up_to: int = COUNTED
    rates_of_s: float  # seconds that rates are of


async def overview(engine: Engine) -> Overview:
    """Raises StoreUnavailable."""
    store = engine.manager.store
    now_ms = store.now_ms()
    own = engine.monitor.sample()
    return await store.view(lambda view: _look(view, now_ms, own))


class _Ends(msgspec.Struct):
    """Attempts that ended lately, or run."""

    attempts: int = 0
    failed: int = 0
    calls: float = 0.0
    took_us: float = 0.0  # all calls together
    busy_us: float = 0.0  # the same, within the time that is looked at
    runs_us: float = 0.0  # calls that run still, within it, at most

    def add(self, outcome: int, attempts: int, calls: float, took_us: float | None, busy_us: float | None) -> None:
        self.attempts += attempts
        self.failed += attempts if outcome in _FAILURES else 0
        self.calls += calls
        self.took_us += took_us or 0.0
        self.busy_us += busy_us or 0.0


def _look(view: View, now_ms: int, own: ResourceUsage) -> Overview:
    with view.snapshot():
        stats = reads.stats(view)
        found = view.rows("unfinished_by_reason", COUNTED)
        ended = view.rows("ended_by_type", now_ms - LATELY_MS, _NEWEST)
        span_s = _span_s(ended, now_ms)
        running = view.rows("running_since", now_ms - round(1000 * span_s), now_ms)
        lanes = lanes_of(view)
        serving = view.rows("serving_workers")
        held = view.rows("held_by_workers")
        pauses = tuple(PauseRow.of(row) for row in view.rows("pauses_since"))
        usages = view.rows("usages")
        ready = _ready(view) if _is_cut(found) else None
        kept = _at_limits(view, pauses, now_ms)
        paused = _paused(view, pauses)
        offers = offers_of(view)
        short = _short_of_resources(view, serving, offers, lanes)
    by_type: dict[str, _Ends] = {}
    by_lane: dict[str, _Ends] = {}
    for kind, lane, outcome, attempts, calls, took_us, _, busy_us in ended:
        ends = outcome, attempts, calls, took_us, busy_us
        by_type.setdefault(kind, _Ends()).add(*ends)
        by_lane.setdefault(lane or lanes.get(kind, BUILT_IN_LANE), _Ends()).add(*ends)
    for kind, busy_ms in running:
        # Of a call its attempts are known, but not that they share it: it is taken for one of the usual size.
        known = by_type.get(kind, _Ends())
        share = known.calls / known.attempts if known.attempts else 1.0
        by_lane.setdefault(lanes.get(kind, BUILT_IN_LANE), _Ends()).runs_us += busy_ms * 1000 * share
    types = stats.pop("types")
    served = {kind for row in serving for kind in row[4].split()}
    counts = _counts(found)
    queues = [
        _queue(kind, lanes, types.get(kind, {}), counts.get(kind, {}), ready, kind in served, paused,
               by_type.get(kind, _Ends()), span_s, kept[kind], short)
        for kind in {kind for kind, by_status in types.items() if by_status.get("unfinished")} | by_type.keys()
    ]  # fmt: skip
    return Overview(
        at=when(now_ms),
        tasks=stats,
        queues=tuple(sorted(queues, key=lambda queue: (-queue.unfinished, -queue.ended_per_s, queue.type))),
        lanes=_lanes(serving, queues, by_lane, span_s),
        workers=_workers(serving, held, offers, {row[0]: row[3] for row in usages if now_ms - row[2] < SILENT_MS}),
        hosts=_hosts(usages, now_ms, own),
        pauses=pauses,
        rates_of_s=span_s,
    )


def _ready(view: View) -> Mapping[str, tuple[int, bool]]:
    """Return how many tasks are ready by type, and whether that is not all. Only where the rest can't tell."""
    found: dict[str, tuple[int, bool]] = {}
    for _, _, kind, _, n in view.rows("line", 1 << 62, 0, COUNTED):
        before, is_more = found.get(kind, (0, False))
        found[kind] = (before + n, is_more or n == COUNTED)
    return found


def _is_cut(found: Sequence[Any]) -> bool:
    return bool(_cut(found))


def _cut(found: Sequence[Any]) -> set[str]:
    """Return the reasons that were not counted to the end: one limit holds for those that share an index."""
    sums: Counter[str] = Counter()
    for _, code, n in found:
        sums[_shared(_name(code))] += n
    return {name for name, n in sums.items() if n >= COUNTED}


def _name(code: int) -> str:
    return "running" if code < 0 else STORED_REASONS[code]


def _shared(reason: str) -> str:
    return {"running": "held", "claimed": "held", "delayed": "due", "retry": "due"}.get(reason, reason)


def _counts(found: Sequence[Any]) -> dict[str, dict[str, tuple[int, bool]]]:
    cut = _cut(found)
    counts: dict[str, dict[str, tuple[int, bool]]] = {}
    for kind, code, n in found:
        counts.setdefault(kind, {})[_name(code)] = (n, _shared(_name(code)) in cut)
    return counts


def _queue(
    kind: str,
    lanes: Mapping[str, str],
    by_status: Mapping[str, int],
    counts: Mapping[str, tuple[int, bool]],
    ready: Mapping[str, tuple[int, bool]] | None,
    is_served: bool,
    paused: _Paused,
    ends: _Ends,
    span_s: float,
    kept: int,
    short: _Short,
) -> Queue:
    waiting = {reason: n for reason, (n, _) in counts.items() if reason != "running"}
    more = {reason for reason, (_, is_more) in counts.items() if is_more}
    unfinished = by_status.get("unfinished", 0)
    if ready is None:
        waiting[_REST] = max(0, unfinished - sum(n for n, _ in counts.values()))
    else:
        waiting[_REST], is_more = ready.get(kind, (0, False))
        more |= {_REST} if is_more else set()
    _move(waiting, _REST, "paused", paused.ready[kind])
    _move(waiting, _REST, "limit", kept)
    _move(waiting, "claimed", "resources", short.claimed[kind])
    _move(waiting, _REST, "resources", waiting[_REST] if kind in short.types else 0)
    never, is_more = short.never.get(kind, (0, False))
    _move(waiting, _REST, "resources", never)
    more |= {"never"} if is_more else set()
    return Queue(
        type=kind,
        lane=lanes.get(kind, BUILT_IN_LANE),
        unfinished=unfinished,
        running=counts.get("running", (0, False))[0],
        waiting={reason: n for reason, n in sorted(waiting.items()) if n},
        more=tuple(sorted(more)),
        never=never,
        is_served=is_served,
        paused="; ".join(map(str, paused.of(kind))),
        ended_per_s=ends.attempts / span_s,
        failed_per_s=ends.failed / span_s,
        calls_per_s=ends.calls / span_s,
        mean_s=ends.took_us / 1e6 / ends.calls if ends.calls else None,
        batch=ends.attempts / ends.calls if ends.calls else None,
    )


def _move(waiting: dict[str, int], reason: str, to: str, n: int) -> None:
    """So many of those wait for something else, which is known."""
    n = min(n, waiting.get(reason, 0))
    if n:
        waiting[reason] -= n
        waiting[to] = waiting.get(to, 0) + n


class _Paused(msgspec.Struct):
    pauses: Sequence[PauseRow]
    unfinished: set[tuple[str, str, str]]  # namespace, type and group of unfinished tasks
    ready: Counter[str]  # tasks that would begin, by type, as far as one class is counted

    def of(self, kind: str) -> list[PauseRow]:
        """Return those that name the type, or all tasks, or keep some of its tasks."""
        return [
            pause
            for pause in self.pauses
            if pause.type == kind
            or (pause.type, pause.namespace, pause.group) == (None, None, None)
            or any(pause.covers(*one) for one in self.unfinished if one[1] == kind)
        ]


def _paused(view: View, pauses: Sequence[PauseRow]) -> _Paused:
    ready: Counter[str] = Counter()
    if not pauses:
        return _Paused(pauses, set(), ready)
    unfinished = {
        (namespace, kind, group) for namespace, kind, group, code, n in view.rows("tallies") if not code and n
    }
    for _, namespace, kind, group, n in view.rows("line", 1 << 62, 0, COUNTED):
        ready[kind] += n if any(pause.covers(namespace, kind, group) for pause in pauses) else 0
    return _Paused(pauses, unfinished, ready)


def _at_limits(view: View, pauses: Sequence[PauseRow], now_ms: int) -> Counter[str]:
    """Return by type how many ready tasks wait for a limit of their group, as far as one class is counted."""
    found: dict[tuple[str, str, str], int] = {}
    for limit in limited.limits(view, now_ms):
        if not limited.is_full(limit):
            continue
        for _, namespace, kind, n in view.rows("line_of_group", limit.group, 1 << 62, 0, COUNTED):
            is_paused = any(pause.covers(namespace, kind, limit.group) for pause in pauses)
            if limit.namespace in (None, namespace) and not is_paused:
                found[namespace, kind, limit.group] = n
    kept: Counter[str] = Counter()
    for (_, kind, _), n in found.items():
        kept[kind] += n
    return kept


class _Short(msgspec.Struct):
    """Who lacks resources."""

    claimed: Counter[str]  # tasks that wait for some at a worker, by type
    types: set[str]  # that no worker takes more of for that, or starts now
    never: dict[str, tuple[int, bool]]  # ready tasks that fit nowhere, by type, and whether there may be more


def _short_of_resources(
    view: View, serving: Sequence[Any], offers: Mapping[str, Offer], lanes: Mapping[str, str]
) -> _Short:
    waits = [TaskId(id).bytes for offer in offers.values() for id in offer.waits]
    types = {
        kind
        for kind in {kind for row in serving if row[0] in offers for kind in row[4].split()}
        if all(
            row[0] in offers and _keeps_all(offers[row[0]], kind, lanes.get(kind, BUILT_IN_LANE))
            for row in serving
            if kind in row[4].split()
        )
    }
    claimed = Counter(kind for id in waits for (kind,) in view.rows("type_of_claimed", id))
    return _Short(claimed, types, _fit_nowhere(view, serving, offers))


def _keeps_all(offer: Offer, kind: str, lane: str) -> bool:
    """Whether a worker takes no more tasks of a type, or starts none now."""
    is_alone = offer.alone is not None and (not offer.alone.lanes or lane in offer.alone.lanes)
    return kind in offer.withheld or offer.closed is not None or is_alone


def _why_nothing_starts(offer: Offer | None) -> str:
    if offer is None:
        return ""
    if offer.closed is not None:
        return f"starts nothing new: {offer.closed}"
    if offer.alone is None:
        return ""
    where = f" in lane {' and '.join(offer.alone.lanes)}" if offer.alone.lanes else ""
    return f"starts nothing new{where}: task {offer.alone.task} {offer.alone.why} and runs alone"


def _fit_nowhere(view: View, serving: Sequence[Any], offers: Mapping[str, Offer]) -> dict[str, tuple[int, bool]]:
    workers: dict[str, list[str]] = {}
    for row in serving:
        for kind in row[4].split():
            workers.setdefault(kind, []).append(row[0])
    passing = {
        kind: {name: offers[name] for name in names}
        for kind, names in workers.items()
        if all(name in offers and kind in offers[name].passes.types for name in names)
    }
    found: dict[str, tuple[int, bool]] = {}
    for class_id, _, kind, _, n in view.rows("line", 1 << 62, 0, 1) if passing else ():
        if n and kind in passing:
            specs = view.rows("heads_to_weigh", class_id, _WEIGHED, *ANYWHERE)
            never = sum(len(too_little(kind, spec, passing[kind])) == len(passing[kind]) for *_, spec in specs)
            before, is_more = found.get(kind, (0, False))
            found[kind] = before + never, is_more or len(specs) == _WEIGHED
    return found


def _span_s(ended: Sequence[Any], now_ms: int) -> float:
    """Return of how long a time the attempts are that were looked at."""
    if sum(row[3] for row in ended) < _NEWEST:
        return LATELY_MS / 1000
    oldest_ms: int = min(row[6] for row in ended)
    return max(1, now_ms - oldest_ms) / 1000


def _lanes(
    serving: Sequence[Any], queues: Sequence[Queue], by_lane: Mapping[str, _Ends], span_s: float
) -> tuple[LaneUse, ...]:
    told = [None if row[5] is None else _slots.decode(row[5]) for row in serving]
    names = {name for slots in told if slots for name in slots} | by_lane.keys()

    def use(name: str) -> LaneUse:
        slots = None if None in told else sum(slots.get(name, 0) for slots in told if slots)
        running = sum(queue.running for queue in queues if queue.lane == name)
        ends = by_lane.get(name, _Ends())
        busy, more = ends.busy_us / 1e6 / span_s, ends.runs_us / 1e6 / span_s
        if slots is not None:  # what runs may have been ready before it began, but then all slots were taken
            more = min(more, max(0.0, max(slots, running) - busy))
        return LaneUse(name=name, slots=slots, running=running, busy=busy + more, ended_per_s=ends.attempts / span_s)

    return tuple(use(name) for name in sorted(names))


def _workers(
    serving: Sequence[Any], held: Sequence[Any], offers: Mapping[str, Offer], figures: Mapping[str, str]
) -> tuple[WorkerUse, ...]:
    holds = {(owner, status == RUNNING): n for owner, status, n in held}
    return tuple(
        WorkerUse(
            name=name,
            pid=pid,
            host=host,
            started=when(started_ms),
            running=holds.get((id, True), 0),
            claimed=holds.get((id, False), 0),
            slots=None if slots is None else _slots.decode(slots),
            resources=_told.decode(figures[name]).resources if name in figures else None,
            starts_nothing=_why_nothing_starts(offers.get(name)),
        )
        for name, pid, host, started_ms, _, slots, id in serving
    )


def _hosts(usages: Sequence[Any], now_ms: int, own: ResourceUsage) -> tuple[HostUse, ...]:
    """Return what workers tell of their machines; where none does, what there is to say of this one."""
    told = [(host, _figures.decode(figures)) for _, host, at_ms, figures in usages if now_ms - at_ms < SILENT_MS]
    if not told:
        return (HostUse(host="this machine", works=False, usage=own),)
    return tuple(HostUse(host=place.host, works=True, usage=place.usage) for place in places(told))
