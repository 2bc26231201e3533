"""Tasks that were sent to a child ahead of time: no less urgent, cancellable or paused for that."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from tests.dispatch.test_turns import one_alone
from tests.engine import process_work
from tests.engine.support import engine_on, shows, until, value

from mainspring import Engine, TaskHandle, TaskPriority, TaskStatus
from mainspring.errors import TaskCancelled, TaskTimeout
from mainspring.execution import processes

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    """One slot, which has run enough quick tasks for others to be sent ahead of their time."""
    engine = engine_on(process_slots=1, prefetch_s="10s")
    engine.task(lane="process")(process_work.line)
    engine.task(lane="process")(process_work.double)
    async with engine:
        assert await engine.gather(await engine.map(process_work.double, range(300))) == [2 * n for n in range(300)]
        yield engine


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.exists() else []


async def line(engine: Engine, folder: Path, names: Sequence[str]) -> list[TaskHandle]:
    """Submit tasks of which the first one holds the only slot."""
    handles = await engine.map(process_work.line, [str(folder / name) for name in ("long", *names)])
    await until(lambda: order(folder) == ["long"])
    return handles


async def test_urgent_work_goes_before_what_was_sent_ahead(engine: Engine, tmp_path: Path) -> None:
    """What waited in the child is back in the one order before the child comes to it."""
    handles = await line(engine, tmp_path, "abcdefgh")
    for handle in handles[1:]:
        await shows(handle, reason="ready")
    handles.append(await engine.submit(process_work.line, str(tmp_path / "urgent"), priority=TaskPriority.CRITICAL))
    (tmp_path / "go").touch()
    for handle in handles:
        await value(handle)
    assert order(tmp_path) == ["long", "urgent", *"abcdefgh"]
    assert [(await handle.info()).task.retry_count for handle in handles] == [0] * len(handles)


async def test_what_was_sent_ahead_is_cancelled_for_good(engine: Engine, tmp_path: Path) -> None:
    """Nothing of it has begun, so the answer is final."""
    long, one, other = await line(engine, tmp_path, ["one", "other"])
    assert await one.cancel() == "cancelled"
    (tmp_path / "go").touch()
    with pytest.raises(TaskCancelled):
        await value(one)
    await value(long)
    await value(other)
    assert order(tmp_path) == ["long", "other"]


async def test_nothing_that_was_sent_ahead_starts_past_its_deadline(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is TIMEOUT, as if it had waited in the store."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    await line(engine, tmp_path, [])
    late = await engine.submit(process_work.line, str(tmp_path / "late"), deadline="0.2s")
    await until(lambda: late.id.bytes in engine.manager._desks["process"].running)
    due = time.monotonic() + 0.3
    await until(lambda: time.monotonic() > due)
    (tmp_path / "go").touch()
    with pytest.raises(TaskTimeout):
        await value(late)
    assert order(tmp_path) == ["long"]


async def test_a_pause_holds_back_what_was_sent_ahead(engine: Engine, tmp_path: Path) -> None:
    """After it none of that type begins, and the one that runs goes on."""
    long, *others = await line(engine, tmp_path, "abc")
    await engine.manager.pause(type="custom:line")
    (tmp_path / "go").touch()
    await value(long)
    assert await value(await engine.submit(process_work.double, 4)) == 8
    for handle in others:
        await shows(handle, status=TaskStatus.PENDING, reason="paused")
    assert order(tmp_path) == ["long"]
    await engine.manager.resume(type="custom:line")
    for handle in others:
        await value(handle)
    assert order(tmp_path) == ["long", *"abc"]


async def test_what_was_sent_ahead_does_not_begin_where_one_runs_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed back; what runs in the child goes on."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    long, *others = await line(engine, tmp_path, "abc")
    running = engine.manager._desks["process"].running
    await until(lambda: len(running) == 4)
    async with one_alone(engine):
        await until(lambda: list(running) == [long.id.bytes])
        (tmp_path / "go").touch()
        await value(long)
        for handle in others:
            await shows(handle, status=TaskStatus.PENDING, attempts=())
        assert order(tmp_path) == ["long"]
    for handle in others:
        await value(handle)
    assert order(tmp_path) == ["long", *"abc"]


async def test_a_drain_gives_back_what_was_sent_ahead(tmp_path: Path) -> None:
    """Where the running one takes longer than the drain, nothing is charged and all of it runs later."""
    store = tmp_path / "work.db"
    for n in range(2):
        engine = engine_on(store, process_slots=1, prefetch_s="10s", drain_s="0.05s")
        engine.task(lane="process")(process_work.line)
        engine.task(lane="process")(process_work.double)
        async with engine:
            if n == 0:
                assert len(await engine.gather(await engine.map(process_work.double, range(300)))) == 300
                handles = await line(engine, tmp_path, "abc")
            else:
                (tmp_path / "go").touch()
                for handle in handles:
                    again = engine.handle(handle.id)
                    await value(again)
                    assert (await again.info()).task.retry_count == 0
    assert order(tmp_path) == ["long", "long", *"abc"]
