"""Labels: metadata in the form that filters are looked up by, one line for each top-level key."""

from __future__ import annotations

import hashlib
from typing import Any

import apsw
import msgspec

from mainspring.errors import InvalidInput, invalid

_INSERT = "INSERT INTO vector_label (collection, row, key, value) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM vector_label WHERE collection = ? AND row = ? AND key = ? AND value = ?"

# One text instead of one row for each match: three times faster where there are many.
_MATCHES = """
SELECT json_group_array(row) FROM vector_label AS label
WHERE collection = :collection AND key = :key AND value IN (SELECT value FROM json_each(:values))
"""
_AND = """
AND EXISTS (
    SELECT 1 FROM vector_label AS other
    WHERE other.collection = :collection AND other.key = :key{n}
        AND other.value IN (SELECT value FROM json_each(:values{n})) AND other.row = label.row
)
"""
_ALL = "SELECT json_group_array(row) FROM vector_record INDEXED BY vector_record_order WHERE collection = :collection"

# How many there are, as far as the order of the conditions depends on it.
_ROUGH_COUNT = """
SELECT count(*) FROM (
    SELECT 1 FROM vector_label
    WHERE collection = ? AND key = ? AND value IN (SELECT value FROM json_each(?)) LIMIT 10000
)
"""
_LONGEST = 128  # characters; longer values are looked up by their hash
_WHOLE = 2.0**53  # up to here floats are whole numbers exactly


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-like")


_json = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")


def to_json(field: str, value: Any) -> str:
    """Return the same text for equal values. Raises: InvalidInput: not JSON-like."""
    try:
        return _json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise invalid(field, value, f"can't be stored ({exc})", "pass JSON-like values") from exc


def _label(field: str, value: Any) -> str:
    if type(value) is str and len(value) < _LONGEST:
        return "'" + value  # no JSON begins so, and most values are short texts
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        value = int(value)  # 1.0 and 1 are equal
    text = to_json(field, value)
    return text if len(text) <= _LONGEST else hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def labels_of(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (key, value) for each top-level key. Raises: InvalidInput: not JSON-like, or a key is no text."""
    for key in metadata:
        if not isinstance(key, str):
            raise invalid("metadata", key, "is no text and can't be a key", "use str keys")
    return [(key, _label(f"metadata[{key!r}]", value)) for key, value in metadata.items()]


def insert(cursor: apsw.Cursor, collection: int, labels: list[tuple[int, str, str]]) -> None:
    """Add labels given as (row, key, value)."""
    cursor.executemany(_INSERT, [(collection, *label) for label in labels])


def delete(cursor: apsw.Cursor, collection: int, removed: list[tuple[int, str]]) -> None:
    """Take away the labels of records given as (row, metadata as stored)."""
    gone = [
        (collection, row, key, value)
        for row, metadata in removed
        for key, value in labels_of(msgspec.json.decode(metadata))
    ]
    cursor.executemany(_DELETE, gone)


def matching_rows(cursor: apsw.Cursor, collection: int, filter: dict[str, Any]) -> list[int]:
    """Return the rows whose metadata has, for every key, the value or one of the listed values. `{}` matches all.

    Numbers match by value (1 and 1.0), never across kinds (1, "1" and true differ). A list in the metadata is matched
    by a list that contains it.

    Raises: InvalidInput: the filter is no mapping of keys to JSON-like values.
    """
    conditions = [(key, to_json("filter", values)) for key, values in conditions_of(filter)]
    if len(conditions) > 1:  # the rarest leads, the others are looked up for its rows alone
        conditions.sort(key=lambda condition: cursor.execute(_ROUGH_COUNT, (collection, *condition)).get)
    bindings: dict[str, int | str] = {"collection": collection}
    statement = _ALL
    for n, (key, values) in enumerate(conditions):
        statement = _MATCHES if n == 0 else statement + _AND.format(n=n)
        suffix = "" if n == 0 else str(n)
        bindings |= {f"key{suffix}": key, f"values{suffix}": values}
    rows: list[int] = msgspec.json.decode(cursor.execute(statement, bindings).get)
    return rows


def conditions_of(filter: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what a filter asks: key and labels, of which a record must have one for every key.

    Raises: InvalidInput: it is no mapping of keys to JSON-like values.
    """
    if not isinstance(filter, dict) or not all(isinstance(key, str) for key in filter):
        raise invalid("filter", filter, "is no mapping of metadata keys", "pass {key: value} or {key: [value, value]}")
    if len(filter) > 32:
        raise InvalidInput(f"filter has {len(filter)} keys; use at most 32", field="filter", value=filter)
    conditions = []
    for key, wanted in filter.items():
        values = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
        conditions.append((key, [_label(f"filter[{key!r}]", value) for value in values]))
    return conditions
