"""Appliers: vector effects become rows, within the transaction that completes a task.

The caller owns the transaction and rolls back when something is raised. There is one writer at a time: SQLite's rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from mainspring.tasks import VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors import labels
from mainspring.vectors.checks import check_dimensions, check_ids, check_name, check_upsert, does_not_fit
from mainspring.vectors.unit import unit_rows

SCHEMA: Final = Path(__file__).with_name("schema.sql").read_text("utf-8")
"""Made by whoever opens the file for writing; safe to run again."""

_FIND = "SELECT id, name, dim, model_id, version, floor, records, updated_ms FROM vector_collection WHERE name = ?"
_CREATE = "INSERT INTO vector_collection (name, dim, model_id, updated_ms) VALUES (?, ?, ?, ?)"
# An emptied collection may begin again with another model; every copy of it must be read anew.
_BEGIN_AGAIN = "UPDATE vector_collection SET dim = ?, model_id = ?, floor = version WHERE id = ? AND records = 0"
_NEXT_VERSION = """
UPDATE vector_collection SET version = version + 1, records = records + ?, updated_ms = ? WHERE id = ? RETURNING version
"""

_INSERT = "INSERT INTO vector_record (collection, id, metadata, vector, text) VALUES (?, ?, ?, ?, ?) RETURNING row"
_ROWS_OF_IDS = "SELECT row FROM vector_record WHERE collection = ? AND id IN (SELECT value FROM json_each(?))"
_DELETE = "DELETE FROM vector_record WHERE row IN (SELECT value FROM json_each(?)) RETURNING row, metadata"

_BURY = "INSERT INTO vector_tombstone (collection, version, row) VALUES (?, ?, ?)"
_OLD = "SELECT version FROM vector_tombstone WHERE collection = ? ORDER BY version DESC LIMIT 1 OFFSET ?"
_FORGET = "DELETE FROM vector_tombstone WHERE collection = ? AND version <= ?"
_RAISE_FLOOR = "UPDATE vector_collection SET floor = ? WHERE id = ?"

TOMBSTONES: Final = 10_000
"""Deletions remembered for each collection; a process that missed more reads the collection anew."""
_TIDY_EVERY = 64  # versions; looking for old tombstones walks over the young ones


class State(NamedTuple):
    """A collection's row."""

    id: int
    name: str
    dim: int
    model_id: str | None
    version: int
    floor: int
    records: int
    updated_ms: int


def find(cursor: apsw.Cursor, name: str) -> State | None:
    row: Any = cursor.execute(_FIND, (name,)).fetchone()
    return None if row is None else State(*row)


def apply_upsert(cursor: apsw.Cursor, effect: VectorUpsert, now_ms: int) -> int:
    """Write the records in place of those with the same ids, and of those that `replace` matches.

    The first upsert creates the collection and fixes dimension and model; a collection without records may change both.

    Returns: how many records were written.
    Raises: InvalidInput: another dimension or model than the collection's; a vector that is not finite, zero or
        longer than any store takes; an id that is empty, too long or there twice; metadata that is not JSON-like.
    """
    check_upsert(effect)
    state = find(cursor, effect.collection)
    if state is not None and effect.replace is not None:
        _remove(cursor, state, labels.matching_rows(cursor, state.id, effect.replace), now_ms)
    if not effect.records:
        return 0
    ids = check_ids(effect.records)
    units = unit_rows([(f"vector of {record.id!r}", record.vector) for record in effect.records])
    check_dimensions("vectors", units.shape[1])
    state = _fit(cursor, effect, units.shape[1], now_ms)
    _remove(cursor, state, _rows_of(cursor, state, ids), now_ms)
    _insert(cursor, state, effect.records, units, now_ms)
    return len(effect.records)


def apply_delete(cursor: apsw.Cursor, effect: VectorDelete, now_ms: int) -> int:
    """Delete the records with these ids and those that the filter matches; `filter={}` matches all.

    What is not there is no error, an unknown collection neither.

    Returns: how many records were deleted.
    Raises: InvalidInput: the filter can't be understood.
    """
    check_name(effect.collection)
    state = find(cursor, effect.collection)
    if state is None:
        return 0
    rows = set(_rows_of(cursor, state, effect.ids))
    if effect.filter is not None:
        rows.update(labels.matching_rows(cursor, state.id, effect.filter))
    return _remove(cursor, state, sorted(rows), now_ms)


def _fit(cursor: apsw.Cursor, effect: VectorUpsert, dim: int, now_ms: int) -> State:
    """Return the collection that takes these vectors; makes it where there is none."""
    state = find(cursor, effect.collection)
    if state is None:
        cursor.execute(_CREATE, (effect.collection, dim, effect.model_id, now_ms))
    elif (state.dim, state.model_id) == (dim, effect.model_id):
        return state
    elif state.records == 0:
        cursor.execute(_BEGIN_AGAIN, (dim, effect.model_id, state.id))
    else:
        raise does_not_fit(effect, dim, state)
    state = find(cursor, effect.collection)
    assert state is not None
    return state


def _rows_of(cursor: apsw.Cursor, state: State, ids: Sequence[str]) -> list[int]:
    found: list[Any] = cursor.execute(_ROWS_OF_IDS, (state.id, labels.to_json("ids", ids))).fetchall()
    return [row for (row,) in found]


def _insert(cursor: apsw.Cursor, state: State, records: tuple[VectorRecord, ...], units: Any, now_ms: int) -> None:
    values = [
        (
            state.id,
            record.id,
            labels.to_json(f"metadata of {record.id!r}", record.metadata),
            unit.tobytes(),
            record.text,
        )
        for record, unit in zip(records, units, strict=True)
    ]
    rows: list[Any] = cursor.executemany(_INSERT, values).fetchall()
    lines = [
        (row, key, value)
        for (row,), record in zip(rows, records, strict=True)
        for key, value in labels.labels_of(record.metadata)
    ]
    labels.insert(cursor, state.id, lines)
    _next_version(cursor, state, now_ms, len(records))


def _remove(cursor: apsw.Cursor, state: State, rows: list[int], now_ms: int) -> int:
    if not rows:
        return 0
    removed: list[Any] = cursor.execute(_DELETE, (labels.to_json("rows", rows),)).fetchall()
    labels.delete(cursor, state.id, removed)
    version = _next_version(cursor, state, now_ms, -len(removed))
    cursor.executemany(_BURY, [(state.id, version, row) for row, _ in removed])
    if version % _TIDY_EVERY == 0:
        _forget_old(cursor, state)
    return len(removed)


def _next_version(cursor: apsw.Cursor, state: State, now_ms: int, more: int) -> int:
    version: int = cursor.execute(_NEXT_VERSION, (more, now_ms, state.id)).get
    return version


def _forget_old(cursor: apsw.Cursor, state: State) -> None:
    old = cursor.execute(_OLD, (state.id, TOMBSTONES)).get
    if old is not None:
        cursor.execute(_RAISE_FLOOR, (old, state.id))
        cursor.execute(_FORGET, (state.id, old))
