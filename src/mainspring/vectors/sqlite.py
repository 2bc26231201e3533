"""The embedded vector store: rows in the tasks' own file, exact search in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import apsw
import msgspec

from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import StoreUnavailable
from mainspring.resources.memory import Held, Memory
from mainspring.tasks import SearchHit, SearchQuery, SearchResults, VectorDelete, VectorRecord, VectorUpsert
from mainspring.tasks.texts import check_unicode
from mainspring.vectors import labels
from mainspring.vectors.appliers import SCHEMA, State, apply_delete, apply_upsert, find
from mainspring.vectors.base import Collection
from mainspring.vectors.checks import check_name, unknown
from mainspring.vectors.matrix import Matrix, Nearest
from mainspring.vectors.rows import RowStore, units_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Write: TypeAlias = Callable[[Callable[[apsw.Cursor], int]], int]
"""Runs a function in a transaction on the file's one writer and returns what it returns, once that is committed."""

_LOCKS: Final = 16
_BUSY_MS: Final = 10_000
_COUNTED: Final = 1 << 20

_COLLECTIONS = """
SELECT id, name, dim, model_id, version, floor, records, updated_ms FROM vector_collection ORDER BY name
"""
_NEW_ROWS = """
SELECT row, id, vector FROM vector_record INDEXED BY vector_record_order WHERE collection = ? AND row > ? ORDER BY row
"""
_DEAD_ROWS = "SELECT row FROM vector_tombstone WHERE collection = ? AND version > ?"
_SHOWN = "SELECT row, text, metadata FROM vector_record WHERE row IN (SELECT value FROM json_each(?))"
_METADATA = """
SELECT id, metadata FROM vector_record WHERE row IN (SELECT value FROM json_each(?)) ORDER BY id
"""
_RECORDS = """
SELECT id, vector, text, metadata FROM vector_record
WHERE collection = ? AND id IN (SELECT value FROM json_each(?))
"""
_PAGE = """
SELECT id, vector, text, metadata FROM vector_record WHERE collection = ? AND id > ? ORDER BY id LIMIT ?
"""


