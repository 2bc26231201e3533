"""What stands for the datagram sockets of simulated processes."""

from __future__ import annotations

import os
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from mainspring.store.bell import HELLO

if TYPE_CHECKING:
    from mainspring.testing.simulator.machine import Process


class SimSocket:
    """As much of a datagram socket as the store's bell uses.

    As with a real one a datagram is there at once and in order; when the loop of its process notices is another matter.
    """

    _descriptors = count(1_000_000)

    def __init__(self, process: Process) -> None:
        self._process = process
        self._inbox: deque[bytes] = deque()
        self._fd = next(self._descriptors)
        self._path: str | None = None

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def fileno(self) -> int:
        return self._fd

    def bind(self, path: str) -> None:
        path = os.path.abspath(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._process.machine.sockets[path] = self
        self._path = path

    def recv(self, most: int) -> bytes:
        if not self._inbox:
            raise BlockingIOError
        return self._inbox.popleft()

    def sendto(self, data: bytes, path: str) -> None:
        path = os.path.abspath(path)
        machine = self._process.machine
        target = machine.sockets.get(path)
        if target is None or not target._process.is_alive:
            if not os.path.exists(path):
                raise FileNotFoundError(path)
            raise ConnectionRefusedError(path)
        lag = machine.greeting_lag() if data[:1] == HELLO else machine.message_lag()
        if lag is not None:
            target._inbox.append(data)
            machine.loop.call_later(lag, target._noticed, context=target._process.context)

    def _noticed(self) -> None:
        if self._inbox and self._path is not None:
            self._process.machine.loop.readable(self._fd)

    def close(self) -> None:
        if self._path is not None:
            self._process.machine.sockets.pop(self._path, None)
            self._path = None
