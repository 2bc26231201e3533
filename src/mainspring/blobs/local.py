"""Blobs in a folder of this machine: one file each, named by its hash."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from mainspring.blobs.base import BlobInfo
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import InternalError, StoreUnavailable, TaskError, TaskNotFound, invalid

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_ABANDONED_S = 24 * 3600.0
"""A temporary file older than this belongs to a process that died while it wrote."""
_REMEMBERED = 10_000
"""Blobs that were found whole."""


class LocalBlobStore:
    """A BlobStore in `folder`, which is made if need be; for any number of threads and processes at once.

    With `make=False` nothing is made or tidied before `make` or `note_user` is called, and a folder that is missing has
    no blobs.

    Files are readable by their owner alone. The folder must lie on a file system that keeps `rename`, `fsync` and
    `flock` (network file systems are not promised).

    Raises: StoreUnavailable: the folder can't be made or written.
    """

    def __init__(self, folder: str | Path, *, env: Environment = SYSTEM, make: bool = True) -> None:
        self.folder = Path(folder).absolute()
        self._env = env
        self._temporary = self.folder / "tmp"
        self._users = self.folder / "stores"
        self._shards: set[str] = set()  # those whose own entry in the folder is known to be durable
        self._whole: dict[str, tuple[int, int]] = {}  # which file of a blob was found whole, and its last change
        if make:
            self.make()

    def make(self) -> None:
        """Make the folder, and remove what processes left in it that died while they wrote.

        Raises: StoreUnavailable.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._temporary.mkdir(mode=0o700, exist_ok=True)
            _sync(self.folder)
            _sync(self.folder.parent)
            self._remove_abandoned()
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def put(self, data: bytes) -> BlobInfo:
        """Store `data` unless it is there already, and return its hash and size; durable on return.

        A blob that was there already counts as new from now on for `digests` and `delete`; a damaged one is replaced.

        Raises: StoreUnavailable: disk full, or the folder can't be written; nothing was stored.
        """
        digest = blake3(data).hexdigest()
        try:
            with self._shard(digest, fcntl.LOCK_SH) as shard:
                if not self._touch(digest):
                    self._write(digest, data)
                os.fsync(shard)  # also for a blob that was there: its writer may not have come this far yet
        except OSError as exc:
            raise self._unavailable(exc, len(data)) from exc
        return BlobInfo(digest, len(data))

    def take(self, digest: str, source: LocalBlobStore) -> None:
        """Bring a blob over from another folder, as a link where both lie on one file system; durable on return.

        A link is not read: whether its content is whole is for `get` to say.

        Raises: TaskNotFound: no such blob there. InternalError: a damaged one. StoreUnavailable: it can't be written.
        """
        try:
            with self._shard(digest, fcntl.LOCK_SH) as shard:
                if not self._link(source._path(digest), self._path(digest)):
                    self._write(digest, source.get(digest))
                os.fsync(shard)
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def _link(self, old: Path, new: Path) -> bool:
        """Whether the blob is there now; not where a link can't reach, or where the source has none."""
        try:
            os.link(old, new)
        except FileExistsError:
            return True
        except OSError:
            return False
        return True

    def get(self, digest: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes [start, end); fewer where the blob ends earlier. A whole blob is checked against its digest.

        Raises: TaskNotFound: no such blob. InternalError: the content does not match its digest.
        """
        if start < 0 or (end is not None and end < start):
            raise invalid("range", (start, end), "is no range of bytes", "use 0 <= start <= end")
        try:
            with self._path(digest).open("rb") as file:
                file.seek(start)
                data = file.read(-1 if end is None else end - start)
        except FileNotFoundError as exc:
            raise self._missing(digest) from exc
        except OSError as exc:
            raise self._unavailable(exc) from exc
        if start == 0 and end is None and blake3(data).hexdigest() != digest:
            raise InternalError(f"blob {digest} in {self.folder} is damaged: its content has another hash; restore it")
        return data

    def info(self, digest: str) -> BlobInfo | None:
        try:
            return BlobInfo(digest, self._path(digest).stat().st_size)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def fault(self, digest: str) -> str | None:
        """Return what is wrong with a blob; None: it is there, and whole.

        It is read for that, once: a file that was found whole is looked into again when it has been changed.
        """
        try:
            status = self._path(digest).stat()
            seen = status.st_ino, status.st_ctime_ns
            if self._whole.get(digest) != seen:
                self.get(digest)
                if len(self._whole) >= _REMEMBERED:
                    self._whole.clear()
                self._whole[digest] = seen
        except FileNotFoundError:
            return str(self._missing(digest))
        except OSError as exc:
            return str(self._unavailable(exc))
        except TaskError as exc:
            return str(exc)
        return None

    def delete(self, digest: str, *, older_than_s: float = 0.0) -> None:
        """Remove the blob if nobody put it within the last `older_than_s` seconds; an unknown digest is no error.

        A concurrent `put` of the same content either makes it young enough to stay or writes it again.
        """
        path = self._path(digest)
        try:
            with self._shard(digest, fcntl.LOCK_EX):
                if older_than_s <= 0 or self._age_s(path) >= older_than_s:
                    path.unlink()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield digest and age in seconds (since the last `put`) of every blob, in no order."""
        for shard in self.folder.iterdir() if self.folder.is_dir() else ():
            if not _SHARD.fullmatch(shard.name):
                continue
            for path in shard.iterdir():
                try:
                    yield shard.name + path.name, self._age_s(path)
                except FileNotFoundError:  # deleted meanwhile
                    continue

    def note_user(self, store: str) -> None:
        """Note that a store keeps blobs here, by what tells it from all others; durable on return.

        Raises: StoreUnavailable.
        """
        note = self._users / store
        try:
            if not note.exists():
                self.make()
                self._users.mkdir(mode=0o700, exist_ok=True)
                note.touch(mode=0o600)
                _sync(self._users)
                _sync(self.folder)
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def users(self) -> frozenset[str]:
        """Return the stores that were noted: where there are others, no one can say what nobody refers to."""
        return frozenset(item.name for item in self._users.iterdir()) if self._users.is_dir() else frozenset()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise invalid("digest", digest, "is no blake3 hash", "use the 64 hexadecimal digits that put returned")
        return self.folder / digest[:2] / digest[2:]

    def _age_s(self, path: Path) -> float:
        return max(0.0, self._env.wall_ms() / 1000 - path.stat().st_mtime)

    @contextmanager
    def _shard(self, digest: str, lock: int) -> Iterator[int]:
        """Hold the shard's folder open and locked, so that no delete falls between a look and a write."""
        path = self._path(digest).parent
        if path.name not in self._shards:
            path.mkdir(mode=0o700, exist_ok=True)
            _sync(self.folder)  # even if it was there: whoever made it may not have come this far yet
            self._shards.add(path.name)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, lock)
            yield descriptor
        finally:
            os.close(descriptor)

    def _touch(self, digest: str) -> bool:
        """Make the blob young again. False where there is none, or only a damaged one."""
        if self.fault(digest) is not None:
            return False
        now_ns = self._env.wall_ms() * 1_000_000
        try:
            os.utime(self._path(digest), ns=(now_ns, now_ns))
        except FileNotFoundError:
            return False
        return True

    def _write(self, digest: str, data: bytes) -> None:
        temporary = self._temporary / f"{digest}.{self._env.new_id().hex()}"
        now_ns = self._env.wall_ms() * 1_000_000
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.utime(file.fileno(), ns=(now_ns, now_ns))
                os.fsync(file.fileno())
            temporary.rename(self._path(digest))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _remove_abandoned(self) -> None:
        for path in self._temporary.iterdir():
            try:
                if self._age_s(path) > _ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:  # another process does the same
                continue

    def _missing(self, digest: str) -> TaskNotFound:
        return TaskNotFound(f"no blob {digest} in {self.folder}: it was deleted, or stored elsewhere")

    def _unavailable(self, exc: OSError, size: int | None = None) -> StoreUnavailable:
        what = "" if size is None else f" for {size} bytes"
        return StoreUnavailable(
            f"blob folder {self.folder} can't be used{what}: {exc.strerror or exc}; make room, or allow writing there"
        )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
