"""A file as an end of a move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import apsw

from mainspring.config import MIB, StoreConfig
from mainspring.store.moving.end import End, Row, untaken
from mainspring.store.moving.tables import Columns, Table
from mainspring.store.sqlite.connection import open_writer, our_errors
from mainspring.vectors.sqlite import SqliteVectorStore

_COUNTED = ("task", "worker")
_LOG_LIMIT = 64 * MIB


class FileEnd(End):
    """Over a connection: one that writes, or for a look one that only reads."""

    seen_as: ClassVar[Mapping[str, str]] = {"tally": "(SELECT class, status, n FROM tally WHERE n <> 0)"}
    numbered: ClassVar[Mapping[str, str]] = {"audit": "rowid"}

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.shown = str(path)
        self._path = path
        self._connection = connection
        self.vectors = SqliteVectorStore(path, self.write)

    @classmethod
    def open(cls, path: Path, extra_schema: str) -> FileEnd:
        """Open or make it. Raises: StoreNewer, StoreForeign, StoreReadOnly, StoreDamaged, StoreUnavailable."""
        return cls(path, open_writer(path, StoreConfig(), extra_schema=extra_schema))

    def ask(self, sql: str, *values: Any) -> list[Row]:
        with our_errors(self._path):
            return self._connection.execute(sql, values).fetchall()

    def cursor(self) -> apsw.Cursor:
        return self._connection.cursor()

    def columns(self) -> Columns:
        names = [row[0] for row in self.ask("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        found = {name: [row[0] for row in self.ask("SELECT name FROM pragma_table_info($1)", name)] for name in names}
        if "audit" in found:
            found["audit"].append("n")  # the row's own number
        return found

    def put(self, table: Table, rows: Sequence[Row]) -> None:
        columns = self._columns(table)
        values = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - of ours
        rest = iter(rows)
        with our_errors(self._path):
            try:
                self._connection.executemany(sql, rest)
            except (apsw.ConstraintError, apsw.MismatchError) as exc:
                row = rows[len(rows) - len(list(rest)) - 1]  # the last one that was taken from them
                raise untaken(table, row, self.shown, exc) from exc

    def numbers(self) -> dict[str, int]:
        given: dict[str, int] = dict(self.ask("SELECT name, seq FROM sqlite_sequence"))
        found = {name: given.get(name, 0) for name in _COUNTED}
        found["class"] = self.ask("SELECT coalesce(max(id), 0) FROM class")[0][0]
        found["audit"] = self.ask("SELECT coalesce(max(rowid), 0) FROM audit")[0][0]
        return found

    def set_numbers(self, numbers: Mapping[str, int]) -> None:
        for name in _COUNTED:
            self.ask("DELETE FROM sqlite_sequence WHERE name = $1", name)
            self.ask("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)", name, numbers[name])

    def identity(self) -> str:
        return str(self._path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with our_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.commit()
            except BaseException:
                self._roll_back()
                raise
        self.tidy()

    hold = transaction

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # some errors of the disk roll back by themselves
            self._connection.execute("ROLLBACK")

    def tidy(self) -> None:
        log = self._path.with_name(self._path.name + "-wal")
        if log.exists() and log.stat().st_size > _LOG_LIMIT:
            self.ask("PRAGMA wal_checkpoint(TRUNCATE)")

    def part(self) -> None:
        """Nobody else can be in the middle of writing."""

    def close(self) -> None:
        self.vectors.close()
        self._connection.close()
