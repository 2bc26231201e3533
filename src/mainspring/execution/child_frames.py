"""What a `ProcessRunner` and its children say to each other: MessagePack of one of these in each frame.

Every frame about an attempt names it by (id, attempt), so that a late word never reaches the wrong one.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mainspring.execution.base import Report, Work
from mainspring.execution.directory import Entry
from mainspring.execution.places import Place
from mainspring.tasks import ErrorInfo, Signal

Key: TypeAlias = tuple[bytes, int]
"""Task id and attempt."""


class Setup(msgspec.Struct, frozen=True, array_like=True, tag="setup"):
    """First word to a child."""

    arguments: tuple[str, ...]  # sys.argv, which scripts may read when they are imported
    traceback_chars: int
    tickets: int  # the descriptor of `children.tickets.Holder`
    log_level: int  # what the parent's log takes
    is_traced: bool


class Handlers(msgspec.Struct, frozen=True, array_like=True, tag="handlers"):
    """The engine has registered these, too; comes before the first work that may submit calls of them."""

    entries: tuple[Entry, ...]


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="prepare"):
    """Import these now: they have been imported without harm before."""

    places: tuple[Place, ...]


class Run(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """An attempt, to begin when those before it have ended, if its ticket is still there and it is not too late."""

    work: Work
    place: Place
    ticket: int
    until_s: float | None  # on the monotonic clock


class RunBatch(msgspec.Struct, frozen=True, array_like=True, tag="run_batch"):
    """Attempts for one call; what is said of all of them names the first one."""

    works: tuple[Work, ...]
    place: Place
    ticket: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Set the attempt's `ctx.cancelled`."""

    id: bytes
    attempt: int


class Stored(msgspec.Struct, frozen=True, array_like=True, tag="stored"):
    """Answer to `Store`."""

    number: int
    id: bytes | None  # of the task, in the store
    error: ErrorInfo | None = None


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The child has imported the engine's part and waits for work."""

    cpu_s: float  # used so far


class Loading(msgspec.Struct, frozen=True, array_like=True, tag="loading"):
    """The handler's module is about to be imported for this attempt: dying now is its fault, not the machine's."""

    id: bytes
    attempt: int


class Note(msgspec.Struct, frozen=True, array_like=True, tag="note"):
    """A signal of a running attempt; the first one is `Started`, where that did not come with another one's end."""

    id: bytes
    attempt: int
    signal: Signal


class Store(msgspec.Struct, frozen=True, array_like=True, tag="store"):
    """A handler wants this child task stored at once and waits for `Stored`."""

    id: bytes
    attempt: int
    number: int
    task: bytes  # MessagePack of a Task


class Finished(msgspec.Struct, array_like=True, tag="finished"):
    """The attempt's end, and the start of the next one, if that begins at once; in a batch, that of one item while
    others go on."""

    id: bytes
    attempt: int
    report: Report  # without its effects
    effects: bytes | None = None  # MessagePack of them: they may hold arrays and references
    cpu_s: float = 0.0  # of the child, so far
    resident_bytes: int | None = None  # of the child, now
    begins: Key | None = None  # whose handler's code is about to begin, as `Started` tells


class FinishedBatch(msgspec.Struct, frozen=True, array_like=True, tag="finished_batch"):
    """The end of a batch, and of all its attempts whose own end was not told."""

    id: bytes
    attempt: int
    reports: tuple[Report | None, ...]  # without their effects; None: it was told before
    effects: dict[int, bytes]  # MessagePack of them, by place, where there are any
    calls: int
    fits: int | None
    cpu_s: float = 0.0  # of the child, so far
    resident_bytes: int | None = None  # of the child, now


ToChild: TypeAlias = Setup | Handlers | Prepare | Run | RunBatch | Stop | Stored
ToParent: TypeAlias = Ready | Loading | Note | Store | Finished | FinishedBatch

encode = msgspec.msgpack.Encoder(enc_hook=str.__str__).encode  # a task type is a str of its own class
decode_to_child = msgspec.msgpack.Decoder(ToChild).decode
decode_to_parent = msgspec.msgpack.Decoder(ToParent).decode
