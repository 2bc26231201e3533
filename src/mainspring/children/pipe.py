"""The parent's end of a framed pipe, on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from mainspring.children.frames import READ, Splitter, framed
from mainspring.errors import InternalError


class Pipe:
    """Hands each frame to `on_frame`, and tells once when no more can come. Sending never blocks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frame: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_frame = on_frame
        self._on_end = on_end
        self._splitter = Splitter()
        self._unsent = bytearray()
        self._reading = True
        loop.add_reader(self._fd, self._read)

    def send(self, body: bytes) -> None:
        """Send what fits now and the rest when the child reads. Raises: InvalidInput: larger than a frame may be."""
        data = framed(body)
        if not self._unsent:
            data = data[self._send(data) :]
            if not data:
                return
            self._loop.add_writer(self._fd, self._write)
        self._unsent += data

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # the child is gone: its exit tells
            return len(data)

    def _write(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._fd)

    def _read(self) -> bool:
        """Handle what one read gives; return whether there may be more now."""
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        try:
            frames = self._splitter.feed(data)
        except InternalError:  # whatever comes after this can't be told apart: as good as the end
            data, frames = b"", []
        for frame in frames:
            self._on_frame(frame)
        if not data and self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)
            self._on_end()
        return bool(data)

    def finish(self) -> None:
        """Tell the child that nothing more will come."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Handle what a dead child has sent before it died, then close."""
        while self._reading and self._read():
            pass
        self._reading = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
