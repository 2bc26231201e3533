"""Copies of a store that are whole: its rows as of one moment, while workers write, and every blob that they refer to.

A copy has the layout of a store: a file, and a folder of blobs beside it. Blobs are copied before the rows and again
after them: one that only the older rows name may be collected meanwhile, one that only the newer rows name is too young
for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import apsw

from mainspring.blobs.local import LocalBlobStore
from mainspring.errors import InternalError, StoreDamaged, StoreNewer, StoreUnavailable, TaskNotFound, invalid
from mainspring.store.liveness import is_held, living_names
from mainspring.store.sqlite.connection import INCREMENTAL, look, our_errors, refuse_unreachable

STEP_PAGES: Final = 1_000
"""About 4 MiB between two looks at the screen and at Ctrl-C."""
Progress = Callable[[int, int], None]
"""Told how much is done, of how much."""

_BESIDE: Final = ("", "-wal", "-shm", "-journal")
"""What the names of a store's file and of SQLite's own beside it end with."""
_PAYLOADS = "SELECT DISTINCT digest FROM payload_blob"
_NAMED = {
    "blob_key": "SELECT DISTINCT digest FROM blob_key",
    "cache": "SELECT DISTINCT digest FROM cache WHERE digest IS NOT NULL",
}
"""What names blobs in tables that not every store has."""


def blobs_beside(path: Path, *, make: bool = False) -> LocalBlobStore:
    """Return the blobs of a store's file; without `make` only to look."""
    return LocalBlobStore(path.with_name(path.name + "-blobs"), make=make)


def draft_of(path: Path) -> Path:
    """Return where a copy lies until it may have its name."""
    return path.with_name(f".{path.name}.draft")


def copy_rows(source: Path, draft: Path, progress: Progress) -> None:
    """Copy a store's rows as of now into a new file, durable on return. Workers go on meanwhile.

    The source's log can't be folded into its file until this is over.

    Raises: StoreForeign, StoreNewer, StoreDamaged, StoreReadOnly, StoreUnavailable: also for a disk that is full.
    """

    def copy(connection: apsw.Connection) -> None:
        draft.unlink(missing_ok=True)  # of a copy that was killed; SQLite drops a log beside an empty file
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with our_errors(draft), contextlib.closing(apsw.Connection(str(draft))) as copied:
            copied.pragma("journal_mode", "off")  # a draft that breaks off is thrown away
            with connection:  # one snapshot for all steps: else each commit of a worker would begin the copy anew
                connection.execute("SELECT 1 FROM task LIMIT 1").fetchall()
                with copied.backup("main", connection, "main") as backup:
                    while not backup.done:
                        backup.step(STEP_PAGES)
                        progress(backup.page_count - backup.remaining, backup.page_count)

    with _disk(draft):
        look(source, copy)
        _sync(draft)


def compact(draft: Path) -> None:
    """Give back what is free inside a file that nobody else has open."""
    with _disk(draft), our_errors(draft):
        with contextlib.closing(apsw.Connection(str(draft))) as connection:
            connection.pragma("journal_mode", "off")
            connection.pragma("auto_vacuum", INCREMENTAL)
            connection.execute("VACUUM")
            connection.pragma("journal_mode", "wal")
        _sync(draft)


def digests_of(path: Path) -> list[str]:
    """Return the blobs that a store's rows refer to."""

    def read(connection: apsw.Connection) -> list[str]:
        with connection:
            found = {str(digest) for (digest,) in connection.execute(_PAYLOADS)}
            for table, named in _NAMED.items():
                if connection.table_exists("main", table):
                    found |= {str(digest) for (digest,) in connection.execute(named)}
        return sorted(found)

    return look(path, read)


def copy_blobs(digests: Sequence[str], source: LocalBlobStore, target: Path, progress: Progress) -> None:
    """Bring blobs beside another file, as links where both lie on one file system. A missing one is left out."""
    if not digests:
        return
    blobs = blobs_beside(target, make=True)
    for n, digest in enumerate(digests, 1):
        with contextlib.suppress(TaskNotFound):
            blobs.take(digest, source)
        progress(n, len(digests))


def bring_blobs(path: Path, aside: Path) -> None:
    """Bring all blobs that lie beside a store beside another name of it: by that name they are looked for there.

    A damaged one comes along as a link, and stays behind where there are none.
    """
    source = blobs_beside(path)
    found = [digest for digest, _ in source.digests()]
    blobs = blobs_beside(aside, make=bool(found))
    for digest in found:
        with contextlib.suppress(TaskNotFound, InternalError):
            blobs.take(digest, source)


