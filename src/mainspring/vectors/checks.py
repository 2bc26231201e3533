"""What is refused, in the same words by every store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mainspring.errors import InvalidInput, invalid
from mainspring.tasks import SearchQuery, VectorRecord, VectorUpsert
from mainspring.tasks.texts import check_key, check_text
from mainspring.vectors.base import MAX_DIMENSIONS, MAX_TOP_K
from mainspring.vectors.unit import wrong_dimension


class Kept(Protocol):
    """What a store knows of a collection."""

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def model_id(self) -> str | None: ...


def check_name(name: str) -> None:
    check_text("collection", name)
    if not 0 < len(name) <= 200:
        raise invalid("collection", name, "is no name", "use a text of 1 to 200 characters")


def check_upsert(effect: VectorUpsert) -> None:
    check_name(effect.collection)
    if effect.model_id is not None:
        check_text("model_id", effect.model_id)


def check_dimensions(field: str, dim: int) -> None:
    if dim > MAX_DIMENSIONS:
        why = f"are more than the {MAX_DIMENSIONS:,} that every store takes"
        raise invalid(field, f"{dim:,} dimensions", why, "use a model with fewer, or fewer of its dimensions")


def check_record(record: VectorRecord) -> None:
    """Raises InvalidInput: it is larger than stores take, whatever else it is."""
    check_key("id", record.id)
    check_dimensions("vector", len(record.vector))


def check_ids(records: tuple[VectorRecord, ...]) -> list[str]:
    ids = [record.id for record in records]
    for id in ids:
        if not isinstance(id, str) or not id:
            raise invalid("id", id, "is no id of a record", "use a text that is not empty")
        check_key("id", id)
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise invalid("id", twice, "is there twice in one upsert", "write each record once")
    return ids


def does_not_fit(effect: VectorUpsert, dim: int, kept: Kept) -> InvalidInput:
    """Tell why a collection that has records takes none of these."""
    if kept.model_id == effect.model_id:
        return wrong_dimension(f"vector of {effect.records[0].id!r}", dim, f"collection {kept.name!r} has {kept.dim}")
    return InvalidInput(
        f"model_id = {effect.model_id!r}: collection {kept.name!r} holds vectors of {kept.model_id!r}, and the "
        "two can't be compared; use another collection, or replace all its records at once with replace={}",
        field="model_id",
        value=effect.model_id,
    )


def unknown(name: str, known: Sequence[str]) -> InvalidInput:
    return invalid(
        "collection", name, "does not exist", f"use one of {list(known[:20])}, or write records into it first"
    )


def check_query(query: SearchQuery) -> None:
    if query.vector is None:
        raise invalid("vector", None, "is missing", "embed the query's text first, or submit it as a search task")
    if not isinstance(query.top_k, int) or isinstance(query.top_k, bool) or not 1 <= query.top_k <= MAX_TOP_K:
        raise invalid("top_k", query.top_k, "is out of range", f"use 1 to {MAX_TOP_K}")
