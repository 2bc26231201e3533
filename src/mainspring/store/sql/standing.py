"""Where a task stands: its own row, what keeps it beside that, and the root of what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mainspring.store.base import CANCEL_ASKED
from mainspring.store.sql import limited
from mainspring.store.sql.line import line_of
from mainspring.store.sql.obstacles import COUNT_LIMIT, Obstacles, Place, Silences
from mainspring.store.sql.reads import View, error_of, not_found, when
from mainspring.store.sql.shortages import Offer, shortages
from mainspring.store.standing import Other, Shortage, Silent, Standing
from mainspring.tasks import GroupLimit, Reason
from mainspring.tasks.lifecycle import RUNNING, STATUS_OF, STORED_REASONS


class _Options(msgspec.Struct):
    batch: bool = False  # older versions don't say it


_SHOWN: Final = 3
"""Of so many parents it is looked up what they wait for themselves."""
_options: Final = msgspec.json.Decoder(_Options)
_COMPANY: Final = ("alone", "first")
"""Shortages of nothing that could be reserved."""


class _Kept:
    """What keeps a task that is ready or claimed, apart from what goes first."""

    def __init__(self, obstacles: Obstacles, row: Any, reason: Reason) -> None:
        id, owner = row[1], row[29]
        namespace, kind, group = row[26:29]
        serving: Sequence[str] = obstacles.serving(kind) if owner is None else [owner]
        going = [name for name in serving if name == owner or not _stops(obstacles, name)]
        self.reason: Reason = reason
        self.pauses = obstacles.covering(namespace, kind, group) if reason == "ready" else []
        self.stopping = () if going else tuple(serving)
        self.limits: tuple[GroupLimit, ...] = ()
        self.shortages: tuple[Shortage, ...] = ()
        self.workers: Sequence[str] = going  # that take it when its turn comes
        if self.pauses:
            self.reason = "paused"
            return
        if not going:
            self.reason = "no_worker"
            return
        offers = obstacles.offers
        found: dict[str, Shortage] = {}
        if offers:
            lane = obstacles.lane_of(kind)
            found = shortages(id, kind, row[23], going, offers, lane, is_held=owner is not None)
        self.workers = [name for name in going if name not in found]
        if reason == "ready" and group:
            beside = obstacles.beside(self.workers or going, kind)
            self.limits = limited.full(obstacles, namespace, group, beside.keys() | {kind})
        if self.workers or (self.limits and any(shortage.how != "never" for shortage in found.values())):
            self.reason = "limit" if self.limits else reason  # its turn in the group comes first
            return
        self.shortages = tuple(found.values())
        if any(shortage.how not in _COMPANY for shortage in self.shortages):
            self.reason = "resources"


def _stops(obstacles: Obstacles, worker: str) -> bool:
    offer = obstacles.offers.get(worker)
    return offer is not None and offer.stops


def standing(
    view: View,
    id: bytes,
    now_ms: int,
    *,
    in_line: bool = False,
    told: tuple[str, Offer] | None = None,
    silences: Silences = lambda workers: {},
) -> Standing:
    """Return where a task stands, with the reasons that only a look at everything tells.

    With `in_line` also what goes before a ready task, and the root of what others wait for. `told` and `silences`: see
    Obstacles.
    """
    with view.snapshot():
        row = view.one("whole_task", id)
        if row is None:
            raise not_found(view, id)
        return _standing(Obstacles(view, now_ms, told, silences), row, in_line=in_line)


def _standing(obstacles: Obstacles, row: Any, *, in_line: bool) -> Standing:
    view, (namespace, kind, group) = obstacles.view, row[26:29]
    seq, class_id, rank, reason = row[0], row[2], row[3], None if row[5] is None else STORED_REASONS[row[5]]
    parents = view.rows("parents_ids", seq) if reason == "parents" else []
    waited = [parent for parent in parents if parent[1] <= RUNNING]
    leader = view.one("leader_of", seq) if reason == "same_work" else None
    ahead, line, in_group, kept = 0, None, (0, False), None
    silent: tuple[Silent, ...] = ()
    if reason in ("ready", "claimed"):
        kept = _Kept(obstacles, row, reason)
        place = Place(rank, seq, kind, row[15], namespace, group)
        if reason == "ready":
            ahead = view.one("ahead", class_id, rank, seq, COUNT_LIMIT)[0]
        if kept.reason == "ready" and not kept.shortages and in_line:
            line = line_of(obstacles, place, kept.workers)._replace(soon=limited.soon(obstacles, place))
        elif kept.reason == "limit" and in_line:
            in_group = limited.go_first(obstacles, kept.limits, place)
        if kept.reason in ("ready", "claimed") and not kept.shortages and in_line:
            silent = _silent(obstacles, kept.workers)
        reason = kept.reason
    return Standing(
        status=STATUS_OF[row[4]],
        reason=reason,
        type=kind,
        attempt=row[6],
        worker=row[29],
        due=when(row[17]),
        error=error_of(row[1], row[25]),
        retry_count=row[10],
        max_retries=row[11],
        cancel_asked=bool(row[8] & CANCEL_ASKED),
        parents=[_other(obstacles, *parent, to_root=in_line and n < _SHOWN) for n, parent in enumerate(waited)],
        parents_all=len(parents),
        ahead=ahead,
        ahead_is_more=ahead == COUNT_LIMIT,
        pauses=tuple(kept.pauses) if kept else (),
        workers=len(view.rows("serving_workers")) if reason == "no_worker" else 0,
        stopping=tuple(kept.stopping) if kept else (),
        limits=kept.limits if kept else (),
        ahead_in_group=in_group[0],
        ahead_in_group_is_more=in_group[1],
        leader=None if leader is None else _other(obstacles, *leader, to_root=in_line),
        line=line,
        has_slot=reason == "claimed" and in_line and obstacles.has_slot(row[29], kind, is_held=True),
        may_gather=reason == "claimed" and in_line and _may_gather(view, kind),
        shortages=kept.shortages if kept else (),
        silent=silent,
    )


def _silent(obstacles: Obstacles, workers: Sequence[str]) -> tuple[Silent, ...]:
    """Return since when nothing is heard of these workers; nothing as long as one of them is heard of."""
    silent = obstacles.silent
    return tuple(Silent(name, silent[name]) for name in workers) if silent.keys() >= {*workers} else ()


def _may_gather(view: View, kind: str) -> bool:
    """Whether tasks of a type run together, or may: of built-in ones that is not known."""
    row = view.one("newest_handler", kind)
    return not kind.startswith("custom:") if row is None else _options.decode(row[0]).batch


def _other(obstacles: Obstacles, id: bytes, status: int, reason: int | None, *, to_root: bool) -> Other:
    """Return how a task stands that is waited for; with `to_root` what keeps it from running beside its own row, or
    what it waits for itself in the end."""
    state = STATUS_OF[status].value if reason is None else STORED_REASONS[reason]
    if not to_root or reason is None:
        return Other(bytes(id), state)
    if state in ("parents", "same_work"):
        root = obstacles.view.one("root_of", id)
        return Other(bytes(id), state, root=None if root is None else _root(obstacles, *root))
    if state not in ("ready", "claimed"):
        return Other(bytes(id), state)
    row = obstacles.view.one("whole_task", id)
    kept = _Kept(obstacles, row, state)
    never = bool(kept.shortages) and all(shortage.how == "never" for shortage in kept.shortages)
    return Other(bytes(id), "never" if never else kept.reason, row[28] if kept.reason == "limit" else row[27])


def _root(obstacles: Obstacles, id: bytes, status: int, reason: int | None) -> Other:
    is_root = reason is None or STORED_REASONS[reason] not in ("parents", "same_work")
    return _other(obstacles, id, status, reason, to_root=is_root)
