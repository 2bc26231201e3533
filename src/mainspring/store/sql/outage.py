"""What the log says while a store is out of reach: a line when it is lost, one a minute, and one when it is back."""

from __future__ import annotations

import logging
from typing import Final

from mainspring.environment import Environment, Lock

logger = logging.getLogger("mainspring.store")
_EVERY_S: Final = 60.0


class OutageLog:
    """One for each store. Its parts tell, from whatever thread, when they can't reach it and when they can again.

    A store that comes and goes is told of once a minute as well.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._lock = Lock()
        self._cut: dict[str, float] = {}  # since when, by part
        self._told_at: float | None = None
        self._is_told = False  # of this outage

    def lost(self, part: str, why: object) -> None:
        """A part can't do what it is for."""
        with self._lock:
            now = self._env.monotonic()
            self._cut.setdefault(part, now)
            if self._told_at is not None and now - self._told_at < _EVERY_S:
                logger.debug("%s: %s", part, why)
                return
            self._told_at, lasted_s = now, now - min(self._cut.values())
            is_first, self._is_told = not self._is_told, True
        if is_first:
            logger.warning("the store is out of reach, %s: %s", part, why)
        else:
            logger.warning("the store has been out of reach for %.0f s, %s: %s", lasted_s, part, why)

    def back(self, part: str) -> None:
        """It can again."""
        if part not in self._cut:
            return
        with self._lock:
            since = min(self._cut.values())
            del self._cut[part]
            if self._cut:
                self._cut[next(iter(self._cut))] = since  # it is one outage
                return
            is_told, self._is_told = self._is_told, False
            lasted_s = self._env.monotonic() - since
        if is_told:
            logger.warning("the store is in reach again after %.0f s", lasted_s)
