"""What the attempts of one call share: the call, how it is stopped, and the marks of who runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush

from mainspring.dispatch.attempt import Attempt
from mainspring.execution.base import BatchReport, Channel, Runner, Work


class Members:
    """A call for several attempts. One of them can't end it: it is stopped when all of them were asked to stop, or
    have ended.
    """

    def __init__(self, runner: Runner, works: Sequence[Work], done: Callable[[Attempt], None]) -> None:
        self._runner = runner
        self._works = works
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._unasked = {work.id for work in works}
        self._in_grace = {work.id for work in works}  # or not asked yet

    def run(self, channels: Sequence[Channel]) -> Awaitable[BatchReport]:
        return self._runner.run_batch(self._works, channels)

    def stop(self, work: Work, *, hard: bool) -> bool:
        """See `Runner.stop`. Where others still want the call, what it gives for this one is dropped when it ends."""
        was_wanted = bool(self._unasked)
        self._unasked.discard(work.id)
        if hard:
            self._in_grace.discard(work.id)
        if not self._in_grace:
            return self._runner.stop(self._works[0], hard=True)
        if was_wanted and not self._unasked:
            return self._runner.stop(self._works[0], hard=False) or hard  # the others' grace will be over
        return True

    def leave(self, work: Work) -> bool:
        """It has ended, and others go on. Returns: see `stop`."""
        self._in_grace.discard(work.id)
        return self.stop(work, hard=False)

    def tell(self, attempt: Attempt) -> None:
        """One has ended, and others go on. May be called from any thread."""
        with suppress(RuntimeError):  # the loop was closed while a lost thread was still at it: nobody waits any more
            self._loop.call_soon_threadsafe(self._done, attempt)


def left_of(together: Sequence[Attempt]) -> list[Attempt]:
    """Return those of a call whose end is not known yet."""
    return [attempt for attempt in together if not attempt.ended]


class Marks:
    """Numbers of marks that are free; the lowest first."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._free: list[int] = []

    def take(self, n: int) -> list[int]:
        return [heappop(self._free) if self._free else self._new() for _ in range(n)]

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def give_back(self, marks: Sequence[int]) -> None:
        for mark in marks:
            heappush(self._free, mark)
