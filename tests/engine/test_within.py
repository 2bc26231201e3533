"""Submitting within a user's own transaction: the task exists if and only if that commits."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import msgspec
import psycopg
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm
from tests import postgres
from tests.engine.programs import PATHS
from tests.engine.support import LIMIT_S, engine_on, until, value

from mainspring import (
    Conflict,
    Context,
    Custom,
    DependencyNotMet,
    Engine,
    InvalidInput,
    QueueFull,
    Task,
    TaskHandle,
    TaskId,
    TaskNotFound,
    TaskStatus,
    TaskTimeout,
    TaskType,
)
from mainspring.errors import StoreReadOnly
from mainspring.store.base import NewTask
from mainspring.store.postgres import inbox, parts
from mainspring.store.postgres.arrivals import STEP
from mainspring.store.postgres.store import PostgresStore
from mainspring.store.sql.store import SqlStore
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


@pytest.fixture
async def engine(place: str, anyio_backend: str) -> AsyncIterator[Engine]:
    """A worker; `double` doubles, and leaves what it was asked in `ran`."""
    async with with_handlers(engine_on(place)) as engine:
        yield engine


def with_handlers(engine: Engine) -> Engine:
    asked: list[Any] = []
    engine.ran = asked  # type: ignore[attr-defined]

    @engine.task
    async def double(n: int) -> int:
        asked.append(n)
        return 2 * n

    @engine.task
    async def length(text: str) -> int:
        return len(text)

    engine.double, engine.length = double, length  # type: ignore[attr-defined]
    return engine


@pytest.fixture
async def mine(place: str, anyio_backend: str) -> AsyncIterator[asyncpg.Connection]:
    """The user's connection."""
    connection = await asyncpg.connect(postgres.url())
    yield connection
    await connection.close()


def double(engine: Engine) -> Any:
    return engine.double  # type: ignore[attr-defined]


def length(engine: Engine) -> Any:
    return engine.length  # type: ignore[attr-defined]


def ran(engine: Engine) -> list[Any]:
    return engine.ran  # type: ignore[attr-defined, no-any-return]


def store_of(engine: Engine) -> PostgresStore:
    store = engine.manager.store
    assert isinstance(store, PostgresStore)
    return store


def count(place: str, table: str) -> int:
    return int(postgres.ask(f"SELECT count(*) FROM {place.rpartition('=')[2]}.{table}")[0][0])


# Each kind of connection, with what begins, commits and rolls back there


Way: TypeAlias = Callable[[], Any]


async def begun(connection: Any) -> Callable[[str], Awaitable[Any]]:
    """Begin a transaction, and another one after each end, as the other drivers do by themselves."""
    await connection.execute("BEGIN")

    async def run(sql: str) -> None:
        await connection.execute(f"{sql}; BEGIN")

    return run


@asynccontextmanager
async def asyncpg_connection() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    connection = await asyncpg.connect(postgres.url())
    try:
        yield connection, await begun(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with asyncpg.create_pool(postgres.url(), min_size=1, max_size=1) as pool, pool.acquire() as connection:
        yield connection, await begun(connection)


@asynccontextmanager
async def psycopg_blocking() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    with psycopg.connect(postgres.url(), row_factory=psycopg.rows.dict_row) as connection:

        async def run(sql: str) -> None:
            connection.commit() if sql == "COMMIT" else connection.rollback()

        yield connection, run


@asynccontextmanager
async def psycopg_async() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    async with await psycopg.AsyncConnection.connect(postgres.url()) as connection:

        async def run(sql: str) -> None:
            await (connection.commit() if sql == "COMMIT" else connection.rollback())

        yield connection, run


def sqlalchemy_url(driver: str) -> str:
    return postgres.url().replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def sqlalchemy_engine() -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(sqlalchemy_url("psycopg"))
    try:
        yield engine
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_connection() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    with sqlalchemy_engine() as engine, engine.connect() as connection:

        async def run(sql: str) -> None:
            connection.commit() if sql == "COMMIT" else connection.rollback()

        yield connection, run


@asynccontextmanager
async def sqlalchemy_session() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    with sqlalchemy_engine() as engine, sqlalchemy.orm.Session(engine) as session:

        async def run(sql: str) -> None:
            session.commit() if sql == "COMMIT" else session.rollback()

        yield session, run


@asynccontextmanager
async def sqlalchemy_scoped() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
    """What web frameworks hand out: it stands for another session in each thread."""
    with sqlalchemy_engine() as engine:
        session = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(engine))

        async def run(sql: str) -> None:
            session.commit() if sql == "COMMIT" else session.rollback()

        yield session, run
        session.remove()


def sqlalchemy_async(driver: str, *, is_session: bool) -> Way:
    @asynccontextmanager
    async def way() -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[Any]]]]:
        engine = sa_async.create_async_engine(sqlalchemy_url(driver))
        opened: Any = sa_async.AsyncSession(engine) if is_session else engine.connect()
        async with opened as connection:

            async def run(sql: str) -> None:
                await (connection.commit() if sql == "COMMIT" else connection.rollback())

            yield connection, run
        await engine.dispose()

    return way


