"""Several engines on one file, and what signals and crashes do to real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests import postgres
from tests.engine.programs import PATHS, Programs, call, serves
from tests.engine.support import LIMIT_S, engine_on, shows, until, value
from tests.store.peers import stop_between_commits

from mainspring import (
    Engine,
    InvalidInput,
    ProcessingFailed,
    TaskCancelled,
    TaskStatus,
    TaskTimeout,
    UnsupportedTaskType,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Programs]:
    is_file = request.param == "sqlite"
    programs = Programs(tmp_path, str(tmp_path / "work.db") if is_file else postgres.address_of(tmp_path))
    yield programs
    programs.end()
    if not is_file:
        postgres.drop(postgres.schema_of(tmp_path))


@pytest.fixture
async def client(programs: Programs, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine that only submits, beside a program that works."""
    await programs.running()
    async with programs.looking() as engine:
        await serves(engine, "custom:hold")
        yield engine


async def test_one_submits_and_another_works(client: Engine, programs: Programs) -> None:
    """Without the code: results come back, chains and errors too; unknown types are refused with those there are."""
    first = await client.submit(call("step", n=1))
    second = await client.submit(call("step", n=first))
    assert await value(second) == 3
    assert await client.gather([await client.submit(call("step", n=n)) for n in range(50)]) == list(range(1, 51))
    with pytest.raises(InvalidInput, match="is no integer"):
        await client.submit(call("step", n="one"))
    with pytest.raises(UnsupportedTaskType, match="custom:step"):
        await client.submit(call("ghost"))


async def test_cancel_across_processes(client: Engine, programs: Programs) -> None:
    """What runs elsewhere is asked to stop, what waits is cancelled at once, what ended says so."""
    running = await client.submit(call("hold", name="a"))
    await until(programs.mark("a.started").exists)
    await shows(running, status=TaskStatus.RUNNING)
    waiting = await client.submit(call("step", n=running))
    assert await waiting.cancel() == "cancelled"
    assert await running.cancel() in ("requested", "cancelled")
    with pytest.raises(TaskCancelled):
        await value(running)
    assert await running.cancel() == "already(cancelled)"
    done = await client.submit(call("step", n=1))
    await value(done)
    assert await done.cancel() == "already(completed)"


async def test_sigterm_drains(client: Engine, programs: Programs) -> None:
    """What runs ends; what is queued is handed back uncharged and is there for the next worker; the exit is clean."""
    program = programs._started[0]
    holders = [await client.submit(call("hold", name=f"h{n}")) for n in range(8)]
    for n in range(8):
        await until(programs.mark(f"h{n}.started").exists)
    queued = [await client.submit(call("step", n=n)) for n in range(30)]
    program.send_signal(signal.SIGTERM)
    async with asyncio.timeout(LIMIT_S):
        while "claimed" in [(await handle.info()).reason for handle in queued]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert program.poll() is None
    for n in range(8):
        programs.mark(f"h{n}.go").touch()
    assert await client.gather(holders) == [program.pid] * 8
    assert await asyncio.to_thread(program.wait, LIMIT_S) == 0
    for handle in queued:
        info = await handle.info()
        assert (info.status, info.task.retry_count, info.attempts) == (TaskStatus.PENDING, 0, ())
    programs.start()
    assert await client.gather(queued) == [n + 1 for n in range(30)]


async def test_a_second_signal_hurries(client: Engine, programs: Programs) -> None:
    """It hands back what runs at once; another worker runs it, and nothing is charged."""
    program = programs._started[0]
    holder = await client.submit(call("hold", name="x"))
    await until(programs.mark("x.started").exists)
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(program.wait, LIMIT_S) == 0
    info = await holder.info()
    assert (info.status, info.task.retry_count) == (TaskStatus.PENDING, 0)
    programs.mark("x.go").touch()
    second = programs.start()
    assert await value(holder) == second.pid


async def test_a_killed_worker_is_noticed_and_its_tasks_run_again(client: Engine, programs: Programs) -> None:
    """kill -9 beside a second worker: that one takes over, each suspect alone; none is charged and all complete."""
    program = programs._started[0]
    holders = [await client.submit(call("hold", name=f"k{n}")) for n in range(3)]
    for n in range(3):
        await until(programs.mark(f"k{n}.started").exists)
    program.kill()
    for n in range(3):
        programs.mark(f"k{n}.go").touch()
    second = programs.start()
    pids = await client.gather(holders)
    assert program.pid not in pids
    for handle in holders:
        info = await handle.info()
        assert [attempt.outcome for attempt in info.attempts] == ["crashed", "completed"]
        assert info.task.retry_count == 0
    assert second.poll() is None


