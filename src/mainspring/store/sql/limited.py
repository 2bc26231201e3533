"""How limits of groups stand now: for people, and to say why a task waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mainspring.store.sql import costs
from mainspring.store.sql.line import COUNT_LIMIT, Place
from mainspring.store.sql.transaction import Row
from mainspring.tasks import CostRate, GroupLimit, Rate

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View


def full(view: View, namespace: str, group: str, now_ms: int) -> tuple[GroupLimit, ...]:
    """Return the limits that let no more of a group's tasks begin: its own in a namespace, and that in all of them."""
    found = [_limit(view, row, now_ms) for row in sorted(view.rows("limits_of", group, namespace))]
    return tuple(limit for limit in found if is_full(limit))


def is_full(limit: GroupLimit) -> bool:
    """Whether it lets none begin now."""
    has_no_place = limit.concurrency is not None and limit.held >= limit.concurrency
    return has_no_place or limit.left == 0 or limit.cost_next is not None


def go_first(
    view: View, limits: Sequence[GroupLimit], place: Place, is_out: Callable[[str, str], bool], now_ms: int
) -> tuple[int, bool]:
    """Count what goes before a task among all that wait for the same limits and for no other; with whether it is more.

    Args:
        is_out: tells of a namespace and a type whether anything else keeps those tasks from starting.
    """
    names = {limit.namespace for limit in limits}
    keep: dict[str, set[str | None]] = {}
    counts = []
    for namespace, kind, n in view.rows("line_of_group", place.group, place.rank, place.seq, COUNT_LIMIT):
        if not n or is_out(namespace, kind):
            continue
        if namespace not in keep:
            keep[namespace] = {limit.namespace for limit in full(view, namespace, place.group, now_ms)}
        if keep[namespace] and keep[namespace] <= names:
            counts.append(n)
    return sum(counts), COUNT_LIMIT in counts


def _limit(view: View, row: Row, now_ms: int) -> GroupLimit:
    namespace, group, concurrency, n, ms, full_us, weight, *of_cost = row
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
        cost_next = _next_cost(view, namespace, group, cost_rate, cost_left)
        waits_s.append(cost_rate.wait_ms(cost_left, cost_rate.needed(cost_next or 0.0)) / 1e3)
    return GroupLimit(
        group=group,
        namespace=namespace or None,
        concurrency=concurrency,
        held=view.one("held_in_group", group, namespace)[0] if group else 0,
        rate=None if rate is None else str(rate),
        left=left,
        cost_rate=None if cost_rate is None else str(cost_rate),
        cost_left=cost_left,
        cost_next=cost_next,
        next_in=max(waits_s) or None,
        share=weight,
    )


def _next_cost(view: View, namespace: str, group: str, rate: CostRate, left: float) -> float | None:
    """Return what the one is to cost that goes first, where it waits for that; those behind it wait with it."""
    firsts = view.rows("firsts_of_group", group, namespace)
    if not firsts:
        return None
    _, _, says_cost, spec = min(firsts, key=lambda row: row[:2])
    cost = costs.of_spec(spec) if says_cost else costs.UNSAID
    return cost if left < rate.needed(cost) else None


def limits(view: View, now_ms: int) -> list[GroupLimit]:
    """Return the limits that are set, by group."""
    with view.snapshot():
        return [_limit(view, row, now_ms) for row in view.rows("limits")]
