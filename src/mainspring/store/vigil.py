"""Who lives and does nothing: judged by what this process has watched itself, by nobody else's clock nor the wall's."""

from __future__ import annotations

from collections.abc import Mapping

_STEP_S = 1.0
"""What one look adds at most: after a longer gap this process was away itself, and the others perhaps with it."""


class Vigil:
    """Watches how many turns the writers of other processes have taken. A process is silent while that stands still."""

    def __init__(self, now: float) -> None:
        self._last = now
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, now: float, turns: Mapping[str, int]) -> dict[str, float]:
        """Return for how many seconds each of these has been seen silent: 0 at first sight."""
        passed, self._last = min(now - self._last, _STEP_S), now
        before, self._seen = self._seen, {}
        for name, n in turns.items():
            known, silent_s = before.get(name, (n, -passed))
            self._seen[name] = (n, silent_s + passed if known == n else 0.0)
        return {name: silent_s for name, (_, silent_s) in self._seen.items()}
