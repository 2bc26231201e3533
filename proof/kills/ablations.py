"""Safeguards that can be taken away, to see that the checker notices: each loads into workers alone."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.store.postgres.statements import SQL as SQL_OF_SERVERS
from mainspring.store.sqlite.statements import SQL, WIDE, widened


def _attempt_guard() -> None:
    """Whoever has a claim's task may finish it, whatever became of the claim meanwhile."""
    _on_servers()
    for name in ("start", "complete", "held"):
        SQL[name] = SQL[name].replace("attempt = ?", "? IS NOT NULL").replace("owner = ?", "? IS NOT NULL")
    guard = "AND task.attempt = v.column5 AND task.owner = v.column6"
    assert guard in SQL["complete_many"]
    SQL["complete_many"] = SQL["complete_many"].replace(guard, "")
    WIDE["complete_many"] = widened("complete_many")


def _on_servers() -> None:
    guards = {
        "start": "attempt = $2 AND coalesce(owner, 0) = $3",
        "complete": "attempt = $5 AND coalesce(owner, 0) = $6",
        "held": "attempt = $2 AND coalesce(owner, 0) = $3",
        "complete_and_note": "task.attempt = v.attempt AND coalesce(task.owner, 0) = v.owner",
        "complete_alike": "task.attempt = $8::integer AND coalesce(task.owner, 0) = $9::integer",
    }
    for name, guard in guards.items():
        assert guard in SQL_OF_SERVERS[name]
        number, owner = guard.split("= ")[1].split(" ")[0], guard.split("= ")[2]
        SQL_OF_SERVERS[name] = SQL_OF_SERVERS[name].replace(guard, f"{number}::integer > 0 AND {owner}::integer > 0")


ABLATIONS: dict[str, Callable[[], None]] = {"attempt guard": _attempt_guard}
