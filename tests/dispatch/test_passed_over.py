"""Tasks that need more than a worker has are never in the way of those that fit, and are told for what they wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch.test_highwater import GB, Gauge
from tests.engine.support import LIMIT_S, engine_on, shows, value

from mainspring import Batch, Engine, Resources, TaskHandle, TaskPriority

pytestmark = pytest.mark.anyio
FIVE = Resources(cpu=0, custom={"seat": 5})


async def says(handle: TaskHandle, words: str) -> None:
    """Wait until it is explained so."""
    async with asyncio.timeout(LIMIT_S):
        while words not in (said := await handle.explain()):  # noqa: ASYNC110 - the store has no event for what is told
            await asyncio.sleep(0.005)
    assert said.startswith("It can't run on any living worker: ")


async def attempts(handles: list[TaskHandle]) -> int:
    """Return how many attempts were made, or begun and given up before they ran."""
    return sum([(await handle.info()).attempt for handle in handles])


def working(path: Path, **has: float) -> Engine:
    engine = engine_on(path, async_slots=1, custom_capacity=has)

    @engine.task
    async def work(n: int) -> int:
        return n

    @engine.task(batch=Batch(max_size=4))
    async def joint(items: list[int]) -> list[int]:
        return items

    return engine


@pytest.mark.parametrize("kind", ["work", "joint"])
async def test_what_fits_runs_whatever_stands_in_front(kind: str, tmp_path: Path) -> None:
    """Of one type, of the same or a higher priority; a larger worker takes the others once there is one."""
    async with working(tmp_path / "work.db", seat=2) as engine:
        task = engine.executor.handlers[f"custom:{kind}"].function
        await engine.manager.pause(type=f"custom:{kind}")
        big = await engine.map(task, range(30), resources=FIVE)
        big += await engine.map(task, range(30), resources=FIVE, priority=TaskPriority.HIGH)
        small = await engine.map(task, range(10))
        small += await engine.map(task, range(10), resources=Resources(cpu=0, custom={"seat": 2}))
        await engine.manager.resume(type=f"custom:{kind}")
        async with asyncio.timeout(LIMIT_S):
            assert await engine.gather(small) == [*range(10)] * 2
        for handle in (big[0], big[29], big[-1]):
            await says(handle, "it needs 5 seat, more than the 2 seat that there is; start one that has it.")
            await shows(handle, reason="resources")
        made = await attempts(big)
        assert made < len(big)
        more = await engine.map(task, range(10), priority=TaskPriority.CRITICAL)
        more += await engine.map(task, range(10), priority=TaskPriority.LOW)
        assert await engine.gather(more) == [*range(10)] * 2
        assert await attempts(big) == made
        async with working(tmp_path / "work.db", seat=5) as larger:
            assert await larger.gather([larger.handle(handle.id) for handle in big]) == [*range(30)] * 2
            workers = {(await handle.info()).attempts[-1].worker for handle in big}
            assert workers == {larger.manager.store.worker_id}
            assert await value(await engine.submit(task, 1)) == 1


async def test_who_could_run_it(tmp_path: Path) -> None:
    """Of several workers that have too little, the one with the most is named."""
    async with working(tmp_path / "work.db", seat=2) as engine, working(tmp_path / "work.db", seat=4) as larger:
        task = engine.executor.handlers["custom:work"].function
        handle = await engine.submit(task, 1, resources=FIVE)
        name = larger.manager.store.worker_id
        await says(
            handle,
            f"on {name} it needs 5 seat, more than the 4 seat that there is, nor does another worker run it",
        )


async def test_names_that_nobody_knows(tmp_path: Path) -> None:
    """It is said which kinds there are, by each worker for itself; started again with what it lacked, it runs them."""
    async with working(tmp_path / "work.db", seat=2) as engine:
        task = engine.executor.handlers["custom:work"].function
        handle = await engine.submit(task, 1, resources=Resources(cpu=0, custom={"seats": 1}))
        await says(handle, "more than the 0 seats that there is (kinds of your own that it has: seat); start one")
    async with working(tmp_path / "work.db") as engine:
        await says(engine.handle(handle.id), "more than the 0 seats that there is (it has no kinds of your own)")
    async with working(tmp_path / "work.db", seats=1) as engine:
        assert await value(engine.handle(handle.id)) == 1


async def test_what_a_handler_is_declared_with(tmp_path: Path) -> None:
    """A type that can't run here holds up none of its tasks that say themselves what they need, and no other type."""
    async with working(tmp_path / "work.db", seat=2) as engine:

        @engine.task(resources=FIVE)
        async def large(n: int) -> int:
            return n

        engine.manager.refresh()
        task = engine.executor.handlers["custom:work"].function
        big = await engine.map(large, range(20))
        small = await engine.map(large, range(5), resources=Resources(cpu=0, custom={"seat": 1}))
        small += await engine.map(task, range(5))
        assert await engine.gather(small) == [*range(5)] * 2
        await says(big[-1], "it needs 5 seat, more than the 2 seat that there is")


