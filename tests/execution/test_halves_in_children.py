"""A call whose child died: what is said to its first work is said to the half that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch import batched
from tests.execution.lane import Recorder, until, work

from mainspring import Batch
from mainspring.config import TaskManagerConfig
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.custom import Handler
from mainspring.tasks import ItemDone

pytestmark = pytest.mark.anyio


@pytest.fixture
async def lane(anyio_backend: str) -> AsyncIterator[Any]:
    executor = TaskExecutor(processors=(), slots=TaskManagerConfig(process_slots=1))
    for function in (batched.part_waits, batched.last_waits):
        executor.register(Handler(function, lane="process", batch=Batch()))
    yield executor.runner("process")
    await executor.close()


def four(how: str, folder: Path) -> Any:
    return [work("part_waits", items=n, how=how, folder=str(folder)) for n in range(4)]


async def test_a_stop_between_two_halves(lane: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None begins after it, and those that would have are charged nothing."""
    works, said, settle = four("dies, listens", tmp_path), list[bool](), lane._settle

    def settle_and_stop(attempt: Any, end: Any) -> None:
        settle(attempt, end)
        said.append(lane.stop(works[0], hard=False))

    monkeypatch.setattr(lane, "_settle", settle_and_stop)
    async with asyncio.timeout(60):
        done = await lane.run_batch(works, [Recorder() for _ in works])
    assert said == [True]
    assert [report.unstarted for report in done.reports] == [True] * 4
    assert batched.noted(tmp_path) == ["0123.1"]


async def test_the_child_of_a_half_runs_its_call(lane: Any, tmp_path: Path) -> None:
    """What the call has reserved is what this child uses."""
    works = four("dies, listens", tmp_path)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(lane.run_batch(works, [Recorder() for _ in works]))
        await until((tmp_path / "23.1").exists)
        assert list(lane.children().values()).count((works[0].id, works[0].attempt)) == 1
        assert lane.stop(works[0], hard=False) is False  # it needs the handler's help
    done = running.result()
    assert [report.output is None for report in done.reports] == [False] * 4
    assert done.calls == 3


async def test_all_of_a_call_that_is_killed_share_its_time(lane: Any, tmp_path: Path) -> None:
    """But for those who were done: what they used is told with their ends."""
    works = [work("last_waits", items=n, how="burns", folder=str(tmp_path / "calls")) for n in range(4)]
    channels = [Recorder() for _ in works]
    (tmp_path / "calls").mkdir()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(lane.run_batch(works, channels))
        await until((tmp_path / "calls" / "23.1").exists)
        assert lane.stop(works[0], hard=True) is True
    ended = [signal.report for channel in channels for signal in channel.signals if isinstance(signal, ItemDone)]
    assert [report.output is None for report in ended] == [False] * 2
    reports = running.result().reports
    assert reports[:2] == ended
    assert [report.error is None for report in reports[2:]] == [False] * 2
    used = [report.usage.cpu_time for report in reports]
    assert used[2] == used[3]
    assert 0.4 <= sum(used) < 1  # 0.2 s in each of two calls, and what it had used of the third
