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
from mainspring.store.sql.inspection import Facts, WorkerFacts, look_at_queue
from mainspring.store.sql.statements import named
from mainspring.store.sqlite.bell import turning
from mainspring.store.sqlite.connection import filesystem

SQL: Final = named(__package__, "inspection.sql")
_PASSING_S: Final = 3.0
_DAMAGES: Final = 20
T = TypeVar("T")


class File(msgspec.Struct, frozen=True, kw_only=True):
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


class FileWorkerFacts(WorkerFacts, frozen=True, kw_only=True):
    """It is alive where its lock is held."""

    is_here: bool  # on this machine
    has_file: bool | None  # it has this very file open, and not one that was here before


class FileFacts(Facts, frozen=True, kw_only=True):
    file: File
    workers: tuple[FileWorkerFacts, ...]
    strangers: tuple[str, ...]  # processes that live beside this store and don't stand in it


def inspect(connection: apsw.Connection, path: Path, *, grace_s: float, turn_s: float) -> FileFacts:
    """Return what there is to know now. A process whose loop does not turn within `turn_s` is told as silent."""
    folder = path.with_name(path.name + "-live")

    def ask(name: str, *values: Any) -> list[Any]:
        return connection.execute(SQL[name], values).fetchall()

    with connection:
        workers = ask("living")
        queue = look_at_queue(ask, SYSTEM.wall_ms(), grace_s)
        file = _file(connection, path)
    alive = {str(row[0]) for row in workers if is_held(folder / f"{row[0]}.life")}
    turns = turning(folder, sorted(alive), turn_s)
    return FileFacts(
        **msgspec.structs.asdict(queue),
        file=file,
        workers=tuple(_worker(row, row[0] in alive, turns.get(str(row[0])), path) for row in workers),
        strangers=tuple(settled(lambda: _strangers(connection, folder))),
        is_led=not alive or not settled(lambda: not is_held(folder / "leader.lock")),
    )


def settled(found: Callable[[], T]) -> T:
    """Return what is still found after some seconds, or nothing as soon as nothing is: what passes is no fact."""
    until = SYSTEM.monotonic() + _PASSING_S
    while (what := found()) and SYSTEM.monotonic() < until:
        SYSTEM.sleep(0.02)
    return what


def _strangers(connection: apsw.Connection, folder: Path) -> list[str]:
    return [name for name in living_names(folder) if not connection.execute(SQL["is_known"], (name,)).fetchall()]


def unfinished(connection: apsw.Connection) -> int:
    """Return how many tasks have not ended."""
    rows: list[Any] = connection.execute(SQL["unfinished"]).fetchall()
    return int(rows[0][0])


def integrity(connection: apsw.Connection, *, is_thorough: bool) -> list[str]:
    """Return what SQLite's own check finds wrong. The thorough one also compares indexes with their rows."""
    pragma = "integrity_check" if is_thorough else "quick_check"
    found = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}({_DAMAGES})")]
    return [] if found == ["ok"] else found


def _file(connection: apsw.Connection, path: Path) -> File:
    log = path.with_name(path.name + "-wal")
    disk = shutil.disk_usage(path.parent)
    about = path.stat()
    return File(
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


def _worker(row: Any, is_alive: bool, turns: bool | None, path: Path) -> FileWorkerFacts:
    name, pid, host, started_ms, held, types = row
    is_here = host == socket.gethostname()
    return FileWorkerFacts(
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
