"""How limits of groups stand now: for people, and to say why a task waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mainspring.store.sql.transaction import Row
from mainspring.tasks import GroupLimit, Rate

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View


def full(view: View, namespace: str, group: str, now_ms: int) -> GroupLimit | None:
    """Return the limit that lets no more of a group's tasks begin, if one does."""
    for row in view.rows("limits_of", group, namespace):
        limit = _limit(view, row, now_ms)
        if limit.left == 0 or (limit.concurrency is not None and limit.held >= limit.concurrency):
            return limit
    return None


def _limit(view: View, row: Row, now_ms: int) -> GroupLimit:
    namespace, group, concurrency, n, ms, full_us, weight = row
    rate, left, next_in = None, None, None
    if n is not None:
        rate, now_us = Rate(n, ms), now_ms * 1_000
        left = max(0, rate.left(full_us, now_us))
        next_in = None if left else (rate.next_us(full_us, now_us) - now_us) / 1e6
    return GroupLimit(
        group=group,
        namespace=namespace or None,
        concurrency=concurrency,
        held=view.one("held_in_group", group, namespace)[0] if group else 0,
        rate=None if rate is None else str(rate),
        left=left,
        next_in=next_in,
        share=weight,
    )


def limits(view: View, now_ms: int) -> list[GroupLimit]:
    """Return the limits that are set, by group."""
    with view.snapshot():
        return [_limit(view, row, now_ms) for row in view.rows("limits")]
