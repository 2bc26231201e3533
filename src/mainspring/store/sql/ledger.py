"""The ledger: what the attempts that a store still has have cost, summed up by the store itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from mainspring.store.base import OUTCOMES
from mainspring.store.sql.reads import View, when
from mainspring.tasks import LEDGER_KEYS, Figures, Ledger, LedgerKey, LedgerRow

_EPOCH: Final = datetime.fromtimestamp(0, UTC).date()
_Key = tuple[str | None, str | None, int | None]
_Row = Sequence[Any]
_US, _MS, _BYTES = 1e6, 1e3, 1.0


def ledger(view: View, by: Collection[LedgerKey], since_ms: int | None) -> Ledger:
    """Return what attempts that ended since then have cost. Looks at all of them: for a connection of its own."""
    wanted = [key in by for key in LEDGER_KEYS]
    since = 0 if since_ms is None else since_ms
    with view.snapshot():
        attempts = view.rows("ledger", *wanted, since)
        hits = view.rows("ledger_hits", *wanted, since)
        pruned, pruned_until_ms = view.one("pruned_since", since)
    found: dict[_Key, list[_Row]] = {}
    for kind, group, day, *row in attempts:
        found.setdefault((kind, group, day), []).append(row)
    shared: dict[_Key, int] = {(kind, group, day): n for kind, group, day, n in hits}
    return Ledger(
        by=tuple(key for key in LEDGER_KEYS if key in by),
        since=when(since_ms),
        rows=tuple(_row(key, found.get(key, ()), shared.get(key, 0)) for key in sorted({*found, *shared}, key=_order)),
        pruned=pruned,
        pruned_until=when(pruned_until_ms),
    )


def _order(key: _Key) -> tuple[int, str, str]:
    kind, group, day = key
    return (day or 0, kind or "", group or "")


def _row(key: _Key, rows: Sequence[_Row], cache_hits: int) -> LedgerRow:
    """Put together what attempts of all outcomes have cost. A row: outcome, attempts, calls, busy time, figures."""
    kind, group, day = key
    busy = [row[3] for row in rows if row[3] is not None]
    return LedgerRow(
        type=kind,
        group=group,
        day=None if day is None else _date(day),
        attempts=sum(row[1] for row in rows),
        outcomes={OUTCOMES[row[0]]: row[1] for row in rows},
        calls=round(sum(row[2] for row in rows), 6),
        cache_hits=cache_hits,
        duration=_figures(rows, 4, _US),
        busy=sum(busy) / _US if busy else None,
        queue_wait=_figures(rows, 7, _MS),
        cpu_time=_figures(rows, 10, _US),
        memory_bytes=_figures(rows, 13, _BYTES, has_total=False),
        network_bytes=_figures(rows, 16, _BYTES),
    )


def _date(day: int) -> date:
    return _EPOCH + timedelta(days=day)


def _figures(rows: Sequence[_Row], at: int, per_unit: float, *, has_total: bool = True) -> Figures:
    """Put together three columns: of how many it is known, the sum, the largest."""
    known = sum(row[at] for row in rows)
    if not known:
        return Figures()
    total = sum(row[at + 1] for row in rows if row[at]) / per_unit
    largest = max(row[at + 2] for row in rows if row[at]) / per_unit
    return Figures(known=known, total=total if has_total else None, mean=total / known, max=largest)
