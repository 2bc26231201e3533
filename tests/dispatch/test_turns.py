"""Claims that have to wait in their slot before they run: much may have happened when their turn comes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, until

from mainspring import TaskStatus, TaskTimeout
from mainspring.environment import SYSTEM
from mainspring.execution.threads import ThreadRunner
from mainspring.processors.custom import Handler, HandlerProcessor
from mainspring.store.base import Claimed
from mainspring.tasks import Custom
from mainspring.tasks.codec import encode

pytestmark = pytest.mark.anyio


async def test_a_turn_that_comes_after_the_deadline() -> None:
    """A claim that had to wait until a suspect was through does not start when its deadline has passed meanwhile."""
    started: list[int] = []
    async with engine_on() as engine:

        @engine.task
        async def prompt() -> None:
            started.append(1)

        course: Any = engine.manager._course
        async with course._alone:
            handle = await engine.submit(prompt, deadline="80ms")
            await until(lambda: engine.manager._desks["async"].queued == 0)
            await asyncio.sleep(0.1)
        with pytest.raises(TaskTimeout, match="deadline passed before start"):
            await handle.result(timeout=LIMIT_S)
    assert started == []


@pytest.mark.parametrize("asked", ["cancel", "pause"])
async def test_what_waits_for_its_turn_is_taken_back(asked: str) -> None:
    """Whoever cancels or pauses it meanwhile is obeyed at once, and it does not begin when its turn comes."""
    started: list[int] = []
    async with engine_on() as engine:

        @engine.task(name="prompt")
        async def prompt() -> None:
            started.append(1)

        course: Any = engine.manager._course
        desk = engine.manager._desks["async"]
        async with course._alone:
            handle = await engine.submit(prompt)
            await until(lambda: len(desk._waiting) == 1)
            if asked == "cancel":
                assert await handle.cancel() == "cancelled"
            else:
                await engine.manager.pause(type="custom:prompt")
                await until(lambda: not desk._waiting)
        if asked == "cancel":
            await shows(handle, status=TaskStatus.CANCELLED)
        else:
            await shows(handle, status=TaskStatus.PENDING, reason="paused")
        assert started == []
        if asked == "pause":
            await engine.manager.resume(type="custom:prompt")
            await handle.result(timeout=LIMIT_S)
            assert started == [1]


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_turn_that_comes_in_a_drain(tmp_path: Path, lane: str) -> None:
    """It is handed back uncharged: nothing begins any more once a drain has begun."""
    started: list[int] = []
    engine = engine_on(tmp_path / "work.db")

    async def prompt_async() -> None:
        started.append(1)

    def prompt() -> None:
        started.append(1)

    handler = engine.task(name="prompt")(prompt if lane == "thread" else prompt_async)
    await engine.start()
    course: Any = engine.manager._course
    async with course._alone:
        handle = await engine.submit(handler)
        await until(lambda: engine.manager._desks[lane].queued == 0)
        course._any.enter()  # something else runs: the drain waits for it
        stopping = asyncio.ensure_future(engine.stop())
        desk: Any = engine.manager._desks[lane]
        await until(lambda: not desk._taking)
    await asyncio.sleep(0.01)
    course._any.leave()
    await stopping
    assert started == []
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
