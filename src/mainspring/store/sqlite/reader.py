"""The reading thread: its own connection, so that looking never waits for writing."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import apsw

from mainspring.environment import Environment
from mainspring.errors import TaskError
from mainspring.store.sql.transaction import Row
from mainspring.store.sqlite.statements import SQL

logger = logging.getLogger("mainspring.store")
T = TypeVar("T")
_Job = tuple[Callable[[apsw.Connection], Any], Callable[[Any], None] | None, asyncio.Future[Any] | None]


class FileView:
    """See `store.sql.reads.View`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def one(self, name: str, *values: Any) -> Any:
        return self._connection.execute(SQL[name], values).fetchone()

    def rows(self, name: str, *values: Any) -> list[Row]:
        return self._connection.execute(SQL[name], values).fetchall()

    def of_ids(self, name: str, ids: Sequence[bytes]) -> list[Row]:
        cursor = self._connection.cursor()
        found: list[Row] = []
        with self._connection:
            for id in ids:
                found += cursor.execute(SQL[name], (id,))
        return found

    def snapshot(self) -> AbstractContextManager[Any]:
        return self._connection


class Reader:
    """Runs functions of a connection one after the other and hands their answers to the loop."""

    def __init__(self, connect: Callable[[], apsw.Connection], env: Environment) -> None:
        self._connect = connect
        self._env = env
        self._inbox: deque[_Job | None] = deque()
        self._signal = env.signal()
        self._connection: apsw.Connection | None = None  # made by the first look, or the first one that can

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
        while True:
            yield
            while self._inbox:
                job = self._inbox.popleft()
                if job is None:
                    if self._connection is not None:
                        self._connection.close()
                    return
                self._do(*job)

    def _do(
        self,
        run: Callable[[apsw.Connection], Any],
        then: Callable[[Any], None] | None,
        future: asyncio.Future[Any] | None,
    ) -> None:
        try:
            if self._connection is None:
                self._connection = self._connect()
            answer = run(self._connection)
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
        if not isinstance(exc, (apsw.Error, TaskError)):
            raise exc  # reaches the loop's exception handler, which logs it
        logger.warning("a look into the store failed: %s", exc)  # it was a hint; the safety look comes again
        return
    if not future.done():
        future.set_exception(exc)
