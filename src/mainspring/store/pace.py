"""How fast tasks end, as this process sees and hears of it."""

from __future__ import annotations

_WINDOW_S = 5.0
_MOST_S = 30.0
"""Nobody is told to come back later than that: the pace of now says little of what is then."""


class Pace:
    """Counts ends in windows; belongs to the event loop, and may be read from any thread."""

    def __init__(self, now: float, rest_s: float) -> None:
        self._rest_s = rest_s
        self._since = now
        self._ends = 0
        self._before: float | None = None  # ends a second in the window before

    def add(self, ends: int, now: float) -> None:
        if now - self._since >= _WINDOW_S:
            self._before, self._since, self._ends = self.rate(now), now, 0
        self._ends += ends

    def rate(self, now: float) -> float:
        """Return how many end in a second, lately."""
        passed = now - self._since
        if self._before is None or passed >= _WINDOW_S:
            return self._ends / max(passed, self._rest_s)
        return (self._before * (_WINDOW_S - passed) + self._ends) / _WINDOW_S

    def seconds_for(self, ends: int, now: float) -> float:
        """Return how long so many ends take at this pace; where none has been seen, when the next look is due.

        Half a minute at most.
        """
        rate = self.rate(now)
        return min(_MOST_S, ends / rate if rate > 0 else self._rest_s)
