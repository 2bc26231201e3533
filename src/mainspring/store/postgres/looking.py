"""Looking at a store on a server from outside: without an engine, without a trace."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, TypeVar

import asyncpg

from mainspring.config import StoreConfig
from mainspring.errors import StoreUnavailable
from mainspring.store.postgres.address import Server, parse
from mainspring.store.postgres.connection import connect, is_there, our_errors
from mainspring.store.postgres.lookers import PLANS
from mainspring.store.postgres.session import Session

T = TypeVar("T")
_QUIETLY: Final = MappingProxyType({**PLANS, "default_transaction_read_only": "on"})


class _Nothing(Exception):
    """There is no store."""


def look(address: str | Server, run: Callable[[Session], T]) -> T:
    """Return what a function finds in a store that is only read, whether or not anybody works on it; it may take long.

    Blocks, also in a thread where an event loop runs.

    Raises: InvalidInput: no address. StoreUnavailable: no server, or no such store. StoreForeign, StoreNewer,
        StoreReadOnly, StoreRefused: it can't be read.
    """
    server = _server(address)
    try:
        return _look(server, run)
    except _Nothing:
        raise StoreUnavailable(
            f"there is no store in schema {server.schema} of {server.shown}; check the address (an engine makes one)"
        ) from None


def look_if_any(address: str | Server, run: Callable[[Session], T]) -> T | None:
    """The same; None where there is no store yet."""
    try:
        return _look(_server(address), run)
    except _Nothing:
        return None


def _server(address: str | Server) -> Server:
    return address if isinstance(address, Server) else parse(address)


def _look(server: Server, run: Callable[[Session], T]) -> T:
    async def connected() -> asyncpg.Connection:
        connection = await connect(server, "looks", StoreConfig(), _QUIETLY, patience_s=None)
        try:
            if not await is_there(server, connection):
                raise _Nothing
        except BaseException:
            await connection.close()
            raise
        return connection

    def looked() -> T:
        with our_errors(server):
            session = Session(connected)
            try:
                return run(session)
            finally:
                session.close()

    with ThreadPoolExecutor(1, thread_name_prefix="mainspring-looker") as thread:  # a session has a loop of its own
        return thread.submit(looked).result()


__all__ = ["look", "look_if_any"]
