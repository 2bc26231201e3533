"""Frames: bytes with their length in front, over a stream socket. What is inside is the caller's.

Loaded by every child before its first work, hence without asyncio.
"""

from __future__ import annotations

import socket
import struct
import threading

from mainspring.errors import InternalError, invalid

FRAME_LIMIT = 256 << 20
"""Bytes of one frame. Far above any payload; a length beyond it is a broken peer, not a large value."""
_HEADER = 4  # bytes, big endian
_size_at = struct.Struct(">I").unpack_from
READ = 256 << 10
"""Bytes asked of the socket at once."""


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

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Return the frames that `data` completes. Raises: InternalError: the peer announces an impossible length."""
        if self._buffer:
            self._buffer += data
            data = self._buffer
        frames: list[bytes] = []
        start, length = 0, len(data)
        with memoryview(data) as view:
            while length - start >= _HEADER:
                (size,) = _size_at(view, start)
                if size > self._limit:
                    raise InternalError(f"the peer announces a frame of {size} bytes; {self._limit} are allowed")
                end = start + _HEADER + size
                if length < end:
                    break
                frames.append(bytes(view[start + _HEADER : end]))
                start = end
        if data is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += data[start:]
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

        Raises: InvalidInput: larger than a frame may be; nothing was sent. OSError: the pipe is gone.
        """
        data = framed(body, self._limit)
        with self._sending:
            self._sock.sendall(data)

    def receive(self) -> list[bytes] | None:
        """Block until frames are complete, and return them; None when the parent closed its end or died."""
        while True:
            try:
                data = self._sock.recv(READ)
            except OSError:
                return None
            if not data:
                return None
            if frames := self._splitter.feed(data):
                return frames
