"""Stores behind a real pgbouncer in transaction mode: all works, and nothing of ours stays in its sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from proof.server import OwnServer
from tests import postgres
from tests.engine.support import SOON, engine_on, shows, until, value
from tests.pooler import Pooler, pooling
from tests.store.test_postgres_outages import Work

from mainspring import Engine, InvalidInput, TaskCancelled, TaskHandle, TaskStatus
from mainspring.errors import StoreReadOnly, StoreUnavailable
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.session import Session

pytestmark = pytest.mark.anyio
SESSIONS = 3
LENT = "SELECT pid FROM pg_stat_activity WHERE application_name = 'mainspring pooled'"
LEFT = """
SELECT current_setting('search_path') LIKE '%public', current_setting('enable_seqscan'),
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')
"""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer() as server:
        yield server


@pytest.fixture
def pooler(server: OwnServer) -> Iterator[Pooler]:
    with pooling(server.url, SESSIONS) as pooler:
        yield pooler


@pytest.fixture
def address(pooler: Pooler, tmp_path: Path) -> str:
    return f"{pooler.address}&schema={postgres.schema_of(tmp_path)}"


async def test_processes_work_together_through_it(server: OwnServer, address: str) -> None:
    """Tasks with parents, retries, a cancel and results that another process hears of at once."""
    worker, submitter = engine_on(address), engine_on(address, worker=False)
    begun = asyncio.Event()
    tries: list[int] = []

    async def echo(n: int) -> int:
        return n

    async def adds(numbers: list[int]) -> int:
        return sum(numbers)

    async def fails_first() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return len(tries)

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    for engine in (worker, submitter):
        engine.task(echo)
        engine.task(adds)
        engine.task(retry=SOON)(fails_first)
        engine.task(waits)
    async with worker, submitter:
        first = await submitter.map(echo, range(200))
        assert await value(await submitter.submit(adds, first[:50])) == sum(range(50))
        assert [await value(handle) for handle in first] == list(range(200))
        held = await submitter.submit(waits)
        await begun.wait()
        await held.cancel()
        with pytest.raises(TaskCancelled):
            await value(held)
        assert await value(await submitter.submit(fails_first)) == 3
        assert 0 < len(server.ask(LENT)) <= SESSIONS


async def test_a_right_that_is_taken_away(server: OwnServer, tmp_path: Path) -> None:
    """Calls are refused with what to grant, and go on when it is granted again: what fails at the beginning of a
    transaction leaves none open."""
    schema, role = postgres.schema_of(tmp_path), "t_pooled"
    server.ask(f"CREATE ROLE {role} LOGIN")
    server.ask(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    with pooling(server.url.replace("postgres@", f"{role}@"), SESSIONS) as pooler:
        async with engine_on(f"{pooler.address}&schema={schema}", worker=False) as engine:
            store: Any = engine.manager.store
            looks = (
                engine.manager.stats,
                lambda: store.write(_isolation),
                lambda: asyncio.to_thread(store.look_aside, _snapshot),
            )
            for look in looks:
                await look()
            await asyncio.to_thread(server.ask, f"REVOKE USAGE ON SCHEMA {schema} FROM {role}")
            for look in looks:
                with pytest.raises(StoreReadOnly, match=f"all rights on schema {schema}"):
                    await look()
            await asyncio.to_thread(server.ask, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
            for look in looks:
                await look()


def _snapshot(session: Session) -> None:
    with session.snapshot():
        session.one("unfinished")


async def test_another_default_of_isolation_changes_nothing(server: OwnServer, address: str) -> None:
    """A pooler takes no settings for a session: each transaction says what it is."""
    server.ask("ALTER DATABASE postgres SET default_transaction_isolation TO 'repeatable read'")
    try:
        async with engine_on(address) as engine:
            assert await engine.manager.store.write(_isolation) == "read committed"
    finally:
        server.ask("ALTER DATABASE postgres RESET default_transaction_isolation")


async def test_a_database_in_a_hurry_ends_no_transaction(server: OwnServer, address: str) -> None:
    """What it sets for sessions does not hold in ours."""
    limits = [name for (name,) in server.ask("SELECT name FROM pg_settings WHERE name ~ '^(statement|transaction)_t'")]
    for name in limits:
        server.ask(f"ALTER DATABASE postgres SET {name} TO '100ms'")
    try:
        async with engine_on(address) as engine:
            await engine.manager.store.write(_long)
    finally:
        for name in limits:
            server.ask(f"ALTER DATABASE postgres RESET {name}")


def _long(tx: Any) -> None:
    tx.cursor.execute("SELECT pg_sleep(0.5)")


def _isolation(tx: Any) -> str:
    return str(tx.cursor.execute("SHOW transaction_isolation")[0][0])


async def test_nothing_stays_in_the_sessions_that_it_lends(address: str, pooler: Pooler) -> None:
    """Neither settings nor statements, channels or locks: whoever gets the session next would have them."""
    async with engine_on(address) as engine:

        @engine.task
        async def echo(n: int) -> int:
            return n

        handles = await engine.map(echo, range(100))
        assert [await value(handle) for handle in handles] == list(range(100))
        await engine.upsert("docs", [[1.0, 0.0]], ids=["first"])
        await engine.search([1.0, 0.0], collection="docs")
        others = [await asyncpg.connect(parse(address).pooler, statement_cache_size=0) for _ in range(SESSIONS)]
        try:
            for other in others:  # each holds one of them meanwhile
                await other.execute("BEGIN")
                assert tuple(await other.fetchrow(LEFT)) == (True, "on", 0, 0, 0)
        finally:
            for other in others:
                await other.close()


async def test_vectors(address: str) -> None:
    """Written, searched, and given an index, which takes a session of its own."""
    async with engine_on(address) as engine:
        vectors = [[float(n), 1.0] for n in range(50)]
        await engine.upsert("docs", vectors, ids=[str(n) for n in range(50)])
        store: Any = engine.vectors
        await asyncio.to_thread(store.add_index, "docs")
        assert await asyncio.to_thread(store.has_index, "docs")
        assert [hit.id for hit in await engine.search([0.0, 1.0], collection="docs", top_k=2)] == ["0", "1"]
        await asyncio.to_thread(store.drop_index, "docs")
        assert not await asyncio.to_thread(store.has_index, "docs")


async def test_a_transaction_of_the_user_goes_through_it_too(address: str) -> None:
    """The task is there with the commit, and not after a rollback."""
    async with engine_on(address) as engine:

        @engine.task
        async def echo(n: int) -> int:
            return n

        connection = await asyncpg.connect(parse(address).pooler, statement_cache_size=0)
        try:
            async with connection.transaction():
                handle = await engine.submit(echo, 7, connection=connection)
            assert await value(handle) == 7
        finally:
            await connection.close()


async def test_a_pooler_that_dies(server: OwnServer, address: str, pooler: Pooler, tmp_path: Path) -> None:
    """Calls are refused truly meanwhile, what runs goes on, nobody passes for dead, and nothing runs twice for it."""
    work = Work(address, tmp_path)
    async with work.engine as engine:
        answers = {n: await work.submit(n) for n in range(5)}
        await until(lambda: len(work.starts) == 5)
        pooler.kill()
        answers[5] = await work.submit(5)
        assert isinstance(answers[5], StoreUnavailable)
        work.goes.set()
        beat = f"SELECT beat FROM {postgres.schema_of(tmp_path)}.worker"
        before = server.ask(beat)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(server.ask, beat) == before:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
        pooler.start()
        answers |= {n: await work.submit(n) for n in range(6, 9)}
        await work.all_is_told_truly(answers)
        assert set(work.starts.values()) == {1}
        await shows(engine.handle(_accepted(answers).id), status=TaskStatus.COMPLETED)


async def test_a_server_that_restarts_behind_it(server: OwnServer, address: str, tmp_path: Path) -> None:
    """As without a pooler: what was accepted ends once, what was refused is not there."""
    work = Work(address, tmp_path)
    async with work.engine:
        answers = {n: await work.submit(n) for n in range(5)}
        await asyncio.to_thread(server.stop)
        answers |= {n: await work.submit(n) for n in range(5, 7)}
        assert all(isinstance(answers[n], StoreUnavailable) for n in range(5, 7))
        await asyncio.to_thread(server.start)
        answers |= {n: await work.submit(n) for n in range(7, 10)}
        await work.all_is_told_truly(answers)


def _accepted(answers: dict[int, Any]) -> TaskHandle:
    return next(answer for answer in answers.values() if isinstance(answer, TaskHandle))


# Addresses: no pooler is needed


@pytest.mark.parametrize(
    ("direct", "host", "port"),
    [
        ("db.example:5433", "db.example", "5433"),
        ("10.0.0.7", "10.0.0.7", ""),
        ("[::1]:5432", "[::1]", "5432"),
        ("::1", "[::1]", ""),
        ("/run/postgresql:5433", "/run/postgresql", "5433"),
    ],
)
def test_both_addresses_are_read(direct: str, host: str, port: str) -> None:
    """The server behind it takes user, password, database and everything else from the pooler's."""
    found = parse(f"postgresql://u:p%40w@pool:6432/db?sslmode=require&pooler=transaction&direct={direct}&schema=s")
    assert (found.schema, found.shown) == ("s", "postgresql://u@pool:6432/db")
    assert found.pooler == "postgresql://u:p%40w@pool:6432/db?sslmode=require"
    there = parse(found.url)
    assert there.pooler is None
    quoted = quote(host, safe="")
    assert found.url == f"postgresql://u:p%40w@/db?sslmode=require&host={quoted}" + (f"&port={port}" if port else "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ("pooler=session", "pooler"),
        ("pooler=transaction", "direct"),
        ("pooler=transaction&direct=", "direct"),
        ("pooler=transaction&direct=host:port", "direct"),
        ("direct=host:5432", "pooler"),
    ],
)
def test_what_is_missing_is_named(options: str, field: str) -> None:
    """A pooler alone is not enough, and where none is, nothing is behind it."""
    with pytest.raises(InvalidInput) as caught:
        Engine(f"postgresql://u:secret@pool/db?{options}")
    assert caught.value.field == field
    assert "secret" not in str(caught.value)
