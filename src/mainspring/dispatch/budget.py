"""How much a call should take, and how much it can: found out by trying, within what its handler allows."""

from __future__ import annotations

from collections import deque
from typing import Final

_KEPT: Final = 8  # calls that speak for a size,
_FEW: Final = 2  # or so many, where they took
_SPENT_S: Final = 0.2  # together: long calls are told apart by few, and must not be made often to find that out
_BETTER: Final = 0.9  # a size is left for another that takes less than this share of its time
_FIRST: Final = 8  # full calls before the next trial after one that did not pay
_SELDOM: Final = 1024  # the same at most, where others did not pay either
_SHORT_S: Final = 0.002  # calls below this are cheap beside what is around them, and say little


class Budget:
    """The cost that goes into one call of its kind: as much as is allowed, or less where less is quicker.

    What a unit of cost takes falls with the size of a call while a fixed cost is shared, and rises again where padding,
    caches or a service behind it get the worse of it: a valley. It is walked in steps of a factor of two. After some
    calls that used the budget up, a few are made with half or with twice of it, never above what is allowed; a size is
    judged by what its last calls took together for what they cost together. While that pays it goes on at once; after a
    trial that did not pay the next one comes twice as many calls later, so that trials cost less and less.

    Source: hill climbing on what was measured, as in the adaptive batch scheduler of TensorFlow Serving
    (adaptive_shared_batch_scheduler.h); Crankshaw et al. 2017, Clipper, section 4.3, for sizes learned from latencies.
    """

    __slots__ = ("_allowed", "_best", "_left", "_pause", "_seen", "_step", "_tried")

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._best = 0  # halvings of what is allowed
        self._tried: int | None = None  # the same, while another size is tried
        self._step = 1  # of the next trial; -1 is towards larger calls
        self._pause = _FIRST
        self._left = 0  # full calls until the next trial, at least
        self._seen: dict[int, deque[tuple[float, float]]] = {}  # cost and seconds of the last calls, by halvings

    @property
    def limit(self) -> float:
        """What the next call may cost; one item always may."""
        return self._limit(self._best if self._tried is None else self._tried)

    @property
    def learned(self) -> float:
        """The best that was found so far."""
        return self._limit(self._best)

    def _limit(self, halvings: int) -> float:
        return self._allowed / (1 << halvings)

    def learn(self, cost: float, seconds: float) -> None:
        """A call of this cost took so long."""
        now = self._best if self._tried is None else self._tried
        if seconds < _SHORT_S or not self._limit(now) / 2 < cost <= self._limit(now):
            return  # it did not matter, or the budget held nothing back
        calls = self._seen.setdefault(now, deque(maxlen=_KEPT))
        calls.append((cost, seconds))
        self._left -= 1
        if len(calls) < _KEPT and (len(calls) < _FEW or sum(seconds for _, seconds in calls) < _SPENT_S):
            return
        if self._tried is not None:
            self._judge(self._tried)
        if self._left <= 0:
            self._try()

    def _try(self) -> None:
        if not self._is_size(self._best + self._step):
            self._step = -self._step
        if not self._is_size(self._best + self._step):  # there is this size alone
            return
        self._tried = self._best + self._step
        self._seen.pop(self._tried, None)

    def _is_size(self, halvings: int) -> bool:
        return halvings >= 0 and self._limit(halvings) >= 1.0

    def _judge(self, tried: int) -> None:
        self._tried = None
        if self._unit_s(tried) < _BETTER * self._unit_s(self._best):
            self._best = tried
            self._pause = _FIRST
        else:
            self._step = -self._step
            self._left = self._pause
            self._pause = min(2 * self._pause, _SELDOM)

    def _unit_s(self, halvings: int) -> float:
        calls = self._seen[halvings]
        return sum(seconds for _, seconds in calls) / sum(cost for cost, _ in calls)


class Fit:
    """How many items go into a call of a kind for which memory has run out: as many as went through, until more do.

    After some full calls twice as many are tried: what took the memory may be gone, or it was the items of that call.
    Each time that it runs out again the next trial comes twice as many calls later.
    """

    __slots__ = ("_left", "_pause", "size")

    def __init__(self) -> None:
        self.size = 0
        self._pause = _FIRST
        self._left = 0  # full calls until the next trial

    def ran_out(self, fits: int) -> None:
        """So many went through at most; 0 where not even one did."""
        self.size = max(1, fits)
        self._left = self._pause
        self._pause = min(2 * self._pause, _SELDOM)

    def took(self, n: int) -> None:
        """A call of n items went well."""
        if n < self.size:
            return
        self._left -= 1
        if self._left <= 0:
            self.size *= 2
            self._left = _FIRST
