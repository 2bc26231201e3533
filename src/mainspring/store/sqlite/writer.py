"""The writer of a file: one connection, SQLite's one writer at a time, and a log to fold."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import apsw

from mainspring.environment import Environment
from mainspring.errors import StoreDamaged, StoreUnavailable, TaskError
from mainspring.store.sql import claims, upkeep
from mainspring.store.sql.operations import Group
from mainspring.store.sql.outage import OutageLog
from mainspring.store.sql.transaction import Memory, Transaction
from mainspring.store.sql.writer import Report, Writer
from mainspring.store.sqlite import news
from mainspring.store.sqlite.connection import DAMAGES
from mainspring.store.sqlite.log import Log
from mainspring.store.sqlite.statements import SQL
from mainspring.store.sqlite.transaction import SqliteTransaction

logger = logging.getLogger("mainspring.store")


class SqliteWriter(Writer):
    OUTAGES = (
        apsw.FullError, apsw.IOError, apsw.BusyError, apsw.CantOpenError, apsw.LockedError, apsw.ReadOnlyError, *DAMAGES
    )  # fmt: skip
    CONFLICTS = (apsw.ConstraintError,)
    DOUBTS = (apsw.Error,)

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        memory: Memory,
        now_ms: Callable[[], int],
        env: Environment,
        log: Log,
        batch: int,
        report: Report,
        retry_later: Callable[[int], None],
        damage: Callable[[BaseException], StoreDamaged | None],
        outage: OutageLog,
    ) -> None:
        super().__init__(memory, now_ms, env, batch, report, retry_later, outage)
        self._connect = connect
        self._damage = damage
        self._log = log
        self._seen_version = -1
        self.connection: apsw.Connection | None = None

    @property
    def is_open(self) -> bool:
        return self.connection is not None

    def open(self) -> None:
        try:
            self.connection = self._connect()
        except StoreUnavailable as exc:
            if not self._makes_room(exc):
                raise
            self.connection = self._connect()
        # One for all transactions: the loop lets go of them, and the driver keeps some bytes for ever of each cursor
        # that goes in another thread than its own.
        self._cursor = self.connection.cursor()
        self._log.watch(self.connection)
        self._seen_version = -1
        self._is_astray = True

    def _makes_room(self, exc: BaseException) -> bool:
        """Whether the disk was full and is less so now. In a long outage it is tried less and less often."""
        is_full = isinstance(exc.__cause__ or exc, apsw.FullError)
        return is_full and not self._outages & (self._outages - 1) and self._log.make_room()

    def _mend(self, exc: BaseException) -> TaskError | None:
        self._makes_room(exc)
        return self._damage(exc)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.close()
            except apsw.Error as exc:  # it is closed all the same; what the file has not got yet stays in the log
                logger.warning("the log could not be folded into the file: %s", exc)

    def _tidy(self) -> None:
        if self.connection is not None and not self._log.fold(self.connection):
            self.close()

    def _begin(self, group: Group) -> Transaction:
        self._cursor.execute("BEGIN IMMEDIATE")
        return SqliteTransaction(self._cursor, self._memory, self._now_ms())

    def _nothing(self) -> Transaction:
        return SqliteTransaction(None, self._memory, self._now_ms())

    def _commit(self, tx: Transaction) -> None:
        self._cursor.execute("COMMIT")

    def _roll_back(self) -> None:
        assert self.connection is not None
        self._seen_version = -1  # what memory took over from this transaction is read anew
        if self.connection.in_transaction:
            self._cursor.execute("ROLLBACK")

    def _mark(self) -> None:
        self._cursor.execute("SAVEPOINT one")

    def _undo(self) -> None:
        self._cursor.execute("ROLLBACK TO one")

    def _unmark(self) -> None:
        self._cursor.execute("RELEASE one")

    def _catch_up(self, tx: Transaction, is_astray: bool) -> None:
        version = tx.cursor.execute("PRAGMA data_version").get
        if version != self._seen_version or is_astray:
            self._seen_version = version
            before, pauses = self._memory.pauses, frozenset(tx.run("pauses").fetchall())
            if pauses != before:
                self._memory.pauses = pauses
            claims.read_limits(tx, tx.one("newest_limit")[0])
            news.look(tx, everywhere=is_astray or not before <= pauses)
            self._next_event = upkeep.next_event_ms(tx)
        self._let_time_pass(tx)

    def _tell(self, tx: Transaction) -> None:
        news.tell(tx)

    def _settle(self, tx: Transaction, group: Group) -> bool | None:
        """One that is not there may still lie in the log, complete but unread: it would come back when the log is read
        anew after a crash. The next commit is written over it, so there is one before anybody is told.
        """
        connection = self.connection
        assert connection is not None

        def ask(name: str, *values: Any) -> Any:
            return connection.execute(SQL[name], values).fetchone()

        connection.execute("BEGIN IMMEDIATE")
        found = self._is_stored(tx, group, ask)
        connection.pragma("user_version", connection.pragma("user_version"))
        connection.execute("COMMIT")
        return found
