"""Engines on one server: who is dead, who leads, and what an outage of the server costs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import psutil
import pytest
from tests import postgres
from tests.conformance.kit import PostgresFactory
from tests.engine.programs import Programs, call, serves
from tests.engine.support import LIMIT_S, engine_on, until, value

from mainspring import Engine, TaskId, TaskStatus
from mainspring.errors import StoreUnavailable, SubmitIndeterminate
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
DEAD_S = 3.0


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path, postgres.address_of(tmp_path))
    yield programs
    programs.end()
    postgres.drop(postgres.schema_of(tmp_path))


@pytest.fixture
async def client(programs: Programs, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine that only looks; it is there first, and leads."""
    async with programs.looking(dead_s=DEAD_S) as engine:
        yield engine


def summed_in(seconds: float) -> int:
    """How many numbers this machine adds up within that time, or in a longer one while others use it too."""
    began = time.thread_time()
    sum(range(20_000_000))
    return int(20_000_000 * seconds / (time.thread_time() - began))


def helper_of(pid: int) -> psutil.Process:
    (helper,) = (child for child in psutil.Process(pid).children() if "postgres.beat" in " ".join(child.cmdline()))
    return helper


async def rows(engine: Engine, name: str) -> list[Any]:
    return await engine.manager.store.view(lambda view: view.rows(name))


async def test_a_busy_interpreter_loses_nothing(client: Engine, programs: Programs) -> None:
    """A handler that lets no thread of its process run for longer than a silent process lives keeps its claim."""
    await programs.running(600.0, DEAD_S)
    await serves(client, "custom:hog")
    before = asyncio.get_running_loop().time()
    handle = await client.submit(call("hog", n=summed_in(DEAD_S + 4)))
    await handle.result(timeout=120)
    info = await handle.info()
    assert asyncio.get_running_loop().time() - before > DEAD_S + 1, "make it busy for longer"
    assert [attempt.outcome for attempt in info.attempts] == ["completed"]


