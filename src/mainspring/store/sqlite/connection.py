"""Opening the file: only what is ours, whole and not newer is touched; anything else is refused and left as it is."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import apsw

from mainspring.config import MIB, StoreConfig
from mainspring.environment import HERE
from mainspring.errors import (
    StoreDamaged,
    StoreForeign,
    StoreNewer,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
)
from mainspring.store.liveness import living_names
from mainspring.store.sqlite.statements import MIGRATIONS, SCHEMA, schema_of

APPLICATION_ID = 0x4D53_5052  # "MSPR"
SCHEMA_VERSION = 8
_NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph"})
INCREMENTAL = 2
_CACHE_KIB, _READER_CACHE_KIB = 32 * 1024, 16 * 1024
"""Of pages that a connection keeps in memory, once it has seen as many; docs/performance.md tells what sizes cost."""
_CHECK_LIMIT = 256 * MIB
"""The largest file that is checked whole after an unclean stop: about half a second."""
_CLEAN_CHECK_LIMIT = 32 * MIB
"""The largest one that is checked whole although it was closed well."""
_PEEK_MS = 5_000
_PIECE = 64 * 1024  # SQLite's files take less than 128 KiB at once
_LOOKS, _LOOK_AGAIN_S = 5, 0.05
_TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
T = TypeVar("T")


DAMAGES = (apsw.NotADBError, apsw.CorruptError, apsw.FormatError)
"""What the driver raises when it meets damage."""


def damaged(path: Path, exc: BaseException) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged ({exc}); nothing of this was written: restore a backup, or move it away to start anew"
    )


@contextmanager
def our_errors(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours, at the store's edge."""
    try:
        yield
    except DAMAGES as exc:
        raise damaged(path, exc) from exc
    except (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError) as exc:
        raise StoreReadOnly(f"{path} can't be written ({exc}); check the rights of file and folder") from exc
    except apsw.CantOpenError as exc:
        raise StoreUnavailable(f"{path} can't be opened ({exc}); check that the folder exists") from exc
    except (apsw.BusyError, apsw.LockedError) as exc:
        raise StoreUnavailable(f"{path} is locked by another process ({exc}); try again") from exc
    except apsw.FullError as exc:
        raise StoreUnavailable(f"the disk that holds {path} is full ({exc}); free space and try again") from exc
    except apsw.IOError as exc:
        raise StoreUnavailable(f"{path} can't be read or written ({exc}); check the disk") from exc


def open_writer(path: Path, config: StoreConfig, *, extra_schema: str = "", volatile: bool = False) -> apsw.Connection:
    """Open or create the store's file and return its writing connection.

    Raises: StoreNewer, StoreForeign, StoreReadOnly, StoreDamaged, StoreUnavailable.
    """
    refuse_unfit(path)
    with our_errors(path):
        _create(path)
        connection = apsw.Connection(os.fspath(path), statementcachesize=400)
        try:
            _keep_plans(connection)
            patient = patience(config.lock_timeout_s)
            connection.set_busy_handler(patient)
            connection.pragma("auto_vacuum", INCREMENTAL)  # of a new file: what is freed can be given back in steps
            if _log_ahead(connection, patient) != "wal":
                raise StoreUnavailable(f"{path} can't use a write-ahead log here; use a local disk")
            synchronous = "off" if volatile else "full" if config.durability == "full" else "normal"
            connection.pragma("synchronous", synchronous)
            connection.pragma("wal_autocheckpoint", 0)
            connection.pragma("cache_size", -_CACHE_KIB)
            connection.pragma("trusted_schema", 0)
            connection.pragma("journal_size_limit", config.wal_limit_bytes)
            is_durable = not volatile and config.durability == "full"
            _migrate(connection, path, extra_schema, is_durable=is_durable)
            os.chmod(path, 0o600)
        except BaseException:
            connection.close()
            raise
        return connection


def _keep_plans(connection: apsw.Connection) -> None:
    """Let the plan of a statement not depend on the values bound to it: else it is prepared anew with each of them."""
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)


def _log_ahead(connection: apsw.Connection, patient: Callable[[int], bool]) -> str:
    """Switch to a write-ahead log. Of two that do so at once SQLite refuses one without asking it for patience."""
    while True:
        try:
            return str(connection.pragma("journal_mode", "wal"))
        except apsw.BusyError:
            if not patient(1):
                raise


def patience(limit_s: float) -> Callable[[int], bool]:
    """Return a busy handler that waits for another process in short random steps: SQLite's own grow to 100 ms."""
    waited = 0.0

    def wait(calls: int) -> bool:
        nonlocal waited
        waited = 0.0 if calls == 0 else waited
        if waited > limit_s:
            return False
        env = HERE.get()
        step = env.uniform(0.0002, 0.005)
        env.sleep(step)
        waited += step
        return True

    return wait


