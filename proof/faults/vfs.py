"""A disk that tests can break: a VFS under every connection of this process, for the files of one folder.

What SQLite writes goes through to real files at once, so that the living process works as ever. Beside that, every
operation is kept in a log, from which `replay` makes what a power cut at any moment would have left; and a plan may let
any operation fail.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw

REAL = next(name for name in apsw.vfs_names() if not name.startswith("proof"))
_names = itertools.count()
_DIRECTORY_SYNCED_WITH = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


class Create(NamedTuple):
    """A name appears in the folder."""

    name: str
    file: int


class Delete(NamedTuple):
    name: str
    synced: bool  # the folder was synced with it


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    file: int
    failed: bool
    folder: bool  # the folder was synced too


class Mark(NamedTuple):
    """Something that was told to somebody at this moment."""

    what: Any


Entry = Create | Delete | Write | Truncate | Sync | Mark


class Fault(NamedTuple):
    """How an operation fails."""

    error: type[apsw.Error]
    share: float = 0.0  # how much of it is carried out all the same: all of a sync from 1 on, bytes of a write


class Operation(NamedTuple):
    number: int  # since the disk was told to break, from 1 on
    kind: str  # write, sync, truncate or delete
    name: str  # of the file
    end: int = 0  # of a write: where it ends in the file


Plan = Callable[[Operation], Fault | None]
"""Tells how an operation fails, if it does."""


class Disk:
    """One folder's disk. As a context it is under every connection that is opened meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[Entry] = []
        self.operations = 0
        self.failed = 0
        self.broke_at = 0  # length of the log when the first operation failed
        self._plan: Plan | None = None
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._files: dict[str, int] = {}
        self.start: dict[str, tuple[int, bytes]] = {}  # what lay there first, by name

    def __enter__(self) -> Disk:
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and not path.name.endswith("-shm"):
                self._files[path.name] = next(self._ids)
                self.start[path.name] = (self._files[path.name], path.read_bytes())
        self._system = FileSystem(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._system.unregister()

    def break_(self, plan: Plan) -> None:
        """Let operations fail by a plan that counts from now on."""
        self.operations, self._plan = 0, plan

    def heal(self) -> None:
        self._plan = None

    def mark(self, what: Any) -> None:
        with self._lock:
            self.log.append(Mark(what))

    def file(self, name: str) -> int:
        """The number of a file, for as long as it has this name."""
        if name not in self._files:
            self._files[name] = next(self._ids)
            self.log.append(Create(name, self._files[name]))
        return self._files[name]

    def carry_out(self, kind: str, name: str, end: int, perform: Callable[[float], Entry]) -> None:
        """Do an operation, as much of it as the plan lets through."""
        with self._lock:
            self.operations += 1
            fault = None if self._plan is None else self._plan(Operation(self.operations, kind, name, end))
            if fault is None:
                self.log.append(perform(1.0))
                return
            if not self.failed:
                self.broke_at = len(self.log)
            self.failed += 1
            if fault.share or kind == "sync":
                self.log.append(perform(fault.share))
            raise fault.error

    def forget(self, name: str) -> None:
        self._files.pop(name, None)


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: Any, flags: list[int]) -> None:
        self._disk = disk
        name = path.filename() if isinstance(path, apsw.URIFilename) else str(path or "")
        self._name = Path(name).name if name and Path(name).parent == disk.folder else None
        self._owes_folder = bool(flags[0] & _DIRECTORY_SYNCED_WITH and flags[0] & apsw.SQLITE_OPEN_CREATE)
        super().__init__(REAL, path, flags)
        if self._name is not None:
            disk.file(self._name)

    def xLock(self, level: int) -> None:  # noqa: N802
        try:
            super().xLock(level)
        except apsw.IOError:  # a reader that closes last tries to write-lock what it has open for reading
            raise apsw.BusyError from None

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        name = self._name
        if name is None:
            super().xWrite(data, offset)
            return

        def perform(share: float) -> Write:
            some = bytes(data)[: round(len(data) * share)]
            super(File, self).xWrite(some, offset)
            return Write(self._disk.file(name), offset, some)

        self._disk.carry_out("write", name, offset + len(data), perform)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        name = self._name
        if name is None:
            super().xTruncate(size)
            return

        def perform(share: float) -> Truncate:
            super(File, self).xTruncate(size)
            return Truncate(self._disk.file(name), size)

        self._disk.carry_out("truncate", name, 0, perform)

    def xSync(self, flags: int) -> None:  # noqa: N802
        name = self._name
        if name is None:
            super().xSync(flags)
            return

        def perform(share: float) -> Sync:
            done = share >= 1
            folder, self._owes_folder = done and self._owes_folder, self._owes_folder and not done
            return Sync(self._disk.file(name), not done, folder)  # the real file needs none: its loss is ours to make

        self._disk.carry_out("sync", name, 0, perform)


class FileSystem(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__(f"proof{next(_names)}", REAL, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> File:  # noqa: N802
        return File(self._disk, name, flags)

    def xDelete(self, path: str, sync: bool) -> None:  # noqa: N802
        if Path(path).parent != self._disk.folder:
            super().xDelete(path, sync)
            return

        def perform(share: float) -> Delete:
            super(FileSystem, self).xDelete(path, sync)
            self._disk.forget(Path(path).name)
            return Delete(Path(path).name, sync)

        self._disk.carry_out("delete", Path(path).name, 0, perform)
