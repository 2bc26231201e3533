"""What role and database set for sessions changes nothing for ours, whatever they do and however long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.engine.support import engine_on

from mainspring.config import StoreConfig
from mainspring.store.moving.server import ServerEnd
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import connect
from mainspring.store.postgres.looking import look

pytestmark = pytest.mark.anyio
IMPATIENT = {
    "statement_timeout": "'100ms'",
    "transaction_timeout": "'100ms'",
    "idle_session_timeout": "'100ms'",
    "idle_in_transaction_session_timeout": "'100ms'",
    "lock_timeout": "'1ms'",
    "default_transaction_isolation": "'serializable'",
    "synchronous_commit": "off",
}
LONG = "SELECT pg_sleep(0.5)"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[str]:
    """The address of a database whose owner has little time, of all kinds that this server knows."""
    known = {name for (name,) in postgres.ask("SELECT name FROM pg_settings")}
    with postgres.own_database(tmp_path, "t_hurried") as address:
        for name, value in IMPATIENT.items():
            if name in known:
                postgres.command(f"ALTER ROLE t_hurried SET {name} = {value}")
        yield address


async def test_a_role_in_a_hurry_ends_nothing_of_an_engine(impatient: str) -> None:
    """Neither a transaction, a look nor the line to other processes, which is idle."""
    async with engine_on(impatient) as engine:
        store: Any = engine.manager.store
        line = store.line._connection
        assert await store.write(_long) == "read committed"
        await store.view(lambda view: view.execute(LONG))
        await asyncio.to_thread(store.look_aside, lambda view: view.execute(LONG))
        assert store.line._connection is line
        assert not line.is_closed()


def _long(tx: Any) -> str:
    tx.cursor.execute(LONG)
    return str(tx.cursor.execute("SHOW transaction_isolation")[0][0])


async def test_nor_of_whoever_looks_or_moves_a_store(impatient: str) -> None:
    """What goes through all tasks takes its time."""
    async with engine_on(impatient, worker=False):
        await asyncio.to_thread(look, impatient, lambda session: session.execute(LONG))
    end = await asyncio.to_thread(ServerEnd.open, parse(impatient), "")
    try:
        await asyncio.to_thread(_move, end)
    finally:
        await asyncio.to_thread(end.close)


def _move(end: ServerEnd) -> None:
    for transaction in (end.transaction, end.hold):
        with transaction():
            end.ask(LONG)
    with end.transaction():
        assert end.ask("SHOW transaction_isolation") == [("read committed",)]


@pytest.mark.parametrize(("lock_timeout_s", "shown"), [(0, "1ms"), (0.0001, "1ms"), (10, "10s"), (1e8, "2147483647ms")])
async def test_how_long_a_lock_is_waited_for(lock_timeout_s: float, shown: str) -> None:
    """To wait for nothing is not to wait for ever, and the longest is as long as the server can count."""
    connection = await connect(parse(postgres.url()), "looks", StoreConfig(lock_timeout_s=lock_timeout_s))
    try:
        assert await connection.fetchval("SHOW lock_timeout") == shown
    finally:
        await connection.close()
