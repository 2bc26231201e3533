"""Whoever awaits a result is woken by the write that ends the task, never by looking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import islice
from weakref import ref

from mainspring.config import seconds
from mainspring.errors import StoreUnavailable, TaskTimeout
from mainspring.store.base import Ended, Store
from mainspring.tasks import TaskId


class Waiting:
    """A place where the end of one task arrives. It is kept only as long as somebody holds it."""

    __slots__ = ("__weakref__", "_futures", "_registry", "ended", "id", "known")

    def __init__(self, id: bytes, registry: dict[bytes, ref[Waiting]], *, known: bool) -> None:
        self.id = id
        self._registry = registry
        self.known = known  # submitted here: its end can't have been missed
        self.ended: Ended | None = None
        self._futures: list[asyncio.Future[None]] = []  # one for each who waits: cancelling one leaves the others

    def __del__(self) -> None:
        known = self._registry.get(self.id)
        if known is not None and known() is self:
            del self._registry[self.id]

    @property
    def is_awaited(self) -> bool:
        return bool(self._futures) and self.ended is None

    def settle(self, ended: Ended) -> None:
        self.ended = ended
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def give_up(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_exception(_closed(self.id))

    def future(self) -> asyncio.Future[None]:
        """Return a future of one's own that is done when the task has ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        return future


class Waiters:
    """Brings ends to those who wait. See `store.base.Listener`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[bytes, ref[Waiting]] = {}
        self._turn = 0
        self._closed = False
        store.listen(self)

    def expect(self, id: bytes) -> Waiting:
        """Call it before the task is submitted: then its end needs no look into the store."""
        before = self._waiting.get(id)
        if before is not None and (waiting := before()) is not None:
            return waiting  # submitted again: who waits already goes on
        waiting = Waiting(id, self._waiting, known=True)
        self._waiting[id] = ref(waiting)
        return waiting

    def find(self, id: bytes) -> Waiting:
        known = self._waiting.get(id)
        waiting = None if known is None else known()
        if waiting is None:
            waiting = Waiting(id, self._waiting, known=False)
            self._waiting[id] = ref(waiting)
        return waiting

    async def wait(self, waiting: Waiting, timeout: float | str | None = None) -> Ended:
        """Return how the task ended. Raises TaskTimeout after `timeout` seconds, TaskNotFound for an unknown id."""
        if waiting.ended is None and not waiting.known:
            await self._look(waiting)
        if waiting.ended is None and self._closed:
            raise _closed(waiting.id)
        if waiting.ended is None:
            await _within(waiting.future(), timeout, waiting.id)
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
        pop = self._waiting.pop
        for task in tasks:
            known = pop(task.id, None)
            if known is not None and (waiting := known()) is not None:
                waiting.settle(task)

    def close(self) -> None:
        """Nobody will be told any more: say so to those who wait."""
        self._closed = True
        for known in list(self._waiting.values()):
            if (waiting := known()) is not None:
                waiting.give_up()
        self._waiting.clear()

    def wants(self, id: bytes) -> bool:
        return id in self._waiting

    def awaited(self, most: int) -> list[bytes]:
        live = [known() for known in list(self._waiting.values())]
        waiting = [item.id for item in live if item is not None and item.is_awaited]
        if not waiting:
            return []
        start = self._turn % len(waiting)
        self._turn = start + most
        return list(islice(waiting[start:] + waiting[:start], most))


def _closed(id: bytes) -> StoreUnavailable:
    return StoreUnavailable(f"the engine was closed before task {TaskId(id)} ended; ask again with a new engine")


async def _within(waited: Awaitable[None], timeout: float | str | None, id: bytes) -> None:
    if timeout is None:
        await waited
        return
    timeout = seconds(timeout, "timeout")
    try:
        async with asyncio.timeout(timeout):
            await waited
    except TimeoutError:
        raise TaskTimeout(f"task {TaskId(id)} has not ended within {timeout} s; it goes on") from None


__all__ = ["Waiters", "Waiting"]
