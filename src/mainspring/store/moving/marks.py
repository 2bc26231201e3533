"""What a store keeps of moves, into it and out of it, and who may not open it for that.

The table is made by the first move. The row of a target comes first and says how far it is: until it has ended no
engine opens that. The row of the source comes when all is there and was compared: from then on no engine opens the
source.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from mainspring.errors import StoreMoved, StoreUnavailable

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS migration (
    id       text   NOT NULL,   -- of the move: the same on both ends
    role     text   NOT NULL,   -- source or target
    other    text   NOT NULL,   -- where the other end is
    origin   text   NOT NULL,   -- tells what the source held from what it holds when anybody has opened it since
    began_ms bigint NOT NULL,
    ended_ms bigint,            -- of a source: since when its tasks are elsewhere
    pages    text   NOT NULL,   -- how far each table is, in MessagePack, in hexadecimal digits
    PRIMARY KEY (id, role)
)
"""
READ: Final = "SELECT id, role, other, origin, began_ms, ended_ms, pages FROM migration ORDER BY began_ms"
PUT: Final = (
    "INSERT INTO migration (id, role, other, origin, began_ms, ended_ms, pages) VALUES ($1, $2, $3, $4, $5, $6, $7)"
)
TURN: Final = "UPDATE migration SET pages = $1 WHERE id = $2 AND role = 'target'"
END: Final = "UPDATE migration SET ended_ms = $1 WHERE id = $2 AND role = 'target'"


class Mark(msgspec.Struct, frozen=True):
    """One row."""

    id: str
    role: str
    other: str
    origin: str
    began_ms: int
    ended_ms: int | None = None
    pages: str = ""


class Place(msgspec.Struct, frozen=True):
    """How far a table is copied."""

    rows: int = 0
    after: tuple[Any, ...] | None = None  # key of the last row
    is_done: bool = False


def places_of(mark: Mark) -> dict[str, Place]:
    return msgspec.msgpack.decode(bytes.fromhex(mark.pages), type=dict[str, Place]) if mark.pages else {}


def as_pages(places: dict[str, Place]) -> str:
    return msgspec.msgpack.encode(places).hex()


def moved_away(marks: Iterable[Mark]) -> Mark | None:
    """Return the mark of a source whose tasks are elsewhere."""
    return next((mark for mark in marks if mark.role == "source"), None)


def arriving(marks: Iterable[Mark]) -> Mark | None:
    """Return the mark of a target that is not whole yet."""
    return next((mark for mark in marks if mark.role == "target" and mark.ended_ms is None), None)


def refuse_moved(shown: str, marks: list[Mark]) -> None:
    """Raises: StoreMoved: the store's tasks are elsewhere. StoreUnavailable: they are still on their way here."""
    if (away := moved_away(marks)) is not None:
        raise StoreMoved(
            f"{shown} was moved to {away.other} on {_date(away.ended_ms or away.began_ms)}; open that one",
            field="store",
            value=away.other,
        )
    if (coming := arriving(marks)) is not None:
        raise StoreUnavailable(
            f"{shown} is being filled from {coming.other} since {_date(coming.began_ms)} and is not whole yet; let "
            "`mainspring migrate` come to its end, or run it again",
            field="store",
            value=coming.other,
        )


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
