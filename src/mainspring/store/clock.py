"""The store's clock: the wall clock at opening, and the time since, in which the machine may have slept."""

from __future__ import annotations

import logging

from mainspring.environment import Environment

logger = logging.getLogger("mainspring.store")
_MOVED_MS = 60_000
"""A wall clock that is off by more was set, and has not just gone a little slower."""
_NAP_S = 0.5
"""What the two clocks may have come apart without a sleep: shorter ones are added up until they come to more."""
_LOOKS = 3
_FRESH_S = 0.005
"""For so long after a look at both clocks the machine is taken not to have slept."""


class StoreClock:
    """No jump of the wall clock moves it, and no sleep of the machine stops it."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._wall_ms = 0
        self._began = 0.0
        self._sleeps = [(float("-inf"), 0.0)]  # since when, by the monotonic clock, how far that stays behind
        self._looked_at = float("-inf")  # by the same; the last sleep that is known was before
        self._apart_ms = 0  # the wall clock at opening, from this one
        self._is_moved = False

    def set(self, wall_ms: int, newest_ms: int) -> None:
        """Begin to count, at what a wall clock shows, and not behind `newest_ms`: when a task came last, or a worker
        came or went. Where the wall clock was set back, an end may bear a time before its task became ready."""
        self._began = self._env.since_boot()
        self._wall_ms = max(wall_ms, newest_ms)
        self._sleeps = [(float("-inf"), max(self._behind_s() for _ in range(_LOOKS)))]
        self._looked_at = self._env.monotonic()
        self._apart_ms = self._env.wall_ms() - self.now_ms()
        self._is_moved = False
        if newest_ms - wall_ms > _MOVED_MS:
            logger.warning(
                "the store's newest times are %.0f s ahead of the clock: this one is behind, or a process with one "
                "that was ahead had the store open; delays, deadlines and retention go by the store's until it is "
                "reached",
                (newest_ms - wall_ms) / 1000,
            )

    def _behind_s(self) -> float:
        """How far the monotonic clock has stayed behind in sleeps: never told too long, whenever this thread waits."""
        awake_and_asleep = self._env.since_boot()
        return awake_and_asleep - self._env.monotonic()

    def now_ms(self) -> int:
        now, awake = self._env.since_boot(), self._env.monotonic()
        if now - awake > self._sleeps[-1][1] + _NAP_S:  # what came since the last look counts as later
            self._sleeps.append((self._looked_at, max(self._behind_s() for _ in range(_LOOKS))))
        self._looked_at = awake
        return self._wall_ms + int((now - self._began) * 1000)

    def ms_at(self, monotonic: float) -> int:
        """Return what it showed at a moment of the monotonic clock."""
        if monotonic > self._looked_at + _FRESH_S:
            self.now_ms()
        since, behind_s = self._sleeps[-1]
        if monotonic <= since:
            behind_s = next(behind_s for since, behind_s in reversed(self._sleeps) if since < monotonic)
        return self._wall_ms + int((monotonic + behind_s - self._began) * 1000)

    def look(self) -> None:
        """Say so, once, when the wall clock was set: what users mean by a moment is another one than before."""
        moved_ms = self._env.wall_ms() - self.now_ms() - self._apart_ms
        if (abs(moved_ms) > _MOVED_MS) is self._is_moved:
            return
        self._is_moved = not self._is_moved
        if self._is_moved:
            logger.warning(
                "the wall clock was set %s by %.0f s while this process has the store open; delays, deadlines and "
                "retention go on by the clock as it was: restart the process when the new one is right",
                "forward" if moved_ms > 0 else "back", abs(moved_ms) / 1000,
            )  # fmt: skip
        else:
            logger.warning("the wall clock is back where it was when this process opened the store")
