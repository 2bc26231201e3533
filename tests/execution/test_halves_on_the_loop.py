"""A half of a call on the loop ends when what it has begun is over: its children are stored, its connections closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.execution.lane import Recorder, work

from mainspring import Batch, Context
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.custom import Handler
from mainspring.tasks import ItemDone

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_a_half_that_waits_for_its_children(is_stopped: bool) -> None:
    """Who was in it is told after that. A stop that comes meanwhile is heard: the other half never begins."""
    calls, stored = list[list[int]](), asyncio.get_running_loop().create_future()
    waits = asyncio.Event()

    async def halves(items: list[int], contexts: list[Context]) -> list[int]:
        calls.append(items)
        if len(items) == 4:
            raise ValueError("not all at once")
        if 0 in items:
            contexts[0].storing = [stored]
            asyncio.get_running_loop().call_soon(waits.set)
        return items

    executor = TaskExecutor(processors=())
    executor.register(Handler(halves, batch=Batch()))
    works: Any = [work("halves", items=n) for n in range(4)]
    channels = [Recorder() for _ in works]
    lane: Any = executor.runner("async")
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(lane.run_batch(works, channels))
        await waits.wait()
        assert not any(isinstance(signal, ItemDone) for signal in channels[0].signals)
        if is_stopped:
            lane.stop(works[0], hard=False)
        stored.set_result(None)
    await executor.close()
    told = [signal.report.error is None for signal in channels[0].signals if isinstance(signal, ItemDone)]
    ended = [report and report.error is None for report in running.result().reports]
    if is_stopped:
        assert (calls, told, ended) == ([[0, 1, 2, 3], [0, 1]], [], [True, True, False, False])
    else:
        assert (calls, told, ended) == ([[0, 1, 2, 3], [0, 1], [2, 3]], [True], [None, None, True, True])
