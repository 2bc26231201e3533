"""What is said of a task that was claimed is so from that moment on, in its own process and in others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import Engine, Resources, TaskHandle, TaskPriority
from mainspring.config import is_server
from mainspring.dispatch import reservations
from mainspring.store.sql import caretaker

pytestmark = pytest.mark.anyio
SEATS = 4


class Hall:
    """An engine with some seats, and tasks that take them until they may go."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.go = asyncio.Event()
        self.inside = 0

        @engine.task
        async def visit(n: int = 0) -> None:
            self.inside += 1
            await self.go.wait()

        @engine.task
        async def feast() -> None: ...

        self.visit, self.feast = visit, feast

    async def submit(self, task: Any, seats: int, **options: Any) -> TaskHandle:
        return await self.engine.submit(task, resources=Resources(cpu=0, custom={"seat": seats}), **options)


def where(place: str, tmp_path: Any) -> str:
    return place if is_server(place) else str(tmp_path / "work.db")


async def test_what_is_set_aside_is_told_with_whom_it_is_for(
    place: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is free, and no other task gets it: that is what keeps the others."""
    monkeypatch.setattr(reservations, "PATIENCE_S", 0.0)
    async with engine_on(where(place, tmp_path), custom_capacity={"seat": SEATS}) as engine:
        hall = Hall(engine)
        first = await hall.submit(hall.visit, 2)
        await until(lambda: hall.inside == 1)
        large = await hall.submit(hall.feast, 4)
        small = await hall.submit(hall.visit, 1)
        larger = await hall.submit(hall.visit, 3)
        name = engine.manager.store.worker_id
        waits = f"It waits for resources: it needs {{}}, on worker {name}."
        await until_claimed(large, small, larger)
        assert await large.explain() == waits.format("4 seat and 2 seat is free, of 4 seat")
        kept = f"kept for task {large.id} (custom:feast), which needs 4 seat"
        assert await small.explain() == waits.format(f"1 seat; 2 seat is free, of 4 seat, and {kept}")
        assert await larger.explain() == waits.format("3 seat and 2 seat is free, of 4 seat")
        hall.go.set()
        await engine.gather([first, large, small, larger])


async def says(handle: TaskHandle, words: str) -> None:
    """Wait until what is said begins so."""
    async with asyncio.timeout(LIMIT_S):
        while not (await handle.explain()).startswith(words):  # noqa: ASYNC110 - nor for what a worker tells
            await asyncio.sleep(0.005)


async def until_claimed(*handles: TaskHandle) -> None:
    """Claims may come a moment after the submit."""
    async with asyncio.timeout(LIMIT_S):
        for handle in handles:
            while (await handle.info()).attempt == 0:  # noqa: ASYNC110 - the store has no event for a claim
                await asyncio.sleep(0.001)


async def test_what_it_lacks_is_told_at_once(place: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that has claimed it although nothing is written yet; by others as soon as that is, which does not
    wait for a look at intervals."""
    monkeypatch.setattr("mainspring.dispatch.manager._PACE_S", 2 * LIMIT_S)
    at = where(place, tmp_path)
    async with engine_on(at, custom_capacity={"seat": 1}) as engine, engine_on(at, worker=False) as other:
        hall = Hall(engine)
        large = await hall.submit(hall.feast, 2)
        await says(other.handle(large.id), "It can't run on any living worker")  # what there is in all has been told
        monkeypatch.setattr(caretaker, "TICK_S", 2 * LIMIT_S)
        first = await hall.submit(hall.visit, 1)
        await until(lambda: hall.inside == 1)
        second = await hall.submit(hall.feast, 1)
        await until_claimed(second)
        needs = "It waits for resources: it needs 1 seat and 0 seat is free, of 1 seat, on worker "
        said = await second.explain()
        assert said.startswith(needs), said
        await says(other.handle(second.id), needs)
        assert (await second.info()).reason == "resources"
        hall.go.set()
        await engine.gather([first, second])


async def test_how_far_a_claim_is(place: str, tmp_path: Any) -> None:
    """One that runs is said to run, although that is not recorded yet; one that waits for a slot, to wait for it."""
    at = where(place, tmp_path)
    async with engine_on(at, async_slots=2, prefetch_s=10.0) as engine, engine_on(at, worker=False) as other:
        go, begun = asyncio.Event(), asyncio.Event()
        said: list[str] = []

        @engine.task
        async def first(n: int) -> None:
            said.append(await engine.scheduler.explain(handle_id[0]))

        @engine.task
        async def quick(n: int) -> None: ...

        @engine.task
        async def hold() -> None:
            begun.set()
            await go.wait()

        name = engine.manager.store.worker_id
        handle_id: list[Any] = []
        task = engine.build(first, (0,), {})
        handle_id.append(task.id)
        await value(await engine.submit(task))
        assert said == [f"It runs: attempt 1, on worker {name}."]
        await engine.gather(await engine.map(quick, range(200)))  # from now on some are claimed ahead
        holders = [await engine.submit(hold) for _ in range(2)]
        async with asyncio.timeout(LIMIT_S):
            for holder in holders:
                await shows(holder, attempt=1)
            await begun.wait()
        claimed = f"Worker {name} has claimed it and starts it when a slot falls free."
        ahead = [await engine.submit(quick, 1, priority=TaskPriority.HIGH) for _ in range(3)]
        sentences = {await one.explain() for one in ahead}
        assert all(one == claimed or one.startswith("It is ready and ") for one in sentences), sentences
        sentences = {await other.handle(one.id).explain() for one in ahead}
        assert all(one == claimed or one.startswith("It is ready and ") for one in sentences), sentences
        go.set()
        await engine.gather([*holders, *ahead])
