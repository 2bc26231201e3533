"""Attempts that the system ended for want of memory: recognised, named, tried with more, then alone, then failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch.test_highwater import GB, Gauge
from tests.dispatch.test_reservations import says
from tests.engine import process_work
from tests.engine.support import SOON, engine_on, until, value

from mainspring import Engine, ProcessingFailed, ResourceLimitExceeded, Resources, TaskHandle, TaskStatus
from mainspring.children.measure import own_peak_bytes
from mainspring.dispatch import course
from mainspring.environment import Environment
from mainspring.execution.shortage import Kills
from mainspring.resources.cgroup import Cgroup
from mainspring.store.base import RESERVES

pytestmark = pytest.mark.anyio
MIB = 1 << 20


class Counted(Kills):
    """A kernel that has killed whatever was killed."""

    def __init__(self, killed: bool = True) -> None:
        super().__init__()
        self.killed = killed

    def has_one(self, before: int | None) -> bool:
        return self.killed


class Group(Cgroup):
    """Counts what the test says that the kernel has killed."""

    killed = 0

    def oom_kills(self) -> int:
        return self.killed


class Later(Environment):
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def starving(engine: Engine, killed: bool = True, **options: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = engine.task(lane="process", retry=SOON, **options)(process_work.starve)
    engine.executor.runner("process")._kills = Counted(killed)  # type: ignore[attr-defined]
    return function


def let_go(folder: Path) -> None:
    folder.with_name(folder.name + ".go").touch()


def more() -> int:
    """Return MiB that a child's peak is seen with: more than what it has from its parent."""
    return (own_peak_bytes() >> 20) + 64


async def outcomes(handle: TaskHandle) -> list[str]:
    return [attempt.outcome for attempt in (await handle.info()).attempts]


def reserved(engine: Engine, handle: TaskHandle) -> float:
    held = engine.manager.reservations._held
    return sum(need.get("memory", 0.0) for (id, _), need in held.items() if id == handle.id.bytes)


async def test_more_is_reserved_for_the_next_try(tmp_path: Path) -> None:
    """Twice what was declared; nobody beside it is blamed or held back."""
    folder = tmp_path / "tries"
    folder.mkdir()
    declared = more()
    async with engine_on(tmp_path / "work.db", process_slots=2) as engine:
        starve = starving(engine, resources=Resources(cpu=0, memory=declared * MIB))
        nap = engine.task(lane="process")(process_work.double)
        handle = await engine.submit(starve, str(folder), 1, declared)
        await until(lambda: len(list(folder.iterdir())) == 2)
        assert reserved(engine, handle) == 2 * declared * MIB
        assert await value(await engine.submit(nap, 4)) == 8
        let_go(folder)
        assert await value(handle) == 1
        assert await outcomes(handle) == ["crashed", "completed"]
        error = (await handle.info()).attempts[0].error
        assert error is not None
        assert error.type == "ResourceLimitExceeded"
        assert "its child process was killed by the system, out of memory: it used " in error.message
        assert " MiB, and its " in error.message


async def test_nothing_declared(tmp_path: Path) -> None:
    """Then it is half as much again as the attempt used."""
    folder = tmp_path / "tries"
    folder.mkdir()
    async with engine_on(tmp_path / "work.db") as engine:
        handle = await engine.submit(starving(engine), str(folder), 1, more())
        await until(lambda: len(list(folder.iterdir())) == 2)
        used = (await handle.info()).attempts[0].memory_bytes
        assert used is not None
        assert reserved(engine, handle) == used * 1.5
        let_go(folder)
        await value(handle)


async def test_then_it_runs_alone_also_in_another_life(tmp_path: Path) -> None:
    """After two of them nothing runs beside it, in any lane: what was killed may have been another one's victim."""
    folder = tmp_path / "tries"
    folder.mkdir()
    ran: list[int] = []

    def made() -> tuple[Engine, Callable[..., Any], Callable[..., Any]]:
        engine = engine_on(tmp_path / "work.db", process_slots=2)

        @engine.task
        async def walk(n: int) -> None:
            ran.append(n)

        engine.task(lane="process")(process_work.double)
        return engine, starving(engine), walk

    engine, starve, _ = made()
    async with engine:
        await engine.manager.pause(type="custom:double")
        handle = await engine.submit(starve, str(folder), 2, more())
        await until(lambda: len(list(folder.iterdir())) >= 1)
    engine, starve, walk = made()
    async with engine:
        await until(lambda: len(list(folder.iterdir())) == 3)
        await until(lambda: len(engine.manager.running_tasks()) == 1)
        await engine.manager.resume(type="custom:double")
        beside = [await engine.submit(walk, 1), await engine.submit(process_work.double, 1)]
        await says(beside[0], f"starts nothing new: task {handle.id} has run out of memory twice and runs alone")
        assert ran == []
        let_go(folder)
        assert await value(engine.handle(handle.id)) == 2
        await engine.gather(beside)
        assert ran == [1]
        assert (await outcomes(engine.handle(handle.id)))[-3:] == ["crashed", "crashed", "completed"]


