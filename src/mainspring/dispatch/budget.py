"""How much a call should take, and how much it can: found out by trying, within what its handler allows."""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

_KEPT: Final = 8  # calls that speak for a size,
_FEW: Final = 2  # or so many, where they took
_SPENT_S: Final = 0.2  # together: long calls are told apart by few, and must not be made often to find that out
_BETTER: Final = 0.9  # a size is left for another that takes less than this share of its time
_OTHER: Final = 1.5  # another it is where calls hold so many times the items, or so many times fewer
_FIRST: Final = 8  # full calls before the next trial after one that did not pay
_SELDOM: Final = 1024  # the same at most, where others did not pay either
_SHORT_S: Final = 0.002  # calls below this are cheap beside what is around them, and say little


class _Made(NamedTuple):
    """A call that was made."""

    items: int
    work: float  # what it used of what is allowed: of the count and of the cost
    seconds: float


class Budget:
    """What goes into one call of its kind: as much as is allowed, or less where less is quicker.

    What an item takes falls with the size of a call while a fixed cost is shared, and rises again where padding, caches
    or a service behind it get the worse of it: a valley. It is walked in steps of a factor of two, which bound count
    and cost alike, as either may be what fills the calls. After some calls that used the budget up, a few are made with
    half or with twice of it, never above what is allowed; a size is judged by what its last calls took together for
    what they did together. While that pays it goes on at once; after a trial that did not pay the next one comes twice
    as many calls later, so that trials cost less and less.

    Source: hill climbing on what was measured, as in the adaptive batch scheduler of TensorFlow Serving
    (adaptive_shared_batch_scheduler.h); Crankshaw et al. 2017, Clipper, section 4.3, for sizes learned from latencies.
    """

    __slots__ = ("_best", "_cost", "_left", "_pause", "_seen", "_size", "_step", "_tried")

    def __init__(self, size: int, cost: float = math.inf) -> None:
        self._size = size  # items that are allowed
        self._cost = cost  # and what they may cost together
        self._best = 0  # halvings of what is allowed
        self._tried: int | None = None  # the same, while another size is tried
        self._step = 1  # of the next trial; -1 is towards larger calls
        self._pause = _FIRST
        self._left = 0  # full calls until the next trial, at least
        self._seen: dict[int, deque[_Made]] = {}  # the last calls, by halvings

    @property
    def halvings(self) -> int:
        """How often the next call is half of what is allowed."""
        return self._best if self._tried is None else self._tried

    @property
    def size(self) -> int:
        """How many items the next call may hold."""
        return max(1, self._size >> self.halvings)

    @property
    def cost(self) -> float:
        """What the next call may cost; one item always may."""
        return self._cost / (1 << self.halvings)

    @property
    def learned(self) -> float:
        """The best that was found so far: a cost, or items where costs are not counted."""
        return max(1, self._size >> self._best) if math.isinf(self._cost) else self._cost / (1 << self._best)

    def learn(self, halvings: int, items: int, cost: float, seconds: float) -> None:
        """A call that filled so many halvings of what is allowed took so long."""
        if halvings != self.halvings:
            return  # it was made before the last step
        if items == 1 and cost > self._cost:
            return  # no call holds more of its like
        if not self._best and self._tried is None and seconds < _SHORT_S:
            return  # it did not matter
        calls = self._seen.setdefault(halvings, deque(maxlen=_KEPT))
        calls.append(_Made(items, items / self._size + cost / self._cost, seconds))
        self._left -= 1
        if len(calls) < _KEPT and (len(calls) < _FEW or sum(call.seconds for call in calls) < _SPENT_S):
            return
        if self._tried is not None:
            self._judge(self._tried)
        if self._tried is None and self._left <= 0:
            self._try_next()

    def _try_next(self) -> None:
        if not self._may_go(self._best, self._step):
            self._step = -self._step
        if self._may_go(self._best, self._step):  # else there is this size alone
            self._try(self._best + self._step)

    def _may_go(self, halvings: int, step: int) -> bool:
        return halvings > 0 if step < 0 else self._items(halvings) > 1

    def _try(self, halvings: int) -> None:
        self._tried = halvings
        self._seen.pop(halvings, None)

    def _judge(self, tried: int) -> None:
        if not self._is_another(tried) and self._may_go(tried, self._step):
            self._try(tried + self._step)  # as where items are so dear that each has a call of its own
            return
        self._tried = None
        if self._unit_s(tried) < _BETTER * self._unit_s(self._best):
            self._best = tried
            self._pause = _FIRST
        else:
            self._step = -self._step
            self._left = self._pause
            self._pause = min(2 * self._pause, _SELDOM)

    def _is_another(self, tried: int) -> bool:
        """Whether its calls did hold more or fewer items."""
        fewer, more = sorted((self._items(self._best), self._items(tried)))
        return more >= _OTHER * fewer

    def _items(self, halvings: int) -> float:
        """Return how many items its calls held, on the average."""
        calls = self._seen[halvings]
        return sum(call.items for call in calls) / len(calls)

    def _unit_s(self, halvings: int) -> float:
        calls = self._seen[halvings]
        return sum(call.seconds for call in calls) / sum(call.work for call in calls)


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
