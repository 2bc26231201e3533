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
        self._unasked = {hard: {work.id for work in works} for hard in (False, True)}

    def run(self, channels: Sequence[Channel]) -> Awaitable[BatchReport]:
        return self._runner.run_batch(self._works, channels)

    def stop(self, work: Work, *, hard: bool) -> bool:
        """See `Runner.stop`. Where others still want the call, what it gives for this one is dropped when it ends."""
        unasked = self._unasked[hard]
        unasked.discard(work.id)
        return bool(unasked) or self._runner.stop(self._works[0], hard=hard)


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
