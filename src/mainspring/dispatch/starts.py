"""Starts on their way to the store: of what runs for longer than most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from mainspring.dispatch.attempt import Attempt
from mainspring.store.base import Store

_RECORD_STARTS_S = 0.02
"""A handler that is still running after this long is recorded as RUNNING; most have ended by then."""


class Starts:
    """One timer for all attempts of a manager, while some of them are not recorded."""

    def __init__(self, running: Callable[[], Iterable[Attempt]], store: Store) -> None:
        self._running = running
        self._store = store
        self._timer: asyncio.TimerHandle | None = None
        self.looks = False

    def look_soon(self) -> None:
        """Call it when an attempt goes to its runner, unless it looks soon anyway."""
        self.looks = True
        self._timer = asyncio.get_running_loop().call_later(_RECORD_STARTS_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self.looks = None, False

    def _look(self) -> None:
        self._timer, self.looks, waiting = None, False, False
        for attempt in self._running():
            if attempt.recorded:
                continue
            if (started_ms := attempt.started_ms) is None:
                waiting = True
            else:
                attempt.recorded = True
                self._store.started(attempt.claim, started_ms)
        if waiting:
            self.look_soon()
