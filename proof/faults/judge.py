"""What must hold in a file that a fault has left, given what was told to whom before.

Kinds of findings: corrupt, broken (an invariant), lost, untrue (an answer), half (done), stuck, twice.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import apsw
from tests.conformance.kit import OTHER

from mainspring.errors import TaskError
from mainspring.store.sql.transaction import Row
from mainspring.store.sqlite.connection import APPLICATION_ID
from mainspring.tasks.lifecycle import COMPLETED
from mainspring.testing import check_history
from proof.faults.replay import Image, put
from proof.faults.world import DIGEST, Final, Paused, Refused, Stored, Told, Trying, child_of
from proof.figures import Finding

FILE = "work.db"
MEMORY = Path("/dev/shm")  # nothing here rests on what a real disk does


class Promises:
    """What was told up to some moment."""

    def __init__(self, told: Iterable[Told] = ()) -> None:
        self.stored: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.final: dict[bytes, int] = {}
        self.paused: dict[str, bool | None] = {}
        self.wrong: list[str] = []  # whatever the store has done by then
        for one in told:
            self.take(one)

    def copy(self) -> Promises:
        return copy.deepcopy(self)

    def take(self, told: Told) -> None:
        if isinstance(told, Trying):
            self.refused -= set(told.ids)
        elif isinstance(told, Stored):
            self.stored |= set(told.ids)
        elif isinstance(told, Refused):
            self.refused |= set(told.ids) - self.stored
        elif isinstance(told, Final):
            if self.final.setdefault(told.id, told.status) != told.status:
                self.wrong.append(f"task {told.id.hex()} was told to have ended as {told.status} after another end")
        elif isinstance(told, Paused):
            self.paused[told.kind] = told.is_paused
        else:
            self.wrong.append(told.what)


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mainspring-proof-", dir=MEMORY if MEMORY.is_dir() else None)


Recover = Callable[[Path, Callable[[Told], None]], Awaitable[None]]
"""What the next process does on a file, and what it is told."""


def judge(image: Image, promises: Promises, *, recover: Recover | None = None, finished: bool = False) -> list[Finding]:
    """Look at a copy of what was left.

    Args:
        recover: then let the next process work on it, until nothing must be left to do.
        finished: nothing must be left to do already.
    """
    with scratch() as name:
        folder = Path(name)
        put(image, folder)
        found = look(folder / FILE, promises)
        if finished and not found:
            found = _unfinished(folder / FILE)
        if recover is not None and not found:
            found = asyncio.run(recovered(folder / FILE, promises, recover))
        return found


def look(path: Path, promises: Promises) -> list[Finding]:
    """Judge a file as it is. Nobody else may have it open."""
    found = [Finding("stuck", what) for what in promises.wrong]
    if not path.exists() or path.stat().st_size == 0:
        return found + [Finding("lost", f"all {len(promises.stored)} tasks")] * bool(promises.stored)
    try:
        connection = apsw.Connection(str(path), vfs="unix", flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            checked = connection.pragma("integrity_check")
            if checked != "ok":
                return [Finding("corrupt", str(checked).splitlines()[0])]
            if connection.pragma("application_id") != APPLICATION_ID:  # its first transaction is not there
                return found + [Finding("lost", f"all {len(promises.stored)} tasks")] * bool(promises.stored)
            found += [Finding("broken", str(broken)) for broken in check_history(connection, limit=3)]
            return [*found, *_broken_promises(connection, promises), *_half_done(connection)]
        finally:
            connection.close()
    except (apsw.CorruptError, apsw.NotADBError) as exc:
        return [Finding("corrupt", str(exc))]


def _broken_promises(connection: apsw.Connection, promises: Promises) -> Iterable[Finding]:
    there: dict[bytes, int] = dict(connection.execute("SELECT id, status FROM task"))
    gone: dict[bytes, int] = dict(connection.execute("SELECT id, status FROM tombstone"))
    everything = gone | there
    for id in promises.stored - everything.keys():
        yield Finding("lost", f"task {id.hex()} was acknowledged and is not there")
    for id in promises.refused & everything.keys():
        yield Finding("untrue", f"task {id.hex()} is there, though its caller was told that nothing was stored")
    for id, status in promises.final.items():
        if everything.get(id) != status:
            yield Finding("lost", f"task {id.hex()} was told to have ended as {status}, now {everything.get(id)}")
    paused = {row[0] for row in connection.execute("SELECT type FROM pause")}
    for kind, is_paused in promises.paused.items():
        if is_paused is not None and (kind in paused) != is_paused:
            yield Finding("lost", f"pause of {kind} was told to be {is_paused}")


_EFFECTS = """
SELECT task.id, task.status,
    (SELECT count(*) FROM note WHERE text = lower(hex(task.id))),
    (SELECT count(*) FROM vector_record WHERE id = lower(hex(task.id))),
    (SELECT count(*) FROM blob_key WHERE key = lower(hex(task.id))),
    (SELECT count(*) FROM payload_blob WHERE task = task.seq AND digest = ?)
FROM task JOIN class ON class.id = task.class WHERE class.type = ?
"""


def _half_done(connection: apsw.Connection) -> Iterable[Finding]:
    """Effects are there exactly where the completion is that they came with, once."""
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'note'").fetchone() is None:
        return  # an engine's own store: its tasks have other effects
    known = {row[0] for row in connection.execute("SELECT id FROM task UNION ALL SELECT id FROM tombstone")}
    for id, status, *counts in connection.execute(_EFFECTS, (DIGEST, OTHER)):
        is_done = status == COMPLETED
        child = child_of(id) in known
        joins = not any(counts) and child and is_done  # such a task has a child and nothing else
        if child != is_done or (counts != [int(is_done)] * 4 and not joins):
            yield Finding("half", f"task {id.hex()} has status {status}, effects {counts}, child {child}")


async def recovered(path: Path, promises: Promises, recover: Recover) -> list[Finding]:
    """Let two processes after each other work off what is left: for the second there must be nothing to do."""
    promises = promises.copy()
    found: list[Finding] = []
    before: list[object] = []
    for again in (False, True):
        try:
            await recover(path, promises.take)
        except TaskError as exc:
            return [Finding("stuck", f"can't be recovered: {exc!r}")]
        after = _dump(path)
        if again and after != before:
            found.append(Finding("twice", "a second recovery changed something"))
        before = after
    return [*found, *look(path, promises), *_unfinished(path)]


_STATE = [f"SELECT * FROM {table}" for table in ("task", "attempt", "edge", "tally", "tombstone", "cascade")]


def _dump(path: Path) -> list[object]:
    connection = apsw.Connection(str(path), vfs="unix", flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [connection.execute(sql).fetchall() for sql in _STATE]
    finally:
        connection.close()


def _unfinished(path: Path) -> list[Finding]:
    """Every task has ended, and at most one attempt of it with a final outcome."""
    connection = apsw.Connection(str(path), vfs="unix", flags=apsw.SQLITE_OPEN_READONLY)
    try:
        stuck: list[Row] = connection.execute("SELECT id, status, reason FROM task WHERE status < 2").fetchall()
        twice: list[Row] = connection.execute(
            "SELECT task FROM attempt WHERE outcome < 4 GROUP BY task HAVING count(*) > 1"
        ).fetchall()
    finally:
        connection.close()
    return [
        *(Finding("stuck", f"task {id.hex()} never ends: status {status}, reason {why}") for id, status, why in stuck),
        *(Finding("twice", f"task number {seq} has several final outcomes") for (seq,) in twice),
    ]


__all__ = ["Promises", "judge", "look"]
