"""An engine on a machine whose wall clock jumps while handlers run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, SOON, quick, value

from mainspring import Engine
from mainspring.environment import SYSTEM, Environment

pytestmark = pytest.mark.anyio


class Wall(Environment):
    """The real machine with a wall clock that can be set."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return SYSTEM.wall_ms() + self.ahead_ms


@pytest.mark.parametrize("step_ms", [86_400_000, -86_400_000])
async def test_a_jump_under_a_running_handler(tmp_path: Path, step_ms: int) -> None:
    """A handler that runs while the wall clock jumps runs once, a retry comes when it should, timeouts and durations
    are not touched."""
    env = Wall()
    engine = Engine(tmp_path / "work.db", quick(), env=env)
    runs: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(timeout=LIMIT_S)
    async def waits() -> str:
        runs.append("waits")
        begun.set()
        await go_on.wait()
        return "done"

    @engine.task(retry=SOON)
    async def fails_once() -> str:
        runs.append("fails_once")
        if runs.count("fails_once") == 1:
            env.ahead_ms = step_ms
            raise OSError("not now")
        return "done"

    async with engine:
        one = await engine.submit(waits)
        await begun.wait()
        other = await engine.submit(fails_once)
        assert await value(other) == "done"
        go_on.set()
        assert await value(one) == "done"
        for handle in (one, other):
            result = await engine.manager.get_task_result(handle.id)
            assert 0 <= result.metrics.duration < LIMIT_S
            assert (result.metrics.queue_wait or 0) >= 0
            info = await handle.info()
            moments = [moment for moment in (info.submitted, info.started, info.ended) if moment is not None]
            assert len(moments) == 3
            assert moments == sorted(moments)
    assert sorted(runs) == ["fails_once", "fails_once", "waits"]
