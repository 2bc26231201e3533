"""How much one statement takes: more than that goes in by several, within the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from mainspring.config import MIB

STATEMENT_BYTES = 64 * MIB
"""The server holds what it gets in memory several times, and takes no more than 1 GiB in one message."""
ROW_BYTES: Final = 256
"""What a row has beside its payloads, or more."""
Columns: TypeAlias = tuple[Sequence[Any], ...]


def parts(sizes: Iterable[int]) -> Iterator[slice]:
    """Yield which rows go into each statement, by the size of each row. One that is larger goes alone."""
    start = total = n = 0
    for n, size in enumerate(sizes, 1):
        total += size
        if total > STATEMENT_BYTES and n - 1 > start:
            yield slice(start, n - 1)
            start, total = n - 1, size
    if n > start:
        yield slice(start, n)


def parts_of(columns: Columns, payloads: Sequence[int]) -> Iterator[Columns]:
    """Split rows that are given as columns. `payloads` are the places of columns whose values may be large."""
    large = [columns[at] for at in payloads]
    if ROW_BYTES * len(columns[0]) + sum(sum(map(len, filter(None, column))) for column in large) <= STATEMENT_BYTES:
        yield columns
        return
    rows = zip(*large, strict=True) if large else ((),) * len(columns[0])
    for part in parts(ROW_BYTES + sum(map(len, filter(None, row))) for row in rows):
        yield tuple(column[part] for column in columns)
