"""The vector store of a server: rows of pgvector, read beside the tasks' own connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from mainspring.environment import SYSTEM, Environment
from mainspring.tasks import SearchHit, SearchQuery, SearchResults, VectorDelete, VectorRecord, VectorUpsert
from mainspring.tasks.texts import check_unicode
from mainspring.vectors.base import Collection
from mainspring.vectors.postgres import hnsw, tables
from mainspring.vectors.postgres.appliers import apply_delete, apply_upsert, as_text, conditions, encoded
from mainspring.vectors.postgres.tables import Cursor, State, known
from mainspring.vectors.rows import RowStore, units_of
from mainspring.vectors.unit import exact_scores, margin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Look: TypeAlias = Callable[[Callable[[Cursor], Any]], Any]
"""Runs a function of a session that belongs to it meanwhile, and returns what it returns."""
Write: TypeAlias = Callable[[Callable[[Cursor], int]], int]
"""Runs a function in a transaction of the store's writer and returns what it returns, once that is committed."""

_RECORD = "id, {vector}.vector_send(vector), text, metadata"
_NEAREST = """
SELECT {record}, distance FROM (
    SELECT n, {order} OPERATOR({vector}.<#>) ${last}::text::{vector}.vector AS distance
    FROM vector_record WHERE collection = $1 {matching} ORDER BY distance LIMIT ${limit}
) AS best JOIN vector_record USING (n)
"""
_IDS = "SELECT {record} FROM vector_record WHERE collection = $1 AND id = ANY ($2::bytea[])"
_PAGE = "SELECT {record} FROM vector_record WHERE collection = $1 AND id > $2 ORDER BY id LIMIT $3"
_METADATA = "SELECT id, metadata FROM vector_record WHERE collection = $1 {matching} ORDER BY id"
_SPARE: Final = 32
"""Read beyond what is asked for, so that those that differ by rounding alone are seldom cut off."""


