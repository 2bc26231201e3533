"""Wake-ups between processes on one file: a datagram is a hint, never the truth; whoever misses one looks again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mainspring.environment import SYSTEM, Environment
from mainspring.store.bell import HELLO, LOOK, WELCOME, Bell

_MOST_IDS = 2_000
_LONGEST_PATH = 100
"""Bytes; systems differ by some."""


class FileBell(Bell):
    """A socket beside the store that others ring; rings theirs. Works without one where a path is too long for it."""

    def __init__(self, folder: Path, name: str, heard: Callable[[bytes, bytes], None], env: Environment) -> None:
        self._folder = folder
        self._name = name
        self._heard = heard
        self._env = env
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._peers: set[str] = set()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._socket = self._env.datagram_socket()
        self._socket.setblocking(False)
        try:
            self._socket.bind(self._path(self._name))
        except OSError:
            self._socket.close()
            self._socket = None
            return
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._read)
        self._peers = {path.stem for path in self._folder.glob("*.sock")} - {self._name}
        self.ring(HELLO, self._name.encode())

    def _path(self, name: str) -> str:
        return _address(self._folder, name)

    def _read(self) -> None:
        for kind, payload in self._unread():
            self._heard(kind, payload)

    def _unread(self) -> Iterator[tuple[bytes, bytes]]:
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(65536)
            except (BlockingIOError, InterruptedError):
                return
            if data[:1] == HELLO:
                self._peers.add(data[1:].decode())
                self._send(data[1:].decode(), WELCOME)
            yield data[:1], data[1:]

    @property
    def has_peers(self) -> bool:
        return bool(self._peers)

    def ring(self, kind: bytes, payload: bytes = b"") -> None:
        """Tell all others. One that is busy enough to have its buffer full is awake anyway."""
        if self._socket is None:
            return
        for name in sorted(self._peers):
            self._send(name, kind + payload)

    def _send(self, name: str, message: bytes) -> None:
        assert self._socket is not None
        try:
            self._socket.sendto(message, self._path(name))
        except (ConnectionRefusedError, FileNotFoundError):
            self._peers.discard(name)
            with contextlib.suppress(OSError):
                os.unlink(self._path(name))
        except OSError:
            return

    def ring_ids(self, kind: bytes, ids: Iterable[bytes]) -> None:
        if not self._peers:
            return
        together = b"".join(ids)
        for at in range(0, len(together), _MOST_IDS * 16):
            self.ring(kind, together[at : at + _MOST_IDS * 16])

    def close(self) -> None:
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        (self._folder / f"{self._name}.sock").unlink(missing_ok=True)
        for _ in self._unread():  # whoever has come and was not seen looks up what it was not told
            pass
        self._socket.close()
        self._socket = None


def _address(folder: Path, name: str) -> str:
    """Relative where the whole path is too long for one of a socket, and that is shorter."""
    full = os.path.join(folder, f"{name}.sock")
    return full if len(os.fsencode(full)) < _LONGEST_PATH else min(full, os.path.relpath(full), key=len)


def turning(folder: Path, names: Sequence[str], limit_s: float) -> dict[str, bool | None]:
    """Ring processes and tell which of them read it in time: that takes a turn of their event loop.

    None where it can't be told: a process without a socket, or a system that doesn't say what was read.
    """
    answers: dict[str, bool | None] = dict.fromkeys(names)
    if sys.platform != "linux":
        return answers
    with contextlib.ExitStack() as stack:
        rung: dict[str, socket.socket] = {}
        for name in names:
            ring = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            ring.setblocking(False)
            with contextlib.suppress(OSError):
                ring.connect(_address(folder, name))
                rung[name] = ring
        until = SYSTEM.monotonic() + limit_s
        waiting = {name for name, ring in rung.items() if not _send(ring)}  # their buffer is full of what is not read
        while set(rung) - _heard(rung, waiting) and SYSTEM.monotonic() < until:
            SYSTEM.sleep(0.005)
            waiting = {name for name in waiting if not _send(rung[name])}
        heard = _heard(rung, waiting)
        answers |= {name: name in heard for name in rung}
    return answers


def _send(ring: socket.socket) -> bool:
    try:
        ring.send(LOOK)
    except BlockingIOError:
        return False
    except OSError:  # it closed its socket meanwhile: its loop turned
        return True
    return True


def _heard(rung: dict[str, socket.socket], waiting: set[str]) -> set[str]:
    """Those whose message is not in the kernel any more."""
    return {
        name
        for name, ring in rung.items()
        if name not in waiting and fcntl.ioctl(ring, termios.TIOCOUTQ, bytes(4)) == bytes(4)
    }
