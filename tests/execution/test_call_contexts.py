"""What the tasks of one call say reaches each one's own channel, in every lane."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.engine import call_work
from tests.execution.lane import Recorder, reports_of, value, work

from mainspring.execution.executor import TaskExecutor
from mainspring.processors.custom import Handler
from mainspring.tasks import Log, Progress, Started

pytestmark = pytest.mark.anyio


@functools.wraps(call_work.tell)
async def tell_on_the_loop(names: Any, contexts: Any) -> Any:
    return call_work.tell(names, contexts)


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_signals_and_figures_are_the_tasks_own(lane: Any) -> None:
    """Progress and lines of a log go to one channel, the start to all; each report has what its task said it cost."""
    executor = TaskExecutor(processors=())
    function = tell_on_the_loop if lane == "async" else call_work.tell
    executor.register(Handler(function, lane=lane, batch=call_work.TOGETHER))
    works = [work("tell", names=name) for name in ("a", "bbbb", "ccccccc")]
    channels = [Recorder() for _ in works]
    try:
        done = await executor.runner(lane).run_batch(works, channels)
    finally:
        await executor.close()
    assert done.calls == 1
    for item, channel, report in zip(works, channels, reports_of(done), strict=True):
        assert value(report) == str(item.task_id)
        started, *signals = [signal for signal in channel.signals if not isinstance(signal, Log)]
        assert started == Started()
        (progress,) = signals
        assert isinstance(progress, Progress)
        assert report.usage.cost == progress.done
        assert report.usage.batch_size == 3
        logs = [signal.fields["task_id"] for signal in channel.signals if isinstance(signal, Log)]
        assert logs == ([str(item.task_id)] if lane == "process" else [])  # elsewhere they are written at once
    assert [report.usage.cost for report in reports_of(done)] == [1, 4, 7]
