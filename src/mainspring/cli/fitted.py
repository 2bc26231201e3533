"""Tables that fit their terminal: numbers are never cut, columns of least importance go as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Column, Table

_LEAST = 12
"""Columns of text have so much at least, or what they need, before other columns go for them."""
_GAP = 2


class FittedTable(Table):
    """Columns named in `drop` go first, in that order, where there is no room for all. Text is cut last."""

    def __init__(self, drop: Sequence[str]) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold")
        self._drop = drop

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yield the table that fits."""
        columns = list(self.columns)
        for name in self._drop:
            if _least(columns) <= options.max_width:
                break
            columns = [column for column in columns if column.header != name]
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column, width in zip(columns, _widths(columns, options.max_width), strict=True):
            drawn.add_column(column.header, justify=column.justify, width=width, no_wrap=True, overflow="ellipsis")
        for row in zip(*(column._cells for column in columns), strict=True):
            drawn.add_row(*row)
        yield drawn


def _whole(column: Column) -> int:
    return max(1, *(cell_len(str(cell)) for cell in (column.header, *column._cells)))


def _is_number(column: Column) -> bool:
    return column.justify == "right"


def _least(columns: Sequence[Column]) -> int:
    """Return what is needed so that nothing is cut but long text."""
    widths = [_whole(column) if _is_number(column) else min(_LEAST, _whole(column)) for column in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def _widths(columns: Sequence[Column], most: int) -> list[int]:
    """Share out what numbers leave: what a short text does not need is for the longer ones."""
    widths = [_whole(column) for column in columns]
    texts = sorted((n for n, column in enumerate(columns) if not _is_number(column)), key=widths.__getitem__)
    left = most - _GAP * (len(columns) - 1) - sum(widths[n] for n in range(len(columns)) if n not in texts)
    for place, n in enumerate(texts):
        widths[n] = max(1, min(widths[n], left // (len(texts) - place)))
        left -= widths[n]
    return widths
