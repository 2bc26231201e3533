"""Schemas of older versions on a server become schemas of this one, while processes of the version before work on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit

from mainspring.config import StoreConfig
from mainspring.errors import StoreUnavailable
from mainspring.store.postgres import connection
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import SCHEMA_VERSION, WRITING, prepare
from mainspring.store.postgres.statements import MIGRATIONS

pytestmark = pytest.mark.anyio
FIXTURES = Path(__file__).parent / "fixtures"
VERSION_1 = (FIXTURES / "server_1.sql").read_text(encoding="utf-8")
STATEMENT = re.compile(r"^-- name: (\w+)\n(.*?);\n*(?=^-- name:|\Z)", re.MULTILINE | re.DOTALL)
STATEMENTS_OF_3 = STATEMENT.findall((FIXTURES / "server_3_queries.sql").read_text(encoding="utf-8"))
NUMBER = "SELECT oid::bigint % 2147483647 FROM pg_namespace WHERE nspname = $1"
SHAPE = {
    "columns": """SELECT relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull,
        pg_get_expr(adbin, adrelid) FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = $1::text::regnamespace AND relkind = 'r' AND attnum > 0 ORDER BY 1, 2""",
    "settings": """SELECT relname::text, reloptions FROM pg_class
        WHERE relnamespace = $1::text::regnamespace AND relkind = 'r' ORDER BY 1""",
    "indexes": "SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY 1",
    "constraints": """SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = $1::text::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
    "functions": """SELECT proname::text, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = $1::text::regnamespace ORDER BY 1""",
    "triggers": """SELECT tgname::text, pg_get_triggerdef(pg_trigger.oid)
        FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid
        WHERE relnamespace = $1::text::regnamespace AND NOT tgisinternal ORDER BY 1""",
    "sequences": "SELECT sequencename::text FROM pg_sequences WHERE schemaname = $1 ORDER BY 1",
}


@pytest.fixture
def older(factory: PostgresFactory) -> PostgresFactory:
    """A schema as version 1 made it."""
    postgres.command(f"CREATE SCHEMA {factory.schema}; SET search_path = {factory.schema}; {VERSION_1}")
    postgres.command("INSERT INTO store (version) VALUES (1); RESET search_path")
    return factory