async def test_when_there_is_more_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a container may be raised while the worker lives."""
    there_is = [3_000_000_000]

    class Usage:
        cpu_limit = 8.0
        cpu_usage = 0.0
        memory_bytes = 1_000_000_000

        @property
        def max_memory_bytes(self) -> int:
            return there_is[0]

    class Monitor:
        def sample(self) -> Any:
            return Usage()

    engine = working(tmp_path / "work.db")
    monkeypatch.setattr(engine.manager.reservations, "_monitor", Monitor())
    async with engine:
        task = engine.executor.handlers["custom:work"].function
        handle = await engine.submit(task, 7, resources=Resources(cpu=0, memory=4_000_000_000))
        await says(handle, "needs 4.0 GB, more than the 3.0 GB that there is")
        there_is[0] = 9_000_000_000
        assert await value(handle) == 7


async def test_less_than_a_core(tmp_path: Path) -> None:
    """The core that is needed where nothing is said is what there is; more than one is more than there is."""
    engine = engine_on(tmp_path / "work.db", cpu_capacity=0.5)
    running: list[int] = []

    @engine.task(resources=Resources(memory=1))
    async def work(n: int) -> int:
        running.append(n)
        assert len(running) == 1
        await asyncio.sleep(0)
        running.remove(n)
        return n

    async with engine:
        handles = await engine.map(work, range(5))
        assert await engine.gather(handles) == [*range(5)]
        assert await value(await engine.submit(work, 5, resources=Resources(cpu=0.25))) == 5
        await says(
            await engine.submit(work, 1, resources=Resources(cpu=1.5)), "needs 1.5 cores, more than the 0.5 cores"
        )
        assert await value(await engine.submit(work, 6)) == 6


async def test_it_is_said_also_of_one_whose_group_is_at_its_limit(tmp_path: Path) -> None:
    """The next turn of its group is none of its own; who fits waits for that as ever."""
    async with working(tmp_path / "work.db", seat=2) as engine:
        task = engine.executor.handlers["custom:work"].function
        await says(await engine.submit(task, 1, resources=FIVE), "it needs 5 seat")
        await engine.manager.limit("red", rate="1/h")
        await value(await engine.submit(task, 2, group="red"))
        fits = await engine.submit(task, 3, group="red")
        await shows(fits, reason="limit")
        await says(await engine.submit(task, 4, group="red", resources=FIVE), "it needs 5 seat")
        await shows(fits, reason="limit")


async def test_a_capacity_above_what_may_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting for unequal machines: what the smaller one can never hold is passed over there, and a larger one
    runs it."""

    def made(mark: int) -> Engine:
        engine, gauge = engine_on(tmp_path / "work.db", memory_capacity=6 * GB), Gauge()
        gauge.show(max_memory_bytes=mark)
        monkeypatch.setattr(engine.manager.reservations, "_monitor", gauge)

        @engine.task
        async def work(n: int) -> int:
            return n

        return engine

    async with made(3 * GB) as small:
        task = small.executor.handlers["custom:work"].function
        handle = await small.submit(task, 7, resources=Resources(cpu=0, memory=4 * GB))
        await says(handle, "it needs 4.0 GB, more than the 3.0 GB that there is; start one that has it.")
        assert small.manager.reservations.stats()["memory"] == {"reserved": 0, "capacity": 3 * GB}
        async with made(9 * GB) as larger:
            assert await value(handle) == 7
            assert (await handle.info()).attempts[-1].worker == larger.manager.store.worker_id
            assert larger.manager.reservations.stats()["memory"]["capacity"] == 6 * GB
