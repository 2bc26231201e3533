"""An end of a move: what both kinds of store are asked, in statements that both understand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import msgspec

from mainspring.errors import StoreRefused, StoreUnavailable, invalid, shown
from mainspring.store.moving import marks
from mainspring.store.moving.marks import Mark, Place
from mainspring.store.moving.tables import INCIDENTAL, KEYS, Columns, Table
from mainspring.vectors.base import VectorStore

Row = tuple[Any, ...]
T = TypeVar("T")
_DIGESTS: Final = ("payload_blob", "blob_key", "cache")
_PAGE: Final = 1_000
_ADD_COLLECTION: Final = """
INSERT INTO vector_collection (name, dim, model_id, updated_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING
"""
_DATE_COLLECTION: Final = "UPDATE vector_collection SET updated_ms = $1 WHERE name = $2"
_OPEN: Final = "SELECT name, pid, host FROM worker WHERE ended_ms IS NULL ORDER BY id"


class Worker(NamedTuple):
    """A process that has not signed off."""

    name: str
    pid: int
    host: str


class End(ABC):
    """A store that nobody else works on. Belongs to one thread, in which no event loop runs. Calls raise our errors."""

    shown: str
    vectors: VectorStore
    seen_as: ClassVar[Mapping[str, str]] = {}
    """Tables that are read through a statement of their own."""
    numbered: ClassVar[Mapping[str, str]] = {}
    """The column `n` of a table by another name."""

    # What each kind does in its own way

    @abstractmethod
    def ask(self, sql: str, *values: Any) -> list[Row]:
        """Run a statement with its values as $1, $2 ..., each named once and in order."""

    @abstractmethod
    def columns(self) -> Columns:
        """Return the columns of every table there is."""

    @abstractmethod
    def put(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows."""

    @abstractmethod
    def numbers(self) -> dict[str, int]:
        """Return the last number that was given out, for each table that counts up and never back."""

    @abstractmethod
    def set_numbers(self, numbers: Mapping[str, int]) -> None: ...

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Commit at the end; a write that fails leaves nothing."""

    @abstractmethod
    def hold(self) -> AbstractContextManager[None]:
        """Keep everybody from writing, in one transaction and one view of the rows; commit at the end."""

    @abstractmethod
    def part(self) -> None:
        """Called in the last transaction of a source: take nothing any more, from whoever writes without an engine."""

    @abstractmethod
    def tidy(self) -> None:
        """Called after each commit."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def identity(self) -> str:
        """Return what tells this store from others of its kind, where it has something."""

    # What both do alike

    def tables(self) -> frozenset[str]:
        return frozenset(self.columns())

    def marks(self) -> list[Mark]:
        return [Mark(*row) for row in self.ask(marks.READ)] if "migration" in self.tables() else []

    def put_mark(self, mark: Mark) -> None:
        self.ask(marks.PUT, *msgspec.structs.astuple(mark))

    def turn_page(self, id: str, places: dict[str, Place]) -> None:
        self.ask(marks.TURN, marks.as_pages(places), id)

    def end(self, id: str, now_ms: int) -> None:
        self.ask(marks.END, now_ms, id)

    def origin(self) -> str:
        """Return what changes whenever anybody opens the store, or leaves something for it.

        Not promised: that it stays where a server has crashed in between, which draws numbers ahead.
        """
        return f"{self.identity()} {self.numbers()['worker']} {self._coming()}"

    def _coming(self) -> int:
        return self.count("inbox") if "inbox" in self.tables() else 0

    def refuse_coming(self) -> None:
        """Raises: StoreUnavailable: tasks came in users' transactions since it was settled."""
        if n := self._coming():
            raise StoreUnavailable(f"{n:,} tasks have just come to {self.shown} in transactions of its users")

    def open_workers(self) -> list[Worker]:
        return [Worker(*row) for row in self.ask(_OPEN)]

    def page(self, table: Table, after: Row | None, limit: int) -> list[Row]:
        """Return the next rows in the order of their key."""
        columns = self._columns(table)
        key = [columns[at] for at in table.key]
        beyond = ""
        if after is not None:
            values = ", ".join(f"${n}" for n in range(1, len(key) + 1))
            beyond = f"WHERE ({', '.join(key)}) > ({values}) "
        home = self.seen_as.get(table.name, table.name)
        last = f"LIMIT ${len(after or ()) + 1}"
        sql = f"SELECT {', '.join(columns)} FROM {home} {beyond}ORDER BY {', '.join(key)} {last}"  # noqa: S608 - of ours
        return self.ask(sql, *(after or ()), limit)

    def _columns(self, table: Table) -> list[str]:
        number = self.numbered.get(table.name)
        return [number if number is not None and column == "n" else column for column in table.columns]

    def pages(self, table: Table) -> Iterator[list[Row]]:
        after: Row | None = None
        while page := self.page(table, after, _PAGE):
            yield page
            after = tuple(page[-1][at] for at in table.key)

    def count(self, table: str) -> int:
        return int(self.ask(f"SELECT count(*) FROM {self.seen_as.get(table, table)}")[0][0])  # noqa: S608 - of ours

    def statuses(self) -> dict[int, int]:
        return dict(self.ask("SELECT status, count(*) FROM task GROUP BY status ORDER BY status"))

    def digests(self) -> list[str]:
        """Return the blobs that rows refer to."""
        there = self.tables()
        found = {
            str(row[0])
            for table in _DIGESTS
            if table in there
            for row in self.ask(f"SELECT DISTINCT digest FROM {table} WHERE digest IS NOT NULL")  # noqa: S608 - of ours
        }
        return sorted(found)

    def collections(self) -> list[Row]:
        """Return name, dimension, model, time of the last change, and number of records of each collection."""
        if "vector_collection" not in self.tables():
            return []
        return sorted(self.ask("SELECT name, dim, model_id, updated_ms, records FROM vector_collection"))

    def set_collection(self, collection: Row) -> None:
        """Make a collection, also one without records, or give it the time of its last change."""
        name, dim, model_id, updated_ms, _ = collection
        with self.transaction():
            self.ask(_ADD_COLLECTION, name, dim, model_id, updated_ms)
            self.ask(_DATE_COLLECTION, updated_ms, name)

    def refuse_filled(self) -> None:
        """Raises InvalidInput: there is something in it that the tasks of another store can't be added to."""
        there = self.tables()
        others = [name for name in (*KEYS, "inbox", "vector_collection") if name in there and name not in INCIDENTAL]
        held = [f"{n:,} rows in {name}" for name in others if (n := self.count(name))]
        if held:
            raise invalid(
                "target", self.shown, f"is not empty ({', '.join(held)})", "name a new file, or another ?schema="
            )

    def clear(self) -> None:
        """Remove what an earlier move has left, or what was only tried out."""
        there = self.tables()
        for name in (*KEYS, "vector_record", "vector_label", "vector_tombstone", "vector_collection"):
            if name in there:
                self.ask(f"DELETE FROM {name}")  # noqa: S608 - of ours
        if "migration" in there:
            self.ask("DELETE FROM migration WHERE role = 'target' AND ended_ms IS NULL")

    def write(self, run: Callable[[Any], int]) -> int:
        """Run what vectors want to write, in a transaction."""
        with self.transaction():
            return run(self.cursor())

    @abstractmethod
    def cursor(self) -> Any:
        """Return what the vectors of this kind of store write through."""


def untaken(table: Table, row: Row, where: str, exc: Exception) -> StoreRefused:
    key = ", ".join(f"{table.columns[at]} {shown(row[at])}" for at in table.key)
    return StoreRefused(
        f"{where} can't take a row of table {table.name}, {key} ({exc}); nothing of this page was written: change that "
        "row in the source or take it away; `mainspring doctor --check` may say what is wrong with it"
    )


def refuse_living(shown: str, workers: Sequence[Worker]) -> None:
    """Raises StoreUnavailable: somebody is at work there."""
    if workers:
        told = ", ".join(f"{name} (pid {pid} on {host})" for name, pid, host in workers)
        raise StoreUnavailable(f"{shown} is in use by {told}; stop these workers and engines, then try again")
