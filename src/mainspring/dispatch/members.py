"""What the attempts of one call share: the call, how it is stopped, and the marks of who runs."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from heapq import heappop, heappush

from mainspring.execution.base import BatchReport, Channel, Runner, Work


class Members:
    """A call for several attempts. One of them can't end it: it is stopped when all of them were asked to stop."""

    def __init__(self, runner: Runner, works: Sequence[Work]) -> None:
        self._runner = runner
        self._works = works
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
