"""A transaction on the file: SQLite lets one process write at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any

import apsw
import msgspec

from mainspring.store.sql.transaction import Row, Rows, Transaction
from mainspring.store.sqlite.statements import SQL, WIDE


class SqliteTransaction(Transaction):
    """The cursor's owner begins and commits."""

    __slots__ = ()
    cursor: apsw.Cursor

    def run(self, name: str, *values: Any) -> Rows:
        return self.cursor.execute(SQL[name], values)

    def run_many(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self.cursor.executemany(SQL[name], rows)

    def run_wide(self, name: str, rows: Sequence[tuple[Any, ...]]) -> int:
        at, left = 0, len(rows)
        execute = self.cursor.execute
        before = self.cursor.connection.total_changes()
        for width, sql in WIDE[name]:
            while left >= width:
                execute(sql, tuple(chain.from_iterable(rows[at : at + width])))
                at += width
                left -= width
        return int(self.cursor.connection.total_changes() - before)

    def one(self, name: str, *values: Any) -> Any:
        cursor = self.cursor.execute(SQL[name], values)
        row = cursor.fetchone()
        if row is not None:
            cursor.fetchall()
        return row

    def changed(self, name: str, *values: Any) -> int:
        self.cursor.execute(SQL[name], values)
        return int(self.cursor.connection.changes())  # without what triggers changed

    def listed(self, numbers: Sequence[int]) -> str:
        return str(list(numbers))

    def listed_keys(self, keys: Sequence[bytes]) -> str:
        return msgspec.json.encode([key.hex() for key in keys]).decode()

    def numbers(self, n: int) -> Iterator[int]:
        row = self.one("last_seq")
        return count(1 if row is None else int(row[0]) + 1)

    def ready_classes(self) -> Iterator[Row]:
        """One step of the index a class, however many tasks it has."""
        class_id = -1
        while (row := self.one("next_ready_class", class_id)) is not None:
            class_id = int(row[0])
            yield row
