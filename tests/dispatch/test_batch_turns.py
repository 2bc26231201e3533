"""When calls of a batch handler begin, and how large they become, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mainspring import Batch, Engine, EngineConfig, TaskManagerConfig


@pytest.fixture
def engine(mainspring_engine_for: Callable[[Engine], Any]) -> Any:
    return mainspring_engine_for(Engine(":memory:", EngineConfig(manager=TaskManagerConfig(async_slots=2))))


async def test_a_busy_lane_looks_for_calls_too(engine: Any) -> None:
    """What goes first begins with one of the next slots that fall free, in a lane that is never idle."""
    done: list[str] = []

    @engine.task
    async def single(n: int) -> None:
        await asyncio.sleep(0.01)
        done.append("single")

    @engine.task(batch=Batch())
    async def joined(items: list[str]) -> list[str]:
        done.extend(items)
        return items

    await engine.map(single, range(1000))
    await asyncio.sleep(0.1)
    low = await engine.submit(joined, "low", priority="LOW")
    await asyncio.sleep(1)  # long enough to find that it does not begin soon
    before = len(done)
    high = await engine.submit(joined, "high", priority="CRITICAL")
    await high.result()
    assert done.index("high") - before < 10
    await low.result()


@pytest.mark.parametrize(("unit_s", "learned"), [(lambda n: 0.1 + n * n / 500, 8), (lambda n: 1.0, 64)])
async def test_the_size_of_calls_is_learned(engine: Any, unit_s: Callable[[int], float], learned: int) -> None:
    """Where large calls are slower than small ones, smaller ones are made; where they are not they stay large."""
    sizes: list[int] = []

    @engine.task(batch=Batch(max_size=64))
    async def joined(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(unit_s(len(items)))
        return items

    assert await engine.gather(await engine.map(joined, range(8000))) == list(range(8000))
    assert max(sizes) == 64
    assert sorted(sizes[-200:])[100] == learned
    batches = (await engine.manager.stats())["batches"]["custom:joined"]
    assert batches["learned"] == ([] if learned == 64 else [learned])
