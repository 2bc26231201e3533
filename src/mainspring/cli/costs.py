"""What attempts have cost, as `stats --by` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mainspring.cli.screen import local, size, span, table
from mainspring.tasks import Figures, Ledger, LedgerRow

if TYPE_CHECKING:
    from rich.table import Table

_FAILED = ("failed", "timeout", "cancelled", "crashed")
_NUMBERS = (
    "attempts", "completed", "failed", "retried", "hits", "ran", "mean", "max", "wait mean", "wait max", "cpu",
    "memory max", "network",
)  # fmt: skip


def as_table(ledger: Ledger) -> Table:
    rows = [(*_keys(ledger, row), *_numbers(row)) for row in ledger.rows]
    return table((*ledger.by, *_NUMBERS), rows, right=_NUMBERS)


def as_document(ledger: Ledger) -> dict[str, Any]:
    """Return the ledger for programs: of each row the keys that were asked for, and nothing of others."""
    return {
        "by": ledger.by,
        "since": ledger.since,
        "rows": [{name: value for name, value in _fields(row) if value is not None} for row in ledger.rows],
        "pruned": ledger.pruned,
        "pruned_until": ledger.pruned_until,
    }


def missing(ledger: Ledger) -> str:
    """Say what the figures leave out; empty where they leave out nothing."""
    if not ledger.pruned:
        return ""
    return f"{ledger.pruned:,} tasks that ended until {local(ledger.pruned_until)} were pruned and are not in here"


def _fields(row: LedgerRow) -> list[tuple[str, Any]]:
    return [(name, getattr(row, name)) for name in row.__struct_fields__]


def _keys(ledger: Ledger, row: LedgerRow) -> list[str]:
    return [str(getattr(row, key)) or "(none)" for key in ledger.by]


def _numbers(row: LedgerRow) -> list[str]:
    outcomes = row.outcomes
    return [
        f"{row.attempts:,}",
        f"{outcomes.get('completed', 0):,}",
        f"{sum(outcomes.get(name, 0) for name in _FAILED):,}",
        f"{outcomes.get('retry', 0):,}",
        f"{row.cache_hits:,}",
        span(row.busy),
        *_mean_and_max(row.duration),
        *_mean_and_max(row.queue_wait),
        span(row.cpu_time.total),
        size(None if row.memory_bytes.max is None else int(row.memory_bytes.max)),
        size(None if row.network_bytes.total is None else int(row.network_bytes.total)),
    ]


def _mean_and_max(figures: Figures) -> tuple[str, str]:
    return _brief(figures.mean), _brief(figures.max)


def _brief(seconds: float | None) -> str:
    """Return a duration of an attempt: most are short."""
    return span(seconds) if seconds is None or seconds >= 1 else f"{seconds * 1000:.3g}ms"
