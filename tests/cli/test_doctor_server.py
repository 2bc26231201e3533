"""`doctor` on a server: each finding is provoked on a real one, named with its remedy, and gone when that is done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
from proof.server import OwnServer
from tests import postgres
from tests.cli.conftest import SHOP, Answer, Worker
from tests.cli.moved import Home, filled, make_some
from tests.pooler import Pooler, pooling, required
from tests.store.fixtures.make import FOLDER as FIXTURES

from mainspring import Task, TaskType, Text
from mainspring.blobs.local import LocalBlobStore
from mainspring.store.postgres.connection import SCHEMA_VERSION
from mainspring.store.postgres.statements import MIGRATIONS, SCHEMA
from mainspring.store.postgres.wanted import wanted

BLOCKING = Path(__file__).with_name("blocking.py")
SECRET = "s3cret"
RULES = "mainspring.cli.doctor.server"
FACTS = "mainspring.store.postgres.inspection"
Call = Callable[..., Answer]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("HOME", str(tmp_path))  # where large values would go
    schema = postgres.schema_of(tmp_path)
    yield Home(postgres.address_of(tmp_path), tmp_path / "blobs", schema)
    postgres.drop(schema)


@pytest.fixture
def some(home: Home) -> Home:
    """A store with three tasks that wait, and nobody who has it open."""
    asyncio.run(make_some(home))
    return home


@contextmanager
def working(home: Home, module: Path = SHOP) -> Iterator[Worker]:
    worker = Worker(home.blobs.parent, f"{module}:engine", "--store", home.name)
    helpers = psutil.Process(worker.process.pid).children()
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()
        for helper in helpers:
            with suppress(psutil.NoSuchProcess):
                helper.resume()
        psutil.wait_procs(helpers, timeout=30)


def told(answer: Answer, about: str | None = None) -> list[tuple[str, str]]:
    """Level and text of what was found; without what holds for the whole server of the tests, which may lose power."""
    return [
        (item["level"], item["what"])
        for item in answer.json["findings"]
        if about in (None, item["about"]) and item["about"] != "durability"
    ]


def remedy(answer: Answer, about: str) -> str:
    (found,) = {item["remedy"] for item in answer.json["findings"] if item["about"] == about}
    return str(found)


def until(condition: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


def doctor(call: Call, home: Home, *more: str) -> Answer:
    return call("doctor", "--store", home.name, "--json", *more)


def durable() -> bool:
    return all(postgres.ask(f"SHOW {name}") == [("on",)] for name in ("fsync", "full_page_writes"))


def test_a_healthy_store(call: Call, home: Home) -> None:
    """With a worker at work there is nothing to attend to, and nothing changes; people get the same in words."""
    with working(home) as worker:
        call("submit", "custom:resize", '{"width": 3}', "--wait", "--store", home.name)
        answer = doctor(call, home, "--check")
        assert [what.partition(",")[0] for _, what in told(answer)] == ["custom:resize may run for 1h"]  # a note
        assert answer.code == answer.json["exit_code"] == (0 if durable() else 1)
        facts = answer.json["facts"]
        (found,) = facts["workers"]
        assert (found["pid"], found["is_alive"], found["turns"], found["is_lost"]) == (
            worker.process.pid, True, True, False,
        )  # fmt: skip
        assert facts["is_led"]
        assert (facts["server"]["schema"], facts["server"]["is_replica"]) == (SCHEMA_VERSION, False)
        assert (answer.json["checks"], answer.json["versions"]["postgres"]) == (
            ["invariants", "blobs"],
            facts["server"]["version"],
        )
        shown = call("doctor", "--store", home.name).out
        assert f"Postgres {facts['server']['version']}, primary" in shown
        assert "1 workers, 0 other processes" in shown


def test_what_is_not_durable(call: Call, some: Home) -> None:
    """The server of the tests does not wait for its disk, and says so."""
    found = [item["what"] for item in doctor(call, some).json["findings"] if item["about"] == "durability"]
    assert bool(found) is not durable()


def test_a_store_that_nobody_has_open(call: Call, home: Home) -> None:
    """As on a file: held claims of a dead worker and waiting tasks are warnings, and no row changes."""
    filled(home)
    before = home.dump()
    for extra in ((), ("--check", "--blobs", str(home.blobs))):
        answer = doctor(call, home, *extra)
        assert answer.code == 1
        assert {(level, what.split(":")[0]) for level, what in told(answer, "queue")} == {
            ("warning", f"{answer.json['facts']['unfinished']} tasks are unfinished and no worker is alive")
        }
        assert sum(worker["held"] for worker in answer.json["facts"]["workers"]) == 3
        assert [worker["is_alive"] for worker in answer.json["facts"]["workers"]] == [False]
    assert answer.json["checks"] == ["invariants", "blobs"]
    assert answer.json["blobs"]["count"] > 0
    assert home.dump() == before


def test_what_is_broken(call: Call, home: Home) -> None:
    """`--check` counts again, and misses blobs in the folder that it is told."""
    filled(home)
    postgres.command(f"UPDATE {home.schema}.tally SET n = n + 1")
    for blob in list(home.blobs.rglob("*")):
        if blob.is_file():
            blob.unlink()
    assert doctor(call, home).code == 1
    answer = doctor(call, home, "--check", "--blobs", str(home.blobs))
    assert answer.code == 4
    assert {item["about"] for item in answer.json["findings"] if item["level"] == "problem"} == {
        "invariant tallies",
        "invariant blobs",
    }


def test_blobs_that_are_elsewhere(call: Call, home: Home) -> None:
    """A folder that this machine has not is told, not taken for blobs that are lost."""
    filled(home)
    elsewhere = home.blobs.with_name("elsewhere")
    answer = doctor(call, home, "--check", "--blobs", str(elsewhere))
    ((level, what),) = told(answer, "blobs")
    assert (level, f"there is no folder {elsewhere} here" in what) == ("warning", True)
    assert (answer.code, answer.json["checks"]) == (1, ["invariants"])


def test_a_folder_of_two_stores(call: Call, home: Home) -> None:
    """Each store notes itself where its blobs are; a second one is told, for neither collects then."""
    filled(home)
    blobs = LocalBlobStore(home.blobs)
    assert not told(doctor(call, home, "--blobs", str(home.blobs)), "blobs")
    assert len(blobs.users()) == 1
    blobs.note_user("another")
    ((level, what),) = told(doctor(call, home, "--blobs", str(home.blobs)), "blobs")
    assert (level, "another store keeps its blobs" in what) == ("warning", True)


# Who works there


def holding(call: Call, home: Home, worker: Worker) -> None:
    """Let it hold a task."""
    call("submit", "custom:hold", f'{{"until": "{home.blobs.parent / "never"}"}}', "--store", home.name)
    until(lambda: call("ps", "--status", "running", "--json", "--store", home.name).json)


def test_a_killed_worker(call: Call, home: Home) -> None:
    """Its helper saw it die; its claims are its own until somebody opens the store."""
    with working(home) as worker:
        holding(call, home, worker)
        worker.signal(signal.SIGKILL)
        until(lambda: postgres.ask(f"SELECT 1 FROM {home.schema}.worker WHERE is_lost"))
        answer = doctor(call, home)
        assert [(level, what.partition(")")[2]) for level, what in told(answer, "workers")] == [
            ("warning", " died and holds 1 claims that nobody has taken back")
        ]


def test_a_worker_whose_machine_is_gone(call: Call, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not heard of, as it were where the network is cut; heard again, it is well."""
    with working(home) as worker:
        holding(call, home, worker)
        (helper,) = psutil.Process(worker.process.pid).children()
        helper.suspend()
        postgres.stop_between_commits(home.name, worker.process.pid)
        with monkeypatch.context() as patch:
            patch.setattr(f"{FACTS}.BEATS_S", 1.5)
            answer = doctor(call, home)
        ((level, what),) = told(answer, "workers")
        assert (level, answer.code) == ("warning", 1)
        assert "was not heard of" in what
        assert "holds 1 claims" in what
        worker.signal(signal.SIGCONT)
        helper.resume()
        until(lambda: not told(doctor(call, home), "workers"))


