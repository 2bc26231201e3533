"""What goes before a ready task: how much that is, and how fast it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Final

from mainspring.store.sql import limited
from mainspring.store.sql.limits import ShareName, share_name
from mainspring.store.sql.obstacles import COUNT_LIMIT, OWN_SLOT, Obstacles, Place
from mainspring.store.standing import Line, Turns

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View

_LAST: Final = (1 << 63) - 1
"""Behind all tasks."""
_WINDOWS_MS: Final = (10_000, 60_000, 300_000)
"""A rate is that of the shortest of these times in which enough has ended, as far as the task has waited so long;"""
_JUST_NOW_MS: Final = 1_000
"""for one that waits for less than this it is that of the shortest."""
_LEAST_ENDS: Final = 3
_MOST_ENDS: Final = 2_000
_GAPS: Final = 3
"""A lane in which nothing ended for so many times the mean gap had nothing to do, or could not."""


def lanes_of(view: View) -> dict[str, str]:
    """Return the lane of each type that has a handler; others run in BUILT_IN_LANE."""
    return {kind: lane for kind, lane, *_ in view.rows("lanes_of_handlers")}


def line_of(obstacles: Obstacles, place: Place, workers: Sequence[str]) -> Line:
    """Return what goes first among all that the same lanes of the same workers run, and how fast that goes.

    Args:
        workers: those that take the task when its turn comes.
    """
    view, lane, has_own = obstacles.view, obstacles.lane_of(place.type), place.type in OWN_SLOT
    beside = {
        kind: names
        for kind, names in obstacles.beside(workers, place.type).items()
        if (kind == place.type if has_own else obstacles.lane_of(kind) == lane)
    }

    def counted(rank: int, seq: int) -> Iterator[tuple[str, str, int, bool]]:
        for class_id, namespace, kind, group, n in view.rows("line", rank, seq, COUNT_LIMIT):
            if n and kind in beside and not _is_kept(obstacles, namespace, kind, group):
                yield namespace, group, obstacles.count(class_id, kind, beside[kind], rank, seq, n), n == COUNT_LIMIT

    per_s = _per_s(view, place, lane, obstacles.now_ms, only=place.type if has_own else "")
    weights: dict[ShareName, float] = {(namespace, group): weight for namespace, group, weight in view.rows("shares")}
    if not weights:
        counts = list(counted(place.rank, place.seq))
        ahead, is_more = sum(n for *_, n, _ in counts), any(is_more for *_, is_more in counts)
        has_slot = not ahead and any(obstacles.has_slot(worker, place.type) for worker in workers)
        return Line(lane, ahead, is_more, per_s, has_slot=has_slot, has_own_slot=has_own)
    mine = share_name(weights, place.namespace, place.group)
    own = [(n, is_more) for *key, n, is_more in counted(place.rank, place.seq) if share_name(weights, *key) == mine]
    waiting: dict[ShareName, int] = {}
    for namespace, group, n, _ in counted(_LAST, 0):
        if n and (share := share_name(weights, namespace, group)) != mine:
            waiting[share] = waiting.get(share, 0) + n
    turns = _turns(mine, sum(n for n, _ in own), waiting, weights)
    is_more = any(is_more for _, is_more in own)
    return Line(lane, turns.own + turns.others, is_more, per_s, turns if waiting else None, has_own_slot=has_own)


def _is_kept(obstacles: Obstacles, namespace: str, kind: str, group: str) -> bool:
    """Whether something keeps the tasks of a class from starting."""
    if obstacles.covering(namespace, kind, group):
        return True
    return group != "" and bool(limited.full(obstacles, namespace, group))


def _turns(mine: ShareName, own: int, waiting: Mapping[ShareName, int], weights: Mapping[ShareName, float]) -> Turns:
    """Until it has had its own turn after `own` others of its share, each share has turns by weight, if it has so many
    tasks."""
    weight = weights.get(mine, 1.0)
    others = sum(min(n, ceil((own + 1) * weights.get(share, 1.0) / weight)) for share, n in waiting.items())
    return Turns(*mine, weight, own, len(waiting), others)


def _per_s(view: View, place: Place, lane: str, now_ms: int, *, only: str) -> float | None:
    """Return how many attempts end in a second in a lane of workers that serve a task's type; `only`: of a type."""
    waits_ms = now_ms - place.ready_ms
    is_new = waits_ms < _JUST_NOW_MS
    for window_ms in _WINDOWS_MS[:1] if is_new else _WINDOWS_MS:
        since_ms = now_ms - (window_ms if is_new else min(window_ms, waits_ms))
        n, oldest_ms, ours, first_ms, first = view.one("ended_lately", lane, place.type, since_ms, _MOST_ENDS, only)
        if n == _MOST_ENDS:
            since_ms = oldest_ms
        if ours >= _LEAST_ENDS:
            return _rate(ours, now_ms - since_ms, ours - first, now_ms - first_ms, is_new=is_new)
        if window_ms >= waits_ms:
            break
    return None


def _rate(n: int, ms: int, later: int, later_ms: int, *, is_new: bool) -> float | None:
    """Return how many end in a second.

    Args:
        n: that many ended in `ms`, and of these `later` after the first ones, which were `later_ms` ago. Neither time
            is above 0 where all ended in this very millisecond, or by a clock that is ahead.
        is_new: before the first ones nothing may have been there to run.
    """
    recent = later / later_ms * 1_000 if later > 1 and later_ms > 0 else None
    if is_new or (recent is not None and ms - later_ms > _GAPS * 1_000 / recent):
        return recent
    return n / ms * 1_000 if ms > 0 else None