async def test_a_helper_that_dies_is_replaced(client: Engine, programs: Programs) -> None:
    """The process is not taken for dead meanwhile, nor afterwards."""
    program = await programs.running(600.0, DEAD_S)
    await serves(client, "custom:hold")
    handle = await client.submit(call("hold", name="a"))
    await until(programs.mark("a.started").exists)
    first = helper_of(program.pid)
    first.kill()
    first.wait(10)
    await until(lambda: any(child.pid != first.pid for child in psutil.Process(program.pid).children()))
    (beat,) = [row[3] for row in await rows(client, "signs_of_life") if row[2] == program.pid]
    async with asyncio.timeout(60):  # the new one beats
        while [row[3] for row in await rows(client, "signs_of_life") if row[2] == program.pid] <= [beat + 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    programs.mark("a.go").touch()
    assert await value(handle) == program.pid
    assert (await handle.info()).attempt == 1


async def test_who_is_cut_off_is_dead_and_comes_back(client: Engine, programs: Programs) -> None:
    """A machine that nobody hears of loses what it held. When it is heard again, it stops that, and works on."""
    program = await programs.running(600.0, DEAD_S)
    await serves(client, "custom:hold")
    handle = await client.submit(call("hold", name="a"))
    await until(programs.mark("a.started").exists)
    helper = helper_of(program.pid)
    await asyncio.to_thread(postgres.stop_between_commits, programs.store, program.pid)
    helper.suspend()
    other = await programs.running(600.0, DEAD_S)
    programs.mark(f"a.{other.pid}.go").touch()
    assert await value(handle) == other.pid
    program.send_signal(signal.SIGCONT)
    helper.resume()
    await until(programs.mark(f"a.{program.pid}.stopped").exists)
    other.kill()
    last = await client.submit(call("hold", name="last"))
    programs.mark("last.go").touch()
    assert await value(last) == program.pid


async def test_another_leads_when_the_leader_dies(programs: Programs) -> None:
    """What a dead leader held is taken back by whoever leads next, at once."""
    leader = await programs.running()
    async with programs.looking() as client:
        await serves(client, "custom:hold")
        handle = await client.submit(call("hold", name="a"))
        await until(programs.mark("a.started").exists)
        leader.kill()
        await programs.running()
        programs.mark("a.go").touch()
        await value(handle)
        assert [attempt.outcome for attempt in (await handle.info()).attempts] == ["crashed", "completed"]
        (row,) = await rows(client, "leader")
        assert row[0] in [sign[0] for sign in await rows(client, "signs_of_life")]


async def test_a_restart_of_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The server dies twice under load: whoever submits is told the truth, work goes on by itself, each task completes
    once, and every invariant holds."""
    ran: Counter[int] = Counter()
    engine = engine_on(postgres.address_of(tmp_path), async_slots=16)

    @engine.task
    async def count(n: int) -> int:
        ran[n] += 1
        await asyncio.sleep(0.001)
        return n

    told: Counter[str] = Counter()

    async def submit(n: int, id: TaskId) -> Any:
        while True:
            try:
                handle = await engine.submit(count, n, task_id=id)
                return await handle.result(timeout=60)
            except (StoreUnavailable, SubmitIndeterminate) as exc:
                told[type(exc).__name__] += 1
                await asyncio.sleep(0.02)

    async with engine:
        work = [asyncio.ensure_future(submit(n, TaskId())) for n in range(200)]
        for at in (40, 120):
            while sum(ran.values()) < at:  # noqa: ASYNC110 - how far the work is, no event tells
                await asyncio.sleep(0.005)
            await asyncio.to_thread(postgres.restart)
        assert sorted(await asyncio.gather(*work)) == list(range(200))
        stats = await engine.manager.stats()
    assert (stats["completed"], stats["pending"], stats["running"]) == (200, 0, 0)
    assert set(told) <= {"StoreUnavailable", "SubmitIndeterminate"}
    factory = PostgresFactory(tmp_path)
    assert check_history(postgres.address_of(tmp_path)) == []
    factory.drop()


async def test_an_idle_connection_that_was_lost_is_nobodys_trouble(tmp_path: Path) -> None:
    """The server went and came while nothing was asked of it: the next calls work, and a worker hears of new tasks."""
    engine = engine_on(postgres.address_of(tmp_path))

    @engine.task
    async def same(n: int) -> int:
        return n

    async with engine:
        assert await value(await engine.submit(same, 1)) == 1
        postgres.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mainspring %' "
            "AND application_name NOT LIKE 'mainspring helper %'"
        )
        assert (await engine.manager.stats())["completed"] == 1
        handle = await engine.submit(same, 2)
        assert await value(handle) == 2
        assert (await handle.info()).status is TaskStatus.COMPLETED
    postgres.drop(postgres.schema_of(tmp_path))


async def test_a_refused_login_ends_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A password that changes, a server that comes back as another: who is let in again talks and leads again."""
    caplog.set_level("DEBUG", "mainspring.store")
    with postgres.own_database(tmp_path, "t_away") as address:
        async with engine_on(address, worker=False) as engine:
            line = cast(Any, engine.manager.store).line
            await _leads(line)
            postgres.command("ALTER ROLE t_away NOLOGIN")
            try:
                postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 't_away'")
                await until(lambda: "not permitted to log in" in caplog.text)
            finally:
                postgres.command("ALTER ROLE t_away LOGIN")
            await _leads(line)


async def _leads(line: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await line.lead():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_another_default_of_isolation_changes_nothing(tmp_path: Path, isolation: str) -> None:
    """Who waited for a lock sees what was done meanwhile: else parents' ends are missed, and children wait for ever.
    Nor does a claim fail for what others claim beside it."""
    with postgres.own_database(tmp_path) as address:
        database = postgres.schema_of(tmp_path)
        postgres.command(f"ALTER DATABASE {database} SET default_transaction_isolation TO '{isolation}'")
        engines = [engine_on(address) for _ in range(2)]
        for engine in engines:
            engine.task(_add)
        async with engines[0], engines[1]:
            assert await engines[0].manager.store.write(_isolation) == "read committed"
            assert await asyncio.gather(*(_family(engines, n) for n in range(300))) == list(range(300))
        assert check_history(address) == []


def _isolation(tx: Any) -> str:
    return str(tx.cursor.execute("SHOW transaction_isolation")[0][0])


async def _add(a: int, b: int) -> int:
    return a + b


async def _family(engines: list[Engine], n: int) -> int:
    """Two parents of one child, submitted here and there."""
    one = await engines[0].submit(_add, n, 1)
    other = await engines[1].submit(_add, 0, -1)
    sum_of_both: int = await value(await engines[n % 2].submit(_add, one, other))
    return sum_of_both


async def test_no_transaction_is_open_while_a_handler_runs(tmp_path: Path) -> None:
    """However long it takes: what holds back vacuum is no work of ours. What the process and its helper write meanwhile
    begins and ends, and no transaction waits for the next one."""
    engine = engine_on(postgres.address_of(tmp_path))
    runs, goes = asyncio.Event(), asyncio.Event()

    @engine.task
    async def hold() -> None:
        runs.set()
        await goes.wait()

    async with engine:
        handle = await engine.submit(hold)
        await runs.wait()
        name = engine.manager.store.worker_id

        def are_open() -> Any:
            sql = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE $1 AND xact_start IS NOT NULL"
            return postgres.ask(sql, f"%{name}")

        await until(lambda: not are_open())
        other = await asyncpg.connect(postgres.url(), server_settings={"application_name": f"a {name}"})
        async with other.transaction():
            assert are_open(), "the look sees a transaction that is open"
        await other.close()
        goes.set()
        await value(handle)
    postgres.drop(postgres.schema_of(tmp_path))
