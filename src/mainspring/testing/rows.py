"""The rows of a store as the checks read them: of one moment, in a file or on a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import apsw

from mainspring.store.sql.statements import named

if TYPE_CHECKING:
    from mainspring.store.postgres.session import Session

Row = tuple[Any, ...]
_BOTH: Final = named(__package__, "invariants.sql")
FILE_SQL: Final = {**_BOTH, **named(__package__, "invariants_sqlite.sql")}
SERVER_SQL: Final = {**_BOTH, **named(__package__, "invariants_postgres.sql")}


_SERVER_WORDS: Final = {
    "no_id": "decode(repeat('00', 16), 'hex')",
    "output_text": "encode(output, 'escape')",
    "last_number": "(SELECT last_value FROM pg_sequences "
    "WHERE schemaname = current_schema() AND sequencename = 'task_seq')",
}
"""The number of the last task is unknown to who may not look at sequences, and before the first task."""


class Rows(Protocol):
    """The caller holds the moment still, by a transaction."""

    @property
    def invariants(self) -> Mapping[str, str]:
        """Statements by name."""

    @property
    def words(self) -> Mapping[str, str]:
        """What stands in their text for names after a colon, beside numbers."""

    @property
    def tables(self) -> frozenset[str]: ...

    def find(self, sql: str, limit: int) -> Iterator[tuple[Sequence[str], Row]]:
        """Yield rows with the names of their columns."""

    def ask(self, sql: str, *values: Any) -> Iterable[Row]:
        """Return the rows of a statement with its values as $1, $2 ..., each named once and in order."""


class FileRows:
    invariants: Mapping[str, str] = FILE_SQL
    words: Mapping[str, str] = {
        "no_id": "zeroblob(16)",
        "output_text": "CAST(output AS TEXT)",
        "last_number": "coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'task'), 0)",
    }

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    @cached_property
    def tables(self) -> frozenset[str]:
        found = self._connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return frozenset(str(row[0]) for row in found)

    def find(self, sql: str, limit: int) -> Iterator[tuple[Sequence[str], Row]]:
        cursor = self._connection.execute(sql)
        for row in islice(cursor, limit):
            yield [column[0] for column in cursor.get_description()], row

    def ask(self, sql: str, *values: Any) -> Iterable[Row]:
        return self._connection.execute(sql, values)


class ServerRows:
    invariants: Mapping[str, str] = SERVER_SQL

    def __init__(self, session: Session) -> None:
        self._session = session

    @cached_property
    def words(self) -> Mapping[str, str]:
        found = self.ask(
            "SELECT 'extension', quote_ident(nspname) FROM pg_extension "
            "JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
        )
        return {**_SERVER_WORDS, **dict(found)}

    @cached_property
    def tables(self) -> frozenset[str]:
        found = self.ask("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        return frozenset(row[0] for row in found)

    def find(self, sql: str, limit: int) -> Iterator[tuple[Sequence[str], Row]]:
        limited = f"SELECT * FROM ({sql}) AS broken LIMIT {limit}"  # noqa: S608 - our statement, and a number
        names = self._session.columns(limited)
        for row in self._session.execute(limited):
            yield names, row

    def ask(self, sql: str, *values: Any) -> Iterable[Row]:
        return self._session.execute(sql, values)
