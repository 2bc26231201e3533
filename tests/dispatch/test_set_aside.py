"""What is set aside for those that wait for resources, and for how long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.dispatch.test_reservations import ONE, Hall
from tests.engine.support import LIMIT_S, engine_on, quick, until, value

from mainspring import Batch, EngineConfig, Resources
from mainspring.dispatch.reservations import PATIENCE_S
from mainspring.testing import SimulatedEngine
from mainspring.testing.stage.stage import Stage

pytestmark = pytest.mark.anyio


def test_both_of_two_kinds(tmp_path: Path) -> None:
    """One that needs two kinds gets its turn where streams of others take them one after the other, in turn."""
    stage = Stage()
    config = EngineConfig(manager=quick(gpu_capacity=1, custom_capacity={"license": 1}).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=Resources(cpu=0, gpu=1))
        async def draw(left: int) -> None:
            if left:
                await engine.submit(draw, left - 1)
            await asyncio.sleep(1)

        @engine.task(resources=Resources(cpu=0, custom={"license": 1}))
        async def check(left: int) -> None:
            if left:
                await engine.submit(check, left - 1)
            await asyncio.sleep(1)

        @engine.task(resources=Resources(cpu=0, gpu=1, custom={"license": 1}))
        async def both() -> float:
            return asyncio.get_running_loop().time()

        async def play() -> None:
            await engine.start()
            await engine.submit(draw, 60)
            await engine.submit(check, 60, delay=0.5)
            await asyncio.sleep(0.7)
            now = asyncio.get_running_loop().time()
            started = await (await engine.submit(both)).result()
            assert PATIENCE_S - 0.5 < started - now < PATIENCE_S + 2.5

        stage.run(play())


async def test_one_of_a_call_is_taken_back_and_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was to run with it comes too when there is room, whatever is looked at meanwhile."""
    monkeypatch.setattr("mainspring.dispatch.manager._PACE_S", 2 * LIMIT_S)
    hall = Hall()
    async with engine_on(tmp_path / "work.db", custom_capacity={"seat": 1}) as engine:

        @engine.task(resources=ONE)
        async def visit() -> None:
            await hall.visit()

        @engine.task(batch=Batch(max_size=2), resources=ONE)
        async def joint(items: list[int]) -> list[int]:
            return items

        first = await engine.submit(visit)
        await until(lambda: hall.inside == 1)
        await engine.manager.pause(type="custom:joint")
        pair = [await engine.submit(joint, n, group=group) for n, group in enumerate(("red", "blue"))]
        await engine.manager.resume(type="custom:joint")
        parked = engine.manager._desks["async/custom:joint"].parked
        await until(lambda: len(parked) == 2)
        assert len(engine.manager.reservations._waiting) == 1
        await engine.manager.pause(group="red")
        await until(lambda: len(parked) == 1)
        await engine.manager.resume(group="red")
        await until(lambda: len(parked) == 2)
        hall.go.set()
        assert [await value(handle) for handle in pair] == [0, 1]
        await value(first)
