"""The two clocks: the wall clock that people's times are judged by, and the order's own, which never goes back."""

from __future__ import annotations

from mainspring.environment import Environment

STEP_MS = 100
"""The wall clock is followed when it differs by more than this from where the time that went by would have it: somebody
set it. Less is the reading of two clocks one after the other."""


class Clock:
    """Tells what time it is, at the pace of the time that goes by between steps of the wall clock.

    `now_ms` is the wall clock: delays, deadlines and retention go by it, and it may step back. The order's clock is
    ahead of it by a lead: it follows the wall clock forward, is never behind what any process has stored by it, and
    stands in for the wall clock where a step back would keep work waiting: in ranks and backoffs.

    The writer's thread moves it; whoever reads takes one consistent setting.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._setting = (0, 0.0, 0.0)  # wall ms and elapsed s at one moment, and the lead in ms
        self._newest_ms = 0  # of the order's clock: what is known to be stored, or may be
        self.steps = 0

    def start(self, wall_ms: int, stored_ms: int) -> None:
        """Begin at the wall clock; `stored_ms` is the newest time of the order's clock in the store."""
        self._setting, self._newest_ms = (wall_ms, self._env.elapsed(), 0.0), 0
        self.reach(stored_ms)

    def now_ms(self) -> int:
        return self._at(self._env.elapsed())

    def ms_at(self, monotonic: float) -> int:
        wall, started, _ = self._setting
        return wall + int((self._env.elapsed() - started + (monotonic - self._env.monotonic())) * 1000)

    def _at(self, elapsed: float) -> int:
        wall, started, _ = self._setting
        return wall + int((elapsed - started) * 1000)

    def lead_ms(self) -> int:
        """Return how far the order's clock is ahead."""
        return self._read()[1]

    def _read(self) -> tuple[int, int]:
        wall, started, lead = self._setting
        elapsed = (self._env.elapsed() - started) * 1000
        now = wall + int(elapsed)
        return now, max(wall + int(elapsed + lead), self._newest_ms) - now

    def follow(self, wall_ms: int, since: float, until: float) -> None:
        """Go with the wall clock where it was set; it showed `wall_ms` at some moment between two of the elapsed time.

        The order's clock goes along forward, and not back.
        """
        if self._at(since) - STEP_MS <= wall_ms <= self._at(until) + STEP_MS:
            return
        before, started, lead = self._setting
        self._setting = (wall_ms, until, max(0.0, before - wall_ms + (until - started) * 1000 + lead))
        self.steps += 1

    def take(self) -> tuple[int, int]:
        """Return the time, and how far the order's clock is ahead, for a transaction to write by."""
        now, lead_ms = self._read()
        self._newest_ms = now + lead_ms
        return now, lead_ms

    def reach(self, stored_ms: int) -> None:
        """Bring the order's clock to a time that another process has stored by it.

        By no part of a millisecond further: two clocks, each always a bit ahead of the other, would run away together.
        """
        wall, started, lead = self._setting
        behind = stored_ms - wall - (self._env.elapsed() - started) * 1000 - lead
        if behind > 0:
            self._setting = (wall, started, lead + behind)
        self._newest_ms = max(self._newest_ms, stored_ms)