def test_a_silent_worker(call: Call, home: Home, tmp_path: Path) -> None:
    """Its helper beats on, and its loop reads nothing: a handler keeps it."""
    began, ends = tmp_path / "began", tmp_path / "until"
    with working(home, BLOCKING) as worker:
        arguments = f'{{"started": "{began}", "until": "{ends}"}}'
        call("submit", "custom:block", arguments, "--max-retries", "0", "--store", home.name)
        until(began.exists)
        answer = doctor(call, home)
        ((level, what),) = told(answer, "workers")
        assert level == "warning"
        assert f"(pid {worker.process.pid} on {os.uname().nodename}) lives and is silent" in what
        assert "it holds 1 claims" in what
        ends.touch()
        until(lambda: not told(doctor(call, home), "workers"))


def test_what_nobody_serves_and_what_is_paused(call: Call, home: Home) -> None:
    with working(home):
        call("pause", "--type", "custom:resize", "--store", home.name)
        call("submit", "custom:resize", '{"width": 3}', "--store", home.name)
        answer = doctor(call, home)
        assert told(answer, "queue") == [("note", "custom:resize: 1 unfinished, paused (custom:resize)")]
        postgres.command(f"UPDATE {home.schema}.class SET type = 'custom:gone'")
        answer = doctor(call, home)
        assert told(answer, "queue") == [
            ("warning", "custom:gone: 1 unfinished, and no living worker serves that type")
        ]


