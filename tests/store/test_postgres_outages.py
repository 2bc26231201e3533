"""A server that goes, fills up, only reads or withholds rights while work is under way: what callers are told is true,
and work goes on by itself when the server is well again."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Awaitable, Iterator
from pathlib import Path

import asyncpg
import pytest
from proof.server import OwnServer
from tests import postgres
from tests.engine.support import LIMIT_S, quick, until, value

from mainspring import Engine, StoreConfig, TaskHandle
from mainspring.errors import StoreReadOnly, StoreUnavailable, SubmitIndeterminate, TaskError, TaskNotFound
from mainspring.tasks import TaskId

pytestmark = pytest.mark.anyio
MIB = 1 << 20
ROOM, BALLAST = 10 * MIB, 5 * MIB
"""Of a disk that is soon full, and what can be taken away from it again."""
AWAY_S = float(os.environ.get("MAINSPRING_TEST_AWAY_S", "0.2"))
"""How long the server is gone: with 60 for longer than anything here waits for it."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer() as server:
        yield server


class Work:
    """An engine with one handler, which counts its starts and ends when it is let go."""

    def __init__(self, url: str, folder: Path, *, worker: bool = True) -> None:
        self.starts: Counter[int] = Counter()
        self.goes = asyncio.Event()
        store = StoreConfig(schema=postgres.schema_of(folder), blobs=folder / "blobs", inline_bytes=MIB)
        self.engine = Engine(url, quick(store), worker=worker)

        @self.engine.task
        async def waits(n: int, text: str = "") -> int:
            self.starts[n] += 1
            await self.goes.wait()
            return n

        self.waits = waits

    async def submit(self, n: int, text: str = "") -> TaskHandle | TaskError:
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self.engine.submit(self.waits, n, text, task_id=_id(n))
            except TaskError as exc:
                return exc

    async def all_is_told_truly(self, answers: dict[int, TaskHandle | TaskError]) -> None:
        """What was accepted ends, once and with its value; what was refused is not there."""
        self.goes.set()
        for n, answer in answers.items():
            if isinstance(answer, TaskHandle):
                assert await value(answer) == n
                assert self.starts[n] == 1
                continue
            assert isinstance(answer, (StoreUnavailable, StoreReadOnly, SubmitIndeterminate))
            if not isinstance(answer, SubmitIndeterminate):
                with pytest.raises(TaskNotFound):
                    await self.engine.handle(_id(n)).info()


def _id(n: int) -> TaskId:
    return TaskId(f"01900000-0000-7000-8000-{n:012d}")


