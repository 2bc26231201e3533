"""What must hold when things around tasks go wrong: locks, upkeep, closing, pauses, slow work behind quick work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S

from mainspring import Engine, EngineConfig, RetryAfter, StoreUnavailable, TaskManagerConfig, TaskPriority, TaskStatus
from mainspring.store.sqlite import caretaker

pytestmark = pytest.mark.anyio


def locks_on(path: Path) -> int:
    """How many POSIX locks this process holds on a file."""
    inode = f":{path.stat().st_ino} "
    rows = Path("/proc/locks").read_text().splitlines()
    return sum(1 for row in rows if "POSIX" in row and f" {os.getpid()} " in row and inode in row + " ")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not list locks")
async def test_opening_again_keeps_the_locks(tmp_path: Path) -> None:
    """A second engine of the process must not drop the first one's locks: others would then delete the log in use."""
    path = tmp_path / "work.db"
    async with Engine(path):
        before = locks_on(path)
        assert before > 0
        async with Engine(path, worker=False):
            assert locks_on(path) >= before
        assert locks_on(path) >= before


async def test_upkeep_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad moment of the system (no descriptor left) does not end rescue and the safety look for good."""
    failed, again = asyncio.Event(), asyncio.Event()
    duty = caretaker.SqliteCaretaker.rescue_dead

    async def once_bad(self: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(24, "Too many open files")
        await duty(self)
        again.set()

    async with Engine(tmp_path / "work.db"):
        monkeypatch.setattr(caretaker.SqliteCaretaker, "rescue_dead", once_bad)
        with caplog.at_level(logging.CRITICAL):
            async with asyncio.timeout(LIMIT_S):
                await again.wait()


async def test_waiting_through_a_close_is_answered(tmp_path: Path) -> None:
    """Whoever awaits a result when the engine closes is told so, and so is whoever asks afterwards."""
    engine = Engine(tmp_path / "work.db", worker=False)

    @engine.task
    async def never(n: int) -> int:
        return n

    await engine.start()
    handle = await engine.submit(never, 1)
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0)
    await engine.stop()
    for late in (waiting, handle.result(), handle.info(), handle.cancel()):
        with pytest.raises(StoreUnavailable, match="closed"):
            async with asyncio.timeout(LIMIT_S):
                await late


async def test_a_pause_hands_back_what_was_claimed_ahead(tmp_path: Path) -> None:
    """Once pause() has returned, no more tasks of the kind start, prefetched ones included."""
    engine = Engine(tmp_path / "work.db", EngineConfig(manager=TaskManagerConfig(async_slots=1)))
    gate, began, started = asyncio.Event(), asyncio.Event(), []

    @engine.task
    async def step(n: int) -> None:
        started.append(n)
        began.set()
        if n == 0:
            await gate.wait()

    async with engine:
        handles = await engine.map(step, range(6))
        async with asyncio.timeout(LIMIT_S):
            await began.wait()
        await engine.manager.pause(type="custom:step")
        gate.set()
        await handles[0].result(LIMIT_S)
        last = await handles[5].info()
        assert started == [0]
        assert last.status is TaskStatus.PENDING
        await engine.manager.resume(type="custom:step")
        await engine.gather(handles)
        assert started == [0, 1, 2, 3, 4, 5]


async def test_slow_work_behind_quick_work_is_not_hoarded(tmp_path: Path) -> None:
    """What was claimed ahead at the rate of quick tasks is handed back when slow ones follow: urgent work overtakes."""
    engine = Engine(tmp_path / "work.db", EngineConfig(manager=TaskManagerConfig(async_slots=1)))
    done: list[str] = []

    @engine.task
    async def quick(n: int) -> None: ...

    @engine.task
    async def slow(name: str) -> None:
        await asyncio.sleep(0.02)
        done.append(name)

    async with engine:
        await engine.gather(await engine.map(quick, range(3_000)))
        await engine.map(slow, [f"normal {n}" for n in range(150)])
        urgent = await engine.submit(slow, "urgent", priority=TaskPriority.CRITICAL)
        await urgent.result(LIMIT_S)
        assert len(done) < 75


@pytest.mark.parametrize("slots", [1, 8])
async def test_no_work_of_unknown_length_is_claimed_ahead(tmp_path: Path, slots: int) -> None:
    """Whoever came first may take long: what is urgent and comes while it runs starts next."""
    engine = Engine(tmp_path / "work.db", EngineConfig(manager=TaskManagerConfig(async_slots=slots)))
    begun: list[str] = []
    full, go = asyncio.Event(), asyncio.Event()

    @engine.task
    async def work(name: str) -> None:
        begun.append(name)
        if len(begun) == slots:
            full.set()
        await go.wait()

    async with engine:
        low = await engine.map(work, [f"low {n}" for n in range(4 * slots)], priority=TaskPriority.LOW)
        await full.wait()
        urgent = await engine.submit(work, "urgent", priority=TaskPriority.CRITICAL)
        go.set()
        await engine.gather([urgent, *low])
    assert begun.index("urgent") == slots


async def test_a_large_result_that_ends_in_a_drain_is_kept(tmp_path: Path) -> None:
    """The drain waits for the record of an outcome, not only for the handler."""
    engine = Engine(tmp_path / "work.db")
    running = asyncio.Event()

    @engine.task
    async def large(n: int) -> str:
        running.set()
        await asyncio.sleep(0.05)
        return "x" * 500_000

    await engine.start()
    handle = await engine.submit(large, 1)
    await running.wait()
    await engine.stop()
    async with Engine(tmp_path / "work.db", worker=False) as later:
        assert (await later.handle(handle.id).info()).status is TaskStatus.COMPLETED
        assert len(await later.handle(handle.id).result()) == 500_000


@pytest.mark.parametrize("size", [1, 500_000])
async def test_a_result_in_spite_of_a_drain_is_kept(tmp_path: Path, size: int) -> None:
    """A handler that is asked to stop because the process ends, and returns nevertheless, has completed its task."""
    engine = Engine(tmp_path / "work.db")
    running = asyncio.Event()

    @engine.task(retry=0)
    async def persistent() -> str:
        running.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "x" * size

    await engine.start()
    handle = await engine.submit(persistent)
    await running.wait()
    await engine.stop(drain_s=0)
    async with Engine(tmp_path / "work.db", worker=False) as later:
        assert len(await later.handle(handle.id).result(LIMIT_S)) == size


async def test_retry_after_takes_durations_as_text() -> None:
    """`RetryAfter("20ms")` steers the next try, and the slot goes on."""
    engine = Engine(config=EngineConfig(manager=TaskManagerConfig(async_slots=1)))
    tries = []

    @engine.task
    async def later() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise RetryAfter("20ms")  # type: ignore[arg-type]
        return len(tries)

    async with engine:
        assert await (await engine.submit(later)).result(LIMIT_S) == 2
        assert await (await engine.submit(later)).result(LIMIT_S) == 3


async def test_threads_that_come_back_are_not_kept_twice() -> None:
    """A thread that was given up and returns ends: their number does not grow with each timeout."""
    engine = Engine(config=EngineConfig(manager=TaskManagerConfig(thread_slots=1, grace_s=0.01)))
    release = threading.Event()

    @engine.task(timeout="20ms", retry=0)
    def stubborn() -> None:
        release.wait(0.2)

    @engine.task
    def fine() -> int:
        return threading.active_count()

    async with engine:
        counts = []
        for _ in range(4):
            handle = await engine.submit(stubborn)
            with pytest.raises(Exception, match="longer"):
                await handle.result(LIMIT_S)
            async with asyncio.timeout(LIMIT_S):
                while engine.executor.runner("thread")._lost:  # type: ignore[attr-defined]  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            counts.append(await (await engine.submit(fine)).result(LIMIT_S))
        assert counts[-1] <= counts[0]


async def test_threads_are_made_as_they_are_needed() -> None:
    """Tasks that come one after the other run in one thread, however many slots there are."""

    engine = Engine(config=EngineConfig(manager=TaskManagerConfig(thread_slots=8)))

    @engine.task
    def where() -> int:
        return threading.get_ident()

    async with engine:
        assert len({await (await engine.submit(where)).result(LIMIT_S) for _ in range(8)}) == 1


async def test_a_name_keeps_its_blob(place: str) -> None:
    """What an engine gives a name is looked for there before a blob is collected, as long as it has the name."""
    async with Engine(place) as engine:
        parts = engine._parts
        ref = await engine.store("text", "name")
        blob = parts.blobs.put(b"nobody's").digest
        unused = parts.store._caretaker._unused  # type: ignore[attr-defined]
        assert await unused([ref.digest, blob]) == [blob]
        await engine.delete("name")
        assert await unused([ref.digest, blob]) == [ref.digest, blob]
