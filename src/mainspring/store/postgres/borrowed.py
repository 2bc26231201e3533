"""Connections that belong to users: a statement of ours runs in the transaction that is open there.

They are told apart by the names of their types, and their drivers are there already: none is imported here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from mainspring.environment import Environment
from mainspring.errors import InvalidInput, invalid
from mainspring.store.sql.transaction import Row

_ACCEPTED: Final = (
    "a connection of asyncpg, a Connection or AsyncConnection of psycopg 3, or a Connection, Session, AsyncConnection "
    "or AsyncSession of SQLAlchemy"
)
_VALUE: Final = re.compile(r"\$(\d+)")
Ask: TypeAlias = Callable[[Any, str, tuple[Any, ...]], Any]


class Borrowed:
    """Runs one statement after the other on a connection that stays its owner's: nothing is begun, committed or closed.

    What the driver raises is raised as it is.
    """

    def __init__(self, connection: Any, ask: Ask, env: Environment, *, is_async: bool) -> None:
        self._connection = connection
        self._ask = ask
        self._env = env
        self.is_async = is_async  # it belongs to the event loop of whoever made it

    async def fetch(self, sql: str, *values: Any) -> list[Row]:
        """Return the rows of a statement whose values are $1, $2 ..., each in a CAST where its type is not plain."""
        if self.is_async:
            rows = await self._ask(self._connection, sql, values)
        else:  # its owner awaits the answer, and does nothing else with it meanwhile
            rows = await self._env.to_thread(self._ask, self._connection, sql, values)
        return [tuple(row) for row in rows]


def borrow(connection: Any, env: Environment) -> Borrowed:
    """Take a user's connection. Raises InvalidInput: it is of no kind that is known here."""
    if isinstance(connection, Borrowed):
        return connection
    for base in type(connection).__mro__:
        kind = (base.__module__.partition(".")[0], base.__name__)
        if kind in _PROXIES:
            return borrow(connection.registry(), env)  # the session of this thread, or task
        if kind in _ASYNC:
            return Borrowed(connection, _ASYNC[kind], env, is_async=True)
        if kind in _BLOCKING:
            return Borrowed(connection, _BLOCKING[kind], env, is_async=False)
    raise unknown(connection)


def unknown(connection: Any) -> InvalidInput:
    kind = type(connection)
    return invalid("connection", f"{kind.__module__}.{kind.__qualname__}", "is not taken", f"pass {_ACCEPTED}")


async def _asyncpg(connection: Any, sql: str, values: tuple[Any, ...]) -> Any:
    return await connection.fetch(sql, *values)


def _named(sql: str, sign: str, values: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    """Write the values of a statement by name, as $1 is not known there."""
    return _VALUE.sub(sign, sql), {f"v{n}": value for n, value in enumerate(values, 1)}


def _tuples(cursor: Any) -> Callable[[Any], Row]:
    return tuple


def _psycopg(connection: Any, sql: str, values: tuple[Any, ...]) -> Any:
    with sys.modules["psycopg"].Cursor(connection, row_factory=_tuples) as cursor:  # whatever its own cursors are like
        return cursor.execute(*_named(sql, r"%(v\1)s", values)).fetchall()


async def _psycopg_async(connection: Any, sql: str, values: tuple[Any, ...]) -> Any:
    async with sys.modules["psycopg"].AsyncCursor(connection, row_factory=_tuples) as cursor:
        await cursor.execute(*_named(sql, r"%(v\1)s", values))
        return await cursor.fetchall()


def _text(connection: Any, sql: str, values: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    sqlalchemy = sys.modules["sqlalchemy"]
    if (name := connection.dialect.name) != "postgresql":
        raise invalid("connection", f"a connection to {name}", "does not lead to the store", "use one to its database")
    transaction = getattr(connection, "sync_connection", connection).get_transaction()
    if isinstance(transaction, sqlalchemy.TwoPhaseTransaction):
        why = "can't be prepared with tasks in it, as its commit carries a NOTIFY"
        raise invalid("connection", "a two-phase transaction", why, "submit in one that commits in a single phase")
    statement, named = _named(sql, r":v\1", values)
    return sqlalchemy.text(statement), named


def _sqlalchemy(connection: Any, sql: str, values: tuple[Any, ...]) -> Any:
    return connection.execute(*_text(connection, sql, values)).fetchall()


async def _sqlalchemy_async(connection: Any, sql: str, values: tuple[Any, ...]) -> Any:
    return (await connection.execute(*_text(connection, sql, values))).fetchall()


def _session(session: Any, sql: str, values: tuple[Any, ...]) -> Any:
    return _sqlalchemy(session.connection(), sql, values)


async def _session_async(session: Any, sql: str, values: tuple[Any, ...]) -> Any:
    return await _sqlalchemy_async(await session.connection(), sql, values)


_ASYNC: Final[dict[tuple[str, str], Ask]] = {
    ("asyncpg", "Connection"): _asyncpg,
    ("asyncpg", "PoolConnectionProxy"): _asyncpg,
    ("psycopg", "AsyncConnection"): _psycopg_async,
    ("sqlalchemy", "AsyncConnection"): _sqlalchemy_async,
    ("sqlalchemy", "AsyncSession"): _session_async,
}
_BLOCKING: Final[dict[tuple[str, str], Ask]] = {
    ("psycopg", "Connection"): _psycopg,
    ("sqlalchemy", "Connection"): _sqlalchemy,
    ("sqlalchemy", "Session"): _session,
}
_PROXIES: Final = frozenset((("sqlalchemy", "scoped_session"), ("sqlalchemy", "async_scoped_session")))
