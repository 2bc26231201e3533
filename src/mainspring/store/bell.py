"""Wake-ups between processes on one store: a hint, never the truth; whoever misses one looks again.

Processes of several versions may hear each other: what follows a kind never changes its form, and a kind that is not
known is left alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

LOOK = b"l"
"""Something became ready."""
ENDED = b"e"
"""Followed by the ids of tasks that ended."""
STOP = b"s"
"""Followed by the ids of tasks that somebody asked to cancel."""
HASTE = b"u"
"""Followed by tasks that somebody urgent waits for now, with their ranks."""
HELLO = b"h"
"""Followed by the name of a process that has come."""
WELCOME = b"w"
"""To one that has come: from now on it is told; what was before, it looks up."""
SHARE = b"p"
"""Followed by who holds what, and what the asker passes over: a process has nothing to do and would run the rest, and
asks for half of what has not begun. (`a` was the same without what is passed over: no kind gets a letter twice.)"""
GONE = b"g"
"""A process died, perhaps between a commit and telling of it: what it would have told, all look up."""


class Bell(ABC):
    """Rings the other processes, and tells what they ring."""

    @property
    @abstractmethod
    def has_peers(self) -> bool: ...

    @abstractmethod
    def ring(self, kind: bytes, payload: bytes = b"") -> None:
        """Tell all others."""

    @abstractmethod
    def ring_ids(self, kind: bytes, ids: Iterable[bytes]) -> None: ...


def split_ids(payload: bytes) -> list[bytes]:
    return [payload[at : at + 16] for at in range(0, len(payload), 16)]
