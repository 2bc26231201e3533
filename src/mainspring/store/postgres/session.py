"""A connection for a thread: statements by name, one after the other, each answered before the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar

import asyncpg

from mainspring.store.postgres.connection import LOST
from mainspring.store.postgres.statements import SQL
from mainspring.store.sql.transaction import Row

_CLOSE_S = 2.0
_BY_IDS = {"outcome_by_id": "outcomes_by_ids", "known_id": "known_ids", "buried_id": "buried_ids"}
_PRESENT = "ISOLATION LEVEL READ COMMITTED"
"""As `connect` has it for its sessions."""
T = TypeVar("T")


class Found(list[Row]):
    """What a statement found, as all stores hand it out."""

    __slots__ = ()

    def fetchone(self) -> Row | None:
        return self[0] if self else None

    def fetchall(self) -> list[Row]:
        return self


class Session:
    """Belongs to the thread that uses it: the driver's event loop turns within each call, and nowhere else.

    Also what the store's looks go through (`store.sql.reads.View`), and what appliers of effects get as their cursor.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]]) -> None:
        self._loop = _new_loop()
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement] = {}
        self._connection: asyncpg.Connection
        self._meanwhile: Callable[[], None] | None = None
        try:
            self._connection = self._loop.run_until_complete(connect())
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """End it, in order where the server still answers."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._connection.close(timeout=_CLOSE_S))
        except (asyncpg.PostgresError, *LOST):
            self._connection.terminate()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._meanwhile is not None:
            self._loop.call_soon(self._loop.call_soon, self._meanwhile)  # the turn after the one that sends it
            self._meanwhile = None
        return self._loop.run_until_complete(work)

    def meanwhile(self, call: Callable[[], None]) -> None:
        """Have a function called when the next statement is on its way, while the server works on it."""
        self._meanwhile = call

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Have a function called in the midst of whatever is waited for then."""
        self._loop.call_later(seconds, call)

    def begin(self, how: str = "", then: str = "") -> None:
        """Begin a transaction, and run statements without values in it, in one round trip."""
        self.command(f"BEGIN {how}; {then}")

    @contextmanager
    def own(self) -> Iterator[Session]:
        """Give a session in which what is set or locked stays until it is undone."""
        yield self

    # Statements

    def run(self, name: str, values: Sequence[Any] = ()) -> Found:
        return self._wait(self._run(name, SQL[name], values))[0]

    def changed(self, name: str, values: Sequence[Any] = ()) -> int:
        """Run a write and return how many rows it changed."""
        return self._wait(self._run(name, SQL[name], values))[1]

    def run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values, without waiting for one before the next."""
        self._wait(self._run_many(name, rows))

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Found:
        """Run a statement that is not named here, with its values as $1, $2 ..."""
        return self._wait(self._run(sql, sql, values))[0]

    def copy_in(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add rows to a table, whatever it would number by itself."""
        self._wait(self._connection.copy_records_to_table(table, columns=columns, records=rows))

    def columns(self, sql: str) -> list[str]:
        """Return the names of the columns that a statement finds."""
        return [attribute.name for attribute in self._wait(self._prepare(sql, sql)).get_attributes()]

    def command(self, sql: str, patience_s: float | None = None) -> None:
        """Run one or more statements without values, in one round trip. `patience_s` is for those that take long."""
        self._wait(self._connection.execute(sql, timeout=patience_s))

    async def _run(self, key: str, sql: str, values: Sequence[Any]) -> tuple[Found, int]:
        statement = await self._prepare(key, sql)
        rows = await statement.fetch(*values)
        last = (statement.get_statusmsg() or "").rpartition(" ")[2]
        return Found(map(tuple, rows)), int(last) if last.isdecimal() else 0

    async def _prepare(self, key: str, sql: str) -> asyncpg.prepared_stmt.PreparedStatement:
        statement = self._prepared.get(key)
        if statement is None:
            statement = self._prepared[key] = await self._connection.prepare(sql)
        return statement

    async def _run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        await self._connection.executemany(SQL[name], rows)

    # A look (store.sql.reads.View)

    def one(self, name: str, *values: Any) -> Any:
        return self.run(name, values).fetchone()

    def rows(self, name: str, *values: Any) -> list[Row]:
        return self.run(name, values)

    def of_ids(self, name: str, ids: Sequence[bytes]) -> list[Row]:
        return self.run(_BY_IDS[name], (list(ids),))

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        self.begin("ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield self
        finally:
            with contextlib.suppress(*LOST):  # what broke it has been raised already
                self.command("COMMIT")


class PooledSession(Session):
    """Transactions on whatever session of the server a pooler lends for each: nothing is left in there.

    A statement outside of a transaction gets one of its own. None is prepared to stay: where its cache has no room, the
    driver sends the text along with each call.
    """

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]],
        first: str,
        direct: Callable[[], Session],
        patience_s: float,
    ) -> None:
        """`first` is run at the beginning of each transaction; `direct` gives a session without the pooler.

        A transaction begins within `patience_s`, or the server is out of reach: a pooler lets everybody wait for it.
        """
        super().__init__(connect)
        self._first = first
        self._direct = direct
        self._patience_s = patience_s

    def begin(self, how: str = _PRESENT, then: str = "") -> None:
        self._wait(self._begin(f"{how}; {self._first}; {then}"))

    async def _begin(self, how: str) -> None:
        try:
            await self._connection.execute(f"BEGIN {how}", timeout=self._patience_s)
        except asyncpg.PostgresError:  # what comes next would run into this transaction
            with contextlib.suppress(*LOST):  # what broke it is being raised
                await self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def own(self) -> Iterator[Session]:
        with closing(self._direct()) as session:
            yield session

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        if self._connection.is_in_transaction():
            yield
            return
        await self._begin(f"{_PRESENT}; {self._first}")
        try:
            yield
        except BaseException:
            with contextlib.suppress(*LOST):  # what broke it is being raised
                await self._connection.execute("ROLLBACK")
            raise
        await self._connection.execute("COMMIT")

    async def _run(self, key: str, sql: str, values: Sequence[Any]) -> tuple[Found, int]:
        async with self._transaction():
            return await super()._run(key, sql, values)

    async def _run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        async with self._transaction():
            await super()._run_many(name, rows)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
