"""What is set aside for those that wait for resources, and for how long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.support import quick

from mainspring import EngineConfig, Resources
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
