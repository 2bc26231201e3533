"""Whoever awaits a result is woken by the write that ends the task, never by looking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import TypeVar
from weakref import ref

from mainspring.config import seconds
from mainspring.errors import StoreUnavailable, TaskError, TaskNotFound, TaskTimeout
from mainspring.store.base import Ended, Store
from mainspring.tasks import Ref, TaskId

_SWEEP_AT = 4_096
_SOON_S, _RARELY_S = 0.02, 1.0
"""How long after a look for a user's open transaction the next comes: each time twice as long, up to a second."""
_LOOK_S = 5.0
"""What a look into the store may take where whoever asks waits for less: else it would tell nothing."""

T = TypeVar("T")


class Waiting(Ref):
    """A place where the end of one task arrives. It is told only as long as somebody holds it."""

    __slots__ = ("__weakref__", "_futures", "ended", "known", "origin")

    def __init__(self, key: bytes, known: bool) -> None:
        self.key = key
        self.known = known  # submitted here: its end can't have been missed
        self.origin: str | None = None  # the user's transaction that submitted it; until it has come
        self.ended: Ended | None = None
        self._futures: list[asyncio.Future[None]] | None = None  # one for each who waits, made by the first

    @property
    def is_awaited(self) -> bool:
        return self._futures is not None and self.ended is None

    def seek(self) -> None:
        """Somebody is about to wait: from now on its end must not be missed."""
        if self._futures is None:
            self._futures = []

    def settle(self, ended: Ended) -> None:
        self.ended = ended
        if self._futures is not None:
            for future in self._futures:
                if not future.done():
                    future.set_result(None)
            self._futures = None

    def give_up(self, error: TaskError) -> None:
        for future in self._futures or ():
            if not future.done():
                future.set_exception(error)

    def future(self) -> asyncio.Future[None]:
        """Return a future of one's own that is done when the task has ended; cancelling it leaves the others."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seek()
        assert self._futures is not None
        self._futures.append(future)
        return future

    def forget(self, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more."""
        if self._futures is not None:
            self._futures.remove(future)
            self._futures = self._futures or None


