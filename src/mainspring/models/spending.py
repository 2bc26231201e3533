"""What calls of a model use beside time: bytes on the wire, and what its server counts, such as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


class Traffic:
    """Bytes of heads and bodies in both directions, as on the wire before encryption.

    Handshakes are not seen, nor what frames the chunks of a body whose length is not told.
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0

    def asks(self, request: httpx.Request) -> None:
        self.bytes += len(request.method) + len(request.url.raw_path) + len("  HTTP/1.1\r\n") + _head(request.headers)

    def answers(self, response: httpx.Response) -> None:
        self.bytes += len(f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\n") + _head(response.headers)


def _head(headers: httpx.Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.raw) + 2


class Spent:
    """What the calls that were made meanwhile have used; None: nobody has said."""

    __slots__ = ("cost", "traffic")

    def __init__(self) -> None:
        self.cost: float | None = None
        self.traffic: Traffic | None = None

    def exchanged(self, response: httpx.Response) -> None:
        """A request was answered, and the answer was read."""
        self.traffic = self.traffic or Traffic()
        self.traffic.asks(response.request)
        self.traffic.answers(response)
        self.traffic.bytes += len(response.request.content) + response.num_bytes_downloaded

    def costs(self, much: float) -> None:
        self.cost = (self.cost or 0.0) + much


_here: ContextVar[Spent | None] = ContextVar("spent", default=None)


@contextmanager
def spending() -> Iterator[Spent]:
    """Have what models use in here counted."""
    spent = Spent()
    before = _here.set(spent)
    try:
        yield spent
    finally:
        _here.reset(before)


def here() -> Spent:
    """Return what counts now; where nobody asks it is thrown away."""
    return _here.get() or Spent()
