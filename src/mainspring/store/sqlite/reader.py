"""The reading thread: its own connection, so that looking never waits for writing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import apsw

from mainspring.environment import Environment

T = TypeVar("T")
_Job = tuple[Callable[[apsw.Connection], Any], Callable[[Any], None] | None, asyncio.Future[Any] | None]


class Reader:
    """Runs functions of a connection one after the other and hands their answers to the loop."""

    def __init__(self, connect: Callable[[], apsw.Connection], env: Environment) -> None:
        self._connect = connect
        self._env = env
        self._inbox: deque[_Job | None] = deque()
        self._signal = env.signal()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._strand = self._env.start_strand("mainspring-reader", self._work(), self._signal)

    def put(self, run: Callable[[apsw.Connection], T], then: Callable[[T], None]) -> None:
        """Run a function; its answer goes to `then`, on the loop."""
        self._inbox.append((run, then, None))
        self._signal.raise_()

    async def run(self, run: Callable[[apsw.Connection], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._inbox.append((run, None, future))
        self._signal.raise_()
        return await future

    async def stop(self) -> None:
        self._inbox.append(None)
        self._signal.raise_()
        await self._strand.ended()

    def _work(self) -> Iterator[None]:
        connection = self._connect()
        while True:
            yield
            while self._inbox:
                job = self._inbox.popleft()
                if job is None:
                    connection.close()
                    return
                self._do(connection, *job)

    def _do(
        self,
        connection: apsw.Connection,
        run: Callable[[apsw.Connection], Any],
        then: Callable[[Any], None] | None,
        future: asyncio.Future[Any] | None,
    ) -> None:
        try:
            answer = run(connection)
        except BaseException as exc:  # noqa: BLE001 - whoever asked gets it
            self._loop.call_soon_threadsafe(_give_up, future, exc)
        else:
            self._loop.call_soon_threadsafe(_answer, then, future, answer)


def _answer(then: Callable[[Any], None] | None, future: asyncio.Future[Any] | None, answer: Any) -> None:
    if then is not None:
        then(answer)
    elif future is not None and not future.done():
        future.set_result(answer)


def _give_up(future: asyncio.Future[Any] | None, exc: BaseException) -> None:
    if future is None:
        raise exc  # reaches the loop's exception handler, which logs it
    if not future.done():
        future.set_exception(exc)
