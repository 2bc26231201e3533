"""Attempts that are sent to a child before it can run them."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from tests.execution.lane import Recorder, begin, call, runner, until, value, work

from mainspring.children import pipe
from mainspring.children.frames import framed
from mainspring.execution import processes
from mainspring.execution.base import Report, Work
from mainspring.execution.processes import ProcessRunner

pytestmark = pytest.mark.anyio


async def ahead(it: ProcessRunner, *jobs: Work) -> list[tuple[asyncio.Task[Report | None], Recorder]]:
    """Send attempts behind each other."""
    channels = [Recorder() for _ in jobs]
    sent = [
        (asyncio.create_task(it.run_soon(job, channel)), channel) for job, channel in zip(jobs, channels, strict=True)
    ]
    await asyncio.sleep(0)
    return sent


@pytest.mark.parametrize("name", ["wait_for", "hog_until"])
async def test_nothing_waits_behind_a_long_one(tmp_path: Path, name: str) -> None:
    """What was sent ahead comes back, and never begins, also where the child can't listen meanwhile."""
    mark, late = tmp_path / "go", tmp_path / "late"
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "double", n=1)) == 2
        (long, _), (behind, channel) = await ahead(it, work(name, path=str(mark)), work("touch", path=str(late)))
        assert await behind is None
        assert channel.signals == []
        assert not long.done()
        mark.touch()
        assert value(await long) == "went"
        assert value(await call(it, "double", n=2)) == 4
        assert not late.exists()


async def test_nothing_waits_for_a_place_behind_a_long_one(tmp_path: Path) -> None:
    """Where more is to be sent ahead than may be, the rest comes back too."""
    mark = tmp_path / "go"
    async with runner(slots=1, child_prefetch=1) as it, asyncio.timeout(60):
        assert value(await call(it, "double", n=1)) == 2
        (long, _), *behind = await ahead(it, work("wait_for", path=str(mark)), *(work("double", n=n) for n in range(3)))
        assert [await task for task, _ in behind] == [None] * 3
        assert not long.done()
        mark.touch()
        assert value(await long) == "went"


async def test_a_child_that_others_hold_is_waited_for(tmp_path: Path) -> None:
    """What has a slot keeps it: given back, it would only come again."""
    mark = tmp_path / "go"
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "wait_for", path=str(tmp_path))) == "went"
        stranger, channel = await begin(it, work("wait_for", path=str(mark)))
        await channel.started.wait()
        (one, _), (other, _) = await ahead(it, work("double", n=1), work("double", n=2))
        assert await other is None
        assert not one.done()
        mark.touch()
        assert value(await one) == 2
        assert value(await stranger) == "went"


async def test_a_call_that_must_run_is_never_sent_ahead(tmp_path: Path) -> None:
    """`run` gives nothing back: it has its turn when a child is free."""
    marks = [tmp_path / "one", tmp_path / "two"]
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "wait_for", path=str(tmp_path))) == "went"
        ((long, channel),) = await ahead(it, work("wait_for", path=str(marks[0])))
        await channel.started.wait()
        must = asyncio.create_task(it.run(work("wait_for", path=str(marks[1])), Recorder()))
        for mark in marks:
            done, _ = await asyncio.wait({must}, timeout=10 * processes._LONG_S)
            assert done == set()
            mark.touch()
        assert value(await must) == "went"
        assert value(await long) == "went"


async def test_what_is_too_late_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline passes while it waits in the child, which looks before it begins."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    mark, late = tmp_path / "go", tmp_path / "late"
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "wait_for", path=str(tmp_path))) == "went"
        ((long, channel),) = await ahead(it, work("wait_for", path=str(mark)))
        await channel.started.wait()
        until_s = time.monotonic() + 0.05
        behind = asyncio.create_task(it.run_soon(work("touch", path=str(late)), Recorder(), until_s))
        await until(lambda: time.monotonic() > until_s)
        mark.touch()
        report = await behind
        assert report is not None
        assert report.unstarted
        assert value(await long) == "went"
        assert not late.exists()
        assert value(await it.run_soon(work("double", n=1), Recorder(), time.monotonic() + 60)) == 2