@pytest.fixture
async def before(older: PostgresFactory, monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> PostgresFactory:
    """A schema of the version before."""
    with monkeypatch.context() as then:
        then.setattr(connection, "SCHEMA_VERSION", 3)
        await migrated(older.schema)
    return older


@asynccontextmanager
async def session_of(factory: PostgresFactory) -> AsyncIterator[asyncpg.Connection]:
    """A session of a process of the version before."""
    session = await asyncpg.connect(postgres.url(), server_settings={"search_path": factory.schema})
    try:
        yield session
    finally:
        await session.close()


async def waits(for_what: str) -> None:
    """Return when a session of ours waits for a lock of this kind."""
    sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event = $1 AND application_name = 'mainspring opens'"
    async with asyncio.timeout(60):
        while not postgres.ask(sql, for_what):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


def shape(schema: str) -> dict[str, Any]:
    """What there is, however it came about."""
    found = {name: postgres.ask(sql, schema) for name, sql in SHAPE.items()}
    return {
        name: [tuple(str(value).replace(schema, "ours") for value in row) for row in rows]
        for name, rows in found.items()
    }


async def migrated(schema: str) -> None:
    await prepare(parse(postgres.url(), schema), StoreConfig(), "")


def version(schema: str) -> int:
    return int(postgres.ask(f"SELECT version FROM {schema}.store")[0][0])


async def test_what_was_kept_before_is_counted(before: PostgresFactory) -> None:
    """The step that begins to count the bytes of kept results begins with those that are there."""
    postgres.ask(
        f"""INSERT INTO {before.schema}.cache
            (key, namespace, type, version, output, flags, bytes, made_ms, expires_ms, used_ms)
        SELECT n::text::bytea, 'a', 't', '1', '', 0, n, n, n, n FROM generate_series(1, 9) AS n"""
    )
    await migrated(before.schema)
    postgres.ask(f"DELETE FROM {before.schema}.cache WHERE bytes > 7")
    assert postgres.ask(f"SELECT bytes FROM {before.schema}.kept_size") == [(28,)]


async def test_a_migrated_schema_is_like_a_new_one(older: PostgresFactory) -> None:
    """Every step from version 1 on is there, and what they make is what new schemas get."""
    fresh = f"{older.schema}_fresh"
    try:
        await migrated(fresh)
        assert shape(older.schema) != shape(fresh)
        await migrated(older.schema)
        found, wanted = shape(older.schema), shape(fresh)
        for name in SHAPE:
            assert found[name] == wanted[name]
        assert len(MIGRATIONS) == SCHEMA_VERSION - 1
        assert version(older.schema) == SCHEMA_VERSION
    finally:
        postgres.drop(fresh)


async def test_many_open_an_older_store_at_once(older: PostgresFactory) -> None:
    """One of them migrates, the others wait."""
    await asyncio.gather(*(migrated(older.schema) for _ in range(6)))
    assert version(older.schema) == SCHEMA_VERSION


async def test_a_step_takes_as_long_as_it_takes(older: PostgresFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the patience for one statement nor what a role may take ends it: it would begin anew each time."""
    step = f"to_{SCHEMA_VERSION}"
    monkeypatch.setattr(connection, "MIGRATIONS", {**MIGRATIONS, step: "SELECT pg_sleep(0.5)"})
    monkeypatch.setattr(connection.connect, "__defaults__", ({}, 0.2))
    postgres.command("ALTER ROLE CURRENT_USER SET statement_timeout TO '200ms'")
    try:
        await migrated(older.schema)
    finally:
        postgres.command("ALTER ROLE CURRENT_USER RESET statement_timeout")
    assert version(older.schema) == SCHEMA_VERSION


async def test_a_step_that_fails_leaves_the_version_before(
    older: PostgresFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are one transaction."""
    before = shape(older.schema)
    last = f"to_{SCHEMA_VERSION}"
    monkeypatch.setattr(connection, "MIGRATIONS", {**MIGRATIONS, last: f"{MIGRATIONS[last]}; SELECT 1 / 0"})
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrated(older.schema)
    assert (version(older.schema), shape(older.schema)) == (1, before)


async def test_work_goes_on_in_an_older_store(older: PostgresFactory) -> None:
    """What waited there runs."""
    task = new("old")
    postgres.ask(f"INSERT INTO {older.schema}.class (namespace, type) VALUES ('default', 'custom:work')")
    postgres.ask(
        f"""INSERT INTO {older.schema}.task (seq, id, class, rank, status, reason, priority, max_retries, submitted_ms,
            ready_ms, input) VALUES (nextval('{older.schema}.task_seq'), $1, 1, 0, 0, 0, 1, 3, 0, 0, $2)""",
        task.id,
        task.input,
    )
    async with opened(older.make()) as store:
        port = Port(store)
        await port.serve()
        (claim,) = await port.room(2)
        assert claim.id == task.id
        await port.finish(claim)


async def test_statements_of_the_version_before_still_fit(older: PostgresFactory) -> None:
    """Its processes work on until they are replaced, one by one."""
    await migrated(older.schema)
    unfit = []
    async with session_of(older) as session:
        for name, sql in STATEMENTS_OF_3:
            try:
                await session.prepare(sql)
            except asyncpg.PostgresError as exc:
                unfit.append(f"{name}: {exc}")
    assert len(STATEMENTS_OF_3) > 100
    assert unfit == []


async def test_statements_that_were_prepared_before_go_on(before: PostgresFactory) -> None:
    """What they find has the form that it had when its processes prepared them."""
    unfit = []
    async with session_of(before) as session:
        for name, sql in STATEMENTS_OF_3:
            await session.execute(f"PREPARE before_{name} AS {sql}")
        await migrated(before.schema)
        for name, sql in STATEMENTS_OF_3:
            most = max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)
            values = f"({', '.join(['NULL'] * most)})" if most else ""
            try:
                await session.execute(f"EXPLAIN EXECUTE before_{name} {values}")
            except asyncpg.PostgresError as exc:
                unfit.append(f"{name}: {exc}")
    assert unfit == []


async def test_what_the_version_before_writes_is_counted(before: PostgresFactory) -> None:
    """A kept result, as its statement keeps it; and a limit of a group, which goes for the new ones too."""
    statements = dict(STATEMENTS_OF_3)
    async with opened(before.make()) as store, session_of(before) as session:
        await session.execute(statements["keep"], b"k", "a", "t", "1", b"", 0, None, 20, 1, 2, 1)
        await session.execute(statements["put_limit"], "", "g", 3, None, None, 0)
        assert postgres.ask(f"SELECT bytes FROM {before.schema}.kept_size") == [(20,)]
        (limit,) = await store.limits()
        assert (limit.group, limit.concurrency, limit.cost_rate) == ("g", 3, None)


async def test_an_upgrade_waits_for_whoever_writes(before: PostgresFactory) -> None:
    """Transactions of the version before go on as they are, in whatever order they use the tables; those that begin
    later wait until the tables are the new ones. Nothing is missed in between."""
    keep = dict(STATEMENTS_OF_3)["keep"]
    async with session_of(before) as early, session_of(before) as late:
        writes = f"SELECT pg_advisory_xact_lock_shared({WRITING}, $1)"
        number = await early.fetchval(NUMBER, before.schema)
        await early.execute("BEGIN")
        await early.fetchval(writes, number)
        await early.fetchval("SELECT max(changed) FROM group_limit")
        await early.execute(keep, b"1", "a", "t", "1", b"", 0, None, 20, 1, 2, 1)
        upgrade = asyncio.ensure_future(migrated(before.schema))
        await waits("advisory")
        await late.execute("BEGIN")
        writing = asyncio.ensure_future(late.fetchval(writes, number))
        await early.execute(keep, b"2", "a", "t", "1", b"", 0, None, 20, 1, 2, 1)
        assert not upgrade.done()
        await early.execute("COMMIT")
        await upgrade
        await writing
        assert await late.fetchval("SELECT bytes FROM kept_size") == 40


@pytest.mark.parametrize("is_deadlock", [False, True])
async def test_an_upgrade_that_comes_to_nothing_says_so(
    before: PostgresFactory, monkeypatch: pytest.MonkeyPatch, is_deadlock: bool
) -> None:
    """Somebody who uses the tables beside us may be in its way: the version stays, and the next try can do it."""
    step = f"to_{SCHEMA_VERSION}"
    gate = (
        "LOCK TABLE pause; SELECT pg_advisory_xact_lock(0, 0); SET LOCAL deadlock_timeout = '10ms'; LOCK TABLE worker; "
    )
    monkeypatch.setattr(connection, "MIGRATIONS", {**MIGRATIONS, step: gate + MIGRATIONS[step]})
    async with session_of(before) as reader, session_of(before) as keeper:
        await reader.execute("SET deadlock_timeout = '60s'; BEGIN; SELECT 1 FROM worker")
        await keeper.execute("SELECT pg_advisory_lock(0, 0)")
        config = StoreConfig(lock_timeout_s=60 if is_deadlock else 0.2)
        upgrade = asyncio.ensure_future(prepare(parse(postgres.url(), before.schema), config, ""))
        if is_deadlock:
            await waits("advisory")
            reading = asyncio.ensure_future(reader.execute("SELECT 1 FROM pause"))
            async with asyncio.timeout(60):
                while not await keeper.fetchval("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await keeper.execute("SELECT pg_advisory_unlock(0, 0)")
        with pytest.raises(StoreUnavailable, match="locked by another process"):
            await upgrade
        if is_deadlock:
            await reading
    assert version(before.schema) == 3
    await migrated(before.schema)
    assert version(before.schema) == SCHEMA_VERSION


async def test_news_of_the_version_before_are_heard(factory: PostgresFactory) -> None:
    """They say in which class tasks have become ready, and not where these stand: better ones are found even so."""
    async with opened(factory.make()) as store, opened(factory.make()) as other:
        port = Port(store)
        await port.serve()
        for one in (store, other):
            await factory.hold_upkeep(one)
        first = await submit(store, *(new() for _ in range(3)))
        assert [claim.id for claim in await port.room(1)] == first[:1]
        (urgent,) = await submit(other, new(priority=3))
        postgres.command(
            f"DELETE FROM {factory.schema}.news WHERE xid = (SELECT max(xid::text::bigint)::text::xid8 "
            f"FROM {factory.schema}.news); INSERT INTO {factory.schema}.news (class) VALUES (1)"
        )
        assert [claim.id for claim in await port.room(1)] == [urgent]
