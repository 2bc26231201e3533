"""A lane without work asks the other processes for some: soon, and ever more rarely while that brings nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mainspring.store.base import Store
from mainspring.store.ready import Asker

_SOON_S = 0.005
"""Some commits: in a stream of quick tasks the next one has come by then."""
_MOST_S = 1.0


class Asking:
    """Looks after a lane from the moment that one of its slots has nothing to do until all have something."""

    def __init__(self, port: Asker, store: Store, has_idle: Callable[[], bool], can_take: Callable[[], bool]) -> None:
        self._port = port
        self._store = store
        self._has_idle = has_idle
        self._can_take = can_take
        self._is_alone = False  # as far as is known there is nobody to ask
        self._seen = 0  # claims that had come when it began to wait
        self._delay_s = _SOON_S
        self._timer: asyncio.TimerHandle | None = None

    def rests(self) -> None:
        """A slot has nothing to do."""
        if self._timer is None and not self._is_alone:
            self._wait(_SOON_S)

    def look_up(self) -> None:
        """Called now and then: others may have come."""
        if self._is_alone and self._has_idle() and self._store.ask(self._port):
            self._is_alone = False
            self._wait(_SOON_S)

    def _wait(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._seen = self._port.taken
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._has_idle():
            return
        if self._port.taken != self._seen:  # work comes by itself
            self._wait(_SOON_S)
            return
        self._is_alone = self._can_take() and not self._store.ask(self._port)
        if not self._is_alone:
            self._wait(min(2 * self._delay_s, _MOST_S))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
