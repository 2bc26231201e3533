"""How limits of groups stand now: for people, and to say why a task waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mainspring.store.sql import costs
from mainspring.store.sql.transaction import Row
from mainspring.tasks import CostRate, GroupLimit, Rate

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View


def full(view: View, namespace: str, group: str, now_ms: int) -> GroupLimit | None:
    """Return the limit that lets no more of a group's tasks begin, if one does."""
    for row in view.rows("limits_of", group, namespace):
        limit = _limit(view, row, now_ms)
        is_full = limit.concurrency is not None and limit.held >= limit.concurrency
        if is_full or limit.left == 0 or limit.cost_next is not None:
            return limit
    return None


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