def test_what_fails(call: Call, home: Home) -> None:
    engine = home.engine(worker=True)

    @engine.task(name="fails", retry=0)
    async def fails(n: int) -> None:
        raise ValueError(n)

    async def some_failures() -> None:
        async with engine:
            for handle in await engine.map(fails, range(10)):
                with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it failed with
                    await handle.result()

    asyncio.run(some_failures())
    assert told(doctor(call, home), "failures") == [
        ("note", "custom:fails: 10 of the 10 that ended failed or ran out of time")
    ]


def test_tasks_of_users_transactions_that_nobody_takes_in(
    call: Call, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were committed when the engine that submitted them had gone."""
    monkeypatch.setattr(f"{FACTS}.BEATS_S", 0.2)

    async def submit() -> None:
        connection = await asyncpg.connect(postgres.url())
        try:
            async with connection.transaction(), home.engine() as engine:
                for n in range(3):
                    await engine.submit(
                        Task(task_type=TaskType.TEXT_PROCESSING, input=Text(str(n))), connection=connection
                    )
        finally:
            await connection.close()

    asyncio.run(make_some(home, n=0))
    asyncio.run(submit())
    assert told(doctor(call, home), "inbox") == [
        (
            "warning",
            "3 tasks that were submitted within transactions wait to be taken in, and nobody has the store open",
        )
    ]
    call("ps", "--store", home.name)
    asyncio.run(make_some(home, n=1))
    assert told(doctor(call, home), "inbox") == []


# The tables


def dead_rows(home: Home) -> int:
    return int(
        postgres.ask(
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'store'", home.schema
        )[0][0]
    )


def test_an_old_transaction_and_what_it_costs(call: Call, some: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with its session; while it is open vacuum can't remove what died since, and afterwards it can."""
    monkeypatch.setattr(f"{RULES}.LONG_S", 0.0)
    monkeypatch.setattr(f"{RULES}.UNVACUUMED_S", -60.0)

    async def old() -> None:
        holder, other = await asyncpg.connect(postgres.url()), await asyncpg.connect(postgres.url())
        await holder.execute("SET application_name = 'report'; BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.fetch(f"SELECT 1 FROM {some.schema}.task")
        pid = await holder.fetchval("SELECT pg_backend_pid()")
        await other.execute(
            f"DO $$BEGIN FOR i IN 1..3000 LOOP UPDATE {some.schema}.store SET leader = i; END LOOP; END$$"
        )
        await other.execute(f"VACUUM {some.schema}.store")
        await asyncio.to_thread(until, lambda: dead_rows(some) >= 3000)
        answer = await asyncio.to_thread(doctor, call, some)
        ((level, what),) = told(answer, "transactions")
        assert level == "warning"
        assert f"session {pid} (report, user postgres, idle in transaction) is open for" in what
        assert "dead rows in our tables" in what
        assert f"pg_terminate_backend({pid})" in remedy(answer, "transactions")
        assert [what for _, what in told(answer, "vacuum") if what.startswith("table store has 3,00")]
        await holder.execute("ROLLBACK")
        await other.execute(f"VACUUM {some.schema}.store")
        await asyncio.to_thread(until, lambda: dead_rows(some) == 0)
        answer = await asyncio.to_thread(doctor, call, some)
        assert (told(answer, "transactions"), told(answer, "vacuum")) == ([], [])
        await holder.close()
        await other.close()

    asyncio.run(old())


def test_vacuum_that_is_kept_away(call: Call, some: Home) -> None:
    """Settings of a table that somebody changed are told, with the statement that puts them back."""
    table = f"{some.schema}.task"
    postgres.command(f"ALTER TABLE {table} RESET (autovacuum_vacuum_scale_factor)")
    answer = doctor(call, some)
    ((level, what),) = told(answer, "vacuum")
    assert (level, what.endswith("autovacuum_vacuum_scale_factor")) == ("note", True)
    postgres.command(remedy(answer, "vacuum"))
    assert told(doctor(call, some), "vacuum") == []
    postgres.command(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    answer = doctor(call, some)
    assert told(answer, "vacuum") == [("warning", "autovacuum is off for table task: dead rows are never removed")]
    postgres.command(remedy(answer, "vacuum"))
    assert told(doctor(call, some), "vacuum") == []


@pytest.mark.parametrize(("index", "level", "code"), [("task_ready", "warning", 1), ("flight_leader", "problem", 4)])
def test_a_missing_index(call: Call, some: Home, index: str, level: str, code: int) -> None:
    """The remedy makes it again."""
    postgres.command(f"DROP INDEX {some.schema}.{index}")
    answer = doctor(call, some)
    ((found, what),) = told(answer, "indexes")
    assert (found, answer.code) == (level, code)
    assert f"index {index} is missing" in what
    postgres.command(remedy(answer, "indexes"))
    assert told(doctor(call, some), "indexes") == []


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_an_index_that_a_store_of_each_version_lacks(call: Call, home: Home, version: int) -> None:
    """That it is older is told, and what later versions brought is not missed."""
    assert home.schema is not None
    made_by(version, home.schema)
    answer = doctor(call, home)
    assert [level for level, _ in told(answer, "schema")] == ["note"] * (version < SCHEMA_VERSION)
    assert told(answer, "indexes") == []
    postgres.command(
        f"DROP INDEX {home.schema}.task_ready; ALTER TABLE {home.schema}.task RESET (autovacuum_vacuum_scale_factor)"
    )
    answer = doctor(call, home)
    ((_, what),) = told(answer, "indexes")
    assert "index task_ready is missing" in what
    assert [what for _, what in told(answer, "vacuum")] == [
        "table task has lost settings that it was made with: autovacuum_vacuum_scale_factor"
    ]


def made_by(version: int, schema: str) -> None:
    """A store without tasks, as a version made it."""
    first = (FIXTURES / "server_1.sql").read_text(encoding="utf-8")
    steps = "".join(f"{MIGRATIONS[f'to_{n}']};" for n in range(2, version + 1))
    postgres.command(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {first} {steps}")
    postgres.command(f"INSERT INTO store (version) VALUES ({version}); RESET search_path")


def test_indexes_that_are_of_no_use(call: Call, some: Home) -> None:
    """One that nobody needs, and one whose making was broken off."""
    postgres.command(f"CREATE INDEX extra ON {some.schema}.task (priority)")
    answer = doctor(call, some)
    ((level, what),) = told(answer, "indexes")
    assert level == "note"
    assert "index extra on task" in what
    postgres.command(remedy(answer, "indexes"))
    with pytest.raises(asyncpg.UniqueViolationError):
        postgres.command(f"CREATE UNIQUE INDEX CONCURRENTLY half ON {some.schema}.task (priority)")
    answer = doctor(call, some)
    ((level, what),) = told(answer, "indexes")
    assert (level, "index half is not whole" in what) == ("warning", True)
    postgres.command(f"DROP INDEX {some.schema}.half")
    assert told(doctor(call, some), "indexes") == []


def test_wanted_is_what_a_store_has(some: Home) -> None:
    """What is read from the text that makes the tables is what they have."""
    found = wanted(SCHEMA)
    rows: Any = postgres.ask(
        "SELECT indexname FROM pg_indexes WHERE schemaname = $1 AND indexdef NOT LIKE '%vector%' "
        "AND indexname NOT IN (SELECT conname FROM pg_constraint WHERE connamespace = $1::text::regnamespace)",
        some.schema,
    )
    assert {name for (name,) in rows} - {"blob_key_digest"} == found.indexes.keys()
    assert found.settings["progress"] == {"fillfactor": "50"}
    assert found.settings["edge"] == {}
    tables: Any = postgres.ask("SELECT tablename FROM pg_tables WHERE schemaname = $1", some.schema)
    assert {name for (name,) in tables} - {"blob_key", "vector_collection"} == found.settings.keys()


# The way there


@pytest.fixture
def guest(some: Home) -> Iterator[str]:
    """The address for a user who may look and no more."""
    role = f"{some.schema}_guest"
    postgres.command(
        f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'; GRANT USAGE ON SCHEMA {some.schema} TO {role}; "
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {some.schema} TO {role}"
    )
    parts = urlsplit(some.name)
    yield parts._replace(netloc=f"{role}:{SECRET}@{parts.netloc.rpartition('@')[2]}").geturl()
    postgres.command(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_rights_that_are_missing(call: Call, some: Home, guest: str) -> None:
    """They are named with what to grant; who may not even read is refused as by every command. No password is shown."""
    answer = call("doctor", "--store", guest, "--json")
    level, what = told(answer, "access")[0]
    assert level == "warning"
    assert "lacks rights: DELETE, INSERT, UPDATE on attempt" in what
    assert "USAGE on task_seq" in str(answer.json["findings"])
    ((level, what),) = told(answer, "transactions")
    assert (level, "do not tell" in what) == ("note", True)
    people = call("doctor", "--store", guest)
    role = urlsplit(guest).username
    postgres.command(f"REVOKE ALL ON ALL TABLES IN SCHEMA {some.schema} FROM {role}")
    refused = call("doctor", "--store", guest)
    assert refused.code == 4
    assert "GRANT" in refused.err
    for shown in (answer, people, refused):
        assert SECRET not in shown.out + shown.err


def test_a_database_that_only_reads(call: Call, some: Home, guest: str) -> None:
    """By a setting, as some hosts make it when their disk is full."""
    role = urlsplit(guest).username
    postgres.command(
        f"GRANT ALL ON ALL TABLES IN SCHEMA {some.schema} TO {role}; GRANT pg_read_all_stats TO {role}; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {some.schema} TO {role}"
    )
    assert told(call("doctor", "--store", guest, "--json"), "access") == []
    postgres.command(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    answer = call("doctor", "--store", guest, "--json")
    assert told(answer, "transactions") == []
    ((level, what),) = told(answer, "access")
    assert (level, "only read" in what) == ("warning", True)


@pytest.mark.parametrize(
    ("address", "error"),
    [("postgresql://me:s3cret@127.0.0.1:1/db", "StoreUnavailable"), ("{url}&schema=t_nothing", "StoreUnavailable")],
)
def test_no_server_and_no_store(call: Call, address: str, error: str) -> None:
    answer = call("doctor", "--store", address.format(url=postgres.url()), "--json")
    assert (answer.code, answer.out) == (4, "")
    assert f'"type":"{error}"' in answer.err
    assert SECRET not in answer.err


def test_a_pooler_that_is_named(call: Call, some: Home, tmp_path: Path) -> None:
    """Both ways are looked at."""
    with pooling(postgres.url()) as pooler:
        address = f"{pooler.address}&schema={some.schema}"
        answer = call("doctor", "--store", address, "--json")
        assert answer.json["facts"]["pooler"] == {"why": None, "is_replica": False, "is_same": True}
        assert told(answer, "pooler") == []
        pooler.kill()
        answer = call("doctor", "--store", address, "--json")
        ((level, what),) = told(answer, "pooler")
        assert (level, "the pooler before it does not" in what) == ("warning", True)
        pooler.start()


def test_a_pooler_that_is_not_named(call: Call, some: Home) -> None:
    """Whether it refuses the settings of sessions or drops them, it is seen, and the address that works is told."""
    required()
    parts = urlsplit(postgres.url())
    pooler = Pooler(postgres.url(), sessions=3)
    try:
        pooler.start()
        address = f"postgresql://{parts.username}@{parts.path}?host={pooler.folder}&port=6432&schema={some.schema}"
        answer = call("doctor", "--store", address)
        assert answer.code == 4
        assert "?pooler=transaction&direct=HOST:PORT" in answer.err
        pooler.kill()
        settings = (
            "search_path,lock_timeout,idle_in_transaction_session_timeout,jit,enable_seqscan,enable_hashjoin,"
            "enable_mergejoin,plan_cache_mode,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,"
            "tcp_user_timeout,"
            "default_transaction_read_only"
        )
        with (pooler.folder / "pgbouncer.ini").open("a", encoding="utf-8") as ini:
            ini.write(f"ignore_startup_parameters = {settings}\n")
        pooler.start()
        answer = call("doctor", "--store", address, "--json")
        assert answer.code == 4
        assert [level for level, _ in told(answer)] == ["problem"]
        assert "?pooler=transaction&direct=HOST:PORT" in remedy(answer, "pooler")
    finally:
        pooler.end()


def test_a_whole_server(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to a server alone: vacuum that is off, connections that run out, a transaction that was prepared and
    forgotten, a replica and the slot that keeps rows for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(f"{RULES}.LONG_S", 0.0)
    monkeypatch.setattr(f"{RULES}._MANY_TRANSACTIONS", 0)
    with OwnServer("autovacuum=off", "max_connections=20", "max_prepared_transactions=2") as server:
        home = Home(server.url, tmp_path / "blobs", "mainspring")
        asyncio.run(make_some(home))
        assert told(doctor(call, home), "vacuum") == [
            ("warning", "autovacuum is off on the whole server: dead rows are never removed")
        ]

        async def crowded() -> Answer:
            others = [await asyncpg.connect(server.url) for _ in range(16)]
            try:
                return await asyncio.to_thread(doctor, call, home)
            finally:
                for other in others:
                    await other.close()

        ((level, what),) = told(asyncio.run(crowded()), "connections")
        assert (level, "of 17 connections are in use" in what) == ("warning", True)

        server.ask("SELECT pg_create_physical_replication_slot('follower')")
        _with_a_replica(call, server, home)
        asyncio.run(_prepared(call, server, home))


async def _prepared(call: Call, server: OwnServer, home: Home) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute("BEGIN; CREATE TABLE forgotten (n integer); PREPARE TRANSACTION 'order 7'")
    ((level, what),) = told(await asyncio.to_thread(doctor, call, home), "transactions")
    assert (level, "prepared transaction order 7 of user postgres" in what) == ("warning", True)
    await connection.execute("ROLLBACK PREPARED 'order 7'")
    assert told(await asyncio.to_thread(doctor, call, home), "transactions") == []
    await connection.close()


def _with_a_replica(call: Call, server: OwnServer, home: Home) -> None:
    follower = server.replica()
    with (follower.data / "postgresql.auto.conf").open("a", encoding="utf-8") as settings:
        settings.write("primary_slot_name = 'follower'\nhot_standby_feedback = on\n")
        settings.write("wal_receiver_status_interval = '1s'\nmax_prepared_transactions = 2\n")
    with follower:
        until(lambda: server.ask("SELECT 1 FROM pg_replication_slots WHERE xmin IS NOT NULL"))
        ((level, what),) = told(doctor(call, home), "transactions")
        assert (level, "replication slot follower (active) keeps" in what) == ("warning", True)
        answer = call("doctor", "--store", follower.url, "--json")
        assert [level for level, what in told(answer, "access") if "is a replica" in what] == ["warning"]
        assert (answer.json["facts"]["is_led"], told(answer, "upkeep")) == (None, [])
        with pooling(server.url) as pooler:
            crossed = f"{pooler.address.partition('&direct=')[0]}&direct={follower.folder}:5432"
            answer = call("doctor", "--store", crossed, "--json")
            assert [level for level, _ in told(answer, "pooler")] == ["problem"]
    server.ask("SELECT pg_drop_replication_slot('follower')")
