"""The ledger: what attempts have cost, summed up."""

from __future__ import annotations

from datetime import date, datetime
from typing import Final, Literal, TypeAlias

import msgspec

LedgerKey: TypeAlias = Literal["type", "group", "day"]
LEDGER_KEYS: Final[tuple[LedgerKey, ...]] = ("type", "group", "day")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over many attempts. Those that it is not known of are left out, not counted as zero."""

    known: int = 0  # attempts that it is known of
    total: float | None = None  # None where it is known of none
    mean: float | None = None
    max: float | None = None


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the attempts of one type, group or day have cost; `docs/metrics.md` tells how each figure is measured.

    A key that was not asked for is None.
    """

    type: str | None = None
    group: str | None = None  # "" where tasks have none
    day: date | None = None  # of UTC, on which the attempts ended
    attempts: int = 0
    outcomes: dict[str, int] = {}  # of attempts: completed, failed, timeout, cancelled, retry, released, crashed
    calls: float = 0.0  # of handlers: a batch is one, and each of its attempts has its share in it
    cache_hits: int = 0  # tasks that completed with the result of equal work, and have no attempt for it
    duration: Figures = Figures()  # seconds, as each attempt saw them
    busy: float | None = None  # seconds that slots were taken: a batch counts once
    queue_wait: Figures = Figures()  # seconds from ready to start, pauses, limits and resources included
    cpu_time: Figures = Figures()  # seconds
    memory_bytes: Figures = Figures()  # peaks; their total would say nothing and is None
    network_bytes: Figures = Figures()


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What attempts have cost, as far as the store still has them."""

    by: tuple[LedgerKey, ...]
    since: datetime | None  # attempts that ended before are left out; None: nothing is
    rows: tuple[LedgerRow, ...]
    pruned: int  # tasks that ended since then, too, and are missing here: retention has removed them
    pruned_until: datetime | None  # when the last of these ended