async def test_a_worker_that_was_stopped_for_too_long(programs: Programs) -> None:
    """Another one runs what it held. Awake again it starts none of that, stops what still runs, and works on."""
    sleeper = await programs.running(1.0)
    async with programs.looking(1.0) as client:
        await serves(client, "custom:hold")
        running = [await client.submit(call("hold", name=f"r{n}")) for n in range(4)]
        for n in range(4):
            await until(programs.mark(f"r{n}.{sleeper.pid}.ran").exists)
        tasks = [call("block", name="b"), *(call("hold", name=f"q{n}") for n in range(3))]
        blocking, *queued = await client.submit_all(tasks)
        await until(programs.mark(f"b.{sleeper.pid}.ran").exists)
        for handle in queued:
            await shows(handle, reason="claimed")
        await asyncio.to_thread(stop_between_commits, programs.store, sleeper.pid)
        other = await programs.running(1.0)
        for name in ("b", "r0", "r1", "q0", "q1", "q2"):
            programs.mark(f"{name}.go").touch()
        for name in ("r2", "r3"):
            programs.mark(f"{name}.{other.pid}.go").touch()
        taken = [*running, blocking, *queued]
        assert [await value(handle) for handle in taken] == [other.pid] * 8
        sleeper.send_signal(signal.SIGCONT)
        for name in ("r2", "r3"):
            await until(programs.mark(f"{name}.{sleeper.pid}.stopped").exists)
        other.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(other.wait, LIMIT_S) == 0
        last = await client.submit(call("hold", name="last"))
        programs.mark("last.go").touch()
        assert await value(last) == sleeper.pid
        assert not [name for name in ("q0", "q1", "q2") if programs.mark(f"{name}.{sleeper.pid}.ran").exists()]
        for handle in taken:
            info = await handle.info()
            assert (info.task.retry_count, info.attempt, info.attempts[-1].outcome) == (0, 2, "completed")


async def test_who_kills_its_worker_is_found_out(client: Engine, programs: Programs) -> None:
    """The guilty task fails alone after three crashes, with evidence; those that ran beside it complete."""
    program = programs._started[0]
    holder = await client.submit(call("hold", name="innocent"))
    await until(programs.mark("innocent.started").exists)
    guilty = await client.submit(call("suicide"))
    await asyncio.to_thread(program.wait, LIMIT_S)
    programs.mark("innocent.go").touch()
    second = programs.start()
    await value(holder)
    with pytest.raises(ProcessingFailed) as caught:
        await value(guilty)
    info = await guilty.info()
    assert info.status is TaskStatus.FAILED
    assert [attempt.outcome for attempt in info.attempts].count("crashed") >= 2
    assert "SIGKILL" in str(caught.value) or "died" in str(caught.value)
    assert second.poll() is None
    assert psutil.Process(second.pid).is_running()


async def test_two_engines_share_the_work(tmp_path: Path) -> None:
    """Two working engines on one file: each task runs once, both see all results, priorities and stops cross over."""
    ran: list[tuple[str, int]] = []
    engines = [engine_on(tmp_path / "work.db", async_slots=2) for _ in range(2)]
    for name, engine in zip("ab", engines, strict=True):

        @engine.task(name="share")
        async def share(n: int, name: str = name) -> int:
            ran.append((name, n))
            await asyncio.sleep(0.001)
            return n

    first, second = engines
    async with first, second:
        handles = await first.map(first.executor.handlers["custom:share"].function, range(300))
        assert await second.gather([second.handle(handle.id) for handle in handles]) == list(range(300))
        assert sorted(n for _, n in ran) == list(range(300))


async def test_a_file_keeps_everything(tmp_path: Path) -> None:
    """Results, waiting tasks, delays, pauses and keys are there after a restart; what was unfinished goes on."""
    path = tmp_path / "work.db"

    def open_one() -> tuple[Engine, Any]:
        engine = engine_on(path)

        @engine.task
        async def keep(n: int) -> int:
            return n * 10

        return engine, keep

    engine, keep = open_one()
    async with engine:
        done = await engine.submit(keep, 1, idempotency_key="once")
        assert await value(done) == 10
        await engine.manager.pause(group="later")
        held = await engine.submit(keep, 2, group="later")
        delayed = await engine.submit(keep, 3, delay="200ms")
        child = await engine.submit(keep, delayed, metadata={"a": "b"})
    engine, keep = open_one()
    async with engine:
        assert await value(engine.handle(done.id)) == 10
        assert (await engine.submit(keep, 1, idempotency_key="once")).id == done.id
        assert await value(engine.handle(child.id)) == 300
        info = await engine.handle(child.id).info()
        assert (info.task.metadata, info.task.dependencies) == ({"a": "b"}, (delayed.id,))
        assert (await engine.handle(held.id).info()).status is TaskStatus.PENDING
        assert await engine.manager.resume(group="later")
        assert await value(engine.handle(held.id)) == 20
        assert (await engine.handle(delayed.id).info()).attempt == 1


