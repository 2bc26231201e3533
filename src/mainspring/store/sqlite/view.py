"""Looking into a file with its statements."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import apsw

from mainspring.store.sql.transaction import Row
from mainspring.store.sqlite.statements import SQL


class FileView:
    """See `store.sql.reads.View`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def one(self, name: str, *values: Any) -> Any:
        return self._connection.execute(SQL[name], values).fetchone()

    def rows(self, name: str, *values: Any) -> list[Row]:
        return self._connection.execute(SQL[name], values).fetchall()

    def of_ids(self, name: str, ids: Sequence[bytes]) -> list[Row]:
        cursor = self._connection.cursor()
        found: list[Row] = []
        with self._connection:
            for id in ids:
                found += cursor.execute(SQL[name], (id,))
        return found

    def snapshot(self) -> AbstractContextManager[Any]:
        return self._connection
