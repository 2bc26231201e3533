"""What goes before a ready task: how much that is, and how fast it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from mainspring.store.sql.limits import ShareName, share_name
from mainspring.store.standing import Line, Turns

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View

BUILT_IN_LANE: Final = "thread"
"""Types without a handler of their own run there."""
COUNT_LIMIT: Final = 10_000
"""So many ready tasks of one class are counted; more are said to be more."""
_LAST: Final = (1 << 63) - 1
"""Behind all tasks."""
_LATELY_MS: Final = 10_000
"""Tasks that became ready just now go by what ended within this time; others by what ended since they are ready,"""
_LONGEST_MS: Final = 300_000
"""at most since then."""
_JUST_NOW_MS: Final = 1_000
_LEAST_ENDS: Final = 3
_MOST_ENDS: Final = 2_000


class Place(NamedTuple):
    """Where a ready task stands."""

    rank: int
    seq: int
    type: str
    ready_ms: int
    namespace: str
    group: str


def lanes_of(view: View) -> dict[str, str]:
    """Return the lane of each type that has a handler; others run in BUILT_IN_LANE."""
    return {kind: lane for kind, lane, *_ in view.rows("lanes_of_handlers")}


def line_of(view: View, place: Place, beside: Set[str], is_kept: Callable[[str, str, str], bool], now_ms: int) -> Line:
    """Return what goes first among all that the same lanes of the same workers run, and how fast that goes.

    Args:
        beside: the types that workers serve which serve this one too.
        is_kept: tells of a class (namespace, type, group) whether something keeps its tasks from starting.
    """
    lanes = lanes_of(view)
    lane = lanes.get(place.type, BUILT_IN_LANE)

    def counted(rank: int, seq: int) -> Iterator[tuple[str, str, int]]:
        for namespace, kind, group, n in view.rows("line", rank, seq, COUNT_LIMIT):
            if n and kind in beside and lanes.get(kind, BUILT_IN_LANE) == lane and not is_kept(namespace, kind, group):
                yield namespace, group, n

    per_s = _per_s(view, place, lane, now_ms)
    weights: dict[ShareName, float] = {(namespace, group): weight for namespace, group, weight in view.rows("shares")}
    if not weights:
        counts = [n for *_, n in counted(place.rank, place.seq)]
        return Line(lane, sum(counts), COUNT_LIMIT in counts, per_s)
    mine = share_name(weights, place.namespace, place.group)
    own = [n for *key, n in counted(place.rank, place.seq) if share_name(weights, *key) == mine]
    waiting: dict[ShareName, int] = {}
    for namespace, group, n in counted(_LAST, 0):
        if (share := share_name(weights, namespace, group)) != mine:
            waiting[share] = waiting.get(share, 0) + n
    turns = _turns(mine, sum(own), waiting, weights)
    return Line(lane, turns.own + turns.others, COUNT_LIMIT in own, per_s, turns if waiting else None)


def _turns(mine: ShareName, own: int, waiting: Mapping[ShareName, int], weights: Mapping[ShareName, float]) -> Turns:
    """Until it has had its own turn after `own` others of its share, each share has turns by weight, if it has so many
    tasks."""
    weight = weights.get(mine, 1.0)
    others = sum(min(n, ceil((own + 1) * weights.get(share, 1.0) / weight)) for share, n in waiting.items())
    return Turns(*mine, weight, own, len(waiting), others)


def _per_s(view: View, place: Place, lane: str, now_ms: int) -> float | None:
    is_new = now_ms - place.ready_ms < _JUST_NOW_MS
    since_ms = now_ms - _LATELY_MS if is_new else max(place.ready_ms, now_ms - _LONGEST_MS)
    n, oldest_ms, ours, our_oldest_ms = view.one("ended_lately", lane, place.type, since_ms, _MOST_ENDS)
    if n == _MOST_ENDS:
        since_ms = oldest_ms
    elif is_new and ours:  # before the first of them nothing may have been there to run
        since_ms = our_oldest_ms
    return ours / (now_ms - since_ms) * 1000 if ours >= _LEAST_ENDS and now_ms > since_ms else None