async def test_a_server_that_is_gone_for_a_while(
    server: OwnServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls are refused meanwhile. What handlers end with then is recorded when it is back, without running again, and
    what waited for a slot goes on. The log has one line of it, and one when it is over."""
    work = Work(server.url, tmp_path)
    async with work.engine as engine:
        answers = {n: await work.submit(n) for n in range(80)}
        await until(lambda: len(work.starts) == 64)  # as many as there are slots
        await asyncio.to_thread(server.stop)
        answers |= {n: await work.submit(n) for n in range(80, 90)}
        assert all(isinstance(answers[n], StoreUnavailable) for n in range(80, 90))
        with pytest.raises(StoreUnavailable):
            await engine.manager.stats()
        work.goes.set()
        await asyncio.sleep(AWAY_S)
        answers |= {n: await work.submit(n) for n in range(90, 92)}
        assert all(isinstance(answers[n], StoreUnavailable) for n in range(90, 92))
        await asyncio.to_thread(server.start)
        answers |= {
            n: await work.submit(n) for n in range(92, 94)
        }  # with no call in between the next one may still fail
        await work.all_is_told_truly(answers)
        assert len(work.starts) >= 80

        await until(lambda: "in reach again" in caplog.text)
    told = [record.getMessage() for record in caplog.records if record.name == "mainspring.store"]
    assert ["out of reach" in line for line in told[:1]] == [True]
    assert "in reach again" in told[-1]
    assert len(told) <= 2 + AWAY_S / 60, told  # and one a minute in between


async def test_an_engine_starts_when_its_server_does(server: OwnServer, tmp_path: Path) -> None:
    """Whoever starts first is told that trying again can help, and a new engine then works."""
    await asyncio.to_thread(server.stop)
    with pytest.raises(StoreUnavailable, match="check that the server runs") as caught:
        await Work(server.url, tmp_path).engine.start()
    assert caught.value.is_retryable
    await asyncio.to_thread(server.start)
    work = Work(server.url, tmp_path)
    async with work.engine:
        await work.all_is_told_truly({1: await work.submit(1)})


async def _caught_up(primary_url: str, replica_url: str) -> None:
    """Return when the replica has all that the primary has now: what it had not would have been lost with that."""
    primary, replica = await asyncpg.connect(primary_url), await asyncpg.connect(replica_url)
    try:
        written = await primary.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        async with asyncio.timeout(LIMIT_S):
            while not await replica.fetchval(f"SELECT pg_last_wal_replay_lsn() >= '{written}'"):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
    finally:
        await primary.close()
        await replica.close()


async def test_a_replica(server: OwnServer, tmp_path: Path) -> None:
    """One that follows the primary is refused as such; once it is the primary itself, all that was stored is there."""
    work = Work(server.url, tmp_path)
    async with work.engine:
        answers = {n: await work.submit(n) for n in range(5)}
        with server.replica() as replica:
            with pytest.raises(StoreReadOnly, match="name the primary server"):
                await Work(replica.url, tmp_path).engine.start()
            await work.all_is_told_truly(answers)
            await _caught_up(server.url, replica.url)
            await asyncio.to_thread(replica.promote)
            heir = Work(replica.url, tmp_path)
            async with heir.engine as engine:
                assert [await value(engine.handle(_id(n))) for n in range(5)] == list(range(5))
                await heir.all_is_told_truly({5: await heir.submit(5)})


async def test_a_primary_that_takes_no_writes_any_more(server: OwnServer, tmp_path: Path) -> None:
    """It became a replica, or was made read-only: calls are refused until the address leads to one that writes. What
    handlers end with meanwhile is recorded then."""

    role = "t_failover"
    server.ask(f"CREATE ROLE {role} LOGIN")
    server.ask(f"GRANT CREATE ON DATABASE postgres TO {role}")

    def only_reads(value: str) -> None:
        server.ask(f"ALTER ROLE {role} SET default_transaction_read_only = {value}")
        for pid in server.backends():
            server.cut(pid)

    work = Work(server.url.replace("postgres@", f"{role}@"), tmp_path)
    async with work.engine:
        answers = {0: await work.submit(0)}
        await until(lambda: len(work.starts) == 1)
        await asyncio.to_thread(only_reads, "on")
        answers[1] = await work.submit(1)
        assert isinstance(answers[1], StoreUnavailable)
        assert "read-only" in str(answers[1])
        work.goes.set()
        await asyncio.to_thread(only_reads, "off")
        answers[2] = await work.submit(2)
        await work.all_is_told_truly(answers)


async def test_rights_that_are_taken_away(server: OwnServer, tmp_path: Path) -> None:
    """Calls are refused with what is missing, and work goes on when it is granted again."""
    schema, role = postgres.schema_of(tmp_path), "t_worker"
    url = server.url.replace("postgres@", f"{role}@")
    await asyncio.to_thread(server.ask, f"CREATE ROLE {role} LOGIN")
    await asyncio.to_thread(server.ask, f"GRANT CREATE ON DATABASE postgres TO {role}")
    work = Work(url, tmp_path)
    async with work.engine:
        answers = {0: await work.submit(0)}
        await asyncio.to_thread(server.ask, f"REVOKE INSERT ON {schema}.task FROM {role}")
        answers[1] = await work.submit(1)
        assert isinstance(answers[1], StoreReadOnly)
        assert "permission denied for table task" in str(answers[1])
        assert f"GRANT CREATE ON DATABASE for the first start, and all rights on schema {schema}" in str(answers[1])
        await asyncio.to_thread(server.ask, f"GRANT INSERT ON {schema}.task TO {role}")
        answers[2] = await work.submit(2)
        await work.all_is_told_truly(answers)
    for right in ("SELECT", "UPDATE"):
        await asyncio.to_thread(server.ask, f"REVOKE {right} ON ALL TABLES IN SCHEMA {schema} FROM {role}")
        with pytest.raises(StoreReadOnly, match=f"GRANT .* schema {schema}"):
            await Work(url, tmp_path).engine.start()
        await asyncio.to_thread(server.ask, f"GRANT {right} ON ALL TABLES IN SCHEMA {schema} TO {role}")


RIGHTS = ["INSERT ON {}.tally", "UPDATE ON {}.tally", "INSERT ON {}.news", "USAGE ON SCHEMA {}"]
"""Needed when all else is done, by the statements that go with a commit; and to see any table at all."""


@pytest.fixture
def submitter(server: OwnServer, tmp_path: Path) -> Iterator[str]:
    """A user who owns a schema and has no right on the database."""
    schema, role = postgres.schema_of(tmp_path), "t_submitter"
    server.ask(f"CREATE ROLE {role} LOGIN")
    server.ask(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    yield role
    server.ask(f"DROP SCHEMA {schema} CASCADE")
    server.ask(f"DROP ROLE {role}")


@pytest.mark.parametrize("right", RIGHTS)
async def test_a_right_that_is_taken_away_from_a_submitter(
    server: OwnServer, submitter: str, tmp_path: Path, right: str
) -> None:
    """Each call is refused with what to grant, and nothing of it is stored; with the grant calls go on."""
    schema = postgres.schema_of(tmp_path)
    right = right.format(schema)
    worker = Work(server.url, tmp_path)
    web = Work(server.url.replace("postgres@", f"{submitter}@"), tmp_path, worker=False)
    async with web.engine as engine, worker.engine:
        later = await engine.submit(web.waits, 0, delay=600)
        answers = {1: await web.submit(1)}
        await asyncio.to_thread(server.ask, f"REVOKE {right} FROM {submitter}")
        answers[2] = await web.submit(2)
        refused = [answers[2]]
        if "news" not in right:  # nothing becomes ready by these
            refused.append(await _refusal(later.cancel()))
        if "SCHEMA" in right:
            refused.append(await _refusal(engine.manager.stats()))
        for error in refused:
            assert isinstance(error, StoreReadOnly)
            assert f"all rights on schema {schema}" in str(error)
        await asyncio.to_thread(server.ask, f"GRANT {right} TO {submitter}")
        answers[3] = await web.submit(3)
        assert isinstance(answers[3], TaskHandle)
        assert await later.cancel() == "cancelled"
        worker.goes.set()
        assert [await value(engine.handle(_id(n))) for n in (1, 3)] == [1, 3]
        with pytest.raises(TaskNotFound):
            await engine.handle(_id(2)).info()


async def _refusal(call: Awaitable[object]) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await call
    return caught.value


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system with little room; skipped where we may not mount one."""
    folder = Path(tempfile.mkdtemp(prefix="mainspring-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0777", "tmpfs", str(folder)]
    try:
        has_mount = shutil.which("mount") is not None
        if not has_mount or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a file system of its own can't be mounted here: a full disk needs the rights of root")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


async def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """Submits are refused with that reason as long as there is no room; what runs ends, and when there is room again
    nothing needs to be restarted."""
    (small_disk / "ballast").write_bytes(bytes(BALLAST))
    with OwnServer() as server:
        await asyncio.to_thread(server.keep_tables_on, small_disk / "tables")
        work = Work(server.url, tmp_path)
        async with work.engine:
            answers: dict[int, TaskHandle | TaskError] = {}
            while not any(isinstance(answer, TaskError) for answer in answers.values()):
                answers[len(answers)] = await work.submit(len(answers), _noise(300_000))
            assert len(answers) > 3
            refusal = answers[len(answers) - 1]
            assert isinstance(refusal, StoreUnavailable)
            assert "No space left on device" in str(refusal)
            (small_disk / "ballast").unlink()
            answers[100] = await work.submit(100, _noise(300_000))
            assert isinstance(answers[100], TaskHandle)
            await work.all_is_told_truly(answers)


def _noise(n: int) -> str:
    """Text that the server can't compress."""
    import random

    return "".join(random.Random(n).choices("".join(map(chr, range(33, 126))), k=n))
