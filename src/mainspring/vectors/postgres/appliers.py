"""Appliers: vector effects become rows on a server, within the transaction that completes a task.

The caller owns the transaction and rolls back when something is raised. Whoever writes into a collection holds its row
until the end: writers of one collection come one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mainspring.errors import invalid
from mainspring.tasks import VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors import labels
from mainspring.vectors.checks import check_dimensions, check_ids, check_name, check_upsert, does_not_fit
from mainspring.vectors.postgres.tables import Cursor, State, find, provide
from mainspring.vectors.unit import unit_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CREATE = """
INSERT INTO vector_collection (name, dim, model_id, updated_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING
"""
# An emptied collection may begin again with another model.
_BEGIN_AGAIN = "UPDATE vector_collection SET dim = $2, model_id = $3 WHERE id = $1 AND records = 0"
_COUNT = "UPDATE vector_collection SET records = records + $2, updated_ms = $3 WHERE id = $1"
_INSERT = """
INSERT INTO vector_record (collection, id, labels, metadata, vector, text)
SELECT $1, id, labels::uuid[], metadata, vector::{vector}.vector, text
FROM unnest($2::bytea[], $3::text[], $4::text[], $5::text[], $6::bytea[]) AS given (id, labels, metadata, vector, text)
"""
_DELETE_IDS = """
WITH gone AS (DELETE FROM vector_record WHERE collection = $1 AND id = ANY ($2::bytea[]) RETURNING 1)
SELECT count(*) FROM gone
"""
_DELETE = (
    "WITH gone AS (DELETE FROM vector_record WHERE collection = $1 {matching} RETURNING 1) SELECT count(*) FROM gone"
)
_TOGETHER: Final = 500
"""Records for each statement."""


def apply_upsert(cursor: Cursor, effect: VectorUpsert, now_ms: int) -> int:
    """See `vectors.appliers.apply_upsert`. The first upsert of all makes the table, and the extension before it.

    Raises: InvalidInput. StoreRefused: there is no extension, and it can't be made.
    """
    check_upsert(effect)
    state = find(cursor, effect.collection, hold=True)
    if state is not None and effect.replace is not None:
        _count(cursor, state, -_delete_matching(cursor, state, effect.replace), now_ms)
    if not effect.records:
        return 0
    ids = check_ids(effect.records)
    units = unit_rows([(f"vector of {record.id!r}", record.vector) for record in effect.records])
    check_dimensions("vectors", units.shape[1])
    state = _fit(cursor, effect, units.shape[1], now_ms)
    gone = _delete_ids(cursor, state, ids)
    for start in range(0, len(ids), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        _insert(cursor, state, effect.records[some], units[some])
    _count(cursor, state, len(ids) - gone, now_ms)
    return len(ids)


def apply_delete(cursor: Cursor, effect: VectorDelete, now_ms: int) -> int:
    """See `vectors.appliers.apply_delete`."""
    check_name(effect.collection)
    state = find(cursor, effect.collection, hold=True)
    if state is None:
        return 0
    gone = _delete_ids(cursor, state, effect.ids) if effect.ids else 0
    if effect.filter is not None:
        gone += _delete_matching(cursor, state, effect.filter)
    _count(cursor, state, -gone, now_ms)
    return gone


def _fit(cursor: Cursor, effect: VectorUpsert, dim: int, now_ms: int) -> State:
    """Return the collection that takes these vectors; makes it where there is none."""
    state = find(cursor, effect.collection, hold=True)
    if state is None:
        provide(cursor)
        cursor.execute(_CREATE, (effect.collection, dim, effect.model_id, now_ms))
        state = find(cursor, effect.collection, hold=True)
        assert state is not None
    if (state.dim, state.model_id) == (dim, effect.model_id):
        return state
    if state.records:
        raise does_not_fit(effect, dim, state)
    cursor.execute(_BEGIN_AGAIN, (state.id, dim, effect.model_id))
    return state._replace(dim=dim, model_id=effect.model_id)


def _insert(cursor: Cursor, state: State, records: Sequence[VectorRecord], units: NDArray[np.float32]) -> None:
    metadata = [labels.to_json(f"metadata of {record.id!r}", record.metadata) for record in records]
    cursor.execute(
        _INSERT.format(vector=state.schema),
        (
            state.id,
            [record.id.encode() for record in records],
            [as_array(state.id, labels.labels_of(record.metadata)) for record in records],
            metadata,
            [as_text(unit) for unit in units],
            [_utf8(record) for record in records],
        ),
    )


def _utf8(record: VectorRecord) -> bytes | None:
    try:
        return None if record.text is None else record.text.encode()
    except (UnicodeEncodeError, AttributeError) as exc:
        raise invalid(f"text of {record.id!r}", record.text, f"can't be stored ({exc})", "pass a text") from exc


def _delete_ids(cursor: Cursor, state: State, ids: Sequence[str]) -> int:
    gone: int = cursor.execute(_DELETE_IDS, (state.id, encoded(ids)))[0][0]
    return gone


def _delete_matching(cursor: Cursor, state: State, filter: dict[str, Any]) -> int:
    matching, values = conditions(state.id, filter)
    gone: int = cursor.execute(_DELETE.format(matching=matching), (state.id, *values))[0][0]
    return gone


def _count(cursor: Cursor, state: State, more: int, now_ms: int) -> None:
    cursor.execute(_COUNT, (state.id, more, now_ms))


def conditions(collection: int, filter: dict[str, Any]) -> tuple[str, list[str]]:
    """Return a filter as conditions of a statement whose first value is the collection, and their values.

    Raises: InvalidInput: see `labels.conditions_of`.
    """
    values = [as_array(collection, [(key, value) for value in wanted]) for key, wanted in labels.conditions_of(filter)]
    return " ".join(f"AND labels && ${n + 2}::text::uuid[]" for n in range(len(values))), values


def as_array(collection: int, lines: Iterable[tuple[str, str]]) -> str:
    """Return labels as the text of a uuid[]."""
    return "{" + ",".join(_hash(f"{collection}:{len(key)}:{key}{value}") for key, value in lines) + "}"


def _hash(label: str) -> str:
    return hashlib.blake2b(label.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def as_text(unit: NDArray[np.float32]) -> str:
    """Return a vector as pgvector reads it, to the last bit."""
    return "[" + ",".join([f"{x:.9g}" for x in unit.tolist()]) + "]"


def encoded(ids: Sequence[str]) -> list[bytes]:
    """Raises: InvalidInput: one is no text."""
    labels.to_json("ids", ids)
    return [id.encode() for id in ids]


__all__ = ["apply_delete", "apply_upsert", "as_text", "conditions", "encoded"]