class PostgresVectorStore(RowStore[Cursor]):
    """Vectors in the tables of a store on a server. See `vectors.base.VectorStore`.

    Search is exact, and takes time in proportion to the records of a collection, until the collection has an index
    (`add_index`); see `vectors.postgres.hnsw` for what is approximate then.
    """

    def __init__(self, look: Look, write: Write, *, env: Environment = SYSTEM) -> None:
        super().__init__(write, env)
        self._look = look

    def _search(self, name: str, queries: list[SearchQuery]) -> list[SearchResults]:
        return self._in_snapshot(name, partial(_answers, queries=queries))

    def get(self, collection: str, ids: Sequence[str]) -> list[VectorRecord]:
        def look(cursor: Cursor, state: State) -> list[VectorRecord]:
            sql = _IDS.format(record=_RECORD).format(vector=state.schema)
            found = {record.id: record for record in _records(cursor.execute(sql, (state.id, encoded(ids))))}
            return [found[id] for id in ids if id in found]

        return self._in_snapshot(collection, look)

    def page(self, collection: str, *, after: str = "", limit: int = 500) -> list[VectorRecord]:
        def look(cursor: Cursor, state: State) -> list[VectorRecord]:
            sql = _PAGE.format(record=_RECORD).format(vector=state.schema)
            return _records(cursor.execute(sql, (state.id, after.encode(), limit)))

        check_unicode("after", after)
        return self._in_snapshot(collection, look)

    def metadata(self, collection: str, filter: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
        def look(cursor: Cursor, state: State) -> list[tuple[str, dict[str, Any]]]:
            matching, values = conditions(state.id, filter or {})
            found = cursor.execute(_METADATA.format(matching=matching), (state.id, *values))
            return [(id.decode(), msgspec.json.decode(metadata)) for id, metadata in found]

        return self._in_snapshot(collection, look)

    def collections(self) -> list[Collection]:
        rows: Sequence[tuple[Any, ...]] = self._look(lambda cursor: cursor.execute(tables.ALL))
        return [Collection(*row) for row in rows]

    @staticmethod
    def _apply(cursor: Cursor, effect: VectorUpsert | VectorDelete, now_ms: int) -> int:
        if isinstance(effect, VectorUpsert):
            return apply_upsert(cursor, effect, now_ms)
        return apply_delete(cursor, effect, now_ms)

    def add_index(self, collection: str, *, memory_mb: int = hnsw.MEMORY_MB) -> None:
        """Build an HNSW index, so that searches need not read the whole collection; nothing where there is one.

        Others read and write meanwhile. The answers to searches are approximate from then on.

        Args:
            memory_mb: what the server may use for it; above this it is several times slower.
        Raises: InvalidInput: unknown collection, or too many dimensions. StoreRefused: pgvector is older than 0.8.
            StoreUnavailable: somebody is building one in this store.
        """
        self._in_session(collection, lambda cursor, state: hnsw.build(cursor, state, memory_mb))

    def drop_index(self, collection: str) -> None:
        """Search exactly again. Raises: InvalidInput: unknown collection."""
        self._in_session(collection, hnsw.drop)

    def has_index(self, collection: str) -> bool:
        """Raises: InvalidInput: unknown collection."""
        return bool(self._look(lambda cursor: known(cursor, collection).has_index))

    def close(self) -> None:
        """The connections are the store's."""

    def _in_session(self, name: str, change: Callable[[Cursor, State], None]) -> None:
        def run(cursor: Cursor) -> None:
            with cursor.own() as session:
                change(session, known(session, name))

        self._look(run)

    def _in_snapshot(self, name: str, look: Callable[[Cursor, State], T]) -> T:
        def run(cursor: Cursor) -> T:
            with cursor.snapshot() as one_moment:
                return look(one_moment, known(one_moment, name))

        found: T = self._look(run)
        return found


def _answers(cursor: Cursor, state: State, queries: list[SearchQuery]) -> list[SearchResults]:
    units = units_of(queries, state.name, state.dim)
    asked = [conditions(state.id, query.filter or {}) for query in queries]
    return [
        SearchResults(tuple(_best(unit, _near(cursor, state, unit, query.top_k, *filter), query.top_k)), state.name)
        for unit, query, filter in zip(units, queries, asked, strict=True)
    ]


def _near(
    cursor: Cursor, state: State, unit: NDArray[np.float32], top_k: int, matching: str, values: list[str]
) -> Sequence[tuple[Any, ...]]:
    """Return rows among which are the nearest, for certain or, by an index, as good as."""
    if state.has_index and hnsw.is_worth_it(cursor, state, matching, values):
        cursor.command(hnsw.settings(top_k + _SPARE))
        order = f"(vector::{state.schema}.vector({state.dim}))"
        sql = _nearest(state, order, f"{hnsw.predicate(state)} {matching}", len(values) + 2)
        rows = cursor.execute(sql, (state.id, *values, as_text(unit), top_k + _SPARE))
        if len(rows) >= top_k:
            return rows
    sql, limit = _nearest(state, "vector", matching, len(values) + 2), top_k + _SPARE
    while True:
        rows = cursor.execute(sql, (state.id, *values, as_text(unit), limit))
        if len(rows) < limit:
            return rows
        distances = sorted(row[4] for row in rows)
        if distances[-1] > distances[top_k - 1] + margin(state.dim):
            return rows
        limit *= 4


def _nearest(state: State, order: str, matching: str, last: int) -> str:
    """Return the statement; `last` is the number of the value that is the query's vector, and the limit follows."""
    record = _RECORD.format(vector=state.schema)
    return _NEAREST.format(
        record=record, vector=state.schema, order=order, matching=matching, last=last, limit=last + 1
    )


def _best(unit: NDArray[np.float32], rows: Sequence[tuple[Any, ...]], top_k: int) -> Iterable[SearchHit]:
    """Order rows as every store does: by scores computed again in double precision, ties by id."""
    if not rows:
        return
    import numpy as np

    scores = exact_scores(unit, np.stack([_vector(row[1]) for row in rows]))
    for score, row in sorted(zip(scores, rows, strict=True), key=lambda found: (-found[0], found[1][0]))[:top_k]:
        record = _record(*row[:4])
        yield SearchHit(record.id, score, record.text, record.metadata)


def _records(rows: Iterable[tuple[Any, ...]]) -> list[VectorRecord]:
    return [_record(*row) for row in rows]


def _record(id: bytes, vector: bytes, text: bytes | None, metadata: str) -> VectorRecord:
    shown = None if text is None else text.decode()
    return VectorRecord(id.decode(), _vector(vector), shown, msgspec.json.decode(metadata))


def _vector(sent: bytes) -> NDArray[np.float32]:
    """Read a vector as the server sends it: two bytes for the dimension, two of nothing, the numbers big-endian."""
    import numpy as np

    return np.frombuffer(sent, ">f4", offset=4).astype("<f4")


__all__ = ["PostgresVectorStore"]