async def test_stopping_waits_for_what_runs_and_hands_back_the_rest(tmp_path: Path) -> None:
    """stop() lets running handlers end; queued claims go back uncharged; past drain_s the running ones too."""
    path = tmp_path / "work.db"
    engine = engine_on(path, async_slots=1)
    started, ended, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @engine.task
    async def slow() -> str:
        started.set()
        await go.wait()
        ended.set()
        return "done"

    @engine.task
    async def next_one(n: int) -> int:
        return n

    await engine.start()
    running = await engine.submit(slow)
    await started.wait()
    queued = await engine.map(next_one, range(20))
    stopping = asyncio.ensure_future(engine.stop())
    await asyncio.sleep(0)
    go.set()
    await stopping
    assert ended.is_set()

    engine = engine_on(path, async_slots=1)
    started.clear()
    go.clear()

    @engine.task(name="slow")
    async def slow_again() -> None:
        started.set()
        await go.wait()

    async with engine:
        assert await value(engine.handle(running.id)) == "done"
        for handle in queued:
            info = await engine.handle(handle.id).info()
            assert (info.status, info.attempts, info.task.retry_count) == (TaskStatus.PENDING, (), 0)
        held = await engine.submit(slow_again)
        await started.wait()
        await engine.stop(drain_s="10ms")
    async with engine_on(path, worker=False) as looker:
        info = await looker.handle(held.id).info()
        assert (info.status, info.task.retry_count) == (TaskStatus.PENDING, 0)
        assert [attempt.outcome for attempt in info.attempts] == ["released"]


def script(code: str, tmp_path: Path, expect: int = 0) -> str:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env={**os.environ, **PATHS},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


async def test_a_plain_script_without_asyncio(tmp_path: Path) -> None:
    """engine.sync does it all, blocking; the process lane finds handlers of a script."""
    out = script(
        """
        from mainspring import Engine, TaskTimeout

        engine = Engine("work.db")

        @engine.task
        async def add(a: int, b: int = 1) -> int:
            return a + b

        @engine.task(lane="process")
        def triple(n: int) -> int:
            return 3 * n

        if __name__ == "__main__":
            with engine.sync as sync:
                first = sync.submit(add, 1)
                print(sync.submit(add, first, b=first).result())
                print([handle.result(timeout="30s") for handle in sync.map(triple, range(3))])
                print(sorted(handle.result() for handle in sync.as_completed(sync.map(add, range(3)))))
                late = sync.submit(add, 1, delay=60)
                print(late.cancel(), late.info().status.value, late.explain())
                print(sync.text("  a   b "))
            try:
                first.result()
            except Exception as exc:
                print(type(exc).__name__, exc)
        """,
        tmp_path,
    )
    assert out.splitlines()[:3] == ["4", "[0, 3, 6]", "[1, 2, 3]"]
    assert "cancelled cancelled It ended as cancelled" in out
    assert "a b" in out
    assert "InvalidInput" in out
    assert "not open" in out


async def test_a_script_that_starts_an_engine_at_import(tmp_path: Path) -> None:
    """Where the child would start the engine again, the error names the guard to write."""
    out = script(
        """
        from mainspring import Engine

        engine = Engine()

        @engine.task(lane="process", retry=0)
        def triple(n: int) -> int:
            return 3 * n

        with engine.sync as sync:
            try:
                print(sync.submit(triple, 1).result(timeout=30))
            except Exception as exc:
                print(type(exc).__name__, exc)
        """,
        tmp_path,
    )
    assert 'if __name__ == "__main__"' in out


async def test_sync_refuses_to_block_a_loop() -> None:
    """Inside a running event loop it says what to use instead, and starts nothing that stays."""
    engine = engine_on()

    @engine.task
    async def nothing() -> None: ...

    with pytest.raises(InvalidInput, match="with await"), engine.sync:
        pass
    with pytest.raises(InvalidInput, match="not open"):
        engine.sync.submit(nothing)


def test_sync_from_many_threads() -> None:
    """The blocking face may be used by several threads at once; leaving an iteration early is harmless."""
    from concurrent.futures import ThreadPoolExecutor

    engine = engine_on()

    @engine.task
    async def double(n: int) -> int:
        return 2 * n

    with engine.sync as sync, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: sync.submit(double, n).result(), range(40))) == [2 * n for n in range(40)]
        for handle in sync.as_completed(sync.map(double, range(5))):
            assert handle.result() in range(0, 10, 2)
            break
        with pytest.raises(TaskTimeout):
            sync.submit(double, 1, delay=60).result(timeout=0.01)
        with pytest.raises(AttributeError):
            _ = sync.nonsense
