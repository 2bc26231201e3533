"""What every proof program prints: its seed, its figures with what was wanted of each, and the verdict."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Finding(NamedTuple):
    """Something that must not be."""

    kind: str  # in a word
    what: str


class Figure(NamedTuple):
    what: str
    value: str
    wanted: str
    is_met: bool


class Figures:
    """Collects figures. Their table is Markdown, so that `python -m proof` can take it over as it is."""

    def __init__(self) -> None:
        self.rows: list[Figure] = []

    def note(self, what: str, value: object) -> None:
        """A figure that nothing is wanted of."""
        self.rows.append(Figure(what, _shown(value), "", True))

    def none(self, what: str, n: int) -> None:
        """There must not be any."""
        self.rows.append(Figure(what, _shown(n), "0", n == 0))

    def some(self, what: str, n: int) -> None:
        """There must be some, or the test proves nothing."""
        self.rows.append(Figure(what, _shown(n), "> 0", n > 0))

    def at_most(self, what: str, value: float, limit: float) -> None:
        self.rows.append(Figure(what, f"{value:,.2f}", f"<= {limit:g}", value <= limit))

    @property
    def are_met(self) -> bool:
        return all(row.is_met for row in self.rows)

    def table(self) -> str:
        lines = ["| what | figure | wanted | |", "| --- | ---: | ---: | --- |"]
        for row in self.rows:
            verdict = "" if not row.wanted else "ok" if row.is_met else "**not met**"
            lines.append(f"| {row.what} | {row.value} | {row.wanted} | {verdict} |")
        return "\n".join(lines)

    def conclude(self) -> int:
        """Print the table and the verdict, and return the exit code."""
        print(self.table())
        missed = [row.what for row in self.rows if not row.is_met]
        print(f"not met: {'; '.join(missed)}" if missed else "met", flush=True)
        return 1 if missed else 0


def announce(seed: object, command: str) -> None:
    """Print what all that is left to chance comes from, and how to have it again; None: nothing is."""
    print("no seed" if seed is None else f"seed {seed}", f": python -m {command}", sep="", flush=True)


def say(text: str) -> None:
    """Tell how far it is, beside the output."""
    print(text, file=sys.stderr, flush=True)


def _shown(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
