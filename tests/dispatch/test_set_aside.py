"""What is set aside for those that wait for resources, and for how long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch.test_reservations import ONE, Hall, says
from tests.engine.support import LIMIT_S, engine_on, quick, until, value

from mainspring import Batch, EngineConfig, Resources
from mainspring.dispatch import reservations
from mainspring.dispatch.reservations import PATIENCE_S
from mainspring.testing import SimulatedEngine
from mainspring.testing.stage.process import sleep
from mainspring.testing.stage.stage import Stage

pytestmark = pytest.mark.anyio
WHOLE, HALF = Resources(cpu=0, gpu=1), Resources(cpu=0, gpu=0.5)


def test_both_of_two_kinds(tmp_path: Path) -> None:
    """One that needs two kinds gets its turn where streams of others take them one after the other, in turn."""
    stage = Stage()
    config = EngineConfig(manager=quick(gpu_capacity=1, custom_capacity={"license": 1}).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=WHOLE)
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


def test_until_it_begins(tmp_path: Path) -> None:
    """One that finds its lane full once all is free keeps what it has: it begins with the next slot of its lane."""
    stage = Stage()
    config = EngineConfig(manager=quick(thread_slots=2, gpu_capacity=1).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=HALF)
        async def small(left: int) -> None:
            if left:
                await engine.submit(small, left - 1)
            await asyncio.sleep(0.1)

        @engine.task
        def plain() -> None:
            sleep(11)

        @engine.task(resources=WHOLE)
        def large() -> None: ...

        async def play() -> None:
            await engine.start()
            loop = asyncio.get_running_loop()
            for n in range(2):
                await engine.submit(small, 1000, delay=n / 20)
                await engine.submit(plain, delay=5.0 * n)
            await asyncio.sleep(2)
            began = loop.time()
            going = asyncio.ensure_future((await engine.submit(large)).result())
            while not going.done() and loop.time() < began + 60:
                await engine.submit(plain)
                await asyncio.wait({going}, timeout=5)
            assert loop.time() - began < 11 + PATIENCE_S + 11

        stage.run(play())


def test_since_it_came(tmp_path: Path) -> None:
    """One that others have overtaken while its lane was full has waited since it came, not since it came again."""
    stage = Stage()
    config = EngineConfig(manager=quick(thread_slots=1, gpu_capacity=1).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(resources=WHOLE)
        async def hold() -> None:
            await asyncio.sleep(2)

        @engine.task
        def plain() -> None:
            sleep(3)

        @engine.task(resources=HALF)
        async def small(left: int) -> None:
            if left:
                await engine.submit(small, left - 1)
            await asyncio.sleep(2)

        @engine.task(resources=WHOLE)
        def large() -> None: ...

        async def play() -> None:
            await engine.start()
            loop = asyncio.get_running_loop()
            await engine.submit(hold)
            await asyncio.sleep(0.1)
            began, handle = loop.time(), await engine.submit(large)
            await asyncio.sleep(0.1)
            await engine.submit(plain)
            await asyncio.sleep(1.85)
            for _ in range(2):
                await engine.submit(small, 20)
                await asyncio.sleep(1)
            await handle.result()
            assert PATIENCE_S < loop.time() - began < PATIENCE_S + 3

        stage.run(play())


@pytest.mark.parametrize(("batch", "item"), [(None, [1]), (Batch(max_size=2), 1)], ids=["alone", "joint"])
@pytest.mark.parametrize("is_taken_back", [False, True], ids=["runs", "goes"])
async def test_who_waits_for_a_slot(
    batch: Batch | None, item: Any, is_taken_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it needs is kept for it, until it begins or is taken back."""
    monkeypatch.setattr(reservations, "PATIENCE_S", 0.0)
    hall, busy, free, began = Hall(), threading.Event(), threading.Event(), []
    async with engine_on(tmp_path / "work.db", thread_slots=1, gpu_capacity=1) as engine:

        @engine.task(resources=WHOLE)
        async def visit() -> None:
            await hall.visit()

        @engine.task
        def plain() -> None:
            busy.set()
            free.wait()

        @engine.task(resources=WHOLE, batch=batch)
        def large(items: list[int]) -> list[int]:
            began.append("large")
            return items

        @engine.task(resources=HALF)
        async def small() -> None:
            began.append("small")

        await engine.submit(visit)
        await until(lambda: hall.inside == 1)
        waiting = await engine.submit(large, item)
        await says(waiting, "It waits for resources: it needs 1 gpu and 0 gpu is free")
        await engine.submit(plain)
        await until(busy.is_set)
        other = await engine.submit(small)
        hall.go.set()
        kept = f"0.5 gpu; 1 gpu is free, of 1 gpu, and kept for task {waiting.id} (custom:large), which needs 1 gpu"
        await says(other, kept)
        engine.manager.reservations.look()
        calls = engine.manager._desks["thread" if batch is None else "thread/custom:large"]
        assert calls.queued == 1
        for _ in range(2):
            assert calls.take_surplus(engine.manager.reservations.waiting()) == []
        if is_taken_back:
            assert await waiting.cancel() == "cancelled"
            await value(other)
        free.set()
        if not is_taken_back:
            assert await value(waiting) == item
        await value(other)
        assert began == ["small"] if is_taken_back else ["large", "small"]
