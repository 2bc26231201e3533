"""A wall clock that is moved while an engine is open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.engine.support import quick, value

from mainspring import Engine, TaskTimeout
from mainspring.environment import HERE, Environment

pytestmark = pytest.mark.anyio
DAY_MS = 86_400_000


class Moved(Environment):
    moved_ms = 0
    slept_s = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.moved_ms + self.slept_s * 1000

    def since_boot(self) -> float:
        return super().since_boot() + self.slept_s


@pytest.mark.parametrize("by_ms", [DAY_MS, -DAY_MS])
async def test_delays_and_deadlines_are_meant_by_the_clock_of_now(by_ms: int) -> None:
    """After a jump of a day a delay lasts as long as it says, and a deadline ahead lies ahead."""
    env = Moved()
    token = HERE.set(env)
    try:
        async with Engine(config=quick(), env=env) as engine:

            @engine.task
            async def same(n: int) -> int:
                return n

            env.moved_ms = by_ms
            assert await value(await engine.submit(same, 1, delay="20ms")) == 1
            assert await value(await engine.submit(same, 2, deadline=3600)) == 2
    finally:
        HERE.reset(token)


async def test_a_machine_that_sleeps() -> None:
    """Delays and deadlines that pass in its sleep have passed; an attempt that lives through it has not run longer."""
    env = Moved()
    begun, go_on = asyncio.Event(), asyncio.Event()
    async with Engine(config=quick(), env=env) as engine:

        @engine.task(timeout=60)
        async def long() -> str:
            begun.set()
            await go_on.wait()
            return "rested"

        @engine.task
        async def same(value: Any) -> Any:
            return value

        running = await engine.submit(long)
        await begun.wait()
        delayed = await engine.submit(same, 1, delay=3600)
        late = await engine.submit(same, running, deadline=3600)
        env.slept_s = 7200
        assert await value(delayed) == 1
        with pytest.raises(TaskTimeout):
            await value(late)
        go_on.set()
        assert await value(running) == "rested"
        (attempt,) = (await running.info()).attempts
        assert attempt.started is not None
        assert (attempt.ended - attempt.started).total_seconds() >= 7200
        assert attempt.duration is not None
        assert attempt.duration < 3600