WAYS: dict[str, Way] = {
    "asyncpg": asyncpg_connection,
    "asyncpg-pool": asyncpg_pool,
    "psycopg": psycopg_blocking,
    "psycopg-async": psycopg_async,
    "sqlalchemy": sqlalchemy_connection,
    "sqlalchemy-session": sqlalchemy_session,
    "sqlalchemy-scoped": sqlalchemy_scoped,
    "sqlalchemy-asyncpg": sqlalchemy_async("asyncpg", is_session=False),
    "sqlalchemy-asyncpg-session": sqlalchemy_async("asyncpg", is_session=True),
    "sqlalchemy-psycopg": sqlalchemy_async("psycopg", is_session=False),
    "sqlalchemy-psycopg-session": sqlalchemy_async("psycopg", is_session=True),
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_task_exists_if_and_only_if_the_transaction_commits(place: str, engine: Engine, way: str) -> None:
    """With every kind of connection: parents, keys and children within it, nothing before the commit, nothing after a
    rollback."""
    async with WAYS[way]() as (connection, run):
        parent = await engine.submit(double(engine), 1, connection=connection, idempotency_key="k")
        again = await engine.submit(double(engine), 1, connection=connection, idempotency_key="k")
        child = await engine.submit(double(engine), parent, connection=connection)
        some = await engine.map(double(engine), [5, 6], connection=connection)
        assert again.id == parent.id
        with pytest.raises(TaskNotFound):
            await child.info()
        assert (await engine.manager.stats())["pending"] == 0
        await run("COMMIT")
        assert await value(child) == 4
        assert [await value(handle) for handle in (parent, *some)] == [2, 10, 12]
        gone = await engine.submit(double(engine), 99, connection=connection)
        await run("ROLLBACK")
        with pytest.raises(TaskNotFound, match="was rolled back"):
            await value(gone)
        with pytest.raises(TaskNotFound):
            await gone.info()
    assert 99 not in ran(engine)
    assert (count(place, "inbox"), count(place, "task")) == (0, 4)


async def test_who_waits_is_told_of_the_commit_and_of_the_rollback(engine: Engine, mine: asyncpg.Connection) -> None:
    """A result that is awaited while the transaction is open comes after the commit, or ends with the rollback."""
    for end in ("COMMIT", "ROLLBACK"):
        await mine.execute("BEGIN")
        handle = await engine.submit(double(engine), 4, connection=mine)
        waiting = asyncio.ensure_future(value(handle))
        done, _ = await asyncio.wait((waiting,), timeout=0.2)
        assert not done
        await mine.execute(end)
        if end == "COMMIT":
            assert await waiting == 8
        else:
            with pytest.raises(TaskNotFound, match="was rolled back"):
                await waiting


async def test_what_comes_with_a_commit_is_yielded_as_it_completes(engine: Engine, mine: asyncpg.Connection) -> None:
    """Also to who has asked before the commit."""

    async def completed() -> list[TaskHandle]:
        return [handle async for handle in engine.as_completed([handle])]

    async with mine.transaction():
        handle = await engine.submit(double(engine), 1, connection=mine)
        waiting = asyncio.ensure_future(completed())
        done, _ = await asyncio.wait((waiting,), timeout=0.1)
        assert not done
    async with asyncio.timeout(LIMIT_S):
        assert await waiting == [handle]


async def test_a_savepoint_takes_its_tasks_along(engine: Engine, mine: asyncpg.Connection) -> None:
    """What was submitted after a savepoint goes with it; what was submitted before comes with the commit."""
    async with mine.transaction():
        kept = await engine.submit(double(engine), 1, connection=mine)
        inner = mine.transaction()
        await inner.start()
        gone = await engine.submit(double(engine), 2, connection=mine)
        await inner.rollback()
        with pytest.raises(TaskNotFound):  # of this transaction, but not there any more
            await engine.submit(double(engine), gone, connection=mine)
    assert await value(kept) == 2
    with pytest.raises(TaskNotFound, match="to a savepoint"):
        await value(gone)


async def test_what_costs_too_much_enters_all_the_same(engine: Engine, mine: asyncpg.Connection) -> None:
    """Its transaction has committed: it begins when all is there that can be, and leaves a debt."""
    await engine.limit("api", cost_rate="1000/d")
    async with mine.transaction():
        handle = await engine.submit(double(engine), 2, group="api", cost=1_500, connection=mine)
    assert await value(handle) == 4
    (limit,) = await engine.limits()
    assert limit.cost_left is not None
    assert -500 <= limit.cost_left < -499


async def test_without_a_transaction_it_is_there_when_the_call_returns(engine: Engine) -> None:
    """A connection that commits each statement."""
    connection = await asyncpg.connect(postgres.url())
    handle = await engine.submit(double(engine), 3, connection=connection)
    assert (await handle.info()).task.id == handle.id
    await connection.close()
    with psycopg.connect(postgres.url(), autocommit=True) as other:
        second = await engine.submit(double(engine), 4, connection=other)
        assert (await second.info()).task.id == second.id
    assert [await value(handle), await value(second)] == [6, 8]


async def test_what_is_too_large_for_one_statement_comes_with_the_commit_all_the_same(
    engine: Engine, mine: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in by several, in order."""
    monkeypatch.setattr(parts, "STATEMENT_BYTES", 1_000)
    async with mine.transaction():
        handles = await engine.map(double(engine), range(100), connection=mine)
        assert await mine.fetchval(f"SELECT count(*) FROM {store_of(engine).server.schema}.inbox") == 100
    assert [await value(handle) for handle in handles] == [2 * n for n in range(100)]


async def test_calls_of_one_key_wait_for_the_commit(engine: Engine, mine: asyncpg.Connection) -> None:
    """All of them are one task, also where one call has brought it several times: its result is awaited by each."""
    await mine.execute("BEGIN")
    handles = await engine.map(double(engine), [4, 4], connection=mine, idempotency_key="k")
    waiting = [asyncio.ensure_future(value(handle)) for handle in handles]
    done, _ = await asyncio.wait(waiting, timeout=0.1)
    assert not done
    await mine.execute("COMMIT")
    assert [await one for one in waiting] == [8, 8]
    assert ran(engine) == [4]


async def test_a_web_process_submits_and_a_worker_runs(place: str, mine: asyncpg.Connection) -> None:
    """The engine that submits runs nothing; the worker hears of the commit."""
    async with with_handlers(engine_on(place)) as worker, with_handlers(engine_on(place, worker=False)) as web:
        async with mine.transaction():
            handle = await web.submit(double(web), 21, connection=mine)
        assert await value(handle) == 42
        assert ran(worker) == [21]


async def test_a_long_transaction_holds_up_nobody(engine: Engine, mine: asyncpg.Connection) -> None:
    """While it is open everybody else submits, runs, cancels and takes in."""
    await mine.execute("BEGIN")
    slow = await engine.submit(double(engine), 1, connection=mine, idempotency_key="k")
    other = await asyncpg.connect(postgres.url())
    async with other.transaction():
        quick = await engine.submit(double(engine), 2, connection=other)
    parent = await engine.submit(double(engine), 3)
    child = await engine.submit(double(engine), parent)
    late = await engine.submit(double(engine), 4, delay=600)
    assert await late.cancel() == "cancelled"
    assert [await value(handle) for handle in (quick, child)] == [4, 12]
    await other.close()
    await mine.execute("COMMIT")
    assert await value(slow) == 2


def test_the_blocking_face(place: str) -> None:
    """`engine.sync` with blocking connections, and not with those of an event loop."""
    engine = with_handlers(engine_on(place))
    with engine.sync as sync, psycopg.connect(postgres.url()) as connection, sqlalchemy_engine() as alchemy:
        first = sync.submit(double(engine), 1, connection=connection)
        some = sync.map(double(engine), [2, 3], connection=connection)
        connection.commit()
        assert sync.gather([first, *some]) == [2, 4, 6]
        gone = sync.submit(double(engine), 9, connection=connection)
        connection.rollback()
        with pytest.raises(TaskNotFound, match="rolled back"):
            gone.result(LIMIT_S)
        session = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(alchemy))
        handle = sync.submit(double(engine), 5, connection=session)
        session.commit()  # of this thread's session: the one that it was submitted with
        assert handle.result(LIMIT_S) == 10
        session.remove()
        with pytest.raises(InvalidInput, match="belongs to an event loop"):
            sync.submit(double(engine), 1, connection=sa_async.AsyncSession())


# Taking in


async def test_backlogs_are_taken_in_in_order(place: str, mine: asyncpg.Connection) -> None:
    """More than goes into one transaction, with parents, committed while nobody has the store open."""
    async with with_handlers(engine_on(place, worker=False)) as web:
        await mine.execute("BEGIN")
        first = await web.submit(double(web), 1, connection=mine)
        handles = await web.map(double(web), range(2 * STEP + 10), connection=mine, after=first)
        last = await web.submit(double(web), 5, connection=mine, after=handles[-1])
    await mine.execute("COMMIT")
    assert count(place, "inbox") == 2 * STEP + 12
    async with with_handlers(engine_on(place, async_slots=8)) as engine:
        assert (await engine.handle(last.id).info()).task.dependencies == (handles[-1].id,)
        assert await value(engine.handle(last.id)) == 10
        assert len(ran(engine)) == 2 * STEP + 12
        assert count(place, "inbox") == 0


async def test_the_commit_itself_wakes_engines(place: str, mine: asyncpg.Connection) -> None:
    """Without any look at intervals all that was committed is taken in, also what is too much for one transaction."""
    async with with_handlers(engine_on(place, worker=False)) as web:
        await store_of(web)._caretaker.stop()
        async with mine.transaction():
            await web.map(double(web), range(2 * STEP + 1), connection=mine)
        await until(lambda: count(place, "inbox") == 0)
        assert (await web.manager.stats())["pending"] == 2 * STEP + 1


async def test_what_has_come_is_found_at_once(engine: Engine, mine: asyncpg.Connection) -> None:
    """Whatever is asked of a task right after the commit finds it: info, cancel, explain, a child of it."""
    async with mine.transaction():
        handles = [await engine.submit(double(engine), n, connection=mine, delay=600) for n in range(4)]
    assert (await handles[0].info()).reason == "delayed"
    assert await handles[1].cancel() == "cancelled"
    assert "not to start before" in await handles[2].explain()
    child = await engine.submit(double(engine), handles[3])
    assert (await child.info()).reason == "parents"
    assert await engine.manager.retry_task(handles[1].id) != handles[1].id


async def test_what_is_taken_in_while_it_is_looked_for_is_found(
    place: str, engine: Engine, mine: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in neither place that was looked at: on its way at the first look, and at home at the second."""
    store, look = store_of(engine), SqlStore.info
    await store._caretaker.stop()
    monkeypatch.setattr(store.line, "_heard", lambda kind, payload: None)

    async def overtaken(self: SqlStore, id: bytes) -> Any:
        try:
            return await look(self, id)
        except TaskNotFound:
            await self.write(lambda tx: None)
            assert count(place, "inbox") == 0
            raise

    monkeypatch.setattr(SqlStore, "info", overtaken)
    async with mine.transaction():
        handle = await engine.submit(double(engine), 1, connection=mine, delay=600)
    assert (await handle.info()).reason == "delayed"


async def test_engines_take_each_task_in_once(place: str, tmp_path: Path) -> None:
    """Three processes' worth of engines take in what many transactions commit: each task runs once, and every invariant
    holds."""
    engines = [with_handlers(engine_on(place, async_slots=4)) for _ in range(3)]
    for engine in engines:
        await engine.start()

    async def user(number: int) -> list[TaskHandle]:
        connection = await asyncpg.connect(postgres.url())
        handles: list[TaskHandle] = []
        for n in range(15):
            async with connection.transaction():
                parent = await engines[number % 3].submit(double(engines[0]), number * 100 + n, connection=connection)
                child = await engines[number % 3].submit(double(engines[0]), parent, connection=connection)
                handles += [parent, child]
        await connection.close()
        return handles

    handles = [handle for some in await asyncio.gather(*map(user, range(6))) for handle in some]
    results = await asyncio.gather(*(value(handle) for handle in handles))
    assert results == [result for k in range(6) for n in range(15) for result in (2 * (100 * k + n), 4 * (100 * k + n))]
    assert sum(len(ran(engine)) for engine in engines) == len(handles)
    for engine in engines:
        await engine.stop()
    assert check_history(postgres.address_of(tmp_path)) == []


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_commit_of_taking_in_that_fails(place: str, mine: asyncpg.Connection, is_stored: bool) -> None:
    """Nothing is lost or doubled when the connection is lost with the commit, before or after it was carried out."""
    async with with_handlers(engine_on(place)) as engine:
        writer: Any = store_of(engine)._writer
        real, failed = writer._commit, []

        def commit(tx: Any) -> None:
            if not tx.claims:
                real(tx)
                return
            del writer._commit
            failed.append(len(tx.claims))
            if is_stored:
                real(tx)
            writer.session._connection.terminate()
            raise asyncpg.exceptions.ConnectionDoesNotExistError("connection was closed in the middle of operation")

        async with mine.transaction():
            handles = await engine.map(double(engine), range(5), connection=mine)
            writer._commit = commit
        assert [await value(handle) for handle in handles] == [0, 2, 4, 6, 8]
        assert failed == [5]
        assert sorted(ran(engine)) == [0, 1, 2, 3, 4]


TAKER = """
import asyncio, os, signal, sys
from mainspring import Engine, EngineConfig, StoreConfig
async def main(store, blobs):
    engine = Engine(store, EngineConfig(store=StoreConfig(blobs=blobs)), worker=False)
    def commit(tx):
        print("taking", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    engine.manager.store._writer._commit = commit
    await engine.start()
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_engine_is_killed_while_it_takes_in(place: str, mine: asyncpg.Connection, tmp_path: Path) -> None:
    """What it was taking in is still there for the next one."""
    async with with_handlers(engine_on(place, worker=False)) as web:
        await mine.execute("BEGIN")
        handles = await web.map(double(web), range(5), connection=mine)
    await mine.execute("COMMIT")
    taker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TAKER, place, str(tmp_path / "blobs"),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **PATHS},
    )  # fmt: skip
    out, _ = await taker.communicate()
    assert (out, taker.returncode, count(place, "inbox")) == (b"taking\n", -signal.SIGKILL, 5)
    async with with_handlers(engine_on(place)) as engine:
        assert [await value(engine.handle(handle.id)) for handle in handles] == [0, 2, 4, 6, 8]
        assert sorted(ran(engine)) == [0, 1, 2, 3, 4]


USER = """
import asyncio, os, signal, sys, asyncpg
from mainspring import Custom, Engine, EngineConfig, StoreConfig, Task, TaskType
async def main(url, store, blobs, end):
    connection = await asyncpg.connect(url, server_settings={"application_name": blobs})
    async with Engine(store, EngineConfig(store=StoreConfig(blobs=blobs)), worker=False) as engine:
        await connection.execute("BEGIN")
        task = Task(task_type=TaskType.custom("double"), input=Custom({"n": 7}))
        await engine.submit(task, connection=connection)
        if end == "commit":
            await connection.execute("COMMIT")
        print(task.id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("end", ["die", "commit"])
async def test_the_submitting_process_is_killed(place: str, engine: Engine, tmp_path: Path, end: str) -> None:
    """Before the commit: nothing is stored. Right after it: the task runs."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", USER, postgres.url(), place, str(tmp_path / "blobs"), end,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **PATHS},
    )  # fmt: skip
    out, _ = await program.communicate()
    assert program.returncode == -signal.SIGKILL
    handle = engine.handle(out.decode().strip())
    if end == "commit":
        assert await value(handle) == 14
        return
    name = str(tmp_path / "blobs")[:63]  # of its connection
    await until(lambda: not postgres.ask("SELECT 1 FROM pg_stat_activity WHERE application_name = $1", name))
    with pytest.raises(TaskNotFound):
        await handle.info()
    assert ran(engine) == []


# What turns out wrong only after the commit


async def test_a_parent_that_is_gone_at_the_end(place: str, engine: Engine, mine: asyncpg.Connection) -> None:
    """It was pruned while the transaction was open: the task is recorded as failed and says so, and so its child."""
    parent = await engine.submit(double(engine), 1)
    await value(parent)
    async with mine.transaction():
        orphan = await engine.submit(double(engine), 2, connection=mine, after=parent)
        child = await engine.submit(double(engine), orphan, connection=mine)
        fine = await engine.submit(double(engine), 3, connection=mine)
        schema = place.rpartition("=")[2]
        postgres.command(f"DELETE FROM {schema}.task; DELETE FROM {schema}.attempt; DELETE FROM {schema}.tally")
    with pytest.raises(DependencyNotMet, match=str(parent.id)):
        await value(orphan)
    with pytest.raises(DependencyNotMet):
        await value(child)
    assert await value(fine) == 6
    assert (await orphan.info()).status is TaskStatus.FAILED
    with pytest.raises(InvalidInput, match="submit it again"):
        await engine.manager.retry_task(orphan.id)


async def test_a_key_that_got_its_task_meanwhile(engine: Engine, mine: asyncpg.Connection, tmp_path: Path) -> None:
    """With the same payload its result is that task's, for whoever depends on it too; with another one it is a recorded
    conflict. One task runs for a key."""
    async with mine.transaction():
        same = await engine.submit(double(engine), 1, connection=mine, idempotency_key="a")
        child = await engine.submit(double(engine), same, connection=mine)
        other = await engine.submit(double(engine), 2, connection=mine, idempotency_key="b")
        first = await engine.submit(double(engine), 1, idempotency_key="a")
        second = await engine.submit(double(engine), 3, idempotency_key="b")
    assert [await value(handle) for handle in (same, first, second, child)] == [2, 2, 6, 4]
    with pytest.raises(Conflict, match=str(second.id)):
        await value(other)
    info = await other.info()
    assert (info.status, info.attempts) == (TaskStatus.FAILED, ())
    assert sorted(ran(engine)) == [1, 2, 3]
    assert check_history(postgres.address_of(tmp_path)) == []


async def test_what_can_t_be_read_is_recorded_and_holds_up_nobody(
    place: str, engine: Engine, mine: asyncpg.Connection
) -> None:
    """Rows that nobody of us wrote, and a task that the tables refuse."""
    schema = place.rpartition("=")[2]
    ids = [TaskId() for _ in range(2)]
    async with mine.transaction():
        await mine.execute(f"INSERT INTO {schema}.inbox (id, task) VALUES ($1, 'x')", ids[0].bytes)
        broken = msgspec.msgpack.encode(NewTask(ids[1].bytes, ("default", "custom:double", ""), b"", priority=9))
        await mine.execute(f"INSERT INTO {schema}.inbox (id, task) VALUES ($1, $2)", ids[1].bytes, broken)
        fine = await engine.submit(double(engine), 3, connection=mine)
    assert await value(fine) == 6
    for id in ids:
        info = await engine.manager.get_task(id)
        assert (info.status, str(info.task.task_type)) == (TaskStatus.FAILED, "custom:unreadable")
        assert info.error is not None
    assert count(place, "inbox") == 0


async def test_an_id_that_was_taken_meanwhile(engine: Engine, mine: asyncpg.Connection) -> None:
    """Whoever has the id keeps it; what came too late is recorded under another one."""
    id = TaskId()
    async with mine.transaction():
        await engine.submit(double(engine), 1, connection=mine, task_id=id)
        await engine.submit(double(engine), 2, task_id=id)
    assert await value(engine.handle(id)) == 4
    await until(lambda: count_failed(engine) == 1)
    (failed,) = await engine.manager.store.list_tasks(status=TaskStatus.FAILED)
    assert failed.error is not None
    assert str(id) in failed.error.message


def count_failed(engine: Engine) -> int:
    schema = store_of(engine).server.schema
    return int(postgres.ask(f"SELECT count(*) FROM {schema}.task WHERE status = 3")[0][0])


async def test_time_passes_while_the_transaction_is_open(engine: Engine, mine: asyncpg.Connection) -> None:
    """A deadline that passes before the commit ends the task; large values come along."""
    async with mine.transaction():
        late = await engine.submit(double(engine), 1, connection=mine, deadline="300ms")
        large = await engine.submit(length(engine), "x" * 300_000, connection=mine)
        await asyncio.sleep(0.4)
    with pytest.raises(TaskTimeout):
        await value(late)
    assert await value(large) == 300_000


# What is refused


def typed(n: int, id: TaskId) -> Task:
    """A call of `double` as a ready task."""
    return Task(task_type=TaskType.custom("double"), input=Custom({"n": n}), id=id)


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_call_that_is_refused_leaves_nothing_behind(
    place: str, engine: Engine, mine: asyncpg.Connection, is_open: bool
) -> None:
    """However late in it stands what can't be, within a transaction and on a connection that commits each statement."""
    doubles, id = double(engine), TaskId()
    if is_open:
        await mine.execute("BEGIN")
    with pytest.raises(InvalidInput):
        await engine.map(doubles, [*range(1_500), "text"], connection=mine)
    with pytest.raises(Conflict):
        await engine.map(doubles, [*[1] * 1_500, 2], connection=mine, idempotency_key="k")
    with pytest.raises(Conflict):
        await engine.submit_all([typed(0, TaskId()), typed(1, id), typed(2, id)], connection=mine)
    store_of(engine)._memory.queue_size = 1_200
    with pytest.raises(QueueFull):
        await engine.map(doubles, range(1_500), connection=mine)
    schema = place.rpartition("=")[2]
    stored = f"SELECT (SELECT count(*) FROM {schema}.inbox) + (SELECT count(*) FROM {schema}.task)"
    assert await mine.fetchval(stored) == 0


async def test_a_call_that_repeats_an_id_wrongly_leaves_what_was_there(
    place: str, engine: Engine, mine: asyncpg.Connection
) -> None:
    """The task that the same transaction has under that id stays alone; repeated rightly it is that one."""
    id = TaskId()
    async with mine.transaction():
        await engine.submit_all([typed(5, id)], connection=mine)
        with pytest.raises(Conflict):
            await engine.submit_all([typed(0, TaskId()), typed(6, id)], connection=mine)
        again, fresh = await engine.submit_all([typed(5, id), typed(7, TaskId())], connection=mine)
    assert [await value(handle) for handle in (again, fresh)] == [10, 14]
    assert again.id == id
    assert count(place, "task") == 2


async def test_a_map_that_is_cancelled_before_its_last_item_leaves_nothing_behind(
    place: str, engine: Engine, mine: asyncpg.Connection
) -> None:
    """Its items go in together."""

    def items() -> Iterator[int]:
        yield from range(1_000)
        mapping.cancel()
        yield from range(1_000)

    async with mine.transaction():
        mapping = asyncio.ensure_future(engine.map(double(engine), items(), connection=mine))
        with pytest.raises(asyncio.CancelledError) as caught:
            await mapping
        assert await mine.fetchval(f"SELECT count(*) FROM {place.rpartition('=')[2]}.inbox") == 0
    assert caught.value.accepted == []  # type: ignore[attr-defined]


async def test_what_is_checked_before_the_commit(engine: Engine, mine: asyncpg.Connection) -> None:
    """As without a connection, and the transaction goes on."""
    used = await engine.submit(double(engine), 1, idempotency_key="used")
    memory = store_of(engine)._memory
    async with mine.transaction():
        refused: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = [
            (("text",), {}, InvalidInput),
            ((1,), {"priority": "urgent"}, InvalidInput),
            ((1,), {"after": TaskId()}, TaskNotFound),
            ((2,), {"idempotency_key": "used"}, Conflict),
            ((2,), {"task_id": used.id}, Conflict),
            ((2,), {"task_id": TaskId(bytes(16))}, InvalidInput),
        ]
        for arguments, options, error in refused:
            with pytest.raises(error):
                await engine.submit(double(engine), *arguments, connection=mine, **options)
        first = await engine.submit(double(engine), 5, connection=mine, idempotency_key="fresh")
        with pytest.raises(Conflict):
            await engine.submit(double(engine), 6, connection=mine, idempotency_key="fresh")
        with pytest.raises(Conflict):
            await engine.submit(double(engine), 6, connection=mine, task_id=first.id)
        same = await engine.submit(double(engine), 5, connection=mine, task_id=first.id, idempotency_key="fresh")
        known = await engine.submit(double(engine), 1, connection=mine, idempotency_key="used")
        ids = TaskId(), TaskId()
        later = [
            Task(task_type=TaskType.custom("double"), input=Custom({"n": 1}), id=id, dependencies=(other,))
            for id, other in zip(ids, reversed(ids), strict=True)
        ]
        with pytest.raises(InvalidInput, match="closes a cycle"):
            await engine.submit_all(later, connection=mine)
        memory.queue_size = 0
        with pytest.raises(QueueFull):
            await engine.submit(double(engine), 7, connection=mine)
        memory.queue_size = None
    assert (same.id, known.id) == (first.id, used.id)
    assert [await value(first), await value(known)] == [10, 2]


@pytest.mark.parametrize(
    ("connection", "what"),
    [(object(), "builtins.object"), ("postgresql://x", "builtins.str"), (asyncpg, "builtins.module")],
)
async def test_what_is_no_connection(engine: Engine, connection: Any, what: str) -> None:
    """The error names the field, the type and what is taken."""
    with pytest.raises(InvalidInput, match=f"connection = '{what}'.*asyncpg.*psycopg 3.*SQLAlchemy") as caught:
        await engine.submit(double(engine), 1, connection=connection)
    assert caught.value.field == "connection"


async def test_a_pool_and_an_engine_are_no_connections(engine: Engine) -> None:
    """They would take any connection, and no transaction of the user."""
    with sqlalchemy_engine() as alchemy:
        for wrong in (alchemy, asyncpg.create_pool(postgres.url())):
            with pytest.raises(InvalidInput, match="is not taken"):
                await engine.submit(double(engine), 1, connection=wrong)
    file = sqlalchemy.create_engine("sqlite://")
    with file.connect() as other, pytest.raises(InvalidInput, match="sqlite"):
        await engine.submit(double(engine), 1, connection=other)
    file.dispose()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
async def test_the_encoding_of_a_connection(engine: Engine, encoding: str) -> None:
    """One that gives bytes for texts is refused, and its transaction goes on; all others do."""
    async with await psycopg.AsyncConnection.connect(postgres.url(), client_encoding=encoding) as connection:
        if encoding == "SQL_ASCII":
            with pytest.raises(InvalidInput, match="SET client_encoding TO UTF8") as caught:
                await engine.submit(double(engine), 1, idempotency_key="ü", connection=connection)
            assert caught.value.field == "connection"
            await connection.execute("SET client_encoding TO UTF8")
        first = await engine.submit(double(engine), 1, idempotency_key="ü", connection=connection)
        again = await engine.submit(double(engine), 1, idempotency_key="ü", connection=connection)
        await connection.commit()
        assert (again.id, await value(first)) == (first.id, 2)


async def test_a_transaction_of_two_phases_is_refused(engine: Engine) -> None:
    """SQLAlchemy's, before anything is in it: it could not be prepared, and all that it did would be lost."""
    with sqlalchemy_engine() as alchemy, alchemy.connect() as connection:
        with connection.begin_twophase(), pytest.raises(InvalidInput, match="two-phase"):
            await engine.submit(double(engine), 1, connection=connection)
        with (
            sqlalchemy.orm.Session(alchemy, twophase=True) as session,
            pytest.raises(InvalidInput, match="two-phase") as caught,
        ):
            await engine.submit(double(engine), 1, connection=session)
        assert caught.value.field == "connection"
    for driver in ("asyncpg", "psycopg"):
        several = sa_async.create_async_engine(sqlalchemy_url(driver))
        async with sa_async.AsyncSession(several, twophase=True) as asked:
            with pytest.raises(InvalidInput, match="two-phase"):
                await engine.submit(double(engine), 1, connection=asked)
        await several.dispose()


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("name", ["connection", "wait_for_room"])
async def test_a_child_takes_no_connection(engine: Engine, name: str, now: bool) -> None:
    """It is stored with its parent's outcome, and says so."""
    doubles = double(engine)

    async def parent(ctx: Context) -> None:
        ctx.submit(doubles, 1, now=now, **{name: None})

    engine.task(name=f"parent_{name}_{now}")(parent)
    with pytest.raises(InvalidInput, match=f"{name} = .*does not go with a child"):
        await value(await engine.submit(parent, max_retries=0))


async def test_a_handler_may_submit_within_its_own_transaction(engine: Engine, mine: asyncpg.Connection) -> None:
    """By the engine: what it submits so is no child, and comes with that commit."""
    doubles = double(engine)

    async def shop() -> list[TaskId]:
        async with mine.transaction():
            one = await engine.submit(doubles, 4, connection=mine)
            more = await engine.map(doubles, [5, 6], connection=mine)
        return [handle.id for handle in (one, *more)]

    engine.task(name="shop_within")(shop)
    ids = await value(await engine.submit(shop))
    assert [await value(engine.handle(id)) for id in ids] == [8, 10, 12]


async def test_a_file_takes_no_connection(mine: asyncpg.Connection) -> None:
    """It can't commit together with a server."""
    async with with_handlers(engine_on()) as engine:
        with pytest.raises(InvalidInput, match="store in a file") as caught:
            await engine.submit(double(engine), 1, connection=mine)
        assert caught.value.field == "connection"


async def test_another_database(engine: Engine, tmp_path: Path) -> None:
    """A connection that leads elsewhere is refused, with the remedy, and its transaction goes on: where nothing is,
    and where tables of the same names are another program's."""
    schema = store_of(engine).server.schema
    with postgres.own_database(tmp_path) as url:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            name = urlsplit(url).path[1:]
            with pytest.raises(
                InvalidInput, match=f"database {name}'.*no store.*connect to the engine's database"
            ) as caught:
                await engine.submit(double(engine), 1, connection=connection)
            assert caught.value.field == "connection"
            await connection.execute(
                f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.store (name text); "
                f"CREATE TABLE {schema}.inbox (id bytea PRIMARY KEY, namespace text, key text, task bytea)"
            )
            for options in ({}, {"idempotency_key": "k"}):
                with pytest.raises(InvalidInput, match=f"database {name}'.*another store"):
                    await engine.submit(double(engine), 1, connection=connection, **options)
            assert await connection.fetchval(f"SELECT count(*) FROM {schema}.inbox") == 0
        await connection.close()


async def test_a_copy_of_the_database(tmp_path: Path) -> None:
    """One that was made with the database as its template holds the same identity, and is another all the same."""
    with postgres.own_database(tmp_path) as first:
        async with with_handlers(engine_on(first, worker=False)):
            pass
        with postgres.own_database(tmp_path / "copy", template=urlsplit(first).path[1:]) as second:
            connection = await asyncpg.connect(second)
            async with with_handlers(engine_on(first)) as engine, connection.transaction():
                with pytest.raises(InvalidInput, match="another store"):
                    await engine.submit(double(engine), 1, connection=connection)
                assert await connection.fetchval("SELECT count(*) FROM mainspring.inbox") == 0
            await connection.close()


async def test_a_key_in_the_store_of_another_database(tmp_path: Path) -> None:
    """Its tasks are not looked at: a key that one of them has in the same transaction is no task of this store."""
    with postgres.own_database(tmp_path) as first, postgres.own_database(tmp_path / "other") as second:
        async with with_handlers(engine_on(first)) as mine, with_handlers(engine_on(second)) as theirs:
            connection = await asyncpg.connect(second)
            async with connection.transaction():
                kept = await theirs.submit(double(theirs), 7, idempotency_key="order", connection=connection)
                for n in (7, 8):
                    with pytest.raises(InvalidInput, match="another store"):
                        await mine.submit(double(mine), n, idempotency_key="order", connection=connection)
            assert await value(kept) == 14
            await connection.close()


@pytest.mark.parametrize("name", ["put", "of_ids", "of_keys"])
async def test_a_store_that_differs_in_its_identity_alone(engine: Engine, mine: asyncpg.Connection, name: str) -> None:
    """As on two servers that were set up alike: no statement that reads or writes there takes it for this one."""
    store = store_of(engine)
    identity, *rest = await store.view(lambda view: view.one("identity"))
    inside = inbox._Inbox(store.borrow(mine), store.server, inbox._Home(str(TaskId()), *rest))
    values: dict[str, list[Any]] = {
        "put": [[TaskId().bytes], [None], [None], [b""], "channel", "word"],
        "of_ids": [[TaskId().bytes]],
        "of_keys": [["default"], ["k"]],
    }
    await inside.look()
    async with mine.transaction():
        with pytest.raises(InvalidInput, match="another store"):
            await inside.ask(name, *values[name])
        assert await mine.fetchval(f"SELECT count(*) FROM {store.server.schema}.inbox") == 0
    assert identity == store.identity


async def test_who_may_not_write(engine: Engine, mine: asyncpg.Connection) -> None:
    """Missing rights and read-only transactions are told before anything fails, also those that everybody has had where
    nothing was taken away: to run our functions. What the message names is enough."""
    role = "guest_" + TaskId().bytes.hex()
    schema = store_of(engine).server.schema
    await mine.execute(f"CREATE ROLE {role}; REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
    grants = [
        f"GRANT USAGE ON SCHEMA {schema}",
        f"GRANT SELECT, INSERT ON {schema}.inbox",
        f"GRANT SELECT ON {schema}.store",
        f"GRANT EXECUTE ON FUNCTION {schema}.inbox_of_ids, {schema}.inbox_of_keys",
    ]
    told = re.escape(f"{', '.join(grants[:-1])}, and {grants[-1]}")
    try:
        async with mine.transaction():
            for grant in grants:
                await mine.execute(f"SET LOCAL ROLE {role}")
                with pytest.raises(StoreReadOnly, match=told):
                    await engine.submit(double(engine), 1, connection=mine, idempotency_key="k")
                await mine.execute(f"RESET ROLE; {grant} TO {role}")
            await mine.execute(f"SET LOCAL ROLE {role}")
            some = await engine.map(double(engine), [1, 1], connection=mine, idempotency_key="k")
            child = await engine.submit(double(engine), some[0], connection=mine)
        assert await value(child) == 4
        async with mine.transaction(readonly=True):
            with pytest.raises(StoreReadOnly, match="read-only"):
                await engine.submit(double(engine), 1, connection=mine)
    finally:
        await mine.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
