"""What people and programs get to see: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_PIPE_WIDTH = 240
"""Columns for a reader that is no terminal: enough that nothing is cut."""


class Screen:
    """Where a command writes. With `as_json` only `document` writes to stdout, and notes fall silent; so they do when
    stderr `is_for_programs`."""

    def __init__(self, as_json: bool, *, is_for_programs: bool = False) -> None:
        self.as_json = as_json
        self._tells = not (as_json or is_for_programs)
        self._documents: TextIO | None = None  # None: whatever stdout is then

    def keep_stdout(self) -> None:
        """Keep stdout for documents until the process ends: what else is printed in it, or by programs that it starts,
        goes to stderr."""
        if sys.stdout is None:  # started without one: descriptor 1 may be anything
            return
        sys.stdout.flush()
        self._documents = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process is
        sys.stdout = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the same
        os.dup2(sys.stdout.fileno(), 1)

    def document(self, value: Any) -> None:
        """Print one JSON document on a line of its own."""
        from mainspring.tasks.codec import to_json

        print(to_json(value), file=self._documents, flush=True)

    def text(self, text: str) -> None:
        """Print for people."""
        print(printable(text), flush=True)

    def draw(self, *parts: RenderableType) -> None:
        """Print tables and the like for people; colours only on a terminal."""
        console(sys.stdout).print(*parts, sep="\n")

    def note(self, text: str) -> None:
        """Tell people something that is not the result."""
        if self._tells:
            print(f"mainspring: {printable(text)}", file=sys.stderr, flush=True)


def console(file: Any) -> Console:
    """Return a console on a stream. Text is taken as it is: what tasks bring can't style it."""
    from rich.console import Console

    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), drop: Sequence[str] = ()
) -> Table:
    """Return a table with a line for each row; columns named in `right` are numbers, and are never cut. Those in `drop`
    go first, as a whole, where the terminal is too narrow."""
    from mainspring.cli.fitted import FittedTable

    drawn = FittedTable(drop)
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        drawn.add_row(*(printable(" ".join(cell.split())) for cell in row))
    return drawn


def printable(text: str) -> str:
    """Return the text with control characters spelled out: a task's error must not steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def local(moment: datetime | None) -> str:
    """Return a time for people: in their own zone."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def span(seconds: float | None) -> str:
    """Return a duration for people, in its two largest units."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(0.0, seconds):.2f}s"
    whole = int(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def size(n: int | None) -> str:
    """Return a number of bytes for people."""
    if n is None:
        return ""
    if n < 1024:
        return f"{n} B"
    value = n / 1024
    for unit in ("KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