def _create(path: Path) -> None:
    """Make the file with its owner's rights alone: the log takes over the rights that the file has when it begins.

    An existing file is never opened but by SQLite: closing any descriptor of it drops all locks of this process, and
    another program could then take the log for abandoned and delete it.
    """
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def open_reader(path: Path) -> apsw.Connection:
    """Return a connection that only reads."""
    with our_errors(path):
        connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY, statementcachesize=200)
        _keep_plans(connection)
        connection.set_busy_timeout(5_000)
        connection.pragma("cache_size", -_READER_CACHE_KIB)
        return connection


def refuse_unreachable(path: Path) -> None:
    """Raises StoreUnavailable, StoreForeign or StoreReadOnly where no store can be at this path."""
    folder = path.parent
    try:
        if not folder.is_dir():
            raise StoreUnavailable(f"the folder {folder} does not exist; create it first")
        if path.is_dir():
            raise StoreForeign(f"{path} is a folder; name a file")
        path.with_name(path.name + "-journal").exists()  # raises where there is no room in a name for what goes beside
    except PermissionError as exc:
        raise StoreReadOnly(f"{path} can't be reached ({exc}); check the rights of the folders above") from exc
    except OSError as exc:  # a name that is too long, for one
        raise StoreUnavailable(f"{path} can't be reached ({exc.strerror}); name another file") from exc
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise StoreReadOnly(f"{path} or its folder can't be written; check the rights")


def refuse_unfit(path: Path) -> None:
    """Raises StoreRefused for a file that is no store, damaged, newer, or where no store can be; changes nothing."""
    refuse_unreachable(path)
    kind = filesystem(path.parent)
    if kind in _NETWORK_FILESYSTEMS:
        raise StoreRefused(
            f"{path} lies on {kind}, where locks and shared memory don't work; use a local disk or Postgres"
        )
    for _ in range(_LOOKS):
        try:
            _judge(path)
            return
        except StoreRefused:
            if not _is_fresh(path):
                raise
        HERE.get().sleep(_LOOK_AGAIN_S)
    _judge(path)


