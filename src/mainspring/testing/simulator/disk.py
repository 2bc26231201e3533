"""What can go wrong with the statements of one process: an error at the k-th from now, or its death."""

from __future__ import annotations

from typing import Final

import apsw

from mainspring.environment import Random
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.strands import Died

UNTOLD: Final = "die untold"
"""To die when others would have to be told of what has been committed."""
_WRITES: Final = ("INSERT", "UPDATE", "DELETE", "COMMIT", "BEGIN")
_CLAIM: Final = "attempt + 1"
_RECORD: Final = "INSERT INTO attempt"
_NEWS: Final = "INSERT INTO news"
_ERRORS: Final = {"busy": apsw.BusyError, "full": apsw.FullError, "io error": apsw.IOError}


class Disk:
    """Faults of the statements of one process. The next one is armed; it strikes once, or for a while."""

    KINDS: Final = {
        "busy": 1,
        "full": 2,
        "io error": 2,
        "read error": 2,
        "commit undone": 2,
        "commit done": 3,
        "commit in doubt": 6,
        "die at statement": 2,
        "die before commit": 1,
        "die after commit": 2,
    }
    """Each with how often it is chosen."""

    def __init__(self, process: Process, rng: Random) -> None:
        self._process = process
        self._rng = rng
        self._armed: str | None = None
        self._left = 0
        self._broken_until = 0.0
        self._error: type[apsw.Error] = apsw.IOError
        self._passes = False
        self._claims = self._records = False  # in the transaction under way
        self._has_news = False  # for other processes: an end, or ready tasks
        process.traced = self._sees

    def arm(self, kind: str, left: int) -> None:
        """Let it strike at the statement (or commit) after `left` more; the one before it comes first."""
        if self._armed is None:
            self._armed, self._left = kind, left
            self._process.trace(True)

    def break_for(self, seconds: float, kind: str) -> None:
        """Let every write fail for a while."""
        self._broken_until, self._error = self._process.monotonic() + seconds, _ERRORS[kind]
        self._process.trace(True)

    def mend(self) -> None:
        self._armed, self._broken_until = None, 0.0
        self._process.trace(False)

    def _sees(self, connection: apsw.Connection, sql: str) -> bool:
        if self._passes or sql.startswith("ROLLBACK"):
            return True
        if sql.startswith("BEGIN"):
            self._claims = self._records = self._has_news = False
        elif _CLAIM in sql:
            self._claims = True
        elif sql.startswith(_RECORD):
            self._records = True
        elif sql.startswith(_NEWS) or (sql.startswith("UPDATE task") and "ended_ms = " in sql):
            self._has_news = True
        is_broken = self._broken_until > self._process.monotonic()
        if is_broken and sql.startswith(_WRITES):
            raise self._error("simulated")
        if self._armed is not None and self._is_meant(self._armed, sql):
            self._left -= 1
            if self._left < 0:
                kind, self._armed = self._armed, None
                self._strike(kind, connection, sql)
        self._process.trace(is_broken or self._armed is not None)
        return True

    def _is_meant(self, kind: str, sql: str) -> bool:
        if kind == "commit in doubt":  # where claims or ends go down with it, it costs most
            return sql == "COMMIT" and (self._claims or self._records or self._rng.random() < 0.2)
        if kind == UNTOLD:
            return sql == "COMMIT" and self._has_news
        if kind == "busy":
            return sql.startswith("BEGIN")
        if kind.endswith("commit") or kind.startswith("commit"):
            return sql == "COMMIT"
        if kind == "read error":
            return sql.startswith("SELECT")
        return kind == "die at statement" or sql.startswith(_WRITES[:3])

    def _strike(self, kind: str, connection: apsw.Connection, sql: str) -> None:
        if kind in ("commit done", "commit in doubt", "die after commit", UNTOLD):
            self._run(connection, sql)
        elif kind in ("full", "io error") and connection.in_transaction and self._rng.random() < 0.5:
            self._run(connection, "ROLLBACK")  # SQLite itself does that after some errors
        if kind.startswith("die"):
            self._process.halt()
            raise Died
        if kind == "commit in doubt":
            self.break_for(self._rng.random() * 0.4, "io error")
        raise _ERRORS.get(kind, apsw.IOError)("simulated")

    def _run(self, connection: apsw.Connection, sql: str) -> None:
        self._passes = True
        try:
            connection.execute(sql)
        finally:
            self._passes = False
