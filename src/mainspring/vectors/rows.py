"""What stores of vectors have in common that keep rows beside the tasks', in a file or on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from mainspring.environment import Environment
from mainspring.tasks import SearchQuery, SearchResults, VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors.checks import check_query
from mainspring.vectors.unit import unit_rows, wrong_dimension

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

C = TypeVar("C")


class RowStore(ABC, Generic[C]):
    """Writes are effects that are applied to a cursor in a transaction; queries are answered collection by collection.

    Args:
        write: runs a function of a cursor in a transaction and returns what it returns, once that is committed.
    """

    def __init__(self, write: Callable[[Callable[[C], int]], int], env: Environment) -> None:
        self._write = write
        self._env = env

    @overload
    def search(self, query: SearchQuery, /) -> SearchResults: ...

    @overload
    def search(self, queries: Sequence[SearchQuery], /) -> list[SearchResults]: ...

    def search(self, queries: SearchQuery | Sequence[SearchQuery], /) -> SearchResults | list[SearchResults]:
        if isinstance(queries, SearchQuery):
            return self.search([queries])[0]
        for query in queries:
            check_query(query)
        by_collection: dict[str, list[int]] = {}
        for index, query in enumerate(queries):
            by_collection.setdefault(query.collection, []).append(index)
        answers: dict[int, SearchResults] = {}
        for name, indexes in by_collection.items():
            answers |= zip(indexes, self._search(name, [queries[index] for index in indexes]), strict=True)
        return [answers[index] for index in range(len(queries))]

    def upsert(
        self,
        collection: str,
        records: Sequence[VectorRecord],
        *,
        model_id: str | None = None,
        replace: dict[str, Any] | None = None,
    ) -> int:
        return self.write(VectorUpsert(collection, tuple(records), model_id, replace))

    def delete(self, collection: str, ids: Sequence[str] = (), *, filter: dict[str, Any] | None = None) -> int:
        return self.write(VectorDelete(collection, tuple(ids), filter))

    def write(self, effect: VectorUpsert | VectorDelete) -> int:
        now_ms = self._env.wall_ms()
        return self._write(lambda cursor: self._apply(cursor, effect, now_ms))

    @abstractmethod
    def _search(self, name: str, queries: list[SearchQuery]) -> Iterable[SearchResults]:
        """Answer queries of one collection, all of one moment."""

    @staticmethod
    @abstractmethod
    def _apply(cursor: C, effect: VectorUpsert | VectorDelete, now_ms: int) -> int:
        """Write within the caller's transaction; returns how many records it changed."""


def units_of(queries: Sequence[SearchQuery], name: str, dim: int) -> NDArray[np.float32]:
    """Return the vectors of queries at unit length. Raises InvalidInput: they don't fit the collection."""
    units = unit_rows([(f"vector of query {n}", query.vector) for n, query in enumerate(queries)])
    if units.shape[1] != dim:
        raise wrong_dimension("vector of the query", units.shape[1], f"collection {name!r} has {dim}")
    return units
