"""The line of those who wait until the store has room for what they submit. Ends of tasks wake them, wherever."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from mainspring.config import seconds
from mainspring.environment import Environment
from mainspring.errors import InsufficientResources, QueueFull
from mainspring.processors.context import current
from mainspring.store.base import Store

logger = logging.getLogger("mainspring.dispatch")
T = TypeVar("T")
_TELL_S = 10.0
"""Who waits for longer than this is told of in the log."""


def patience(wait_for_room: float | str | None) -> float:
    """Return the seconds that somebody waits for room; inside a handler nobody does: it would hold its slot."""
    limit_s = math.inf if wait_for_room is None else seconds(wait_for_room, "wait_for_room")
    return 0.0 if current.get() is not None else limit_s


class Room:
    """First come, first served, in this process; between processes whoever is quicker."""

    def __init__(self, store: Store, env: Environment) -> None:
        self._env = env
        self._tickets = count()
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []  # ticket, how many tasks
        self._line: set[int] = set()  # tickets of who waits, or was let in and looks
        self._looks = 0
        store.when_ended(self.free)

    def free(self, ended: int) -> None:
        """So many tasks have ended, or with 0 some may have: let as many in, and one call at least."""
        self._looks += 1
        self._let_in(max(ended, 1))

    def _let_in(self, left: int) -> None:
        while self._waiting and left > 0:
            _, n, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(True)
                left -= n

    async def enter(self, submit: Callable[[], Awaitable[T]], n: int, until: float) -> T:
        """Submit n tasks, waiting for room until a moment of the monotonic clock.

        Raises: what `submit` raises; QueueFull and InsufficientResources when there is no room by then.
        """
        ticket = next(self._tickets)
        telling: asyncio.TimerHandle | None = None
        try:
            if self.is_awaited() and self._left_s(until) > 0:
                await self._turn(ticket, n, until)
            while True:
                looks = self._looks
                try:
                    return await submit()
                except QueueFull as full:
                    if n > full.value or self._left_s(until) <= 0:
                        raise
                    telling = telling or _tell_later(full)
                    if looks == self._looks and not await self._turn(ticket, n, until):
                        raise
                except InsufficientResources as full:  # no end of a task tells of room on a disk: new figures do
                    left_s = self._left_s(until)
                    if left_s <= 0:
                        raise
                    telling = telling or _tell_later(full)
                    again_s = left_s if full.retry_after is None else full.retry_after
                    await asyncio.sleep(min(left_s, again_s))
        finally:
            if telling is not None:
                telling.cancel()
            self._line.discard(ticket)
            self._let_in(1)  # there may be room for the next; if not, it looks and waits on

    def _left_s(self, until: float) -> float:
        return until - self._env.monotonic()

    def is_awaited(self) -> bool:
        """Whether somebody has waited for room and is not in yet."""
        return bool(self._line)

    async def _turn(self, ticket: int, n: int, until: float) -> bool:
        """Wait to be let in; returns whether that came in time."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        heappush(self._waiting, (ticket, n, turn))
        self._line.add(ticket)
        left_s = self._left_s(until)
        timer = None if left_s == math.inf else loop.call_later(left_s, _too_late, turn)
        try:
            return await turn
        finally:
            if timer is not None:
                timer.cancel()


def _tell_later(full: Exception) -> asyncio.TimerHandle:
    """Say in the log that somebody waits, when that takes long."""
    why = "a submit has waited for room for %.0f s: %s"
    return asyncio.get_running_loop().call_later(_TELL_S, logger.warning, why, _TELL_S, full)


def _too_late(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)