async def test_who_waits_to_run_alone_too_is_no_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the last try, which waits for quiet in all lanes, nor for one that may have killed its process and
    waits for quiet within this one: both hear of it at once."""
    monkeypatch.setattr(course, "is_suspect", lambda claim: claim.task_type == "custom:suspect")
    monkeypatch.setattr(course, "SHORT", RESERVES)  # whatever says with the task what it needs
    began: list[str] = []
    free = asyncio.Event()
    async with engine_on(tmp_path / "work.db") as engine:
        reservations = engine.manager.reservations
        monkeypatch.setattr(reservations, "raised", lambda need, tries, lane: (need, True))
        line = engine.task(lane="process")(process_work.line)

        @engine.task
        async def before() -> None:
            began.append("before")
            await free.wait()

        @engine.task(resources=Resources(cpu=0, memory=1))
        async def suspect() -> None:
            began.append("suspect")
            await asyncio.sleep(0.05)
            began.append("last" if (tmp_path / "order").exists() else "over")

        running = await engine.submit(before)
        await until(lambda: began == ["before"])
        waiting = await engine.submit(suspect)
        await until(lambda: engine.manager._alone.one is not None)
        last = await engine.submit(line, str(tmp_path / "long"), resources=Resources(cpu=0, memory=1))
        await until(lambda: bool(engine.manager._desks["process"]._waiting))
        free.set()
        await value(running)
        await until((tmp_path / "order").exists)
        assert began == ["before", "suspect", "over"]
        (tmp_path / "go").touch()
        await value(last)
        await value(waiting)


async def test_then_it_fails_and_says_so(tmp_path: Path) -> None:
    """With what it used, what there was, that nothing ran beside it, and what others used."""
    folder = tmp_path / "tries"
    folder.mkdir()
    async with engine_on(tmp_path / "work.db") as engine:
        handle = await engine.submit(starving(engine), str(folder), 9, more())
        gauge = Gauge()
        gauge.show(memory_bytes=GB, own_memory_bytes=GB - 300 * MIB)
        engine.manager._course.recorder._monitor = gauge
        told = "nothing ran beside it on its worker, and others used 300 MiB: it needs"
        with pytest.raises(ResourceLimitExceeded, match=rf"out of memory: it used \d+ MiB, and its .*; {told}"):
            await value(handle)
        assert await outcomes(handle) == ["crashed", "crashed", "failed"]
        assert (await handle.info()).status is TaskStatus.FAILED


async def test_a_kill_by_anybody_else(tmp_path: Path) -> None:
    """What the kernel did not count is a crash like any other: nothing is reserved for it."""
    folder = tmp_path / "tries"
    folder.mkdir()
    let_go(folder)
    async with engine_on(tmp_path / "work.db") as engine:
        handle = await engine.submit(starving(engine, killed=False), str(folder), 1, more())
        assert await value(handle) == 1
        error = (await handle.info()).attempts[0].error
        assert error is not None
        assert error.type == "ProcessingFailed"
        assert "was killed by SIGKILL; its peak memory was" in error.message
        assert reserved(engine, handle) == 0


async def test_a_kill_of_the_system_before_it_began(tmp_path: Path) -> None:
    """The system may have killed others for memory since the worker began: who is killed by somebody later was not."""
    folder = tmp_path / "tries"
    folder.mkdir()
    let_go(folder)
    group, later = Group(), Later()
    async with engine_on(tmp_path / "work.db") as engine:
        starve = starving(engine)
        runner: Any = engine.executor.runner("process")
        runner._kills = kills = Kills(group, env=later)
        assert kills.so_far() == 0
        group.killed += 1
        later.now += 2
        handle = await engine.submit(starve, str(folder), 1, more())
        assert await value(handle) == 1
        error = (await handle.info()).attempts[0].error
        assert error is not None
        assert error.type == "ProcessingFailed"


def test_each_kill_of_the_system_is_told_once() -> None:
    """To one that had begun before, whoever is heard of first."""
    group, later = Group(), Later()
    kills = Kills(group, env=later)
    group.killed = 5
    long, early = kills.so_far(), kills.so_far()
    group.killed = 6
    assert kills.so_far() == 5, "nobody reads it for each"
    later.now += 1
    late = kills.so_far()
    assert (early, late) == (5, 6)
    group.killed = 7
    assert [kills.has_one(before) for before in (late, early, long, late)] == [True, True, False, False]
    group.killed = 8
    assert [kills.has_one(before) for before in (8, None, long, late)] == [False, False, True, False]


async def test_a_program_of_its_own_was_killed(tmp_path: Path) -> None:
    """What the handler makes of that is named with its cause, and what follows is the same as after its own death."""
    async with engine_on(tmp_path / "work.db") as engine:
        starving(engine)
        shells_out = engine.task(lane="process", retry=SOON)(process_work.shells_out)
        handle = await engine.submit(shells_out, True)
        told = r"RuntimeError: the converter is gone; meanwhile .* out of memory: .* used \d{3} MiB at most"
        with pytest.raises(ResourceLimitExceeded, match=rf"{told}, and its .*; nothing ran beside it"):
            await value(handle)
        assert await outcomes(handle) == ["retry", "retry", "failed"]
        used = (await handle.info()).attempts[0].memory_bytes
        assert used is not None
        assert used > 100 * MIB, "by this more is reserved for the next try"
        without = await engine.submit(shells_out, False, max_retries=0)
        with pytest.raises(ProcessingFailed, match=r"^RuntimeError: the converter is gone$"):
            await value(without)


async def test_a_limit_of_the_child_itself(tmp_path: Path) -> None:
    """A handler that gets no more memory: the error has its peak and the limit, and what follows is the same."""
    async with engine_on(tmp_path / "work.db") as engine:
        hoard = engine.task(lane="process", retry=SOON)(process_work.hoard)
        handle = await engine.submit(hoard, 2000, 1000)
        told = r"its peak memory was \d+ MiB; RLIMIT_AS lets its process have 1000 MiB; nothing ran beside it"
        with pytest.raises(ProcessingFailed, match=rf"MemoryError: .*{told}"):
            await value(handle)
        assert await outcomes(handle) == ["retry", "retry", "failed"]
        once = await engine.submit(hoard, 2000, 1000, max_retries=0)
        with pytest.raises(ProcessingFailed, match=r"RLIMIT_AS lets its process have 1000 MiB$"):
            await value(once)
