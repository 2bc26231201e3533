"""What a check finds."""

from __future__ import annotations

from typing import Any

import msgspec


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must never be, in a store or in what was seen of it."""

    invariant: str  # name of the check, as in invariants.sql and events.py
    task: str | None  # its id, where one task is at fault
    what: str
    figures: dict[str, Any]  # the values that show it

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items() if value is not None)
        who = "" if self.task is None else f"task {self.task} "
        return f"{self.invariant}: {who}{self.what} ({figures})"
