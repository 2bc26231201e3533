"""The reading thread: its own connection, so that looking never waits for writing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from mainspring.environment import Environment
from mainspring.errors import TaskError
from mainspring.store.sql.outage import OutageLog

_PART = "looking"
T = TypeVar("T")


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Reader(Generic[C]):
    """Runs functions of a connection one after the other and hands their answers to the loop.

    Args:
        connect: makes the connection, for the first look or the first one that can.
        expected: what a look may raise that nobody waits for: it was a hint, and the safety look comes again.
        outage: is told of these.
        is_lost: whether an error means that the connection is gone; then a look is tried once more, on a new one.
    """

    def __init__(
        self,
        connect: Callable[[], C],
        env: Environment,
        expected: tuple[type[BaseException], ...],
        outage: OutageLog,
        is_lost: Callable[[BaseException], bool] = lambda exc: False,
    ) -> None:
        self._connect = connect
        self._env = env
        self._expected = (*expected, TaskError)
        self._outage = outage
        self._is_lost = is_lost
        self._inbox: deque[
            tuple[Callable[[C], Any], Callable[[Any], None] | None, asyncio.Future[Any] | None] | None
        ] = deque()
        self._signal = env.signal()
        self._connection: C | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._strand = self._env.start_strand("mainspring-reader", self._work(), self._signal)

    def put(self, run: Callable[[C], T], then: Callable[[T], None]) -> None:
        """Run a function; its answer goes to `then`, on the loop."""
        self._inbox.append((run, then, None))
        self._signal.raise_()

    async def run(self, run: Callable[[C], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._inbox.append((run, None, future))
        self._signal.raise_()
        return await future

    async def stop(self) -> None:
        self._inbox.append(None)
        self._signal.raise_()
        await self._strand.ended()

    def _work(self) -> Iterator[None]:
        while True:
            yield
            while self._inbox:
                job = self._inbox.popleft()
                if job is None:
                    self._drop()
                    return
                self._do(*job)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _do(
        self,
        run: Callable[[C], Any],
        then: Callable[[Any], None] | None,
        future: asyncio.Future[Any] | None,
    ) -> None:
        try:
            try:
                answer = self._look(run)
            except Exception as exc:
                if not self._is_lost(exc):
                    raise
                self._drop()
                answer = self._look(run)
        except BaseException as exc:  # noqa: BLE001 - whoever asked gets it
            if self._is_lost(exc):
                self._drop()
            self._loop.call_soon_threadsafe(self._give_up, future, exc)
        else:
            self._outage.back(_PART)
            self._loop.call_soon_threadsafe(_answer, then, future, answer)

    def _look(self, run: Callable[[C], Any]) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        return run(self._connection)

    def _give_up(self, future: asyncio.Future[Any] | None, exc: BaseException) -> None:
        if future is None:
            if not isinstance(exc, self._expected):
                raise exc  # reaches the loop's exception handler, which logs it
            self._outage.lost(_PART, exc)
            return
        if not future.done():
            future.set_exception(exc)


def _answer(then: Callable[[Any], None] | None, future: asyncio.Future[Any] | None, answer: Any) -> None:
    if then is not None:
        then(answer)
    elif future is not None and not future.done():
        future.set_result(answer)
