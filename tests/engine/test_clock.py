"""A wall clock that is moved while an engine is open."""

from __future__ import annotations

import pytest
from tests.engine.support import quick, value

from mainspring import Engine
from mainspring.environment import HERE, Environment

pytestmark = pytest.mark.anyio
DAY_MS = 86_400_000


class Moved(Environment):
    moved_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.moved_ms


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
