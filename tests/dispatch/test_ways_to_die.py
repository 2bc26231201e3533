"""What becomes of a handler that misbehaves, of its neighbours and of the process: each row of docs/lanes.md.

The worker is a process of its own, started again when it dies; a neighbour runs beside each misbehaviour.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import apsw
import psutil
import pytest
from tests.dispatch.ways import FLOOD_BYTES, LANES, LEAK_BYTES, SLOTS, may_end
from tests.engine.support import LIMIT_S, engine_on, until, value

from mainspring import (
    Custom,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Task,
    TaskCancelled,
    TaskHandle,
    TaskStatus,
    TaskType,
)
from mainspring.processors.base import Lane

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lanes.md"
ALL = ("async", "thread", "process")
HERE = ("async", "thread")
"""Lanes that share the worker's process."""


class World:
    """A worker under a supervisor, and a client."""

    def __init__(self, folder: Path, client: Engine) -> None:
        self.folder = folder
        self.client = client
        self.output = folder / "output"
        self.deaths: list[int] = []
        self._n = 0
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
        with self.output.open("ab") as output:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "tests.dispatch.victim", str(self.client.path)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=ROOT,
            )  # fmt: skip

    async def supervise(self) -> None:
        while True:
            if (code := self.worker.poll()) is not None:
                self.deaths.append(code)
                self.start()
            await asyncio.sleep(0.02)

    async def replace(self, number: int = signal.SIGKILL) -> None:
        """Have another worker, after one was left in a bad state."""
        before = len(self.deaths)
        self.worker.send_signal(number)
        await until(lambda: len(self.deaths) > before)
        await self.all_lanes_work()

    async def drain(self) -> None:
        """Have another worker, after one that was asked to go."""
        await self.replace(signal.SIGTERM)

    def submit(self, kind: str, max_retries: int = 0, **arguments: Any) -> Any:
        task = Task(task_type=TaskType.custom(kind), input=Custom(arguments), max_retries=max_retries)
        return self.client.submit(task)

    def counted(self, handle: TaskHandle, what: str) -> int:
        """What is charged to a task."""
        with closing(apsw.Connection(str(self.client.path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            rows: list[Any] = connection.execute(f"SELECT {what} FROM task WHERE id = ?", (handle.id.bytes,)).fetchall()
            return int(rows[0][0])

    async def all_lanes_work(self) -> None:
        """A dozen tasks in each lane complete: more than there are slots."""
        handles = [await self.submit(echo.__name__, n=n) for _, echo in LANES.values() for n in range(12)]
        assert [await value(handle) for handle in handles] == [*range(12)] * 3

    @asynccontextmanager
    async def beside_a_neighbour(
        self, lane: Any, way: str, last: str = "", max_retries: int = 0
    ) -> AsyncIterator[Cell]:
        """Start a neighbour in the loop and then the handler; afterwards the neighbour has completed, uncharged."""
        self._n += 1
        mark = f"{self.folder / way}-{self._n}-{last}"
        neighbour = await self.submit("holds", mark=f"{mark}.neighbour")
        await until(Path(f"{mark}.neighbour.began").exists)
        worker, deaths = self.worker.pid, len(self.deaths)
        handle = await self.submit(LANES[lane][0].__name__, max_retries, way=way, mark=mark)
        await until(Path(f"{mark}.began").exists)
        cell = Cell(mark, handle)
        yield cell
        cell.path("neighbour.go").touch()
        pid, info = await value(neighbour), await neighbour.info()
        assert (info.task.retry_count, self.counted(neighbour, "crashes")) == (0, 0)
        if way in CRASHES and lane in HERE:
            assert self.deaths[deaths:] == [CRASHES[way][0]]
            assert pid not in (worker, self.worker.pid)  # a suspect runs in a child
            assert [attempt.outcome for attempt in info.attempts] == ["crashed", "completed"]
        else:
            assert (pid, self.worker.pid, self.deaths[deaths:]) == (worker, worker, [])
            assert [attempt.outcome for attempt in info.attempts] == ["completed"]


def let_go(mark: str) -> None:
    Path(f"{mark}.go").touch()


class Cell:
    """A misbehaving handler under way."""

    def __init__(self, mark: str, handle: TaskHandle) -> None:
        self.mark = mark
        self.handle = handle

    def go(self) -> None:
        let_go(self.mark)

    def path(self, suffix: str) -> Path:
        return Path(f"{self.mark}.{suffix}")

    @property
    def pid(self) -> int:
        """Where it runs."""
        return int(self.path("began").read_text())

    async def outcomes(self) -> list[str]:
        return [attempt.outcome for attempt in (await self.handle.info()).attempts]


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("ways")
    async with engine_on(folder / "work.db", worker=False) as client:
        world = World(folder, client)
        supervisor = asyncio.create_task(world.supervise())
        try:
            async with asyncio.timeout(LIMIT_S):
                while "custom:holds" not in await client.manager.store.registered_types():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await world.all_lanes_work()
            yield world
        finally:
            supervisor.cancel()
            world.worker.kill()
            world.worker.wait()


CRASHES = {
    "segfault": (-signal.SIGSEGV, "SIGSEGV"),
    "leave": (3, "exited with code 3"),
    "killed": (-signal.SIGKILL, r"SIGKILL; its peak memory was (\d+) MiB"),
}
"""Exit code of the worker, and what the error of the task says."""


@pytest.mark.parametrize("way", CRASHES)
@pytest.mark.parametrize("lane", ALL)
async def test_a_crash(world: World, lane: str, way: str) -> None:
    """It takes along the process that it runs in, and ends as FAILED after three crashes on its own, with evidence."""
    async with world.beside_a_neighbour(lane, way) as cell:
        await world.all_lanes_work()
        with pytest.raises(ProcessingFailed, match=CRASHES[way][1]) as caught:
            await value(cell.handle)
        own = ["crashed", "crashed", "failed"]
        assert await cell.outcomes() == (["crashed", *own] if lane in HERE else own)
        info = await cell.handle.info()
        assert (info.status, info.task.retry_count) == (TaskStatus.FAILED, 0)
        error = caught.value.info
        assert error is not None
        if way == "leave":
            assert "last words" in str(error.traceback)
        if way == "killed":
            found = re.search(CRASHES[way][1], error.message)
            assert found is not None
            assert int(found[1]) >= LEAK_BYTES >> 20


@pytest.mark.parametrize("lane", ALL)
async def test_ignored_cancel(world: World, lane: Lane) -> None:
    """It ends as CANCELLED after its grace and its slot is there for others; only a child is really stopped."""
    async with world.beside_a_neighbour(lane, "deaf") as cell:
        others = [f"{cell.mark}.{n}" for n in range(SLOTS[lane] - 1 - (lane == "async"))]  # all slots that are left
        handles = [await world.submit(LANES[lane][0].__name__, way="deaf", mark=mark) for mark in others]
        for mark in others:
            await until(Path(f"{mark}.began").exists)
        for handle in (cell.handle, *handles):
            assert await handle.cancel() in ("requested", "cancelled")
        for handle in (cell.handle, *handles):
            with pytest.raises(TaskCancelled):
                await value(handle)
        await world.all_lanes_work()
        for mark in others:
            let_go(mark)
        if lane == "process":
            await until(lambda: not psutil.pid_exists(cell.pid))
        cell.go()
        if lane in HERE:
            await until(cell.path("ended").exists)
        assert await cell.outcomes() == ["cancelled"]


@pytest.mark.parametrize("lane", ALL)
async def test_a_blocking_call(world: World, lane: str) -> None:
    """It completes. On the loop everything stands still meanwhile; elsewhere the neighbours go on."""
    async with world.beside_a_neighbour(lane, "blocks") as cell:
        before, after = await value(cell.handle)
        assert (before == after) is (lane == "async")


@pytest.mark.parametrize("lane", ALL)
async def test_a_leak(world: World, lane: str) -> None:
    """The worker keeps what its own handlers leak; a child that has grown too large is replaced after its task."""
    before = psutil.Process(world.worker.pid).memory_info().rss
    async with world.beside_a_neighbour(lane, "leaks") as cell:
        pid = await value(cell.handle)
        grown = psutil.Process(world.worker.pid).memory_info().rss - before
        if lane == "process":
            await until(lambda: not psutil.pid_exists(pid))
            assert grown < LEAK_BYTES // 2
        else:
            assert pid == world.worker.pid
            assert grown > LEAK_BYTES // 2


@pytest.mark.parametrize("lane", ALL)
async def test_a_forked_process(world: World, lane: str) -> None:
    """It stays: in the worker's care, or until its child process ends."""
    async with world.beside_a_neighbour(lane, "forks") as cell:
        left = await value(cell.handle)
    assert psutil.pid_exists(left)
    if lane == "process":
        os.kill(cell.pid, signal.SIGKILL)
    else:
        assert psutil.Process(left).ppid() == world.worker.pid
        os.kill(left, signal.SIGKILL)
    await until(lambda: not is_running(left))
    await world.all_lanes_work()


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("lane", ALL)
async def test_a_daemon(world: World, lane: str) -> None:
    """It is nobody's child any more; with that which started it goes only one of the process lane."""
    async with world.beside_a_neighbour(lane, "hides") as cell:
        left = await value(cell.handle)
    assert is_running(left)
    if lane == "process":
        os.kill(cell.pid, signal.SIGKILL)
        await until(lambda: not is_running(left))
        await world.all_lanes_work()
        for end in (world.replace, world.drain):  # the worker's own ends are those of its children
            left = await value(await world.submit("in_process", way="hides", mark=f"{cell.mark}.{end.__name__}"))
            assert is_running(left)
            await end()
            await until(lambda left=left: not is_running(left))  # type: ignore[misc]
    else:
        await world.replace()
        assert is_running(left)
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("lane", ALL)
async def test_a_forked_copy_that_returns(world: World, lane: str) -> None:
    """It ends there: only the original reports."""
    for way in ("escapes", "escapes_late"):
        async with world.beside_a_neighbour(lane, way) as cell:
            copy = await value(cell.handle)
            await until(lambda copy=copy: not is_running(copy))  # type: ignore[misc]
            assert await cell.outcomes() == ["completed"]


@pytest.mark.parametrize("lane", ALL)
async def test_a_forked_copy_that_asks(world: World, lane: str) -> None:
    """It is told at once that it is a copy, whoever else is in the middle of something; what it logs is not lost."""
    async with world.beside_a_neighbour(lane, "asks") as cell:
        told = await value(cell.handle)
        assert [line.partition(":")[0] for line in told.splitlines()] == ["InvalidInput"] * 2
        assert "before the fork" in told
        assert await cell.outcomes() == ["completed"]
    await world.all_lanes_work()
    assert f"the copy of {cell.mark}" in world.output.read_text(errors="replace")


@pytest.mark.parametrize("lane", ALL)
async def test_garbage(world: World, lane: str) -> None:
    """What can't be stored fails its attempt, at once and for good: another try would return the same."""
    async with world.beside_a_neighbour(lane, "garbage", max_retries=2) as cell:
        with pytest.raises(InvalidInput, match="can't be stored"):
            await value(cell.handle)
        assert await cell.outcomes() == ["failed"]


@pytest.mark.parametrize("lane", ALL)
async def test_an_exception_that_ends_programs(world: World, lane: str) -> None:
    """SystemExit, KeyboardInterrupt and other BaseExceptions are failures of their attempt like any other: tried
    again, and no child ends for them."""
    for last, name in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("odd", "Odd")):
        async with world.beside_a_neighbour(lane, "raises", last, max_retries=1) as cell:
            with pytest.raises(ProcessingFailed, match=f"{name}: out"):
                await value(cell.handle)
            assert await cell.outcomes() == ["retry", "failed"]
            await world.all_lanes_work()
            assert is_running(cell.pid)


@pytest.mark.parametrize("lane", ALL)
async def test_an_exit_in_a_task_of_its_own(world: World, lane: str) -> None:
    """asyncio itself ends a loop for SystemExit in any of its tasks: a worker ends like any program, and the attempt
    fails like any other.
    """
    if lane == "async":
        before = len(world.deaths)
        handle = await world.submit("in_loop", way="exits_within", mark=str(world.folder / "within"))
        with pytest.raises(ProcessingFailed, match="SystemExit: out"):
            await value(handle)
        await until(lambda: len(world.deaths) > before)
        await world.all_lanes_work()
        assert world.deaths[before:] == [1]
    else:
        async with world.beside_a_neighbour(lane, "exits_within") as cell:
            with pytest.raises(ProcessingFailed, match="SystemExit: out"):
                await value(cell.handle)
            assert await cell.outcomes() == ["failed"]


@pytest.mark.parametrize("lane", ["async"])
async def test_an_exit_that_leaves_no_reason(world: World, lane: Lane) -> None:
    """What is cancelled as the loop ends goes to the next worker, and that counts: none ends all workers for ever."""
    before = len(world.deaths)
    handle = await world.submit(LANES[lane][0].__name__, way="exits_alone", mark=str(world.folder / "alone"))
    await until(lambda: len(world.deaths) >= before + 2)
    await handle.cancel()
    with pytest.raises(TaskCancelled):
        await value(handle)
    assert set(world.deaths[before:]) == {1}
    assert world.counted(handle, "crashes") == 0
    assert world.counted(handle, "releases") >= 2
    await world.all_lanes_work()


@pytest.mark.parametrize("lane", ALL)
async def test_what_ends_programs_when_it_is_looked_at(world: World, lane: str) -> None:
    """A result or an exception whose own code raises SystemExit fails its attempt like any other."""
    async with world.beside_a_neighbour(lane, "traps", "returned") as cell:
        with pytest.raises(InvalidInput, match="can't be stored"):
            await value(cell.handle)
    async with world.beside_a_neighbour(lane, "traps", "raised") as cell:
        with pytest.raises(ProcessingFailed, match="Snare: in a snare"):
            await value(cell.handle)


@pytest.mark.parametrize("lane", ALL)
async def test_a_flood_of_output(world: World, lane: str) -> None:
    """Megabytes go to where the worker's output goes, from a child too, and nobody waits for them."""
    before = world.output.stat().st_size
    async with world.beside_a_neighbour(lane, "floods") as cell:
        assert await value(cell.handle) is None
        await world.all_lanes_work()
    assert world.output.stat().st_size - before > FLOOD_BYTES * 0.9


@pytest.mark.parametrize("lane", ALL)
async def test_closed_output(world: World, lane: str) -> None:
    """Without stdout and stderr the work goes on."""
    async with world.beside_a_neighbour(lane, "closes_output") as cell:
        assert await value(cell.handle) is None
        await world.all_lanes_work()
        assert await cell.outcomes() == ["completed"]
    said = world.folder / f"said-{lane}"
    await value(await world.submit(LANES["async"][0].__name__, way="says", mark=str(said)))
    assert (f"said {said}" in world.output.read_text(errors="replace")) is (lane == "process")
    if lane in HERE:  # whatever it opens next is taken for its output
        await world.replace()


@pytest.mark.parametrize("lane", ["process"])
async def test_a_closed_pipe(world: World, lane: str) -> None:
    """A child that closes all its descriptors can't report: that is a crash of its own."""
    async with world.beside_a_neighbour(lane, "closes_all") as cell:
        await world.all_lanes_work()
        with pytest.raises(ProcessingFailed, match="child process"):
            await value(cell.handle)
        assert await cell.outcomes() == ["crashed", "crashed", "failed"]


@pytest.mark.parametrize("lane", ALL)
async def test_no_descriptor_left(world: World, lane: str) -> None:
    """While none is left, work that needs none goes on; afterwards everything does."""
    async with world.beside_a_neighbour(lane, "exhausts") as cell:
        await until(cell.path("full").exists)
        await world.all_lanes_work()
        assert not may_end(cell.mark)
        cell.go()
        assert await value(cell.handle) > 100
    await world.all_lanes_work()


def test_the_page_names_each_of_these(request: pytest.FixtureRequest) -> None:
    """docs/lanes.md has a row for every test here, and no row for a test that is not there."""
    module = request.node.getparent(pytest.Module)
    found = {test.name for test in module.collect() if re.fullmatch(r"test_\w+\[[\w-]+\]", test.name)}
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "test_" in line]
    named = [name for row in rows for name in re.findall(r"`(test_\w+\[[\w-]+\])`", row)]
    assert len(named) == len(rows)
    assert sorted(named) == sorted(found)
