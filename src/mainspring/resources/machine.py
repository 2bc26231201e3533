"""The processes of a machine that share a budget: who holds how much, and asking them for what is idle.

Each has a file in one folder of the user, locked for life: lock free = dead = it holds nothing, at once and without
anybody's doing. A second lock is held while one of them counts and takes. Messages go by a socket beside the file; they
save waiting and are never the truth. Nothing is on a disk that must last: the folder may be emptied at any start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from mainspring.environment import SYSTEM, Environment, Lock, ThreadEvent
from mainspring.errors import ResourceLimitExceeded
from mainspring.resources.cgroup import Cgroup
from mainspring.resources.monitor import machine

logger = logging.getLogger("mainspring.resources")

_FIGURES = struct.Struct("<qq")  # pid, bytes
_MESSAGE = struct.Struct("<c16sq")  # kind, sender, bytes
_ASK, _WITHDRAW, _NEWS = b"a", b"w", b"n"
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.EINTR)  # the message is lost: who has so many unread looks by itself
_LOCKED_S = 10.0
"""The lock is held for moments: who has it for longer has been stopped."""
_OPEN: WeakSet[Machine] = WeakSet()
"""Those of this process, which a forked child lets go of."""


class Other(NamedTuple):
    """Another process, as far as it can be seen."""

    name: str
    pid: int
    bytes: int


class Machine:
    """This process among those that share the folder. Opened when something is first taken.

    Where the folder can't be used, the log says so once, and nobody is seen.
    """

    def __init__(self, folder: Path, env: Environment = SYSTEM) -> None:
        self._root = folder
        self._env = env
        self._name = ""
        self._fd = self._lock_fd = -1
        self._socket: socket.socket | None = None
        self._stop: socket.socket | None = None
        self._is_alone = False  # the folder can't be used, or this process is over
        self._taking = Lock()  # threads of this process wait here, not at the file
        self._asked: dict[str, int] = {}  # bytes that others wait for
        self._answering = Lock()
        self._news = ThreadEvent()
        self.let_go: Callable[[int], int] = _nothing

    @cached_property
    def _folder(self) -> Path:
        return self._root / _of_group()

    # Counting

    @contextlib.contextmanager
    def counting(self) -> Iterator[Sequence[Other]]:
        """Yield the other living processes, most bytes first, while none of them takes anything.

        Raises: ResourceLimitExceeded: one of them stands still in the middle of that.
        """
        with self._taking:
            if not self._is_opened():
                yield ()
                return
            self._lock_fd = self._locked()
            try:
                yield self._others(bury=True)
            finally:
                lock, self._lock_fd = self._lock_fd, -1
                if lock >= 0:  # in a forked child it is closed already
                    self._env.close(lock)

    def look(self) -> Sequence[Other]:
        """Return the others as they are seen now, without keeping them from anything."""
        try:
            self._check()
        except OSError:
            return ()
        return self._others(bury=False)

    def join(self) -> None:
        """Be seen from now on."""
        with self._taking:
            self._is_opened()

    def show(self, bytes: int) -> None:
        """From now on the others see so much."""
        if self._fd >= 0:
            os.pwrite(self._fd, _FIGURES.pack(self._env.pid(), bytes), 0)

    def _locked(self) -> int:
        until = self._env.monotonic() + _LOCKED_S
        path = self._folder / "lock"
        while (fd := self._env.open_locked(path, os.O_CREAT)) is None:
            if self._env.monotonic() >= until:
                raise ResourceLimitExceeded(
                    f"another process has kept {path} locked for {_LOCKED_S:g} s, so the memory of models can't be "
                    "counted; it seems to be stopped: let it go on, or end it",
                    retry_after=1.0,
                )
            self._env.sleep(self._env.uniform(0.0002, 0.005))
        return fd

    def _others(self, *, bury: bool) -> Sequence[Other]:
        seen = (
            (path.stem, self._figures(path, bury=bury))
            for path in self._folder.glob("*.held")
            if path.stem != self._name
        )
        found = [Other(name, *figures) for name, figures in seen if figures is not None]
        return sorted(found, key=lambda other: -other.bytes)

    def _figures(self, path: Path, *, bury: bool) -> tuple[int, int] | None:
        """Return what a process shows; None: it is dead."""
        try:
            fd = self._env.open_locked(path, 0)
            if fd is not None:
                if bury:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".sock").unlink(missing_ok=True)
                self._env.close(fd)
                return None
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        return _FIGURES.unpack(raw) if len(raw) == _FIGURES.size else (0, 0)

    # Asking

    @property
    def is_asked(self) -> bool:
        return bool(self._asked)

    def expect(self) -> None:
        """What is told from now on ends the next wait."""
        self._news.clear()

    def ask(self, name: str, bytes: int) -> None:
        """Ask a process for so much; it gives what is idle now, and what becomes idle until that is withdrawn."""
        self._send(name, _ASK, bytes)

    def wait(self, limit_s: float) -> None:
        """Wait for an answer."""
        self._news.wait(limit_s)

    def withdraw(self, names: set[str]) -> None:
        for name in names:
            self._send(name, _WITHDRAW)

    def answer(self, *, asked_by: str = "") -> None:
        """Let go of what is idle for those that have asked, and tell them."""
        with self._answering:
            for name, wanted in list(self._asked.items()):
                given = self.let_go(wanted)
                if given >= wanted:
                    self._asked.pop(name, None)
                elif name in self._asked:
                    self._asked[name] = wanted - given
                if (given or name == asked_by) and not self._send(name, _NEWS):
                    self._asked.pop(name, None)

    def _send(self, name: str, kind: bytes, bytes: int = 0) -> bool:
        """Returns whether there is somebody; a message that is lost costs waiting."""
        if self._socket is None:
            return False
        try:
            message = _MESSAGE.pack(kind, self._name.encode(), bytes)
            self._socket.sendto(message, socket.MSG_DONTWAIT, str(self._folder / f"{name}.sock"))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as exc:
            if exc.errno not in _FULL:
                logger.warning("process %s can't be told what others wait for (%s); they wait longer", name, exc)
        return True

    def _listen(self, ear: socket.socket, stop: socket.socket) -> None:
        with stop, selectors.DefaultSelector() as both:
            both.register(ear, selectors.EVENT_READ)
            both.register(stop, selectors.EVENT_READ)
            while stop not in [key.fileobj for key, _ in both.select()]:
                try:
                    self._hear(ear.recv(_MESSAGE.size))
                except Exception:
                    logger.exception("a model that another process asked for did not close; its memory may stay taken")

    def _hear(self, message: bytes) -> None:
        if len(message) != _MESSAGE.size:
            return
        kind, raw, wanted = _MESSAGE.unpack(message)
        name = raw.decode("ascii", "replace")
        if kind == _ASK:
            self._asked[name] = wanted
            self.answer(asked_by=name)
        elif kind == _WITHDRAW:
            self._asked.pop(name, None)
        elif kind == _NEWS:
            self._news.set()

    # Life

    def _is_opened(self) -> bool:
        if self._fd >= 0 and not self._path("held").exists():  # somebody has emptied the folder
            self._shut()
        if self._fd < 0 and not self._is_alone:
            try:
                self._open()
            except OSError as exc:
                self._is_alone = True
                logger.warning(
                    "memory of models in other processes is not seen, so each has the whole budget: %s (%s); set "
                    "ModelConfig.shared_folder", exc, self._folder,
                )  # fmt: skip
        return self._fd >= 0

    def _open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._check()
        name = self._env.random_bytes(8).hex()
        ear = self._env.datagram_socket()
        try:
            ear.bind(str(self._folder / f"{name}.sock"))
        except OSError:
            ear.close()
            raise
        draft = self._folder / f".{name}.draft"
        fd = self._env.open_locked(draft, os.O_CREAT | os.O_EXCL)
        assert fd is not None  # nobody else knows the name
        os.pwrite(fd, _FIGURES.pack(self._env.pid(), 0), 0)
        os.rename(draft, self._folder / f"{name}.held")
        self._fd, self._name, self._socket = fd, name, ear
        self._stop, stop = socket.socketpair()
        self._thread = self._env.start_thread("memory", self._listen, ear, stop)
        _OPEN.add(self)

    def _check(self) -> None:
        """Raises OSError where there is no folder, or others may write: what stands there would be theirs to say."""
        for folder in (self._root, self._folder):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise PermissionError(f"{folder} is not a folder of this user alone")

    def close(self) -> None:
        """Hold nothing any more."""
        with self._taking:
            self._is_alone = True
            if self._socket is not None:
                self._shut()

    def _shut(self) -> None:
        assert self._socket is not None
        assert self._stop is not None
        self._stop.send(b"s")
        self._thread.join()
        self._stop.close()
        for suffix in ("sock", "held"):
            self._path(suffix).unlink(missing_ok=True)
        self._socket.close()
        self._env.close(self._fd)
        self._socket, self._stop, self._fd = None, None, -1

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._name}.{suffix}"

    def forked(self) -> None:
        """A forked child must not keep its parent's locks; it counts for itself once it takes something."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        for end in (self._socket, self._stop):
            if end is not None:
                end.close()
        self._fd = self._lock_fd = -1
        self._socket = self._stop = None
        self._asked = {}
        self._taking, self._answering, self._news = Lock(), Lock(), ThreadEvent()


def _nothing(_wanted: int) -> int:
    return 0


def _of_group() -> str:
    """Return a name for those who have the same memory: of the machine, or of the control group that limits them."""
    group = Cgroup().limiting()
    if group is None or group.limit_bytes >= machine()[1]:
        return "machine"
    found = group.folder.stat()  # the number is the kernel's own: paths are the same in many containers
    return hashlib.blake2b(f"{found.st_dev}:{found.st_ino}".encode(), digest_size=8).hexdigest()


def _forked() -> None:
    for one in list(_OPEN):
        one.forked()


os.register_at_fork(after_in_child=_forked)