def _is_fresh(path: Path) -> bool:
    """Whether somebody may be making or closing the file just now: a look without locks is no verdict then."""
    return abs(HERE.get().wall_ms() - path.stat().st_mtime_ns // 1_000_000) < _LOOKS * _LOOK_AGAIN_S * 1000


def _judge(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    peek = _peek(path)
    try:
        with _refusals(path):
            peek.execute("BEGIN")  # all is of one moment
            _refuse_foreign(path, peek)
            _refuse_damaged(path, peek)
    finally:
        peek.close()


def look(path: Path, run: Callable[[apsw.Connection], T]) -> T:
    """Return what a function finds in a store that is only read, whether or not anybody has it open.

    It is called again when somebody opened the store meanwhile that nobody had open before: a look without locks may
    have seen half of what was written.

    Raises: StoreUnavailable: no such file. StoreForeign, StoreNewer, StoreDamaged, StoreReadOnly: it can't be read.
    """
    log = path.with_name(path.name + "-wal")
    while True:
        had_log = log.exists()
        try:
            connection = _open_snapshot(path)
            try:
                with our_errors(path):
                    found = run(connection)
            finally:
                connection.close()
        except StoreDamaged:
            if had_log or not log.exists():
                raise
        else:
            if had_log or not log.exists():
                return found


def _open_snapshot(path: Path) -> apsw.Connection:
    if not path.is_file():
        raise StoreUnavailable(f"there is no store at {path}; check the path")
    connection = _peek(path)
    try:
        with _refusals(path):
            _refuse_foreign(path, connection)
            if not connection.pragma("user_version"):
                raise StoreForeign(f"{path} is empty: no store was ever made in it")
    except BaseException:
        connection.close()
        raise
    return connection


def _peek(path: Path) -> apsw.Connection:
    # Without a log nobody has it open, and a look that takes no locks leaves no files of its own beside it.
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    try:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        peek = apsw.Connection(f"file:{quote(os.fspath(path))}?{mode}", flags=flags)
        peek.set_busy_timeout(_PEEK_MS)
        return peek
    except apsw.CantOpenError as exc:
        raise StoreReadOnly(f"{path} can't be opened ({exc}); check its rights") from exc


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the driver says of an unfit file into our refusals."""
    try:
        yield
    except apsw.NotADBError as exc:
        raise StoreForeign(f"{path} is no SQLite file; it was left as it is: name another file") from exc
    except apsw.CorruptError as exc:
        raise StoreDamaged(f"{path} is damaged ({exc}); it was left as it is: restore a backup") from exc


def _refuse_foreign(path: Path, peek: apsw.Connection) -> None:
    application, version = peek.pragma("application_id"), peek.pragma("user_version")
    if application == APPLICATION_ID:
        _refuse_newer(path, int(version or 0))
        _refuse_incomplete(path, peek, int(version or 0))
    elif application or version or peek.execute("SELECT count(*) FROM sqlite_schema").get:
        raise StoreForeign(f"{path} is another program's database; it was left as it is: name another file")


def _refuse_newer(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreNewer(
            f"{path} has schema {version}, this version knows {SCHEMA_VERSION}; it was left as it is: update mainspring"
        )


@cache
def _tables_of(version: int) -> frozenset[str]:
    return frozenset(_TABLE.findall(schema_of(version)))


def _refuse_incomplete(path: Path, peek: apsw.Connection, version: int) -> None:
    """A file is made whole in one transaction; what lacks its number or a table was changed by others since."""
    tables = {str(name) for (name,) in peek.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if version < 0 or (version == 0 and tables):
        lacks = f"its schema number (user_version) is {version}"
    elif version and (lost := sorted(_tables_of(version) - tables)):
        lacks = f"it lacks the tables {', '.join(lost)}"
    else:
        return
    raise StoreDamaged(f"{path} is damaged ({lacks}); it was left as it is: restore a backup")


def _refuse_shared(path: Path, version: int) -> None:
    """Whoever lives beside an older file has an older program, which must not go on with a newer schema."""
    if living_names(path.with_name(path.name + "-live")):
        raise StoreUnavailable(
            f"{path} has schema {version}, and processes of that version have it open; stop them, then try again: "
            f"it becomes schema {SCHEMA_VERSION}"
        )


def _refuse_damaged(path: Path, peek: apsw.Connection) -> None:
    """Look for damage before anything is written: for missing pages always, for the rest in files below the limits.

    What is larger is left to `doctor`, and to whoever meets the damage.
    """
    pages, size, on_disk = peek.pragma("page_count"), peek.pragma("page_size"), path.stat().st_size
    is_unfinished = any(path.with_name(path.name + end).exists() for end in ("-wal", "-journal"))  # SQLite looks first
    if pages * size > on_disk and not is_unfinished:
        raise StoreDamaged(f"{path} is damaged: {on_disk} of {pages * size} bytes are left; restore a backup")
    if peek.pragma("user_version") == 0 or on_disk > _CHECK_LIMIT:
        return
    unclean = "SELECT 1 FROM worker WHERE ended_ms IS NULL LIMIT 1"
    if on_disk > _CLEAN_CHECK_LIMIT and peek.execute(unclean).fetchone() is None:
        return
    found = peek.pragma("quick_check", 1)
    if found != "ok":
        raise StoreDamaged(f"{path} is damaged ({found}); it was left as it is: restore a backup, or move it away")


def write_log_anew(path: Path) -> None:
    """Write the log over itself, and sync it. Within a write transaction: nobody adds to it meanwhile.

    After a failed sync the system may take what it could not write for clean: it can be read, and no later sync saves
    it. Who reads the log anew can't tell such frames from sound ones, goes on behind them, and a power cut takes all.
    Written again they count as changed, and what the next sync answers holds for them.
    """
    log = os.fspath(path) + "-wal"
    if not os.path.exists(log):
        return
    file = apsw.VFSFile("", log, [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0])
    try:
        size = file.xFileSize()
        for at in range(0, size, _PIECE):
            file.xWrite(file.xRead(min(_PIECE, size - at), at), at)
        if size:
            file.xSync(apsw.SQLITE_SYNC_NORMAL)
    finally:
        file.xClose()


def _migrate(connection: apsw.Connection, path: Path, extra_schema: str, *, is_durable: bool) -> None:
    """Make the tables of a new file, or take an older one through every step to this version, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if is_durable:
            write_log_anew(path)
        version = int(connection.pragma("user_version") or 0)
        _refuse_newer(path, version)
        if 0 < version < SCHEMA_VERSION:
            _refuse_shared(path, version)
        if version == 0:
            connection.execute(SCHEMA)
            connection.pragma("application_id", APPLICATION_ID)
            version = SCHEMA_VERSION
        while version < SCHEMA_VERSION:
            version += 1
            _take_to(version, connection, path)
        connection.pragma("user_version", version)
        connection.execute(extra_schema)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors of the disk roll back by themselves
            connection.execute("ROLLBACK")
        raise


def _take_to(version: int, connection: apsw.Connection, path: Path) -> None:
    try:
        connection.execute(MIGRATIONS[f"to_{version}"])
    except apsw.SQLError as exc:
        raise StoreDamaged(
            f"{path} is damaged: its tables are not those of schema {version - 1} ({exc}); it was left as it is: "
            "restore a backup"
        ) from exc


def filesystem(folder: Path) -> str:
    """Return the type of the file system that a folder lies on; empty where the system doesn't tell."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    target = os.path.realpath(folder) + "/"
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ").rstrip("/") + "/"
        if target.startswith(point) and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind
