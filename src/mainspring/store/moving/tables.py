"""Which tables move, in which order, and by which key. No table and no column is left behind unsaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mainspring.errors import StoreRefused

Columns = Mapping[str, Sequence[str]]
"""The columns of each table."""

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "class": ("id",),
    "worker": ("id",),
    "serves": ("worker", "type"),
    "handler": ("type", "version"),
    "pause": ("namespace", "type", "grp"),
    "group_limit": ("id",),
    "task": ("seq",),
    "attempt": ("task", "number"),
    "edge": ("child", "n"),
    "stands_for": ("task", "n"),
    "cascade": ("task",),
    "idempotency": ("namespace", "key"),
    "retried": ("task",),
    "tombstone": ("id",),
    "progress": ("task",),
    "payload_blob": ("digest", "task"),
    "blob_key": ("namespace", "key"),
    "audit": ("n",),
    "cache": ("key",),
    "flight": ("task",),
    "tally": ("class", "status"),
}
"""Tables whose rows move as they are, each with the key that its pages go by."""
OTHERWISE: Final = {
    "vector_collection": "by vectors.copy_collection",
    "vector_record": "by vectors.copy_collection",
    "vector_label": "made anew from the records",
    "vector_tombstone": "tells other processes what to drop from memory; nobody remembers anything of the target",
    "sqlite_sequence": "as the next numbers of the tables that it counts for",
    "migration": "is about this store and its own moves",
    "offer": "is what processes say that are alive now",
    "news": "is for processes that are alive now",
    "usage": "is of processes that are alive now",
    "inbox": "is taken in before: a move begins when it is empty",
    "store": "is about this one alone",
    "kept_size": "is counted anew as the kept results come in",
}
"""Tables that don't, and what becomes of what they hold."""
ONE_SIDED: Final[dict[str, frozenset[str]]] = {
    "worker": frozenset({"beat", "turns", "revoked", "is_lost", "running"}),
    "tally": frozenset({"worker"}),
}
"""Columns that only a server has: signs of life, and who counted what; parts are added up."""
INCIDENTAL: Final = frozenset({"class", "worker", "serves", "handler", "tally", "audit"})
"""What a store holds that was only tried out: it makes way."""


class Table(NamedTuple):
    name: str
    columns: tuple[str, ...]
    key: tuple[int, ...]  # places of the key among them


def plan(source: Columns, target: Columns) -> list[Table]:
    """Return what to copy. Raises StoreRefused: an end has what the other can't take, or what nobody knows."""
    tables = []
    for name in (*source, *target):
        if name not in KEYS and name not in OTHERWISE:
            raise _unknown(f"table {name}")
    for name, key in KEYS.items():
        here, there = (set(end.get(name, ())) - ONE_SIDED.get(name, frozenset()) for end in (source, target))
        if here != there:
            raise _unknown(f"column {', '.join(sorted(here ^ there))} of table {name}")
        columns = tuple(sorted(here))
        tables.append(Table(name, columns, tuple(columns.index(column) for column in key)))
    return tables


def _unknown(what: str) -> StoreRefused:
    return StoreRefused(
        f"{what} is not on both sides, or is none of Mainspring's; nothing was moved: update mainspring here, or move "
        "the other program's tables elsewhere"
    )
