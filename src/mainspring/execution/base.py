"""The contract of a place where attempts run: what goes in, what comes back, and how a running one is stopped.

Nothing here knows a store: the same runner works in this process, in a child and on another machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Literal, NamedTuple, Protocol

from mainspring.tasks import Report, Signal, Work


class Channel(Protocol):
    """Where a running attempt's signals go. Bounded and droppable, except started and item_done."""

    def send(self, signal: Signal) -> None:
        """Never blocks; may be called from any thread."""


StopCause = Literal["timeout", "cancel", "drain"]


class BatchReport(NamedTuple):
    """How the attempts of a batch ended, in their order."""

    reports: list[Report | None]  # None: its channel was told before, by `ItemDone`
    calls: int = 1  # of the handler
    fits: int | None = None  # the most items that went through in one call where memory ran out for more

    @property
    def is_whole(self) -> bool:
        """Whether one call gave all their outcomes, and one of them well."""
        return self.calls == 1 and any(report is not None and report.error is None for report in self.reports)


class Runner(Protocol):
    """A lane's way of running attempts. Used from one event loop."""

    def run(self, work: Work, channel: Channel) -> Report | Awaitable[Report]:
        """Run one attempt; returns its report at once where it is over already, else something that ends with it.

        Does not raise for anything a handler does. Sends `Started` exactly when the handler's code is about to begin.
        An attempt that was stopped reports whatever it came to; the caller knows that it asked for the stop and why.
        """

    def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> Awaitable[BatchReport]:
        """Run attempts of one type that may be done in one call, under the same conditions as `run`.

        Where that raised, `ItemDone` is sent for what is done before the last of the calls that are made then.
        `stop` with the first of them stops all; halves of a call that raised do not begin after it.
        """

    def stop(self, work: Work, *, hard: bool) -> bool:
        """Ask a running attempt to stop; `hard` takes the means to go on away from it, where the lane can.

        Returns: whether the attempt will now end for sure without its own help.
        """

    async def close(self) -> None:
        """Free threads, children and whatever else was taken. Nothing runs any more when this is called."""


class AheadRunner(Runner, Protocol):
    """One that takes more attempts than it runs at a time, so that the next is at hand when one ends."""

    def run_soon(self, work: Work, channel: Channel, until_s: float | None) -> Report | Awaitable[Report | None]:
        """Like `run`, but what does not begin soon after all is given back: None, and it never will.

        Nor does it begin after `until_s` on the monotonic clock, which all processes of a machine share: it reports
        that it is unstarted then.
        """

    def ahead(self) -> list[Work]:
        """Return what it has taken that has no place to run in yet, the first to begin first."""

    def give_back(self, works: Sequence[Work]) -> None:
        """Give back those of these that have not begun."""


__all__ = ["AheadRunner", "BatchReport", "Channel", "Report", "Runner", "StopCause", "Work"]
