"""What a proof program prints: its figures, and beside each what was wanted."""

from __future__ import annotations

from typing import NamedTuple


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

    @property
    def are_met(self) -> bool:
        return all(row.is_met for row in self.rows)

    def table(self) -> str:
        lines = ["| what | figure | wanted | |", "| --- | ---: | ---: | --- |"]
        for row in self.rows:
            verdict = "" if not row.wanted else "ok" if row.is_met else "**not met**"
            lines.append(f"| {row.what} | {row.value} | {row.wanted} | {verdict} |")
        return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
