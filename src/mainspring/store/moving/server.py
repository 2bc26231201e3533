"""A schema on a server as an end of a move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from mainspring.config import StoreConfig
from mainspring.store.moving.end import End, Row, T, untaken
from mainspring.store.moving.tables import Columns, Table
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.connection import CONFLICTS, LOST, WRITING, connect, our_errors, prepare
from mainspring.store.postgres.lookers import PLANS
from mainspring.store.postgres.session import Session
from mainspring.vectors.postgres import PostgresVectorStore
from mainspring.vectors.postgres.tables import provide

_SEQUENCES: Final = {"task": "task_seq", "worker": "worker_id_seq", "class": "class_id_seq", "audit": "audit_n_seq"}
_SETTINGS: Final = {**PLANS, "idle_in_transaction_session_timeout": "0", "tcp_user_timeout": "0"}


class ServerEnd(End):
    """Over a session: one that writes, or for a look one that only reads."""

    seen_as: ClassVar[Mapping[str, str]] = {
        "tally": "(SELECT class, status, sum(n)::bigint AS n FROM tally GROUP BY class, status HAVING sum(n) <> 0) AS n"
    }

    def __init__(self, server: Server, session: Session) -> None:
        self.shown = server.named
        self._server = server
        self._session = session
        self._looking: Session | None = None
        self.vectors = PostgresVectorStore(self._look, self.write)

    @classmethod
    def open(cls, server: Server, extra_schema: str) -> ServerEnd:
        """Open it, make its tables where they are missing, and keep all writers out until it is closed.

        Raises: StoreNewer, StoreForeign, StoreReadOnly, StoreRefused, StoreUnavailable.
        """
        with our_errors(server):
            number = asyncio.run(prepare(server, StoreConfig(), extra_schema))
            session = Session(lambda: connect(server, "migrates", StoreConfig(), _SETTINGS, patience_s=None))
            try:
                session.execute("SELECT pg_advisory_lock($1, $2)", (WRITING, number))
            except BaseException:
                session.close()
                raise
        return cls(server, session)

    def ask(self, sql: str, *values: Any) -> list[Row]:
        with our_errors(self._server):
            return self._session.execute(sql, values)

    def cursor(self) -> Session:
        return self._session

    def _look(self, run: Callable[[Session], T]) -> T:
        """Look beside the transaction that is under way."""
        with our_errors(self._server):
            if self._looking is None:
                self._looking = Session(
                    lambda: connect(self._server, "migrates", StoreConfig(), PLANS, patience_s=None)
                )
            return run(self._looking)

    def columns(self) -> Columns:
        rows = self.ask(
            "SELECT relname::text, attname::text FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
            "WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped "
            "ORDER BY relname, attnum",
            self._server.schema,
        )
        found: dict[str, list[str]] = {}
        for table, column in rows:
            found.setdefault(table, []).append(column)
        return found

    def put(self, table: Table, rows: Sequence[Row]) -> None:
        columns = self._columns(table)
        if table.name == "tally":  # counted by nobody who lives
            columns, rows = [*columns, "worker"], [(*row, 0) for row in rows]
        with our_errors(self._server):
            try:
                self._session.copy_in(table.name, columns, rows)
            except CONFLICTS as exc:
                raise untaken(table, self._untaken(table.name, columns, rows), self.shown, exc) from exc

    def _untaken(self, table: str, columns: list[str], rows: Sequence[Row]) -> Row:
        """Return the first of a page's rows that can't be added: a copy of many does not tell which it was."""
        self._session.command("ROLLBACK; BEGIN")  # nothing of the page is to stay
        while len(rows) > 1:
            half = len(rows) // 2
            self._session.command("SAVEPOINT half")
            try:
                self._session.copy_in(table, columns, rows[:half])
            except CONFLICTS:
                self._session.command("ROLLBACK TO half")
                rows = rows[:half]
            else:
                rows = rows[half:]
        return rows[0]

    def set_collection(self, collection: Row) -> None:
        with self.transaction():
            provide(self._session)  # whoever looks into a collection reads that table, also where it has no records yet
        super().set_collection(collection)

    def numbers(self) -> dict[str, int]:
        return {
            name: self.ask(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}")[0][0]  # noqa: S608
            for name, sequence in _SEQUENCES.items()
        }

    def set_numbers(self, numbers: Mapping[str, int]) -> None:
        for name, sequence in _SEQUENCES.items():
            n = numbers[name]
            self.ask("SELECT setval($1::text::regclass, $2, $3)", sequence, max(1, n), n > 0)

    def identity(self) -> str:
        return str(self.ask("SELECT identity::text FROM store")[0][0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._between("BEGIN"):
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        # Users' transactions write into the inbox without any lock of ours.
        locks = "LOCK TABLE worker, inbox IN SHARE ROW EXCLUSIVE MODE"
        with self._between(f"BEGIN ISOLATION LEVEL REPEATABLE READ; {locks}"):
            yield

    @contextmanager
    def _between(self, begin: str) -> Iterator[None]:
        with our_errors(self._server):
            self._session.command(begin)
            try:
                yield
                self.commit()
            except BaseException:
                with contextlib.suppress(*LOST):  # what broke it is being raised
                    self._session.command("ROLLBACK")
                raise

    def commit(self) -> None:
        self._session.command("COMMIT")

    def tidy(self) -> None:
        """The server does."""

    def part(self) -> None:
        # Also for transactions of users that see the rows of long ago, and for processes that were taken for dead.
        self.ask("ALTER TABLE inbox ADD CONSTRAINT this_store_was_moved CHECK (false) NOT VALID")

    def close(self) -> None:
        for session in (self._session, self._looking):
            if session is not None:
                session.close()
