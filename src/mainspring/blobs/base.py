"""The contract of a place for large values, addressed by content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec


class BlobInfo(msgspec.Struct, frozen=True):
    digest: str  # blake3, 64 hexadecimal digits
    size: int  # bytes


class BlobKey(msgspec.Struct, frozen=True):
    """A name for a blob, as committed by the task that stored it."""

    key: str
    digest: str
    size: int
    updated_ms: int


class BlobStore(Protocol):
    """Immutable values under their hash. All methods block: call them from a thread.

    A blob is durable when `put` returns. Equal content is stored once.
    """

    def put(self, data: bytes) -> BlobInfo: ...

    def get(self, digest: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes [start, end). A whole blob is checked against its digest.

        Raises: TaskNotFound: no such blob. InternalError: the content does not match its digest.
        """

    def info(self, digest: str) -> BlobInfo | None: ...

    def fault(self, digest: str) -> str | None:
        """Return what is wrong with a blob; None: it is there, and whole."""

    def delete(self, digest: str, *, older_than_s: float = 0.0) -> None:
        """Remove the blob if nobody put it within the last `older_than_s` seconds; an unknown digest is no error."""

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield digest and age in seconds since the last `put` of every blob, in no order."""

    def note_user(self, store: str) -> None:
        """Note that a store keeps blobs here, by what tells it from all others; durable on return."""

    def users(self) -> frozenset[str]:
        """Return the stores that were noted: where there are others, no one can say what nobody refers to."""
