"""`doctor` names what was set and can't be had together, with what to do; where that is done it says nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.cli.conftest import Answer
from tests.cli.moved import Home

from mainspring import Engine, EngineConfig, Resources, TaskManagerConfig

Call = Callable[..., Answer]
Told = Callable[[str], list[tuple[str, str]]]


@pytest.fixture(params=["file", "server"])
def home(request: pytest.FixtureRequest, homes: Callable[[str], Home]) -> Home:
    return homes(request.param)


@pytest.fixture
def told(call: Call, home: Home) -> Told:
    """What the doctor says of something, each with a remedy."""

    def ask(about: str) -> list[tuple[str, str]]:
        answer = call("doctor", "--store", home.name, "--json")
        found = [item for item in answer.json["findings"] if item["about"] == about]
        assert all(item["remedy"] for item in found)
        return [(item["level"], item["what"]) for item in found]

    return ask


def on(home: Home, act: Callable[[Engine, Any], Awaitable[None]], *, worker: bool = False) -> None:
    """Do something with an engine that declares one handler."""

    async def run() -> None:
        config = EngineConfig(store=home.config.store, manager=TaskManagerConfig(gpu_capacity=0, drain_s=0))
        engine = Engine(home.name, config, worker=worker)

        @engine.task(name="work")
        async def work(n: int) -> int:
            return n

        async with engine:
            await act(engine, work)

    asyncio.run(run())


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1, seconds=30)


def test_a_pause_that_outlasts_deadlines(home: Home, told: Told) -> None:
    """What is paused and must start in time is named; without the pause it is the missing worker that is."""

    async def act(engine: Engine, work: Any) -> None:
        await engine.manager.pause(group="night")
        for n in range(2):
            await engine.submit(work, n, group="night", deadline=in_an_hour())
        await engine.submit(work, 2, group="night")

    on(home, act)
    what = "custom:work, group night: 2 tasks have a deadline, the first in 1h, and {}: they will end as TIMEOUT"
    assert told("deadlines") == [("warning", what.format("are paused (night)"))]

    async def resume(engine: Engine, work: Any) -> None:
        await engine.manager.resume(group="night")

    on(home, resume)
    assert told("deadlines") == [("warning", what.format("no living worker serves them"))]


def test_a_rate_below_what_is_queued(home: Home, told: Told) -> None:
    """A queue that takes days is worth a note, one that takes longer than its deadlines a warning."""

    async def act(engine: Engine, work: Any) -> None:
        await engine.limit("slow", rate="1/h")
        await engine.map(work, list(range(30)), group="slow")

    on(home, act)
    what = "group slow may begin 1/h: 30 unfinished tasks take 1d6h"
    assert told("limits") == [("note", what)]

    async def hurry(engine: Engine, work: Any) -> None:
        await engine.limit("slow", rate="10/h")
        await engine.submit(work, 30, group="slow", deadline=in_an_hour())

    on(home, hurry)
    what = "group slow may begin 10/h: 31 unfinished tasks take 3h6m, and 1 have a deadline, the first in 1h"
    assert told("limits") == [("warning", what)]

    async def enough(engine: Engine, work: Any) -> None:
        await engine.limit("slow", rate="60/h")

    on(home, enough)
    assert told("limits") == []


def test_equal_work_that_is_paused(home: Home, told: Told) -> None:
    """Whoever waits for the result of a paused task is kept by a pause that is not its own."""

    async def act(engine: Engine, work: Any) -> None:
        await engine.manager.pause(group="night")
        for group in ("night", "night", "day"):
            await engine.submit(work, 1, group=group, cache="1h")

    on(home, act)
    what = "1 tasks wait for equal work of custom:work, group night, which is paused (night)"
    assert told("equal work") == [("warning", what)]

    async def resume(engine: Engine, work: Any) -> None:
        await engine.manager.resume(group="night")

    on(home, resume)
    assert told("equal work") == []


def test_more_than_any_worker_has(home: Home, told: Told) -> None:
    """A need that no living worker of the type can ever meet is named, with what there is; others can."""

    async def act(engine: Engine, work: Any) -> None:
        handle = await engine.submit(work, 1, resources=Resources(gpu=1))
        async with asyncio.timeout(60):
            while (await handle.info()).reason != "resources":  # noqa: ASYNC110 - the store has no event for it
                await asyncio.sleep(0.01)
            while not (found := await asyncio.to_thread(told, "resources")):  # others hear of it with a commit
                pass
        ((level, what),) = found
        assert level == "warning"
        assert what.startswith(f"custom:work: 1 tasks need more than any worker has; task {handle.id}")
        assert "1 gpu" in what

    on(home, act, worker=True)
    assert told("resources") == []  # nobody is alive who could have it, or not