def blob_faults(
    digests: Sequence[str], blobs: LocalBlobStore, source: LocalBlobStore, progress: Progress
) -> Iterator[str]:
    """Yield what is wrong with copied blobs: those that are missing, and those whose content has another hash.

    A damaged one, left by an earlier copy, is first replaced from the source, which is named where it has none.
    """
    for n, digest in enumerate(digests, 1):
        try:
            if not _is_whole(digest, blobs):
                blobs.delete(digest)
                blobs.take(digest, source)
                blobs.get(digest)
        except (TaskNotFound, InternalError) as exc:
            yield str(exc)
        progress(n, len(digests))


def _is_whole(digest: str, blobs: LocalBlobStore) -> bool:
    try:
        blobs.get(digest)
    except (TaskNotFound, InternalError):
        return False
    return True


def refuse_taken(path: Path, *, is_forced: bool) -> None:
    """Refuse to put a store where a file is, unless that is forced, the file is a store, and nobody has it open.

    Raises: InvalidInput: not forced. StoreForeign: somebody else's file. StoreUnavailable: it is in use.
    """
    refuse_unreachable(path)
    if not path.exists():
        return
    if not is_forced:
        raise invalid("path", str(path), "exists already", "name another file, or add --force to replace it")
    with contextlib.suppress(StoreNewer, StoreDamaged):  # what is ours may go, fit or not
        look(path, lambda connection: None)
    folder = live_folder(path)
    if living_names(folder) or is_held(folder / "leader.lock") or _is_open(path):
        raise StoreUnavailable(f"{path} is open in some process; stop its workers and whoever looks at it first")


def live_folder(path: Path) -> Path:
    return path.with_name(path.name + "-live")


def _is_open(path: Path) -> bool:
    """Whether any process has the file open with SQLite: then nobody else gets it to himself."""
    with our_errors(path):
        try:
            with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
                connection.pragma("locking_mode", "exclusive")
                connection.execute("BEGIN IMMEDIATE; ROLLBACK")
        except (apsw.BusyError, apsw.LockedError):
            return True
        except (apsw.CorruptError, apsw.NotADBError):  # nobody can have more than the wreck of it open
            return False
    return False


def publish(draft: Path, path: Path) -> None:
    """Give a finished draft its name, in one step; what had the name before is gone.

    Whatever breaks this off, the name leads to the one or the other, and each is whole.
    """
    with _disk(path):
        _fold(path)
        for suffix in ("-wal", "-shm"):  # of the file before: SQLite would write an old log into the new file
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        draft.rename(path)
        _sync(path)


def replace(draft: Path, path: Path) -> Path | None:
    """Publish a draft, and keep the store that is there under a name that nothing has; returns that name."""
    if not path.exists():
        publish(draft, path)
        return None
    aside = _free_name(path)
    with _disk(path):
        _fold(path)
        try:
            for suffix in ("-wal", ""):  # a log is left where the file is damaged; alone it says nothing
                old = path.with_name(path.name + suffix)
                if old.exists():
                    _link(old, aside.with_name(aside.name + suffix))
            _sync(aside)
            bring_blobs(path, aside)
            publish(draft, path)
        except BaseException:
            if draft.exists():  # nothing was replaced
                discard(aside)
            raise
        shutil.rmtree(live_folder(path), ignore_errors=True)  # of dead processes; nobody is alive
    return aside


def _free_name(path: Path) -> Path:
    """Return where a store can be kept that another takes the place of: earlier ones stay where they are."""
    for n in count(1):
        aside = path.with_name(path.name + ("-replaced" if n == 1 else f"-replaced-{n}"))
        if not any(os.path.lexists(aside.with_name(aside.name + suffix)) for suffix in _BESIDE):
            return aside
    raise AssertionError("numbers don't end")


def _link(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(old, new)
    except FileExistsError:  # since the name was looked for
        raise
    except OSError:
        shutil.copy2(old, new)


def _fold(path: Path) -> None:
    """Bring a store's log into its file, which is all of it then. Nobody has it open; a damaged one stays as it is."""
    if path.exists() and path.with_name(path.name + "-wal").exists():
        flags = apsw.SQLITE_OPEN_READWRITE
        with (
            contextlib.suppress(StoreDamaged),
            our_errors(path),
            contextlib.closing(apsw.Connection(str(path), flags=flags)) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def discard(draft: Path) -> None:
    """Remove a draft with all that lies beside it."""
    for suffix in _BESIDE:
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    for folder in (live_folder(draft), draft.with_name(draft.name + "-blobs")):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(f"{path} can't be written: {exc.strerror or exc}; make room, or allow it") from exc


def _sync(path: Path) -> None:
    """Make a file and its name durable."""
    for item in (path, path.parent):
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
