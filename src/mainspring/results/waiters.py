"""Whoever awaits a result is woken by the write that ends the task, never by looking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import islice
from typing import Protocol
from weakref import WeakValueDictionary

from mainspring.errors import TaskTimeout
from mainspring.store.base import Ended, Store
from mainspring.tasks import TaskId


class Waiting:
    """A place where the end of one task arrives. It is kept only as long as somebody holds it."""

    __slots__ = ("__weakref__", "_future", "ended", "id", "known")

    def __init__(self, id: bytes, *, known: bool) -> None:
        self.id = id
        self.known = known  # submitted here: its end can't have been missed
        self.ended: Ended | None = None
        self._future: asyncio.Future[None] | None = None

    @property
    def is_awaited(self) -> bool:
        return self._future is not None and self.ended is None

    def settle(self, ended: Ended) -> None:
        self.ended = ended
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def future(self) -> asyncio.Future[None]:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future


class Waiters:
    """Brings ends to those who wait. See `store.base.Listener`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: WeakValueDictionary[bytes, Waiting] = WeakValueDictionary()
        self._turn = 0
        store.listen(self)

    def expect(self, id: bytes) -> Waiting:
        """Call it before the task is submitted: then its end needs no look into the store."""
        waiting = self._waiting[id] = Waiting(id, known=True)
        return waiting

    def find(self, id: bytes) -> Waiting:
        waiting = self._waiting.get(id)
        if waiting is None:
            waiting = self._waiting[id] = Waiting(id, known=False)
        return waiting

    async def wait(self, waiting: Waiting, timeout: float | None = None) -> Ended:
        """Return how the task ended. Raises TaskTimeout after `timeout` seconds, TaskNotFound for an unknown id."""
        if waiting.ended is None and not waiting.known:
            await self._look(waiting)
        if waiting.ended is None:
            await _within(asyncio.shield(waiting.future()), timeout, waiting.id)
        assert waiting.ended is not None
        return waiting.ended

    async def _look(self, waiting: Waiting) -> None:
        found = await self._store.ended([waiting.id])
        if found:
            waiting.settle(found[0])
        else:
            await self._store.require([waiting.id])
            waiting.known = True

    def ended(self, tasks: list[Ended]) -> None:
        waiting = self._waiting
        if not waiting:
            return
        get = waiting.get
        for task in tasks:
            if (found := get(task.id)) is not None:
                found.settle(task)

    def wants(self, id: bytes) -> bool:
        return id in self._waiting

    def awaited(self, most: int) -> list[bytes]:
        waiting = [item.id for item in list(self._waiting.values()) if item.is_awaited]
        if not waiting:
            return []
        start = self._turn % len(waiting)
        self._turn = start + most
        return list(islice(waiting[start:] + waiting[:start], most))


async def _within(waited: Awaitable[None], timeout: float | None, id: bytes) -> None:
    if timeout is None:
        await waited
        return
    try:
        async with asyncio.timeout(timeout):
            await waited
    except TimeoutError:
        raise TaskTimeout(f"task {TaskId(id)} has not ended within {timeout} s; it goes on") from None


__all__ = ["Waiters", "Waiting"]
