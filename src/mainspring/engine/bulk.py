"""A stream of tasks on its way into the store: in parts, in order, as fast as there is room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from mainspring.dispatch.room import Room
from mainspring.engine.handle import TaskHandle
from mainspring.errors import ResourceLimitExceeded
from mainspring.store.base import Behind, Line, NewTask

_AHEAD = 3
"""Parts that are handed in while the store still writes the one before."""
HandOver = Callable[[list[NewTask], Line], Awaitable[list[TaskHandle]]]


class Bulk:
    """What `handles` holds is stored, in the order in which it was added, and nothing is stored behind a gap.

    Args:
        hand_over: stores the first tasks of a list, as many as there is room for.
        until: how long to wait for room, as a moment of the monotonic clock.
        look: is called before a part that waited is handed in, which is judged by what it has learnt.
    """

    def __init__(
        self, hand_over: HandOver, room: Room, until: Callable[[], float], look: Callable[[], Awaitable[None]]
    ) -> None:
        self.handles: list[TaskHandle] = []
        self._hand_over = hand_over
        self._room = room
        self._until = until
        self._look = look
        self._line = Line()
        self._under_way: deque[tuple[list[NewTask], asyncio.Future[list[TaskHandle]]]] = deque()

    async def add(self, tasks: list[NewTask]) -> None:
        if self._room.is_awaited():  # who asked before goes first
            await self._settle(0)
            await self._squeeze_in(tasks)
            return
        self._under_way.append((tasks, self._handing(tasks, self._line)))
        await self._settle(_AHEAD)
        await asyncio.sleep(0)

    async def all_in(self) -> list[TaskHandle]:
        """Return all handles once everything is stored."""
        await self._settle(0)
        return self.handles

    async def stop(self) -> list[TaskHandle]:
        """Hand in no more; returns the handles of what was stored."""
        await asyncio.gather(*(handing for _, handing in self._under_way), return_exceptions=True)
        for _, handing in self._under_way:
            if handing.exception() is None:
                self.handles += handing.result()
        self._under_way.clear()
        return self.handles

    async def _settle(self, most: int) -> None:
        while len(self._under_way) > most:
            tasks, handing = self._under_way[0]
            await asyncio.wait((handing,))
            wrong = handing.exception()
            if wrong is not None and not isinstance(wrong, (ResourceLimitExceeded, Behind)):
                raise wrong
            stored = [] if wrong is not None else handing.result()
            if len(stored) < len(tasks):
                self._line = Line()  # what is under way behind the gap is refused, and gets in before anything new
                most = 0
            self._under_way.popleft()
            self.handles += stored
            await self._squeeze_in(tasks[len(stored) :])

    async def _squeeze_in(self, tasks: list[NewTask]) -> None:
        while tasks:
            stored = await self._room.enter(partial(self._alone, tasks), 1, self._until())
            self.handles += stored
            tasks = tasks[len(stored) :]

    async def _alone(self, tasks: list[NewTask]) -> list[TaskHandle]:
        await self._look()
        handing = self._handing(tasks, Line())
        self._under_way.appendleft((tasks, handing))
        await asyncio.wait((handing,))  # where this is cancelled the store writes it all the same, and `stop` asks
        self._under_way.popleft()
        return handing.result()

    def _handing(self, tasks: list[NewTask], line: Line) -> asyncio.Future[list[TaskHandle]]:
        handing = asyncio.ensure_future(self._hand_over(tasks, line))
        handing.add_done_callback(_seen)
        return handing


def _seen(handing: asyncio.Future[list[TaskHandle]]) -> None:
    """Whoever adds may be cancelled; nobody asks for what became of the rest then."""
    if not handing.cancelled():
        handing.exception()
