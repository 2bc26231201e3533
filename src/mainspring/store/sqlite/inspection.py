"""A store seen from outside: its file, who has it open, what waits and why. Facts only; `doctor` judges them.

Nothing is changed, and nobody is kept from working: rows are read in one snapshot, locks are tried and let go, and live
processes get a wake-up that they get a hundred times a minute anyway.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from mainspring.environment import SYSTEM
from mainspring.store.liveness import is_held, living_names
from mainspring.store.sql.statements import named
from mainspring.store.sqlite.bell import turning
from mainspring.store.sqlite.connection import filesystem
from mainspring.tasks import TaskId

SQL: Final = named(__package__, "inspection.sql")
COUNT_LIMIT: Final = 10_000
"""Ready tasks of one class that are counted; more are said to be more."""
_OVERRUN_LIMIT: Final = 100
_PASSING_S: Final = 3.0
_DAMAGES: Final = 20
T = TypeVar("T")


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    bytes: int
    log_bytes: int  # of the write-ahead log
    page_size: int
    pages: int
    free_pages: int  # inside the file, used again before it grows
    schema: int
    filesystem: str  # empty where the system does not tell
    names: int  # of the file: more than one are hard links
    disk_bytes: int
    disk_free_bytes: int


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A process that opened the store and has not signed off."""

    name: str
    pid: int
    host: str
    is_here: bool  # on this machine
    started_ms: int
    held: int  # claims
    types: tuple[str, ...]  # that it serves
    is_alive: bool  # its lock is held
    turns: bool | None  # its loop read a wake-up in time; None where that can't be told
    has_file: bool | None  # it has this very file open, and not one that was here before


class ClassFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Unfinished tasks of one kind."""

    namespace: str
    type: str
    group: str
    unfinished: int
    ready: int  # up to COUNT_LIMIT
    ready_since_ms: int | None  # of the next one in line
    pause: str | None  # what keeps it from starting


class HandlerFacts(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    version: str
    lane: str
    timeout_s: float | None
    seen_ms: int


class Overrun(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that may have run for longer than it may."""

    task: str  # its id
    type: str
    worker: str
    timeout_ms: int
    at_most_ms: int  # that it has run


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    file: FileFacts
    now_ms: int  # by this machine's clock
    newest_ms: int  # the newest time in the store
    unfinished: int
    workers: tuple[WorkerFacts, ...]
    strangers: tuple[str, ...]  # processes that live beside this store and don't stand in it
    is_led: bool  # a process does the upkeep, or none is alive
    classes: tuple[ClassFacts, ...]
    handlers: tuple[HandlerFacts, ...]
    overruns: tuple[Overrun, ...]
    travelling: int  # ends that have not reached all descendants
    late_ms: int | None  # when the first delay or deadline fell due that still waits


def inspect(connection: apsw.Connection, path: Path, *, grace_s: float, turn_s: float) -> Facts:
    """Return what there is to know now. A process whose loop does not turn within `turn_s` is told as silent."""
    folder = path.with_name(path.name + "-live")
    with connection:
        workers = connection.execute(SQL["living"]).fetchall()
        now_ms = SYSTEM.wall_ms()
        pauses = connection.execute(SQL["pauses"]).fetchall()
        classes = connection.execute(SQL["classes"], (COUNT_LIMIT,)).fetchall()
        handlers = connection.execute(SQL["handlers"]).fetchall()
        overruns = connection.execute(SQL["overrun"], (now_ms, int(grace_s * 1000), _OVERRUN_LIMIT)).fetchall()
        due = [ms for ms in _first(connection, "late") if ms is not None]
        newest, waiting, travelling = (
            _first(connection, name)[0] or 0 for name in ("newest", "unfinished", "travelling")
        )
        file = _file(connection, path)
    alive = {str(row[0]) for row in workers if is_held(folder / f"{row[0]}.life")}
    turns = turning(folder, sorted(alive), turn_s)
    return Facts(
        file=file,
        now_ms=now_ms,
        newest_ms=newest,
        unfinished=waiting,
        workers=tuple(_worker(row, row[0] in alive, turns.get(str(row[0])), path) for row in workers),
        strangers=tuple(settled(lambda: _strangers(connection, folder))),
        is_led=not alive or not settled(lambda: not is_held(folder / "leader.lock")),
        classes=tuple(_class(row, pauses) for row in classes),
        handlers=tuple(_handler(row) for row in handlers),
        overruns=tuple(_overrun(row) for row in overruns),
        travelling=travelling,
        late_ms=min(due, default=None),
    )


