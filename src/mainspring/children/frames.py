"""Frames: bytes with their length in front, over a stream socket. What is inside is the caller's; it is never pickle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from mainspring.errors import InternalError, invalid

FRAME_LIMIT = 256 << 20
"""Bytes of one frame. Far above any payload; a length beyond it is a broken peer, not a large value."""
_HEADER = 4  # bytes, big endian
_READ = 256 << 10


def framed(body: bytes, limit: int = FRAME_LIMIT) -> bytes:
    """Return the frame. Raises: InvalidInput: larger than `limit`."""
    if len(body) > limit:
        raise invalid("payload", f"{len(body)} bytes", f"exceeds {limit} bytes of one frame", "store it as a blob")
    return len(body).to_bytes(_HEADER, "big") + body


class Splitter:
    """Cuts a stream of bytes into frames."""

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes. Raises: InternalError: the peer announces an impossible length."""
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start = 0
        while len(buffer) - start >= _HEADER:
            size = int.from_bytes(buffer[start : start + _HEADER], "big")
            if size > self._limit:
                raise InternalError(f"the peer announces a frame of {size} bytes; {self._limit} are allowed")
            end = start + _HEADER + size
            if len(buffer) < end:
                break
            frames.append(bytes(memoryview(buffer)[start + _HEADER : end]))
            start = end
        del buffer[:start]
        return frames


class BlockingPipe:
    """The child's end. One thread receives, any thread may send."""

    def __init__(self, sock: socket.socket, limit: int = FRAME_LIMIT) -> None:
        self._sock = sock
        self._limit = limit
        self._splitter = Splitter(limit)
        self._sending = threading.Lock()

    def send(self, body: bytes) -> None:
        """Block until the parent's kernel has it.

        Raises: InvalidInput: larger than a frame may be; nothing was sent. OSError: nobody can be told anything any more.
        """
        data = framed(body, self._limit)
        with self._sending:
            self._sock.sendall(data)

    def receive(self) -> list[bytes] | None:
        """Block until frames are complete, and return them; None when the parent closed its end or died."""
        while True:
            try:
                data = self._sock.recv(_READ)
            except OSError:
                return None
            if not data:
                return None
            if frames := self._splitter.feed(data):
                return frames


class Pipe:
    """The parent's end, on its event loop."""

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
            data = self._sock.recv(_READ)
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
