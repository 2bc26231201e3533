"""The parent's end of a framed pipe, on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from mainspring.children.frames import READ, Splitter, framed
from mainspring.errors import InternalError


class Pipe:
    """Hands each frame to `on_frame`, and tells once when no more can come. Sending never blocks.

    What is sent in one turn of the loop goes to the child together: waking it costs more than what it gets.
    """

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
        self._closed = False
        loop.add_reader(self._fd, self._read)

    def send(self, body: bytes) -> None:
        """Send in this turn what fits, and the rest when the child reads. Raises: InvalidInput: larger than a frame."""
        data = framed(body)
        if not self._unsent:
            self._loop.call_soon(self._begin)
        self._unsent += data

    def _begin(self) -> None:
        if not self._closed and not self._write():
            self._loop.add_writer(self._fd, self._go_on)

    def _go_on(self) -> None:
        if self._write():
            self._loop.remove_writer(self._fd)

    def _write(self) -> bool:
        """Send what fits; return whether that was all."""
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # the child is gone: its exit tells
            self._unsent.clear()
        return not self._unsent

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
        self._write()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Handle what a dead child has sent before it died, then close."""
        while self._reading and self._read():
            pass
        self._reading = False
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
