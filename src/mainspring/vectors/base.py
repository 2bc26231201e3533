"""The contract of a vector store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import msgspec

from mainspring.tasks import SearchQuery, SearchResults, VectorDelete, VectorRecord, VectorUpsert

MAX_TOP_K = 1000
"""More nearest records than this one query can't ask for."""
MAX_DIMENSIONS = 16_000
"""Of a vector: as pgvector has it, so that a collection in a file can be moved to a server."""


class Collection(msgspec.Struct, frozen=True):
    name: str
    dim: int
    count: int  # records
    model_id: str | None = None  # which model made its vectors; None: the writer did not say
    updated_ms: int = 0  # when it last changed


class VectorStore(Protocol):
    """Records with a unit-length vector each, in collections. All methods block: call them from a thread.

    Writes of tasks come as effects and commit with the task; `write` is for everybody else.
    """

    @overload
    def search(self, query: SearchQuery, /) -> SearchResults: ...

    @overload
    def search(self, queries: Sequence[SearchQuery], /) -> list[SearchResults]: ...

    def search(self, queries: SearchQuery | Sequence[SearchQuery], /) -> SearchResults | list[SearchResults]:
        """Answer a query, or several at once, whose vectors are given: cosine similarity, best first, ties by id.

        Sees every record committed before the call. The answer to a query does not depend on those beside it.

        Raises: InvalidInput: unknown collection, no vector, another dimension than the collection's, a vector that is
            not finite or zero, or `top_k` out of 1..1000. No query is answered then.
        """

    def get(self, collection: str, ids: Sequence[str]) -> list[VectorRecord]:
        """Return the records that are there, in the order of `ids`. Raises: InvalidInput: unknown collection."""

    def page(self, collection: str, *, after: str = "", limit: int = 500) -> list[VectorRecord]:
        """Return at most `limit` records whose ids come after `after`, in the order of their ids.

        Raises: InvalidInput: unknown collection.
        """

    def metadata(self, collection: str, filter: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Return id and metadata of all matching records, without their vectors.

        Raises: InvalidInput: unknown collection.
        """

    def collections(self) -> list[Collection]: ...

    def upsert(
        self,
        collection: str,
        records: Sequence[VectorRecord],
        *,
        model_id: str | None = None,
        replace: dict[str, Any] | None = None,
    ) -> int:
        """Insert or replace records by id; see `write`. `replace` is a filter of what is deleted with it."""

    def delete(self, collection: str, ids: Sequence[str] = (), *, filter: dict[str, Any] | None = None) -> int:
        """Delete records by id or by a filter; see `write`."""

    def write(self, effect: VectorUpsert | VectorDelete) -> int:
        """Apply at once in a transaction of its own; returns how many records were written or deleted.

        Raises: InvalidInput: another dimension or model than the collection's, or a record that can't be stored: also
            one with more than `MAX_DIMENSIONS`, or an id of more than 2,048 bytes as UTF-8.
        """

    def close(self) -> None: ...
