"""What a child prints: passed on to this process's stderr, and its tail kept as evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys

_READ = 64 << 10
_PIECE = 4096  # a pipe that is writable takes this much without blocking (PIPE_BUF)


class Output:
    """Drains the pipe behind a child's stdout and stderr, so that a talkative handler never stands still."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, keep: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._keep = keep
        self._tail = bytearray()
        self._reading = True
        loop.add_reader(fd, self._read)

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _READ)
        except (BlockingIOError, InterruptedError):
            return False
        self._tail += data
        del self._tail[: -self._keep or None]
        _pass_on(data)
        if not data:
            self._reading = False
            self._loop.remove_reader(self._fd)
        return bool(data)

    def close(self) -> None:
        """Take what is there, then close. Whoever inherited the other end may still hold it: nobody waits for that."""
        while self._reading and self._read():
            pass
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _pass_on(data: bytes) -> None:
    """Write to stderr what it takes at once; the rest is dropped rather than blocking the loop."""
    if sys.__stderr__ is None:  # started without one: descriptor 2 may be anything
        return
    with contextlib.suppress(OSError, ValueError):
        for start in range(0, len(data), _PIECE):
            if not select.select((), (2,), (), 0)[1]:
                return
            os.write(2, data[start : start + _PIECE])
