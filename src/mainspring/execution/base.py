"""The contract of a place where attempts run: what goes in, what comes back, and how a running one is stopped.

Nothing here knows a store: the same runner works in this process, in a child and on another machine.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from mainspring.tasks import Effect, ErrorInfo, Signal, TaskId, Usage


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt, ready to run: self-contained, so that it can cross a pipe."""

    id: bytes
    attempt: int
    task_type: str
    input: bytes  # MessagePack of a TaskInput, parents' results in place
    namespace: str = "default"
    model_id: str | None = None
    params: bytes | None = None  # MessagePack of a mapping
    retry_count: int = 0
    deadline_ms: int | None = None

    @property
    def task_id(self) -> TaskId:
        return TaskId(self.id)


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How an attempt ended where it ran. Exactly one of `output` and `error` is there."""

    output: bytes | None = None  # MessagePack of a TaskOutput
    refs: tuple[bytes, ...] = ()  # ids of tasks that the output stands for
    error: ErrorInfo | None = None
    retryable: bool = True
    retry_after: float | None = None  # seconds
    effects: tuple[Effect, ...] = ()
    usage: Usage = Usage()
    crashed: bool = False  # the process that ran it died: counted apart from failures
    unstarted: bool = False  # it never began and is charged nothing


class Channel(Protocol):
    """Where a running attempt's signals go. Bounded and droppable, except started and item_done."""

    def send(self, signal: Signal) -> None:
        """Never blocks; may be called from any thread."""


StopCause = Literal["timeout", "cancel", "drain"]


class Runner(Protocol):
    """A lane's way of running attempts. Used from one event loop."""

    async def run(self, work: Work, channel: Channel) -> Report:
        """Run one attempt to its end. Does not raise for anything a handler does.

        Sends `Started` exactly when the handler's code is about to begin. An attempt that was stopped returns whatever
        it came to; the caller knows that it asked for the stop and why.
        """

    def stop(self, work: Work, *, hard: bool) -> bool:
        """Ask a running attempt to stop; `hard` takes the means to go on away from it, where the lane can.

        Returns: whether the attempt will now end for sure without its own help.
        """

    async def close(self) -> None:
        """Free threads, children and whatever else was taken. Nothing runs any more when this is called."""
