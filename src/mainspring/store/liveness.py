"""Who lives: each process holds an OS lock on its own file beside the store. The lock is free exactly when it is dead.

A silent process is not a dead one: a handler that keeps the interpreter busy stops every heartbeat, but no lock. The
file also says which handlers run, in shared memory that outlives a killed process: whoever rescues its tasks reads
there which of them can have caused the death. Beside that it counts the turns of the process's writer, tells when the
last one was, and how often others took back what the process held while that count stood still.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from mainspring.environment import Environment

SLOTS = 65_536
"""More than there can be."""
_MARK = struct.Struct("<qq")  # seq, attempt; seq 0 is an empty slot
_SIZE = (SLOTS + 2) * _MARK.size
_PAGE = 16 * 1024
_EMPTY = bytes(_PAGE)
_TURNS, _REVOKED, _HEARD, _TURNED = range(SLOTS * 2, SLOTS * 2 + 4)  # numbers behind the marks
_HELD: WeakSet[LifeFile | LeaderLock] = WeakSet()
"""The locks of this process, which a forked child lets go of."""


class Life(Protocol):
    """What others can see of this process."""

    @property
    def mark(self) -> Callable[[int, int, int], None]: ...

    @property
    def revoked(self) -> int:
        """How often others took claims of this process back."""


class LifeFile:
    """This process's own file, locked from the first moment it has its name."""

    def __init__(self, folder: Path, name: str, env: Environment) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = folder / f"{name}.life"
        draft = folder / f".{name}.draft"
        fd = env.open_locked(draft, os.O_CREAT | os.O_EXCL)
        assert fd is not None  # nobody else knows the name
        self._fd, self._env = fd, env
        try:
            env.reserve(fd, _SIZE)  # a mark that found the disk full would end the process
        except OSError:
            env.close(fd)
            draft.unlink()
            raise
        self._shared = mmap.mmap(self._fd, _SIZE)
        self._marks = memoryview(self._shared).cast("q")
        os.rename(draft, self.path)
        _HELD.add(self)

    def forked(self) -> None:
        """A forked child must not keep its parent's lock alive."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._unmap()  # it holds the file open too

    def mark(self, slot: int, seq: int, attempt: int) -> None:
        at = slot % SLOTS * 2
        self._marks[at] = 0  # killed half way, it names nobody rather than another
        self._marks[at + 1] = attempt
        self._marks[at] = seq

    def turn(self) -> None:
        """The writer has looked after all that was asked of it."""
        self._marks[_TURNS] += 1
        self._marks[_TURNED] = int(self._env.monotonic() * 1e9)

    @property
    def revoked(self) -> int:
        """How often others took claims of this process back."""
        return self._marks[_REVOKED]

    @property
    def heard_ns(self) -> int:
        """When others last heard of this process, by the machine's monotonic clock; 0 where nobody tells them."""
        return self._marks[_HEARD]

    def _unmap(self) -> None:
        self._marks.release()
        self._shared.close()

    def close(self) -> None:
        """Give up the lock after a clean end; nothing is held any more."""
        self._unmap()
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._env.close(self._fd)
        self._fd = -1


@contextlib.contextmanager
def if_dead(path: Path, env: Environment) -> Iterator[frozenset[tuple[int, int]] | None]:
    """Yield what ran in a process when it died, or None while it lives.

    Its lock is held meanwhile, so that only one other process deals with the dead one; afterwards the file is gone.
    """
    try:
        fd = env.open_locked(path, 0)
    except FileNotFoundError:
        yield frozenset()
        return
    if fd is None:
        yield None
        return
    try:
        yield _running(fd)
        path.unlink(missing_ok=True)
    finally:
        env.close(fd)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file: of a life file, it lives. The lock is tried and let go."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def living_names(folder: Path) -> list[str]:
    """Return the names of the processes whose life files lie in a folder and are held."""
    return sorted(path.stem for path in folder.glob("*.life") if is_held(path))


def _running(fd: int) -> frozenset[tuple[int, int]]:
    """Most pages hold no marks, and are passed over as a whole."""
    pages = (os.pread(fd, _PAGE, at) for at in range(0, SLOTS * _MARK.size, _PAGE))
    marked = (page[: len(page) // _MARK.size * _MARK.size] for page in pages if page != _EMPTY)
    return frozenset(mark for page in marked for mark in _MARK.iter_unpack(page) if mark[0])


def turns_of(path: Path) -> int | None:
    """Return how many turns the writer of a living process has taken; None when the process has signed off."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return _number(file.fileno(), _TURNS)
    return None


def turned_s(path: Path) -> float:
    """Return when the writer of a living process took its last turn, by the machine's monotonic clock; 0.0 where that
    is not told: it has just begun, has signed off or is of an older version."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return _number(file.fileno(), _TURNED) / 1e9
    return 0.0


def running_in(path: Path) -> frozenset[tuple[int, int]]:
    """Return (seq, attempt) of the handlers that run in a living process."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return _running(file.fileno())
    return frozenset()


def revoke(path: Path) -> None:
    """Tell a living process that claims of it are being taken back: from now on it starts none before it has looked.

    One that has signed off holds none.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        n = _number(file.fileno(), _REVOKED) + 1
        os.pwrite(file.fileno(), n.to_bytes(8, sys.byteorder), _REVOKED * 8)


def note_heard(path: Path, at_ns: int, revoked: int) -> None:
    """Tell a process, from its helper, when others heard of it, and how often they took claims back."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        for place, n in ((_REVOKED, revoked), (_HEARD, at_ns)):
            os.pwrite(file.fileno(), n.to_bytes(8, sys.byteorder), place * 8)


def _number(fd: int, place: int) -> int:
    return int.from_bytes(os.pread(fd, 8, place * 8), sys.byteorder)


class LeaderLock:
    """One process does the upkeep of the whole file; when it dies, the lock falls to the next that tries."""

    def __init__(self, folder: Path, name: str, env: Environment) -> None:
        self._path = folder / "leader.lock"
        self._name = name
        self._env = env
        self._fd = -1
        _HELD.add(self)

    def forked(self) -> None:
        """A forked child must not go on leading for its parent."""
        self.close()

    def hold(self) -> bool:
        """Return whether this process is the leader, trying to become it."""
        if self._fd >= 0:
            return True
        fd = self._env.open_locked(self._path, os.O_CREAT)
        if fd is None:
            return False
        os.pwrite(fd, self._name.encode(), 0)
        self._fd = fd
        return True

    def holder(self) -> str:
        """The name of the process that leads, or led last."""
        return self._path.read_text(encoding="ascii")

    def close(self) -> None:
        if self._fd >= 0:
            self._env.close(self._fd)
            self._fd = -1


def _forked() -> None:
    for held in list(_HELD):
        held.forked()


os.register_at_fork(after_in_child=_forked)