def settled(found: Callable[[], T]) -> T:
    """Return what is still found after some seconds, or nothing as soon as nothing is: what passes is no fact."""
    until = SYSTEM.monotonic() + _PASSING_S
    while (what := found()) and SYSTEM.monotonic() < until:
        SYSTEM.sleep(0.02)
    return what


def _strangers(connection: apsw.Connection, folder: Path) -> list[str]:
    return [name for name in living_names(folder) if not connection.execute(SQL["is_known"], (name,)).fetchall()]


def _first(connection: apsw.Connection, name: str) -> Any:
    return connection.execute(SQL[name]).fetchone()


def unfinished(connection: apsw.Connection) -> int:
    """Return how many tasks have not ended."""
    return int(_first(connection, "unfinished")[0])


def integrity(connection: apsw.Connection, *, is_thorough: bool) -> list[str]:
    """Return what SQLite's own check finds wrong. The thorough one also compares indexes with their rows."""
    pragma = "integrity_check" if is_thorough else "quick_check"
    found = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}({_DAMAGES})")]
    return [] if found == ["ok"] else found


def _file(connection: apsw.Connection, path: Path) -> FileFacts:
    log = path.with_name(path.name + "-wal")
    disk = shutil.disk_usage(path.parent)
    about = path.stat()
    return FileFacts(
        path=str(path),
        bytes=about.st_size,
        log_bytes=log.stat().st_size if log.exists() else 0,
        page_size=int(connection.pragma("page_size") or 0),
        pages=int(connection.pragma("page_count") or 0),
        free_pages=int(connection.pragma("freelist_count") or 0),
        schema=int(connection.pragma("user_version") or 0),
        filesystem=filesystem(path.parent),
        names=about.st_nlink,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
    )


def _worker(row: Any, is_alive: bool, turns: bool | None, path: Path) -> WorkerFacts:
    name, pid, host, started_ms, held, types = row
    is_here = host == socket.gethostname()
    return WorkerFacts(
        name=name,
        pid=pid,
        host=host,
        is_here=is_here,
        started_ms=started_ms,
        held=held,
        types=tuple(sorted((types or "").split())),
        is_alive=is_alive,
        turns=turns,
        has_file=_has_open(pid, path) if is_alive and is_here else None,
    )


def _has_open(pid: int, path: Path) -> bool | None:
    """Whether a process has this very file open; None where the system does not tell."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    return any(_is_same(f"/proc/{pid}/fd/{number}", path) for number in numbers)


def _is_same(link: str, path: Path) -> bool:
    try:
        return os.path.samefile(link, path)
    except OSError:  # closed meanwhile
        return False


def _class(row: Any, pauses: list[Any]) -> ClassFacts:
    namespace, kind, group, unfinished, ready, since = row
    pause = next(
        (
            ", ".join(value for value in one if value) or "everything"
            for one in pauses
            if all(a in ("", b) for a, b in zip(one, (namespace, kind, group), strict=True))
        ),
        None,
    )
    return ClassFacts(
        namespace=namespace,
        type=kind,
        group=group,
        unfinished=unfinished,
        ready=ready,
        ready_since_ms=since,
        pause=pause,
    )


def _overrun(row: Any) -> Overrun:
    id, kind, worker, timeout, most = row
    return Overrun(task=str(TaskId(id)), type=kind, worker=worker, timeout_ms=timeout, at_most_ms=most)


def _handler(row: Any) -> HandlerFacts:
    kind, version, lane, options, seen_ms = row
    timeout = msgspec.json.decode(options).get("timeout")
    return HandlerFacts(type=kind, version=version, lane=lane, timeout_s=timeout, seen_ms=seen_ms)