async def test_an_idle_child_takes_half_of_the_longest_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And half of what is left, until nothing waits any more behind the long one."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    async with runner(slots=2) as it, asyncio.timeout(60):
        await asyncio.gather(*(call(it, "double", n=n) for n in range(2)))
        holds = await ahead(it, work("wait_for", path=str(slow)), work("wait_for", path=str(quick)))
        for _, channel in holds:
            await channel.started.wait()
        behind = await ahead(it, *(work("double", n=n) for n in range(8)))
        (line,) = [desk for desk in it._desks if desk.attempts and desk.attempts[0].channels == (holds[0][1],)]
        await until(lambda: len(line.attempts) == 1 + 4)
        lengths: list[int] = []
        assign = it._assign_all

        def assigned() -> None:
            assign()
            lengths.append(len(line.attempts) - 1)

        monkeypatch.setattr(it, "_assign_all", assigned)
        quick.touch()
        assert [value(await task) for task, _ in behind] == [2 * n for n in range(8)]
        assert not holds[0][0].done()
        assert next(length for length in lengths if length < 4) in (1, 2), lengths
        slow.touch()
        assert [value(await task) for task, _ in holds] == ["went", "went"]


async def test_what_is_asked_for_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what has not begun those that are named, and never what runs; the others keep their order."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    mark = tmp_path / "go"
    async with runner(slots=1, child_prefetch=3) as it, asyncio.timeout(60):
        assert value(await call(it, "double", n=1)) == 2
        jobs = [work("wait_for", path=str(mark)), *(work("double", n=n) for n in range(5))]
        (long, channel), *behind = await ahead(it, *jobs)
        await channel.started.wait()
        assert it.ahead() == jobs[1:], "three in the child, and two that wait for a place"
        it.give_back([jobs[0], jobs[2], jobs[5]])
        assert await behind[1][0] is None
        assert await behind[4][0] is None
        assert not long.done()
        mark.touch()
        assert value(await long) == "went"
        assert [value(await behind[n][0]) for n in (0, 2, 3)] == [0, 4, 6]
        assert it.ahead() == []


async def test_a_death_is_charged_to_the_one_that_ran() -> None:
    """Who was done before is done; who waited behind did not begin."""
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "double", n=1)) == 2
        before, guilty, behind = await ahead(it, work("double", n=2), work("kill_self"), work("double", n=3))
        assert value(await before[0]) == 4
        report = await guilty[0]
        assert report is not None
        assert report.crashed
        assert await behind[0] is None


async def test_stopping_one_that_waits_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends unstarted, and the child goes on."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    mark = tmp_path / "go"
    async with runner(slots=1) as it, asyncio.timeout(60):
        pid = value(await call(it, "reads_pid"))
        jobs = [work("wait_for", path=str(mark)), *(work("touch", path=str(tmp_path / name)) for name in "ab")]
        (long, channel), (soft, _), (hard, _) = await ahead(it, *jobs)
        await channel.started.wait()
        assert it.stop(jobs[1], hard=False)
        assert it.stop(jobs[2], hard=True)
        for asked in (soft, hard):
            report = await asked
            assert report is not None
            assert report.unstarted
        mark.touch()
        assert value(await long) == "went"
        assert psutil.pid_exists(pid)
        assert not (tmp_path / "a").exists()
        assert not (tmp_path / "b").exists()


async def test_an_idle_child_takes_of_the_longest_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent ahead of one child goes to another that has nothing to do."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    first, second = tmp_path / "first", tmp_path / "second"
    async with runner(slots=2) as it, asyncio.timeout(60):
        held = await ahead(it, work("wait_for", path=str(first)), work("wait_for", path=str(second)))
        for _, channel in held:
            await channel.started.wait()
        behind = await ahead(it, *(work("double", n=n) for n in range(6)))
        await asyncio.sleep(0)
        second.touch()
        assert [value(await task) for task, _ in behind] == [2 * n for n in range(6)]
        assert not held[0][0].done()
        first.touch()
        assert [value(await task) for task, _ in held] == ["went", "went"]


async def test_a_frame_that_is_too_large_is_refused_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before and behind it run."""
    async with runner(slots=1) as it, asyncio.timeout(60):
        assert value(await call(it, "double", n=1)) == 2
        monkeypatch.setattr(pipe, "framed", partial(framed, limit=2000))
        large = work("double", n=1)
        large.input = bytes(3000)
        before, refused, behind = await ahead(it, work("double", n=2), large, work("double", n=3))
        assert value(await before[0]) == 4
        assert value(await behind[0]) == 6
        report = await refused[0]
        assert report is not None
        assert report.error is not None
        assert report.error.type == "InvalidInput"
