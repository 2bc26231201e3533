"""What holds in our sessions on a server, whatever its databases and roles are set to."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from proof.server import OwnServer
from tests import postgres
from tests.conformance.kit import PostgresFactory, new, opened, submit
from tests.engine.support import LIMIT_S, engine_on, quick, until

from mainspring import Engine, StoreConfig
from mainspring.errors import StoreUnavailable
from mainspring.store.postgres import connection
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import for_a_transaction

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def looking(address: str, **config: Any) -> AsyncIterator[Engine]:
    """An engine that runs nothing."""
    async with Engine(address, quick(StoreConfig(**config)), worker=False) as engine:
        yield engine


def shown(name: str) -> Any:
    """Return what gives a setting as it is in a transaction."""
    return lambda tx: tx.cursor.execute(f"SHOW {name}")[0][0]


@pytest.mark.parametrize(
    ("theirs", "durability", "ours"),
    [("off", "full", "on"), ("on", "full", "on"), ("remote_apply", "full", "remote_apply"), ("on", "relaxed", "off")],
)
async def test_a_database_that_does_not_wait_for_the_disk_weakens_nothing(
    tmp_path: Path, theirs: str, durability: Any, ours: str
) -> None:
    """Whoever is told that a task is stored may rely on it: our commits wait, unless the durability was chosen not to,
    and as strictly as the database wants it. Behind a pooler as well, where each transaction says so."""
    with postgres.own_database(tmp_path) as address:
        postgres.command(f"ALTER DATABASE {postgres.schema_of(tmp_path)} SET synchronous_commit TO {theirs}")
        async with looking(address, blobs=tmp_path, durability=durability) as engine:
            assert await engine.manager.store.write(shown("synchronous_commit")) == ours
        session = await asyncpg.connect(address)
        try:
            async with session.transaction():
                await session.execute(for_a_transaction(parse(address), StoreConfig(durability=durability)))
                assert await session.fetchval("SHOW synchronous_commit") == ours
            assert await session.fetchval("SHOW synchronous_commit") == theirs
        finally:
            await session.close()


async def test_what_was_acknowledged_outlives_a_server_whose_database_does_not_wait(tmp_path: Path) -> None:
    """The server dies the moment a submit has returned, long before it would write by itself what it was given."""
    with OwnServer("wal_writer_delay=10s") as server:
        await asyncio.to_thread(server.ask, "ALTER DATABASE postgres SET synchronous_commit TO off")
        async with looking(server.url, blobs=tmp_path) as engine:
            task = new()
            await engine.manager.store.submit([task])
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert server.ask("SELECT id FROM mainspring.task") == [(task.id,)]


async def test_no_session_may_idle_in_a_transaction(factory: PostgresFactory) -> None:
    """Whichever it is: what is open there keeps locks, or keeps vacuum from what died."""
    wanted, setting = "15s", "idle_in_transaction_session_timeout"
    async with opened(factory.make()) as store:
        assert await store.write(shown(setting)) == wanted
        for look in (store.view, store.survey):
            assert await look(lambda view: view.execute(f"SHOW {setting}")[0][0]) == wanted
        assert await store.line._connection.fetchval(f"SHOW {setting}") == wanted
    session = await asyncpg.connect(postgres.url())
    try:
        async with session.transaction():
            await session.execute(for_a_transaction(store.server, store.config))
            assert await session.fetchval(f"SHOW {setting}") == wanted
    finally:
        await session.close()


class Stop:
    """A write that stops its process, as far as the server can tell, until the test lets it go on."""

    def __init__(self) -> None:
        self.has_stopped, self._goes = threading.Event(), threading.Event()

    def __call__(self, tx: Any) -> None:
        tx.run("lead", -1)
        self.has_stopped.set()
        assert self._goes.wait(LIMIT_S)

    def go_on(self) -> None:
        self._goes.set()


class StopReading(Stop):
    """The same while more comes than fits between the two."""

    def __call__(self, tx: Any) -> None:
        tx.run("lead", -1)
        much = "SELECT repeat('x', 1000000) FROM generate_series(1, $1::integer)"
        tx.cursor.execute(much, (0,))  # it is prepared before
        self._transport, self._loop = tx.cursor._connection._transport, tx.cursor._loop
        self._transport.pause_reading()
        self.has_stopped.set()
        tx.cursor.execute(much, (100,))

    def go_on(self) -> None:
        self._loop.call_soon_threadsafe(self._transport.resume_reading)


async def stops(one: Any, two: Any, stop: Stop) -> None:
    """Let one process stop in a transaction that others wait for: another one works on, and so does it in the end."""
    stopping = asyncio.ensure_future(one.write(stop))  # alone
    try:
        assert await asyncio.to_thread(stop.has_stopped.wait, LIMIT_S)
        async with asyncio.timeout(LIMIT_S / 2):
            await submit(two, new())
    finally:
        stop.go_on()
    with pytest.raises(StoreUnavailable):
        await stopping
    assert await two.view(lambda view: view.one("leader")) != (-1,)
    await submit(one, new())


async def test_a_process_that_stops_within_a_transaction_keeps_nobody_waiting(
    factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction, and with it all locks. When it goes on it is told that this came to nothing, and
    works on."""
    monkeypatch.setattr(connection, "_STOPPED_S", 1)
    async with opened(factory.make(lock_timeout_s=LIMIT_S)) as one, opened(factory.make(lock_timeout_s=LIMIT_S)) as two:
        for store in (one, two):
            await factory.hold_upkeep(store)
        await stops(one, two, Stop())


class ServerByTcp(OwnServer):
    """Reached by an address of the network: only there the server can tell that nobody reads."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        super().__init__("listen_addresses=127.0.0.1", f"port={self.port}")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"


async def test_a_process_that_stops_as_it_is_sent_much_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction does not idle for the server as long as that has something to send, and ends all the same."""
    monkeypatch.setattr(connection, "_STOPPED_S", 1)
    with ServerByTcp() as server:
        config: Any = {"blobs": tmp_path, "lock_timeout_s": LIMIT_S}
        async with looking(server.url, **config) as one, looking(server.url, **config) as two:
            await stops(one.manager.store, two.manager.store, StopReading())


async def test_a_process_has_four_connections(tmp_path: Path) -> None:
    """However much it does, its helper's among them; and up to four more when it searches vectors or looks for long."""
    async with engine_on(postgres.address_of(tmp_path)) as engine:
        store: Any = engine.manager.store

        def connections() -> int:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE $1"
            return int(postgres.ask(sql, f"mainspring %{store.worker_id}")[0][0])

        await until(lambda: connections() == 4)  # the helper comes a moment later
        await engine.upsert("docs", [[1.0, 0.0]], ids=["first"])
        await asyncio.gather(*(engine.manager.stats() for _ in range(20)))
        assert connections() == 4
        postgres.command("SELECT pg_advisory_lock(0, 0)")
        try:
            waiting = "SELECT pg_advisory_lock_shared(0, 0), pg_advisory_unlock_shared(0, 0)"
            looks = [asyncio.ensure_future(store.survey(lambda view: view.execute(waiting))) for _ in range(8)]
            await until(lambda: connections() == 8)
        finally:
            postgres.command("SELECT pg_advisory_unlock(0, 0)")
        await asyncio.gather(*looks, *(engine.search([1.0, 0.0], collection="docs") for _ in range(8)))
        assert connections() == 8
    postgres.drop(postgres.schema_of(tmp_path))