class Waiters:
    """Brings ends to those who wait. See `store.base.Listener`.

    `make` gives a place for a task (key, known): whoever hands out places with more to them says how they are made.
    """

    def __init__(self, store: Store) -> None:
        self.make: Callable[[bytes, bool], Waiting] = Waiting
        self._store = store
        self._waiting: dict[bytes, ref[Waiting]] = {}
        self._sweep_at = _SWEEP_AT
        self._turn = 0
        self._closed = False
        store.listen(self)

    def expect(self, key: bytes) -> Waiting:
        """Call it before the task is submitted: then its end needs no look into the store."""
        return self._held(key) or self._hold(key, True)

    def find(self, key: bytes) -> Waiting:
        return self._held(key) or self._hold(key, False)

    def promise(self, key: bytes, origin: str | None) -> Waiting:
        """Return the place of a task that comes with a user's transaction; without origin it is there already."""
        waiting = self.find(key)
        waiting.known, waiting.origin = False, origin
        return waiting

    def _held(self, key: bytes) -> Waiting | None:
        """Return the place that somebody holds already: submitted again or found again, all wait in one."""
        known = self._waiting.get(key)
        return None if known is None else known()

    def _hold(self, key: bytes, known: bool) -> Waiting:
        waiting = self.make(key, known)
        self._waiting[key] = ref(waiting)
        if len(self._waiting) > self._sweep_at:
            self._sweep()
        return waiting

    def _sweep(self) -> None:
        """Forget the places that nobody holds; each is looked at a bounded number of times."""
        self._waiting = {key: known for key, known in self._waiting.items() if known() is not None}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._waiting))

    async def wait(self, waiting: Waiting, until: float | None = None) -> Ended:
        """Return how the task ended. Raises TaskNotFound for an unknown id.

        An end that the store has is found however late it is; only what is not there yet is waited for `until` then, on
        the loop's clock, and TimeoutError raised.
        """
        if waiting.ended is None and not waiting.known:
            await self._look(waiting, until)
        if waiting.ended is None and self._closed:
            raise _closed(waiting.key)
        if waiting.ended is None:
            future = waiting.future()
            try:
                await (future if until is None else _by(until, future))
            finally:
                waiting.forget(future)
        assert waiting.ended is not None
        return waiting.ended

    async def _look(self, waiting: Waiting, until: float | None = None) -> None:
        waiting.seek()
        found = await self._store.ended([waiting.key])
        if found:
            waiting.settle(found[0])
            return
        if waiting.origin is None:
            await self._store.require([waiting.key])
        elif not await self._come(waiting, waiting.origin, until):
            return
        waiting.known, waiting.origin = True, None

    async def come(self, waiting: Waiting) -> None:
        """Wait until a user's transaction has brought the task. Raises TaskNotFound: it was rolled back."""
        if waiting.ended is None and not waiting.known:
            await self._look(waiting)

    async def _come(self, waiting: Waiting, origin: str, until: float | None) -> bool:
        """Wait until a user's transaction has brought the task; returns false if it has ended already, or has to.

        Its end is told when it is over. A rollback is told by nobody: that is looked for.
        """
        future = waiting.future()
        delay = _SOON_S
        try:
            while not await self._store.has_come(waiting.key, origin):
                look = asyncio.wait((future,), timeout=delay)
                await (look if until is None else _by(until, look))
                if future.done():
                    future.result()  # the engine may have been closed
                    return False
                delay = min(2 * delay, _RARELY_S)
            return True
        finally:
            waiting.forget(future)

    def ended(self, tasks: list[Ended]) -> None:
        pop = self._waiting.pop
        for task in tasks:
            known = pop(task.id, None)
            if known is not None and (waiting := known()) is not None:
                waiting.settle(task)

    def pruned(self, tasks: list[tuple[bytes, TaskNotFound]]) -> None:
        for id, error in tasks:
            known = self._waiting.pop(id, None)
            if known is not None and (waiting := known()) is not None:
                waiting.known, waiting.origin = False, None  # whoever waits for it later looks, and finds the same
                waiting.give_up(error)

    def close(self) -> None:
        """Nobody will be told any more: say so to those who wait."""
        self._closed = True
        for known in list(self._waiting.values()):
            if (waiting := known()) is not None:
                waiting.give_up(_closed(waiting.key))
        self._waiting.clear()

    def give_up(self, error: TaskError) -> None:
        for known in list(self._waiting.values()):
            if (waiting := known()) is not None:
                waiting.give_up(error)

    def wants(self, id: bytes) -> bool:
        return id in self._waiting

    def awaited(self, most: int) -> list[bytes]:
        live = [item for known in list(self._waiting.values()) if (item := known()) is not None and item.ended is None]
        awaited = [item.key for item in live if item.is_awaited][:most]
        others = [item.key for item in live if not item.is_awaited]  # soon awaited, one after the other
        if not others:
            return awaited
        start = self._turn % len(others)
        self._turn = start + most
        return [*awaited, *islice(others[start:] + others[:start], most - len(awaited))]


def _closed(id: bytes) -> StoreUnavailable:
    return StoreUnavailable(f"the engine was closed before task {TaskId(id)} ended; ask again with a new engine")


async def _by(until: float, awaited: Awaitable[T]) -> T:
    """Await something until then. Raises TimeoutError."""
    async with asyncio.timeout_at(until):
        return await awaited


@asynccontextmanager
async def within(timeout: float | str | None, key: bytes) -> AsyncIterator[float | None]:
    """Bound a wait for a task; gives the time, on the loop's clock, until which to wait for what is not there yet.

    Looks into the store have a moment more: however short the time, what has ended is told. Raises TaskTimeout when it
    takes longer than `timeout` seconds; the task goes on.
    """
    if timeout is None:
        yield None
        return
    limit_s = seconds(timeout, "timeout")
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(now + max(limit_s, _LOOK_S)):
            yield now + limit_s
    except TimeoutError:
        raise TaskTimeout(f"task {TaskId(key)} has not ended within {limit_s:g} s; it goes on") from None


__all__ = ["Waiters", "Waiting", "within"]
