"""The vector store of a server, which is not there yet: whoever asks is told so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from mainspring.errors import InvalidInput
from mainspring.tasks import SearchQuery, VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors.base import Collection


def refuse(*_: object) -> NoReturn:
    """Raises InvalidInput."""
    raise InvalidInput(
        "vectors can't be stored or searched on a Postgres server yet; use a store in a file for them", field="store"
    )


class NoVectors:
    """See `vectors.base.VectorStore`."""

    def search(self, queries: SearchQuery | Sequence[SearchQuery], /) -> Any:
        refuse()

    def get(self, collection: str, ids: Sequence[str]) -> list[VectorRecord]:
        refuse()

    def metadata(self, collection: str, filter: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
        refuse()

    def collections(self) -> list[Collection]:
        """There are none."""
        return []

    def upsert(
        self,
        collection: str,
        records: Sequence[VectorRecord],
        *,
        model_id: str | None = None,
        replace: dict[str, Any] | None = None,
    ) -> int:
        refuse()

    def delete(self, collection: str, ids: Sequence[str] = (), *, filter: dict[str, Any] | None = None) -> int:
        refuse()

    def write(self, effect: VectorUpsert | VectorDelete) -> int:
        refuse()

    def close(self) -> None: ...
