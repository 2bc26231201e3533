"""What the steps of coroutines cost."""

from __future__ import annotations

from mainspring.environment import Environment

_NEAR_S = 50e-6


class StepClock:
    """CPU time of steps on one thread: never too little, and at most 50 µs too much for each.

    The system's clock of a thread costs more than the whole step of most handlers, a clock on the wall a tenth of it.
    Who has the thread for less than 50 µs hardly loses it meanwhile, and is charged for as long as it took. A longer
    step is charged for what the thread has used since a reading that was at most so long before, and for no more than
    it took.
    """

    __slots__ = ("_cpu_ns", "_ns", "_read_at", "monotonic")

    def __init__(self, env: Environment) -> None:
        self.monotonic = env.monotonic
        self._cpu_ns = env.thread_cpu_ns
        self._read_at = float("-inf")
        self._ns = 0

    def begin(self, now: float) -> int:
        """Return what `spent` has to know of a step that begins."""
        if now - self._read_at > _NEAR_S:
            self._read_at = now
            self._ns = self._cpu_ns()
        return self._ns

    def spent(self, base_ns: int, took_s: float) -> float:
        """Return the CPU seconds of a step that has just ended."""
        if took_s < _NEAR_S:
            return took_s
        self._ns = self._cpu_ns()
        self._read_at = self.monotonic()
        return min(took_s, (self._ns - base_ns) / 1e9)
