"""Safeguards that can be taken away, to see that the checker notices: each loads into workers alone."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.store.sqlite.statements import SQL, WIDE, widened


def _attempt_guard() -> None:
    """Whoever has a claim's task may finish it, whatever became of the claim meanwhile."""
    for name in ("start", "complete", "held"):
        SQL[name] = SQL[name].replace("attempt = ?", "? IS NOT NULL").replace("owner = ?", "? IS NOT NULL")
    guard = "AND task.attempt = v.column5 AND task.owner = v.column6"
    assert guard in SQL["complete_many"]
    SQL["complete_many"] = SQL["complete_many"].replace(guard, "")
    WIDE["complete_many"] = widened("complete_many")


ABLATIONS: dict[str, Callable[[], None]] = {"attempt guard": _attempt_guard}
