"""The invariants of a store, checked: in its rows, in its blobs, and against what was seen from outside.

One checker for all: the simulator, crash and kill tests, backups, and `mainspring doctor --check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.store.base import MAX_CRASHES, MAX_RELEASES
from mainspring.store.sql.statements import named
from mainspring.store.sqlite.connection import look
from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import REASON_CODE, STATUS_CODE, TRANSITIONS
from mainspring.testing.events import Event, check_events
from mainspring.testing.violation import Violation

SQL: Final = named(__package__, "invariants.sql")
_EXTRA: Final = {
    "vectors": "vector_collection",
    "flights": "flight",
    "cache": "cache",
    "named_digests": "blob_key",
    "payload_digests": "payload_blob",
    "kept_digests": "cache",
}
"""Statements over tables that a store has only once somebody needed them."""
ROWS: Final = tuple(name for name in SQL if not name.endswith("_digests"))
_STATES: Final = sorted(
    {(STATUS_CODE[t.after.status], -1 if t.after.reason is None else REASON_CODE[t.after.reason]) for t in TRANSITIONS}
)


def check_history(
    store: str | Path | apsw.Connection,
    *,
    history: Sequence[Event] | None = None,
    blobs: BlobStore | None = None,
    limit: int = 20,
    slack_ms: int = 1_000,
) -> list[Violation]:
    """Return every invariant that the store breaks, with at most `limit` findings for each; none is a sound store.

    All of it is one look at one committed state, also while workers write; a file that is given by its path is only
    read. Memory stays small however many tasks there are. With `history`, what was seen from outside must agree with
    the rows; with `blobs`, every blob that a row refers to must be there. `slack_ms` is how far the clocks of the
    processes that wrote the store may have been apart.

    Raises: StoreDamaged, StoreForeign, StoreNewer, StoreUnavailable: the file at this path can't be checked.
    """
    if isinstance(store, apsw.Connection):
        return _check(store, history, blobs, limit, slack_ms)
    return look(Path(store), lambda connection: _check(connection, history, blobs, limit, slack_ms))


def _check(
    connection: apsw.Connection, history: Sequence[Event] | None, blobs: BlobStore | None, limit: int, slack_ms: int
) -> list[Violation]:
    values = {
        "states": msgspec.json.encode(_STATES).decode(),
        "max_crashes": MAX_CRASHES,
        "max_releases": MAX_RELEASES,
        "slack_ms": slack_ms,
    }
    found: list[Violation] = []
    with connection:  # one snapshot for all
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        for name in ROWS:
            if _EXTRA.get(name, "task") in tables:
                found += islice(_broken(connection, name, values), limit)
        if blobs is not None:
            found += islice(_missing_blobs(connection, tables, blobs), limit)
        if history is not None:
            found += islice(check_events(connection, history), limit)
    return found


def _broken(connection: apsw.Connection, invariant: str, values: dict[str, Any]) -> Iterator[Violation]:
    cursor = connection.execute(SQL[invariant], values)
    for id, what, *figures in cursor:
        names = [column[0] for column in cursor.get_description()[2:]]
        task = None if id is None else str(TaskId(id))
        yield Violation(invariant=invariant, task=task, what=what, figures=dict(zip(names, figures, strict=True)))


def _missing_blobs(connection: apsw.Connection, tables: set[str], blobs: BlobStore) -> Iterator[Violation]:
    for name in ("payload_digests", "named_digests", "kept_digests"):
        if _EXTRA[name] not in tables:
            continue
        for (digest,) in connection.execute(SQL[name]):
            if blobs.info(str(digest)) is None:
                what = f"blob that {_EXTRA[name]} refers to is missing"
                yield Violation(invariant="blobs", task=None, what=what, figures={"digest": digest})
