"""What keeps a store on a server from opening is said in a typed error, with what to do, and without the password."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import psutil
import pytest
from tests import postgres
from tests.conformance.kit import PostgresFactory, opened
from tests.engine.support import quick, value

from mainspring import Engine, EngineConfig, StoreConfig
from mainspring.errors import (
    InvalidInput,
    StoreForeign,
    StoreNewer,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
    TaskError,
)
from mainspring.store.postgres import connection
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import MIGRATING, SCHEMA_VERSION, prepare

pytestmark = pytest.mark.anyio
SECRET = "s3cr et/%"
VERSION_1 = (Path(__file__).parent / "fixtures" / "server_1.sql").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def role() -> Iterator[str]:
    """A user with few rights."""
    postgres.command(f"CREATE ROLE t_guest LOGIN PASSWORD '{SECRET}'")
    yield "t_guest"
    postgres.command("DROP OWNED BY t_guest; DROP ROLE t_guest")


def by(user: str, password: str = SECRET) -> str:
    """The server's address for another user."""
    _, _, rest = postgres.url().partition("@")
    return f"postgresql://{user}:{quote(password, safe='')}@{rest}"


async def refusal(url: str, schema: str = "t_none", **config: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await prepare(parse(url, schema), StoreConfig(**config), "")
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host:port/db",
        "postgresql://[::1/db",
        "postgresql://h/db?schema=public",
        "postgresql://h/db?schema=a-b",
        "postgresql://h/db?schema=",
        "postgresql://user:pa ss@h:99999/db",
        "postgresql://user:pa ss/word@h/db",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    """It is refused before anything is reached, and without being shown whole."""
    with pytest.raises(InvalidInput) as caught:
        Engine(url)
    assert "pa ss" not in str(caught.value)


async def test_nobody_listens(tmp_path: Path) -> None:
    """A server that is not there may come: the error says that trying again can help."""
    for url in (
        f"postgresql://u:{quote(SECRET, safe='')}@/db?host={tmp_path}",
        f"postgresql://u:{quote(SECRET, safe='')}@127.0.0.1:1/db",
    ):
        error = await refusal(url)
        assert isinstance(error, StoreUnavailable)
        assert error.is_retryable
        assert "s3cr" not in str(error)


async def test_no_such_database_or_user() -> None:
    """Both are named."""
    url, _, rest = postgres.url().partition("/postgres?")
    error = await refusal(f"{url}/nosuch?{rest}")
    assert isinstance(error, StoreRefused)
    assert "nosuch" in str(error)
    assert "CREATE DATABASE" in str(error)
    error = await refusal(by("t_nobody"))
    assert isinstance(error, StoreRefused)
    assert "t_nobody" in str(error)
    assert "s3cr" not in str(error)


async def test_a_wrong_password(role: str) -> None:
    """It is refused as such; neither the right one nor the wrong one is shown."""
    with postgres.asking_for_passwords(role):
        error = await refusal(by(role, "wr0ng"))
        assert isinstance(error, StoreRefused)
        assert "check user and password" in str(error)
        assert "wr0ng" not in str(error)
        assert isinstance(await refusal(by(role)), StoreReadOnly)  # let in, and without rights


async def test_rights_that_are_missing(role: str, factory: PostgresFactory) -> None:
    """Who may not make the schema, and who may not use it, is told what to grant."""
    error = await refusal(by(role))
    assert isinstance(error, StoreReadOnly)
    assert "GRANT CREATE" in str(error)
    async with opened(factory.make()):
        error = await refusal(by(role), factory.schema)
        assert isinstance(error, StoreReadOnly)
        assert factory.schema in str(error)


async def test_the_rights_on_the_schema_suffice_once_it_is_there(role: str, tmp_path: Path) -> None:
    """Whoever works in a store need not be able to make one."""
    schema = postgres.schema_of(tmp_path)
    config = quick(StoreConfig(schema=schema, blobs=tmp_path))
    async with Engine(postgres.url(), config, worker=False):
        pass
    postgres.command(
        f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
    )
    engine = Engine(by(role), config)

    @engine.task
    async def same(n: int) -> int:
        return n

    async with engine:
        assert await value(await engine.submit(same, 3)) == 3
    postgres.drop(schema)


@pytest.mark.parametrize("tables", ["", VERSION_1])
async def test_a_schema_that_is_there_takes_no_right_on_the_database(tmp_path: Path, tables: str) -> None:
    """Neither the first start in one that an admin has made, nor an upgrade of an older one."""
    with postgres.own_database(tmp_path, "t_tenant") as address:
        admin = await asyncpg.connect(address.replace("t_tenant:guest@", f"{urlsplit(postgres.url()).username}@"))
        await admin.execute("CREATE SCHEMA mainspring AUTHORIZATION t_tenant")
        if tables:
            await admin.execute(f"SET ROLE t_tenant; SET search_path = mainspring; {tables}")
            await admin.execute("INSERT INTO store (version) VALUES (1); RESET ROLE")
        name = postgres.schema_of(tmp_path)
        await admin.execute(
            f"ALTER DATABASE {name} OWNER TO CURRENT_USER; REVOKE CREATE ON DATABASE {name} FROM PUBLIC"
        )
        assert not await admin.fetchval(f"SELECT has_database_privilege('t_tenant', '{name}', 'CREATE')")
        await prepare(parse(address), StoreConfig(), "")
        assert await admin.fetchval("SELECT version FROM mainspring.store") == SCHEMA_VERSION
        await admin.execute(f"ALTER DATABASE {name} OWNER TO t_tenant; DROP SCHEMA mainspring CASCADE")
        await admin.close()


async def test_a_server_that_only_reads(role: str) -> None:
    """A replica, or one that was made read-only, is told from one that is gone."""
    postgres.command(
        f"GRANT CREATE ON DATABASE postgres TO {role}; ALTER ROLE {role} SET default_transaction_read_only = on"
    )
    try:
        error = await refusal(by(role))
        assert isinstance(error, StoreReadOnly)
        assert "primary" in str(error)
    finally:
        postgres.command(f"REVOKE CREATE ON DATABASE postgres FROM {role}; ALTER ROLE {role} RESET ALL")


async def test_a_newer_schema_is_left_alone(factory: PostgresFactory) -> None:
    """As on a file: an older program does not touch it."""
    async with opened(factory.make()):
        pass
    postgres.command(f"UPDATE {factory.schema}.store SET version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreNewer, match="update mainspring"):
        await factory.make().open()
    assert postgres.ask(f"SELECT version FROM {factory.schema}.store") == [(SCHEMA_VERSION + 1,)]


@pytest.mark.parametrize(
    "theirs",
    [
        "TABLE theirs (n int)",
        "TABLE store (id int, name text)",
        "TABLE store (version text, identity uuid)",
        "TABLE store (version int, identity uuid)",
        "TABLE store AS SELECT 2 AS version",
        "TABLE store AS SELECT 'v1.2'::text AS version",
        "VIEW task AS SELECT 1",
        "VIEW store AS SELECT 1 AS version, gen_random_uuid() AS identity",
        "SEQUENCE task_seq",
        "TYPE task AS ENUM ('one')",
        "FUNCTION inbox_of_ids(ids bytea[]) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_another_programs_schema_is_left_alone(factory: PostgresFactory, theirs: str) -> None:
    """Whatever of it has the name of something of ours."""
    postgres.command(f"CREATE SCHEMA {factory.schema}; SET search_path = {factory.schema}; CREATE {theirs}")
    postgres.command("RESET search_path")
    before = _names(factory.schema)
    with pytest.raises(StoreForeign, match="left as it is: name another schema"):
        await factory.make().open()
    assert _names(factory.schema) == before


def _names(schema: str) -> list[Any]:
    """Return what there is in a schema."""
    return postgres.ask(
        """SELECT relname::text FROM pg_class WHERE relnamespace = $1::text::regnamespace
        UNION ALL SELECT typname::text FROM pg_type WHERE typnamespace = $1::text::regnamespace
        UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = $1::text::regnamespace ORDER BY 1""",
        schema,
    )


@pytest.mark.parametrize("is_in_address", [True, False])
async def test_the_schema_is_the_one_that_was_named(tmp_path: Path, is_in_address: bool) -> None:
    """By the address or by the settings: the tables are made there, and the engine's address leads there again."""
    schema = postgres.schema_of(tmp_path)
    url = postgres.address_of(tmp_path) if is_in_address else postgres.url()
    config = StoreConfig(blobs=tmp_path) if is_in_address else StoreConfig(blobs=tmp_path, schema=schema)
    async with Engine(url, EngineConfig(store=config)) as engine:
        assert postgres.ask(f"SELECT version FROM {schema}.store") == [(SCHEMA_VERSION,)]
    assert parse(engine.address).schema == schema
    postgres.drop(schema)


async def test_an_old_server_is_refused(factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OLDEST_SERVER", 99)
    with pytest.raises(StoreRefused, match="update it"):
        await factory.make().open()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_can_t_hold_every_text(tmp_path: Path, encoding: str) -> None:
    """No store is made there."""
    with postgres.own_database(tmp_path, encoding=encoding) as url:
        error = await refusal(url)
        assert isinstance(error, StoreRefused)
        assert encoding in str(error)
        assert "UTF8" in str(error)
        probe = await asyncpg.connect(url)
        try:
            assert await probe.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 't_none'") == 0
        finally:
            await probe.close()


async def test_many_open_a_new_store_at_once(factory: PostgresFactory) -> None:
    """One of them makes the tables, and all work on them."""
    stores = [factory.make() for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len(await stores[0].view(lambda view: view.rows("open_workers"))) == 5
    for store in stores:
        await store.close()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_two_open_a_new_store_at_once_whatever_the_default_of_isolation(tmp_path: Path, isolation: str) -> None:
    """Whoever waited while another process made the tables finds them, and makes none."""
    with postgres.own_database(tmp_path) as address:
        database = postgres.schema_of(tmp_path)
        postgres.command(f"ALTER DATABASE {database} SET default_transaction_isolation TO '{isolation}'")
        blocker = await asyncpg.connect(address)
        await blocker.execute(f"BEGIN; SELECT pg_advisory_xact_lock({MIGRATING}, hashtext('mainspring'))")
        opening = [asyncio.ensure_future(prepare(parse(address), StoreConfig(), "")) for _ in range(2)]
        waiting = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND classid = {MIGRATING}"
        async with asyncio.timeout(60):
            while await blocker.fetchval(waiting) < 2:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
            await blocker.execute("COMMIT")
            assert len(set(await asyncio.gather(*opening))) == 1
        assert await blocker.fetch("SELECT version FROM mainspring.store") == [(SCHEMA_VERSION,)]
        await blocker.close()


async def test_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed the driver is told how."""
    for name in [name for name in sys.modules if name.startswith("mainspring.store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(InvalidInput, match=r"mainspring\[postgres\]"):
        Engine("postgresql://h/db")


@pytest.mark.parametrize(
    "store",
    [
        "postgresql+asyncpg://a:s3cret@h/d",
        "POSTGRESQL://a:s3cret@h/d",
        " postgresql://a:s3cret@h/d",
        "mysql://a:s3cret@h",
    ],
)
def test_what_is_nearly_an_address_is_no_file(store: str) -> None:
    """It is refused, and what may be a password in it is not shown."""
    with pytest.raises(InvalidInput, match="is no address of a store") as refused:
        Engine(store)
    assert "s3cret" not in str(refused.value)


async def test_the_password_is_nowhere(
    role: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, factory: PostgresFactory
) -> None:
    """Not in the engine's address, not in what is logged, and not in the command line of the helper."""
    caplog.set_level(logging.DEBUG)
    postgres.command(
        f"CREATE SCHEMA {factory.schema} AUTHORIZATION {role}; GRANT CREATE ON DATABASE postgres TO {role}"
    )
    config = EngineConfig(store=StoreConfig(schema=factory.schema, blobs=tmp_path / "blobs"))
    engine = Engine(by(role), config)
    async with engine:
        child = engine.manager.store._pulse._child  # type: ignore[attr-defined]
        command = " ".join(psutil.Process(child.pid).cmdline())
        postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
        await engine.manager.stats()
    for text in (engine.address, caplog.text, command, repr(vars(engine.manager.store))):
        assert "s3cr" not in text
