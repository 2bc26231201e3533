"""Running alone: whoever must not have company waits until nothing runs, and nothing starts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from mainspring.dispatch.attempt import Attempt
from mainspring.dispatch.desk import Desk
from mainspring.store.base import Claimed


class One(NamedTuple):
    """Who runs alone, or waits for that."""

    claim: Claimed
    why: str  # completes "task ..."
    inside: bool  # only what runs within this process is kept from it


class Alone:
    """Counts what runs here, and knows the one that must have no company. Belongs to the event loop.

    Args:
        changed: is called when there is such a one, and when it is over.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.one: One | None = None
        self._changed = changed
        self._running = 0
        self._inside = 0  # of those, within this process: they could harm it
        self._waiting: list[asyncio.Future[None]] = []

    def enter(self, attempt: Attempt) -> None:
        self._running += 1
        self._inside += _is_inside(attempt)

    def leave(self, attempt: Attempt) -> None:
        self._running -= 1
        self._inside -= _is_inside(attempt)
        if not self._inside:
            self.look()

    def bars(self, desk: Desk) -> bool:
        """Whether nothing is to start at a desk."""
        return self.one is not None and (not self.one.inside or desk.mark is not None)

    async def quiet(self, limit_s: float) -> None:
        """Wait until nothing runs, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._until(lambda: not self._running)

    @asynccontextmanager
    async def run(self, attempt: Attempt, why: str, *, inside: bool = False) -> AsyncIterator[None]:
        """Wait until nothing runs that would be its company, and let nothing start as long as this lasts.

        The wait ends, too, when the claim was taken back meanwhile, or its deadline has passed: that is looked at anew
        with each `look`.
        """
        claim, desk = attempt.claim, attempt.desk

        def is_over() -> bool:
            is_late = claim.deadline_ms is not None and claim.deadline_ms < desk.store.now_ms()
            return is_late or not desk.has(claim)

        await self._until(lambda: self.one is None or is_over())  # one inside keeps out nothing of the process lane
        if self.one is not None:
            yield
            return
        self.one = One(claim, why, inside)
        self._changed()
        try:
            await self._until(lambda: not (self._inside if inside else self._running) or is_over())
            yield
        finally:
            self.one = None
            self._changed()
            self.look()

    def look(self) -> None:
        """Have all that wait here look whether they still have to."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting


def _is_inside(attempt: Attempt) -> bool:
    return attempt.desk.mark is not None and not attempt.in_child
