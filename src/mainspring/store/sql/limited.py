"""How limits of groups stand now: for people, and to say why a task waits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mainspring.store.sql import costs
from mainspring.store.sql.obstacles import COUNT_LIMIT, Obstacles, Place
from mainspring.store.sql.transaction import Row
from mainspring.store.standing import Soon
from mainspring.tasks import CostRate, GroupLimit, Rate

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View

ANY: Collection[str] | None = None
"""All types that somebody serves."""


class _First(NamedTuple):
    """The task of a class that begins next, where its group lets it."""

    rank: int
    seq: int
    cost: float
    namespace: str


def full(
    obstacles: Obstacles, namespace: str, group: str, kinds: Collection[str] | None = ANY
) -> tuple[GroupLimit, ...]:
    """Return the limits that let no more of a group's tasks begin: its own in a namespace, and that in all of them.

    Args:
        kinds: types that are taken beside the one in question: what costs of others are saved up for is not known.
    """
    rows = sorted(obstacles.view.rows("limits_of", group, namespace))
    return tuple(limit for limit in (_limit(obstacles, row, kinds) for row in rows) if is_full(limit))


def is_full(limit: GroupLimit) -> bool:
    """Whether it lets none begin now."""
    return _has_no_place(limit) or limit.cost_next is not None


def _has_no_place(limit: GroupLimit) -> bool:
    return limit.left == 0 or (limit.concurrency is not None and limit.held >= limit.concurrency)


def go_first(obstacles: Obstacles, limits: Sequence[GroupLimit], place: Place) -> tuple[int, bool]:
    """Count what goes before a task among all that wait for the same limits and for nothing else; with whether it is
    more."""
    names = {limit.namespace for limit in limits}
    keep: dict[str, set[str | None]] = {}
    count, is_more = 0, False
    for class_id, namespace, kind, n in obstacles.view.rows(
        "line_of_group", place.group, place.rank, place.seq, COUNT_LIMIT
    ):
        workers = obstacles.going(kind)
        if not n or not workers or obstacles.covering(namespace, kind, place.group):
            continue
        if namespace not in keep:
            keep[namespace] = {limit.namespace for limit in full(obstacles, namespace, place.group)}
        if keep[namespace] and keep[namespace] <= names:
            count += obstacles.count(class_id, kind, workers, place.rank, place.seq, n)
            is_more = is_more or n == COUNT_LIMIT
    return count, is_more


def soon(obstacles: Obstacles, place: Place) -> Soon | None:
    """Return the limit of a ready task's group that has no room for it once those have begun that go first."""
    rows = obstacles.view.rows("limits_of", place.group, place.namespace) if place.group else []
    limits = sorted((limit.namespace or "", places) for limit, places in _with_places(obstacles, rows))
    if not limits:
        return None
    namespace, places = min(limits, key=lambda one: one[1])
    ahead: dict[str, int] = {}
    for class_id, of, kind, n in obstacles.view.rows("line_of_group", place.group, place.rank, place.seq, COUNT_LIMIT):
        workers = obstacles.going(kind) if n and namespace in ("", of) else ()
        if workers and not obstacles.covering(of, kind, place.group):
            ahead[of] = ahead.get(of, 0) + obstacles.count(class_id, kind, workers, place.rank, place.seq, n)
    for of, n in ahead.items() if not namespace else ():
        own = [row for row in obstacles.view.rows("limits_of", place.group, of) if row[0]]
        ahead[of] = min([n, *(places for _, places in _with_places(obstacles, own))])
    n = sum(ahead.values())
    return Soon(place.group, namespace or None, places, n) if n >= places else None


def _with_places(obstacles: Obstacles, rows: Sequence[Row]) -> Iterator[tuple[GroupLimit, int]]:
    """Yield those of these limits that let a number of tasks begin now, whatever they cost."""
    for row in rows:
        limit = _limit(obstacles, row)
        places = [] if limit.concurrency is None else [max(0, limit.concurrency - limit.held)]
        places += [] if limit.left is None else [limit.left]
        if places:
            yield limit, min(places)


def _limit(obstacles: Obstacles, row: Row, kinds: Collection[str] | None = ANY) -> GroupLimit:
    namespace, group, concurrency, n, ms, full_us, weight, *of_cost = row
    now_ms = obstacles.now_ms
    rate, left, waits_s = None, None, [0.0]
    if n is not None:
        rate, now_us = Rate(n, ms), now_ms * 1_000
        left = max(0, rate.left(full_us, now_us))
        if not left:
            waits_s.append((rate.next_us(full_us, now_us) - now_us) / 1e6)
    cost_rate, cost_left, cost_next = None, None, None
    if of_cost[0] is not None:
        cost_rate = CostRate(*of_cost[:2])
        used, at_ms = of_cost[2:]
        cost_left = cost_rate.n - cost_rate.used(used, at_ms, now_ms)
        cost_next = _next_cost(obstacles, namespace, group, cost_rate, cost_left, kinds)
        waits_s.append(cost_rate.wait_ms(cost_left, cost_rate.needed(cost_next or 0.0)) / 1e3)
    return GroupLimit(
        group=group,
        namespace=namespace or None,
        concurrency=concurrency,
        held=obstacles.view.one("held_in_group", group, namespace)[0] if group else 0,
        rate=None if rate is None else str(rate),
        left=left,
        cost_rate=None if cost_rate is None else str(cost_rate),
        cost_left=cost_left,
        cost_next=cost_next,
        next_in=max(waits_s) or None,
        share=weight,
    )


def _next_cost(
    obstacles: Obstacles, namespace: str, group: str, rate: CostRate, left: float, kinds: Collection[str] | None
) -> float | None:
    """Return what the one is to cost that goes first, where it waits for that; those behind it wait with it.

    One that can't begin whatever this limit says is left out of what claims look into, and so it is here. One whose
    cost is short in its own namespace alone lets others go by.
    """
    own: dict[str, Sequence[GroupLimit]] = {}
    for first in sorted(_firsts(obstacles, namespace, group, kinds)):
        lacks = left < rate.needed(first.cost)
        if not namespace:
            if first.namespace not in own:
                own[first.namespace] = _own_limits(obstacles, first.namespace, group, kinds)
            limits = own[first.namespace]
            if any(map(_has_no_place, limits)) or (not lacks and any(map(is_full, limits))):
                continue
        return first.cost if lacks else None
    return None


def _firsts(obstacles: Obstacles, namespace: str, group: str, kinds: Collection[str] | None) -> Iterator[_First]:
    """Yield of each class of a group the task that goes first, where it can start but for its group."""
    for *row, class_id, of, kind in obstacles.view.rows("firsts_of_group", group, namespace):
        workers = obstacles.going(kind)
        if not workers or (kinds is not None and kind not in kinds) or obstacles.covering(of, kind, group):
            continue
        if (first := obstacles.first(class_id, kind, workers, tuple(row))) is not None:
            rank, seq, spec, says_cost = first
            yield _First(rank, seq, costs.of_spec(spec) if says_cost else costs.UNSAID, of)


def _own_limits(obstacles: Obstacles, namespace: str, group: str, kinds: Collection[str] | None) -> list[GroupLimit]:
    """Return the limits of a group in a namespace alone."""
    rows = obstacles.view.rows("limits_of", group, namespace)
    return [_limit(obstacles, row, kinds) for row in rows if row[0]]


def limits(view: View, now_ms: int) -> list[GroupLimit]:
    """Return the limits that are set, by group."""
    with view.snapshot():
        obstacles = Obstacles(view, now_ms)
        return [_limit(obstacles, row) for row in view.rows("limits")]
