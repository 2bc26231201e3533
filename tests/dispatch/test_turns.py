"""Where one must run alone: what starts meanwhile, what does not and where it goes, and whoever waits for its turn."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.dispatch.test_reservations import says
from tests.engine import process_work
from tests.engine.support import LIMIT_S, engine_on, shows, until

from mainspring import Engine, Resources, TaskStatus, TaskTimeout
from mainspring.dispatch import course
from mainspring.dispatch.attempt import Attempt
from mainspring.environment import SYSTEM
from mainspring.execution.threads import ThreadRunner
from mainspring.processors.custom import Handler, HandlerProcessor
from mainspring.store.base import Claimed
from mainspring.tasks import Custom
from mainspring.tasks.codec import encode

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def one_alone(engine: Engine, *, inside: bool = False) -> AsyncIterator[None]:
    """As if a task ran there that must have no company."""
    claim = Claimed(id=bytes(16), attempt=1, task_type="custom:alone", input=b"")
    attempt = Attempt(claim, engine.manager._desks["async"], 0, cast(Any, asyncio.current_task()))
    async with engine.manager._alone.run(attempt, "is a test", inside=inside):
        yield


async def test_a_deadline_while_another_one_runs_alone() -> None:
    """It is over then, and not when that one has ended."""
    started: list[int] = []
    async with engine_on() as engine:

        @engine.task
        async def prompt() -> None:
            started.append(1)

        async with one_alone(engine):
            handle = await engine.submit(prompt, deadline="80ms")
            with pytest.raises(TaskTimeout, match="deadline passed before start"):
                await handle.result(timeout=LIMIT_S)
    assert started == []


async def test_what_may_not_start_here_starts_elsewhere(tmp_path: Path) -> None:
    """Nothing is claimed where one must run alone, in no lane, and no place of a group is kept from others."""
    path, ran = tmp_path / "work.db", list[str]()
    async with contextlib.AsyncExitStack() as both:
        here, there = [await both.enter_async_context(engine_on(path)) for _ in "ab"]
        there.task(name="walk")(_noting(ran, "there"))
        there.task(lane="process")(process_work.double)
        walk = here.task(name="walk")(_noting(ran, "here"))
        double = here.task(lane="process")(process_work.double)
        await here.limit("few", concurrency=1)
        async with one_alone(here):
            handles = [await here.submit(walk, group="few") for _ in range(3)]
            await here.gather([*handles, await here.submit(double, 4)])
    assert ran == ["there"] * 3


def _noting(ran: list[str], name: str) -> Any:
    async def walk() -> None:
        ran.append(name)

    return walk


async def test_one_within_this_process_leaves_the_others_be() -> None:
    """Tasks of the process lane go on beside it, those of the other lanes when it is over."""
    async with engine_on() as engine:
        double = engine.task(lane="process")(process_work.double)

        @engine.task(lane="thread")
        def inside() -> int:
            return 1

        async with one_alone(engine, inside=True):
            kept = await engine.submit(inside)
            assert await (await engine.submit(double, 4)).result(timeout=LIMIT_S) == 8
            await shows(kept, status=TaskStatus.PENDING, attempts=())
        assert await kept.result(timeout=LIMIT_S) == 1


async def test_what_was_claimed_already_is_for_others_too() -> None:
    """What has not begun is handed back uncharged, as what waits for resources."""
    go = asyncio.Event()
    async with engine_on(custom_capacity={"seat": 1}) as engine:

        @engine.task(resources=Resources(cpu=0, custom={"seat": 1}))
        async def sit() -> None:
            await go.wait()

        desk = engine.manager._desks["async"]
        first = await engine.submit(sit)
        await until(lambda: bool(desk.running))
        second = await engine.submit(sit)
        await until(lambda: bool(desk.parked))
        async with one_alone(engine):
            assert not desk.parked
            await says(second, "is a test and runs alone")
        go.set()
        await engine.gather([first, second])
        (once,) = (await second.info()).attempts
        assert once.outcome == "completed"


@pytest.fixture
def suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of a type are taken for those that ran when their process died."""
    monkeypatch.setattr(course, "is_suspect", lambda claim: claim.task_type == "custom:suspect")


