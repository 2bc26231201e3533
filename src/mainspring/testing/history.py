"""The invariants of a store, checked: in its rows, in its blobs, and against what was seen from outside.

One checker for files and servers, and for all who ask: the simulator, crash and kill tests, backups, `doctor --check`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from mainspring.blobs.base import BlobStore
from mainspring.config import MAX_DURATION_S, is_server, refuse_address
from mainspring.store.base import MAX_CRASHES, MAX_RELEASES
from mainspring.store.sqlite.connection import look
from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import REASON_CODE, STATUS_CODE, TRANSITIONS
from mainspring.testing.events import Event, check_events
from mainspring.testing.readable import unreadable
from mainspring.testing.references import contradicted
from mainspring.testing.rows import FILE_SQL, FileRows, Rows, ServerRows
from mainspring.testing.violation import Violation

if TYPE_CHECKING:
    from mainspring.store.postgres.session import Session

ROWS: Final = tuple(FILE_SQL)
_NEEDS: Final = {
    "vectors": "vector_record",
    "flights": "flight",
    "cache": "cache",
    "kept_size": "kept_size",
    "groups": "group_limit",
    "limits": "group_limit",
    "limit_values": "kept_size",  # came with the last columns of limits
    "news": "news",
}
"""Checks of tables that a store has only once somebody needed them."""
_DIGESTS: Final = ("payload_blob", "blob_key", "cache")
_PAGE: Final = 1_000
_STATES: Final = sorted(
    {(STATUS_CODE[t.after.status], -1 if t.after.reason is None else REASON_CODE[t.after.reason]) for t in TRANSITIONS}
)
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_WORD: Final = re.compile(r":([a-z]\w*)")


def check_history(
    store: str | Path | apsw.Connection | Session,
    *,
    history: Sequence[Event] | None = None,
    blobs: BlobStore | None = None,
    limit: int = 20,
    slack_ms: int = 1_000,
) -> list[Violation]:
    """Return every invariant that the store breaks, with at most `limit` findings for each; none is a sound store.

    All of it is one look at one committed state, also while workers write; a store that is given by its path or its
    address is only read. Memory stays small however many tasks there are. With `history`, what was seen from outside
    must agree with the rows; with `blobs`, every blob that a row refers to must be there. `slack_ms` is how far the
    clocks of the processes that wrote the store may have been apart. A session of a server must be within a snapshot.

    Raises: StoreDamaged, StoreForeign, StoreNewer, StoreReadOnly, StoreRefused, StoreUnavailable: it can't be checked.
    """

    def in_file(connection: apsw.Connection) -> list[Violation]:
        found: list[Violation] = []
        with connection:
            found += _check(FileRows(connection), history, blobs, limit, slack_ms)
        return found

    def on_server(session: Session) -> list[Violation]:
        return _check(ServerRows(session), history, blobs, limit, slack_ms)

    def on_server_now(session: Session) -> list[Violation]:
        with session.snapshot() as moment:
            return on_server(moment)

    if isinstance(store, apsw.Connection):
        return in_file(store)
    if not isinstance(store, (str, Path)):
        return on_server(store)
    refuse_address("store", store)
    if not is_server(store):
        return look(Path(store), in_file)
    from mainspring.store.postgres.looking import look as look_there

    return look_there(str(store), on_server_now)


def _check(
    rows: Rows, history: Sequence[Event] | None, blobs: BlobStore | None, limit: int, slack_ms: int
) -> list[Violation]:
    words = {
        "states": ", ".join(map(str, _STATES)),
        "max_crashes": str(MAX_CRASHES),
        "max_releases": str(MAX_RELEASES),
        "slack_ms": str(int(slack_ms)),
        "longest_ms": str(int(MAX_DURATION_S * 1000)),
    }
    found: list[Violation] = []
    for name in ROWS:
        if _NEEDS.get(name, "task") in rows.tables:
            found += _broken(rows, name, words, limit)
    found += unreadable(rows, limit)
    found += contradicted(rows, limit)
    if blobs is not None:
        found += islice(_unsound_blobs(rows, blobs), limit)
    if history is not None:
        found += islice(check_events(rows, history), limit)
    return found


def _broken(rows: Rows, invariant: str, words: Mapping[str, str], limit: int) -> Iterator[Violation]:
    def word(match: re.Match[str]) -> str:
        return words[match[1]] if match[1] in words else rows.words[match[1]]

    for names, (id, what, *figures) in rows.find(_WORD.sub(word, rows.invariants[invariant]), limit):
        task = None if id is None else str(TaskId(id)) if len(id) == 16 else bytes(id).hex()
        yield Violation(invariant=invariant, task=task, what=what, figures=dict(zip(names[2:], figures, strict=True)))


def _unsound_blobs(rows: Rows, blobs: BlobStore) -> Iterator[Violation]:
    """Each is read: whether its content is what its name says is seen nowhere else before somebody needs it."""
    for table in _DIGESTS:
        if table not in rows.tables:
            continue
        for digest in digests_in(rows, table):
            if (fault := blobs.fault(digest)) is not None:
                is_there = not _DIGEST.fullmatch(digest) or blobs.info(digest)
                how = f"can't be read: {fault}" if is_there else "is missing"
                what = f"blob that {table} refers to {how}"
                yield Violation(invariant="blobs", task=None, what=what, figures={"digest": digest})


def referred(rows: Rows) -> int:
    """Return how many blobs the rows refer to."""
    tables = [table for table in _DIGESTS if table in rows.tables]
    return sum(1 for table in tables for _ in digests_in(rows, table))


def digests_in(rows: Rows, table: str) -> Iterator[str]:
    """Yield the blobs that a table refers to, each once, a page at a time."""
    sql = f"SELECT DISTINCT digest FROM {table} WHERE digest > $1 ORDER BY digest LIMIT {_PAGE}"  # noqa: S608 - of ours
    yield from (str(digest) for (digest,) in rows.ask(sql.replace("> $1", "= $1"), ""))
    after = ""
    while page := [str(digest) for (digest,) in rows.ask(sql, after)]:
        yield from page
        after = page[-1]