class SqliteVectorStore(RowStore[apsw.Cursor]):
    """Vectors in one SQLite file, shared by any number of threads and processes.

    Each process that searches keeps a copy of the collections it searched, 4 bytes for each dimension of each record,
    and follows the file at the start of each call. Searching takes time in proportion to the records of a collection.

    Args:
        path: the file; with `write` given it must hold `SCHEMA` already.
        write: how to write through the owner of the file's one writing connection. None: a connection of our own, which
            also makes the file and its tables.
        memory: the budget that the copies count in. One that is needed is made in any case, and makes others go.
    """

    def __init__(
        self, path: str | Path, write: Write | None = None, *, memory: Memory | None = None, env: Environment = SYSTEM
    ) -> None:
        super().__init__(write or _OwnWriter(str(path)), env)
        self._path = str(path)
        self._closed = False
        self._idle: list[apsw.Connection] = []
        self._matrices: dict[int, Matrix] = {}
        self._memory = memory
        self._copies: dict[int, _Copy] = {}  # the same as the budget knows them
        self._following = [Lock() for _ in range(_LOCKS)]  # held while a matrix follows the file

    def get(self, collection: str, ids: Sequence[str]) -> list[VectorRecord]:
        with self._reading() as cursor:
            state = _known(cursor, collection)
            rows = cursor.execute(_RECORDS, (state.id, labels.to_json("ids", ids)))
            found = {record.id: record for record in _records(rows)}
        return [found[id] for id in ids if id in found]

    def page(self, collection: str, *, after: str = "", limit: int = 500) -> list[VectorRecord]:
        check_unicode("after", after)
        with self._reading() as cursor:
            return _records(cursor.execute(_PAGE, (_known(cursor, collection).id, after, limit)))

    def metadata(self, collection: str, filter: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
        with self._reading() as cursor:
            rows = labels.matching_rows(cursor, _known(cursor, collection).id, filter or {})
            found: list[Any] = cursor.execute(_METADATA, (labels.to_json("rows", rows),)).fetchall()
        return [(id, msgspec.json.decode(metadata)) for id, metadata in found]

    def collections(self) -> list[Collection]:
        with self._reading() as cursor:
            states = [State(*row) for row in cursor.execute(_COLLECTIONS)]
        return [Collection(state.name, state.dim, state.records, state.model_id, state.updated_ms) for state in states]

    @staticmethod
    def _apply(cursor: apsw.Cursor, effect: VectorUpsert | VectorDelete, now_ms: int) -> int:
        if isinstance(effect, VectorUpsert):
            return apply_upsert(cursor, effect, now_ms)
        return apply_delete(cursor, effect, now_ms)

    @property
    def memory_bytes(self) -> int:
        """What the copies in this process take; an estimate."""
        return sum(matrix.memory_bytes for matrix in list(self._matrices.values()))

    def close(self) -> None:
        """Give connections and memory back. Calls under way end well; later ones raise StoreUnavailable."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._matrices.clear()
        if self._memory is not None:
            for copy in self._copies.values():
                self._memory.settle(copy, 0)
        if isinstance(self._write, _OwnWriter):
            self._write.close()

    def _search(self, name: str, queries: list[SearchQuery]) -> Iterator[SearchResults]:
        with self._reading() as cursor:
            state, matrix = self._follow(cursor, name)
            units = units_of(queries, name, state.dim)
            found = matrix.search(units, [query.top_k for query in queries], _within(cursor, state, matrix, queries))
            shown = _shown(cursor, matrix, found)
        return (
            SearchResults(
                tuple(
                    SearchHit(matrix.ids[slot], score, *shown[int(matrix.rows[slot])])
                    for slot, score in zip(nearest.slots, nearest.scores, strict=True)
                ),
                name,
            )
            for nearest in found
        )

    def _follow(self, cursor: apsw.Cursor, name: str) -> tuple[State, Matrix]:
        """Return the collection and its matrix, both as of the transaction that the first read here begins.

        That read is made under the lock: whoever holds it is at least as far as the matrix, never behind.
        """
        with self._following[hash(name) % _LOCKS]:
            state = _known(cursor, name)
            copy = self._copies.setdefault(state.id, _Copy(self._matrices, state.id))
            copy.is_followed = True
            try:
                return state, self._followed(cursor, state, copy)
            finally:
                copy.is_followed = False

    def _followed(self, cursor: apsw.Cursor, state: State, copy: _Copy) -> Matrix:
        matrix = self._matrices.get(state.id)
        if matrix is None or matrix.version < state.floor or matrix.dim != state.dim:
            matrix = Matrix.empty(state.dim, state.records)
        if matrix.version < state.version:
            dead: list[Any] = cursor.execute(_DEAD_ROWS, (state.id, matrix.version)).fetchall()
            matrix = matrix.without([row for (row,) in dead])
            matrix = matrix.with_room(state.records - matrix.alive)
            rows: Iterator[Any] = cursor.execute(_NEW_ROWS, (state.id, matrix.last_row))
            matrix = matrix.with_records(rows, state.version)
            self._matrices[state.id] = matrix
        self._count(copy, matrix)
        return matrix

    def _count(self, copy: _Copy, matrix: Matrix) -> None:
        """Count the copy in steps, so that one that grows is not counted with each search."""
        if self._memory is None:
            return
        taken = matrix.memory_bytes // _COUNTED * _COUNTED
        if taken != copy.memory_bytes:
            self._memory.hold(copy, taken)
        with self._memory.lock:
            self._memory.use(copy)

    @contextmanager
    def _reading(self) -> Iterator[apsw.Cursor]:
        """Lend a connection; all that is read with it belongs to one moment."""
        if self._closed:
            raise StoreUnavailable(f"the vector store on {self._path} is closed; open a new one")
        with _our_errors(self._path):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
                connection.set_busy_timeout(_BUSY_MS)
            try:
                connection.execute("BEGIN")
                yield connection.cursor()
            finally:
                connection.execute("ROLLBACK")
                if self._closed:
                    connection.close()
                else:
                    self._idle.append(connection)


class _Copy(Held):
    """A collection's matrix as what takes memory: once nobody searches it may go, and is made again from the rows."""

    __slots__ = ("_collection", "_matrices", "is_followed")

    def __init__(self, matrices: dict[int, Matrix], collection: int) -> None:
        super().__init__()
        self._matrices = matrices
        self._collection = collection
        self.is_followed = False

    def is_idle(self) -> bool:
        return not self.is_followed

    def let_go(self) -> None:
        self._matrices.pop(self._collection, None)


class _OwnWriter:
    """The writing connection of a store that nobody else writes for."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        with _our_errors(path):
            self._connection = apsw.Connection(path)
            self._connection.set_busy_timeout(_BUSY_MS)
            self._connection.pragma("journal_mode", "wal")
            self._connection.pragma("synchronous", "full")
        self(lambda cursor: len(cursor.execute(SCHEMA).fetchall()))

    def __call__(self, apply: Callable[[apsw.Cursor], int]) -> int:
        with self._lock, _our_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                changed = apply(self._connection.cursor())
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return changed

    def close(self) -> None:
        with self._lock:
            self._connection.close()


@contextmanager
def _our_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (
        apsw.BusyError,
        apsw.CantOpenError,
        apsw.ConnectionClosedError,
        apsw.FullError,
        apsw.IOError,
        apsw.LockedError,
        apsw.ReadOnlyError,
    ) as exc:
        raise StoreUnavailable(f"vectors in {path} can't be read or written now ({exc}); try again") from exc


def _known(cursor: apsw.Cursor, name: str) -> State:
    check_name(name)
    state = find(cursor, name)
    if state is None:
        raise unknown(name, [State(*row).name for row in cursor.execute(_COLLECTIONS)])
    return state


def _records(rows: Iterable[Any]) -> list[VectorRecord]:
    import numpy as np

    return [
        VectorRecord(id, np.frombuffer(vector, "<f4"), text, msgspec.json.decode(metadata))
        for id, vector, text, metadata in rows
    ]


def _within(
    cursor: apsw.Cursor, state: State, matrix: Matrix, queries: list[SearchQuery]
) -> list[NDArray[np.int64] | None]:
    """Return for each query the slots that its filter leaves; the same array for the same filter."""
    known: dict[str, NDArray[np.int64]] = {}
    within: list[NDArray[np.int64] | None] = []
    for query in queries:
        if not query.filter:
            within.append(None)
            continue
        key = labels.to_json("filter", query.filter)
        if key not in known:
            known[key] = matrix.slots_of(labels.matching_rows(cursor, state.id, query.filter))
        within.append(known[key])
    return within


def _shown(cursor: apsw.Cursor, matrix: Matrix, found: list[Nearest]) -> dict[int, tuple[str | None, dict[str, Any]]]:
    rows = {int(matrix.rows[slot]) for nearest in found for slot in nearest.slots}
    return {
        row: (text, msgspec.json.decode(metadata))
        for row, text, metadata in cursor.execute(_SHOWN, (labels.to_json("rows", rows),))
    }
