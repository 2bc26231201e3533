"""Wake-ups between processes on one file: a datagram is a hint, never the truth; whoever misses one looks again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from mainspring.environment import Environment

LOOK = b"l"
"""Something became ready."""
ENDED = b"e"
"""Followed by the ids of tasks that ended."""
STOP = b"s"
"""Followed by the ids of tasks that somebody asked to cancel."""
HELLO = b"h"
"""Followed by the name of a process that has come."""
_MOST_IDS = 2_000


class Bell:
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
        """Relative where that is shorter: socket paths end at about 100 bytes."""
        full = self._folder / f"{name}.sock"
        return min(str(full), os.path.relpath(full), key=len)

    def _read(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(65536)
            except (BlockingIOError, InterruptedError):
                return
            if data[:1] == HELLO:
                self._peers.add(data[1:].decode())
            self._heard(data[:1], data[1:])

    @property
    def has_peers(self) -> bool:
        return bool(self._peers)

    def ring(self, kind: bytes, payload: bytes = b"") -> None:
        """Tell all others. One that is busy enough to have its buffer full is awake anyway."""
        if self._socket is None:
            return
        for name in sorted(self._peers):
            try:
                self._socket.sendto(kind + payload, self._path(name))
            except (ConnectionRefusedError, FileNotFoundError):
                self._peers.discard(name)
                with contextlib.suppress(OSError):
                    os.unlink(self._path(name))
            except OSError:
                continue

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
        self._socket.close()
        self._socket = None
        (self._folder / f"{self._name}.sock").unlink(missing_ok=True)


def split_ids(payload: bytes) -> list[bytes]:
    return [payload[at : at + 16] for at in range(0, len(payload), 16)]
