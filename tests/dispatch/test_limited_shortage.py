"""Tasks of groups with limits that wait for resources: they keep no place and no rate from others meanwhile."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from tests.dispatch.test_reservations import ONE, Hall, says
from tests.engine.support import LIMIT_S, engine_on, quick, until, value

from mainspring import EngineConfig, Resources
from mainspring.dispatch.reservations import PATIENCE_S
from mainspring.testing import SimulatedEngine
from mainspring.testing.stage.stage import Stage

pytestmark = pytest.mark.anyio
ALL = Resources(cpu=0, custom={"seat": 16})


@pytest.mark.parametrize("hold_s", [2, 17, 40])
def test_no_more_begin_than_their_rate_lets(hold_s: float, tmp_path: Path) -> None:
    """However long they have waited when what they need falls free; each begins as soon as both let it."""
    stage = Stage()
    config = EngineConfig(manager=quick(async_slots=32, custom_capacity={"seat": 16}).manager)
    began: list[float] = []
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=ALL)
        async def hold() -> None:
            await asyncio.sleep(hold_s)

        @engine.task(resources=ONE)
        async def call(n: int) -> None:
            began.append(asyncio.get_running_loop().time())

        async def play() -> None:
            await engine.start()
            await engine.limit("api", rate="1/s")
            held = await engine.submit(hold)
            await asyncio.sleep(0.1)
            calls = await engine.map(call, range(24), group="api")
            await held.result()
            free = asyncio.get_running_loop().time()
            await engine.gather(calls)
            assert began[0] < free + 1
            assert all(1 - 0.01 < after - before < 1.5 for before, after in pairwise(began))

        stage.run(play())


async def test_their_places_are_for_those_that_can_begin(tmp_path: Path) -> None:
    """A group whose tasks wait for what others have is not at its limit; the reasons say what they wait for."""
    hall = Hall()
    async with engine_on(tmp_path / "work.db", gpu_capacity=1) as engine:

        @engine.task(resources=Resources(cpu=0, gpu=1))
        async def draw(n: int) -> int:
            await hall.visit()
            return n

        @engine.task
        async def plain() -> None: ...

        await engine.limit("tenant", concurrency=2)
        other = await engine.submit(draw, 0)
        await until(lambda: hall.inside == 1)
        first, second = [await engine.submit(draw, n, group="tenant") for n in (1, 2)]
        await says(first, "It waits for resources: it needs 1 gpu and 0 gpu is free, of 1 gpu")
        await value(await engine.submit(plain, group="tenant"))
        worker = engine.manager.store.worker_id
        await says(
            second,
            f"It is ready, and worker {worker} takes no more of its type and group: task {first.id} goes first and "
            f"waits for resources there.",
        )
        assert (await second.info()).reason == "resources"
        assert (await engine.limits())[0].held == 0
        hall.go.set()
        assert [await value(handle) for handle in (other, first, second)] == [0, 1, 2]


async def test_one_that_is_cancelled_keeps_nothing_from_others(tmp_path: Path) -> None:
    """Those behind it of its type and group begin."""
    hall = Hall()
    async with engine_on(tmp_path / "work.db", gpu_capacity=1) as engine:

        @engine.task(resources=Resources(cpu=0, gpu=1))
        async def draw() -> None:
            await hall.visit()

        await engine.limit("tenant", concurrency=5)
        await engine.submit(draw)
        await until(lambda: hall.inside == 1)
        first, second = [await engine.submit(draw, group="tenant") for _ in range(2)]
        await says(first, "It waits for resources")
        assert await first.cancel() == "cancelled"
        hall.go.set()
        await value(second)


def test_a_large_one_gets_its_turn(tmp_path: Path) -> None:
    """Small ones of others overtake it only for a while, as without limits; it is looked at now and then."""
    stage = Stage()
    config = EngineConfig(manager=quick(custom_capacity={"seat": 16}).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=ONE)
        async def small(left: int) -> None:
            if left:
                await engine.submit(small, left - 1)
            await asyncio.sleep(1)

        @engine.task(resources=ALL)
        async def large() -> float:
            return asyncio.get_running_loop().time()

        async def play() -> None:
            await engine.start()
            await engine.limit("tenant", concurrency=1, rate="10/s")
            for n in range(8):
                await engine.submit(small, 60, delay=n / 8)
            await asyncio.sleep(2)
            now = asyncio.get_running_loop().time()
            handle = await engine.submit(large, group="tenant")
            assert PATIENCE_S - 0.5 < await handle.result() - now < PATIENCE_S + 2.5
            assert engine.manager._desks["async"].port.taken < 500

        stage.run(play())


async def test_few_are_claimed_that_do_not_fit(tmp_path: Path) -> None:
    """Where hardly any of a large group fit at once, each is claimed about as often as one has begun."""
    async with engine_on(tmp_path / "work.db", async_slots=64, custom_capacity={"seat": 2}) as engine:

        @engine.task(resources=ONE)
        async def call(n: int) -> int:
            await asyncio.sleep(0.002)
            return n

        await engine.limit("tenant", concurrency=50)
        calls = await engine.map(call, range(200), group="tenant")
        async with asyncio.timeout(LIMIT_S):
            assert await engine.gather(calls) == [*range(200)]
        assert engine.manager._desks["async"].port.taken < 1_000
        reservations = engine.manager.reservations
        assert (reservations._held, reservations._used, reservations._waiting) == ({}, {}, {})


async def test_many_groups_wait_for_the_same(tmp_path: Path) -> None:
    """More of them than a desk looks past: all get what they need."""
    hall = Hall()
    async with engine_on(tmp_path / "work.db", async_slots=64, custom_capacity={"seat": 2}) as engine:

        @engine.task(resources=ONE)
        async def visit() -> None:
            await hall.visit()

        for n in range(40):
            await engine.limit(f"tenant-{n}", concurrency=1)
        visits = [await engine.submit(visit, group=f"tenant-{n % 40}") for n in range(120)]
        await until(lambda: hall.inside == 2)
        hall.go.set()
        async with asyncio.timeout(LIMIT_S):
            await engine.gather(visits)
        assert (hall.entered, hall.most) == (120, 2)
