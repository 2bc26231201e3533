"""A handler that blocks the event loop is named in the log while it does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.support import quick

from mainspring import Engine
from mainspring.environment import Environment
from mainspring.execution.blocked import BLOCKED_S, LoopWatch

pytestmark = pytest.mark.anyio
PATIENCE_S = 30.0


class Told(logging.Handler):
    """Sets a flag with the first line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.came.set()


@pytest.fixture
def told() -> Any:
    logger, told = logging.getLogger("mainspring.execution"), Told()
    logger.addHandler(told)
    yield told
    logger.removeHandler(told)


async def test_a_blocked_loop_is_named_with_its_frame(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Its function, file and line are told before it comes back, with the calls that led there; then its end is too."""
    async with Engine(config=quick()) as engine:

        @engine.task
        async def stands_still() -> bool:
            return held_up(told)

        assert await (await engine.submit(stands_still)).result()
        blocked, again = caplog.records[-2:]
    assert blocked.getMessage().splitlines()[0].startswith("the event loop has stood still for")
    assert f'File "{__file__}", line {held_up.__code__.co_firstlineno + 1}, in held_up' in blocked.getMessage()
    assert "in stands_still" in blocked.getMessage()
    assert "turns again" in again.getMessage()
    assert not any("loop-watch" in thread.name for thread in threading.enumerate())


def held_up(told: Told) -> bool:
    return told.came.wait(PATIENCE_S)


class ByHand(Environment):
    """Its time passes, and its ticks come, when the test says so."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def every(self, period_s: float, tick: Callable[[], None], name: str) -> Any:
        return self

    def stop(self) -> None:
        """Nothing runs."""


@pytest.mark.parametrize(("turns", "lines"), [(True, 0), (False, 2)])
async def test_a_loop_that_turns_is_not_accused(turns: bool, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    """However long it is watched; one that stands still is told of after a second, after ten, after a hundred."""
    env = ByHand()
    watch = LoopWatch(env)
    for _ in range(100):
        watch.look()
        env.now_s += BLOCKED_S / 4
        if turns:
            await turn()
    watch.close()
    assert len(caplog.records) == lines


async def turn() -> None:
    import asyncio

    await asyncio.sleep(0)
