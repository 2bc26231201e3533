"""The async lane: handlers run on the event loop, each in its own context, timed while they really run."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any

from mainspring.environment import Environment
from mainspring.errors import TaskCancelled
from mainspring.execution.base import Channel, Report, Work
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.processors.base import Processor, failure
from mainspring.processors.context import Child, Context, current
from mainspring.tasks import Outcome, Started, Usage

_STARTED = Started()


class LoopRunner:
    """Runs processors whose `process` is a coroutine, inside the asyncio task of whoever calls `run`."""

    def __init__(
        self, processors: Mapping[str, Processor], submit: Callable[..., Child] | None, env: Environment
    ) -> None:
        self._processors = processors
        self._submit = submit
        self._env = env
        self._running: dict[bytes, tuple[asyncio.Task[Any], Context]] = {}

    async def run(self, work: Work, channel: Channel) -> Report:
        env = self._env
        try:
            item = item_of(work, channel, self._submit)
        except Exception as exc:  # a stored payload that does not decode is that attempt's failure
            return failed(failure(exc), Usage())
        task = asyncio.current_task()
        assert task is not None
        self._running[work.id] = (task, item.context)
        channel.send(_STARTED)
        meter = _Meter(env)
        began = env.monotonic()
        outcome: Outcome
        try:
            batch = self._processors[work.task_type].process((item,))
            outcome = (await _drive(batch, item.context, meter))[0]  # type: ignore[arg-type]
        except asyncio.CancelledError:
            if task.cancelling():
                task.uncancel()
            outcome = failure(TaskCancelled("stopped while it ran"))
        except BaseException as exc:  # whatever a handler raises is its attempt's outcome, not the engine's end
            outcome = failure(exc)
        finally:
            del self._running[work.id]
        if item.context.network_bytes is not None:
            await item.context.close()
        duration = env.monotonic() - began
        return report(outcome, Usage(duration, meter.cpu_ns / 1e9, None, item.context.network_bytes))

    def stop(self, work: Work, *, hard: bool) -> bool:
        running = self._running.get(work.id)
        if running is not None:
            task, context = running
            context.cancel()
            task.cancel()
        return False  # a coroutine may swallow its cancellation

    async def close(self) -> None:
        """Nothing was taken."""


class _Meter:
    __slots__ = ("cpu_ns", "env")

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.cpu_ns = 0


@types.coroutine
def _drive(
    awaitable: Awaitable[Sequence[Outcome]], context: Context, meter: _Meter
) -> Generator[Any, Any, Sequence[Outcome]]:
    """Step a coroutine in a context of its own and count the CPU time of each step.

    So a handler's context variables end with it, and time spent waiting is not charged.
    """
    inner = contextvars.copy_context()
    inner.run(current.set, context)
    steps = awaitable.__await__()
    cpu = meter.env.thread_cpu_ns
    value: Any = None
    error: BaseException | None = None
    while True:
        began = cpu()
        try:
            if error is None:
                yielded = inner.run(steps.send, value)
            else:
                yielded = inner.run(steps.throw, error)  # type: ignore[attr-defined]
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            meter.cpu_ns += cpu() - began
        value = error = None
        try:
            value = yield yielded
        except BaseException as exc:
            error = exc