@pytest.mark.usefixtures("suspects")
@pytest.mark.parametrize("asked", ["cancel", "pause", "deadline"])
async def test_who_waits_to_run_alone_and_is_to_run_no_more(asked: str) -> None:
    """It does not begin when all is quiet, and nobody waits for it until then."""
    started: list[str] = []
    free = asyncio.Event()
    async with engine_on() as engine:
        suspect, before, prompt = _three(engine, started, free)
        running = await engine.submit(before)
        await until(lambda: started == ["before"])
        handle = await engine.submit(suspect, deadline="500ms" if asked == "deadline" else None)
        await until(lambda: engine.manager._alone.one is not None)
        if asked == "cancel":
            assert await handle.cancel() == "cancelled"
        elif asked == "pause":
            await engine.manager.pause(type="custom:suspect")
        else:
            with pytest.raises(TaskTimeout, match="deadline passed before start"):
                await handle.result(timeout=LIMIT_S)
        await (await engine.submit(prompt)).result(timeout=LIMIT_S)
        free.set()
        await running.result(timeout=LIMIT_S)
        assert started == ["before", "prompt"]
        if asked == "pause":
            await shows(handle, status=TaskStatus.PENDING, reason="paused", attempts=())
            await engine.manager.resume(type="custom:suspect")
            await handle.result(timeout=LIMIT_S)


def _three(engine: Engine, started: list[str], free: asyncio.Event) -> tuple[Any, Any, Any]:
    @engine.task(resources=Resources(cpu=0, memory=1))
    async def suspect() -> None:
        started.append("suspect")

    @engine.task
    async def before() -> None:
        started.append("before")
        await free.wait()

    @engine.task
    async def prompt() -> None:
        started.append("prompt")

    return suspect, before, prompt


@pytest.mark.usefixtures("suspects")
async def test_who_waits_to_run_alone_in_a_drain(tmp_path: Path) -> None:
    """It is handed back uncharged: nothing begins any more once a drain has begun."""
    started: list[str] = []
    free = asyncio.Event()
    engine = engine_on(tmp_path / "work.db")
    suspect, before, _ = _three(engine, started, free)
    await engine.start()
    await engine.submit(before)
    await until(lambda: started == ["before"])
    handle = await engine.submit(suspect)
    await until(lambda: engine.manager._alone.one is not None)
    stopping = asyncio.ensure_future(engine.stop())
    await until(lambda: engine.manager._draining)
    free.set()
    await stopping
    assert started == ["before"]
    async with engine_on(tmp_path / "work.db", worker=False) as looker:
        info = await looker.handle(handle.id).info()
        assert (info.status, info.task.retry_count, info.attempts) == (TaskStatus.PENDING, 0, ())


async def test_a_thread_does_not_begin_what_was_given_up() -> None:
    """What waits for a free thread and is cancelled meanwhile never runs."""
    go, ran = threading.Event(), []

    def blocks(n: int) -> int:
        go.wait(LIMIT_S)
        ran.append(n)
        return n

    processor = HandlerProcessor(Handler(blocks))
    runner = ThreadRunner({processor.task_type: processor}, lambda kind: None, None, SYSTEM, 1)

    class Unheard:
        def send(self, signal: Any) -> None:
            """Nobody listens."""

    def work(n: int) -> Claimed:
        return Claimed(
            id=bytes([n]) * 16, attempt=1, task_type=processor.task_type, input=encode(Custom({"n": n}))[0], seq=n
        )

    first, second, third = (asyncio.ensure_future(runner.run(work(n), Unheard())) for n in (1, 2, 3))
    second.cancel()
    go.set()
    await asyncio.gather(first, third)
    await runner.close()
    assert ran == [1, 3]
