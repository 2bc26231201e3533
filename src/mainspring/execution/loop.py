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
from mainspring.tasks import Done, Outcome, Started, Usage

_STARTED = Started()


class LoopRunner:
    """Runs processors whose `process` is a coroutine, inside the asyncio task of whoever calls `run`."""

    def __init__(
        self, processors: Mapping[str, Processor], submit: Callable[..., Child] | None, env: Environment
    ) -> None:
        self._processors = processors
        self._submit = submit
        self._env = env
        self._running: dict[tuple[bytes, int], _Drive] = {}  # an attempt that was given up may outlive the next one

    async def run(self, work: Work, channel: Channel) -> Report:
        env = self._env
        try:
            item = item_of(work, channel, self._submit)
        except Exception as exc:  # noqa: BLE001 - a stored payload that does not decode is that attempt's failure
            return failed(failure(exc), Usage())
        context = item.context
        key = (work.id, work.attempt)
        drive = self._running[key] = _Drive(context, env)
        channel.send(_STARTED)
        began = env.monotonic()
        outcome: Outcome
        try:
            batch = self._processors[work.task_type].process((item,))
            outcome = (await drive.through(batch))[0]  # type: ignore[arg-type]
        except asyncio.CancelledError as exc:
            if not drive.stopping and _is_cancelled_from_outside():
                raise
            outcome = failure(TaskCancelled("stopped while it ran") if drive.stopping else exc)
        except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its attempt's outcome, not our end
            outcome = failure(exc)
        finally:
            del self._running[key]
        if context.storing:
            outcome = await _stored(context.storing, outcome)
        network = context.network_bytes
        if network is not None:
            await context.close()
        return report(outcome, Usage(env.monotonic() - began, drive.cpu_ns / 1e9, None, network))

    def stop(self, work: Work, *, hard: bool) -> bool:
        drive = self._running.get((work.id, work.attempt))
        if drive is not None:
            drive.stop()
        return False  # a coroutine may swallow its cancellation

    async def close(self) -> None:
        """Nothing was taken."""


async def _stored(storing: Sequence[Awaitable[Any]], outcome: Outcome) -> Outcome:
    """Wait for children that the handler did not wait for: its result may refer to them."""
    for result in await asyncio.gather(*storing, return_exceptions=True):
        if isinstance(result, BaseException) and isinstance(outcome, Done):
            outcome = failure(result)
    return outcome


def _is_cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Drive:
    """Steps a coroutine in a context of its own, counts the CPU time of each step, and can cancel it.

    So a handler's context variables end with it, time spent waiting is not charged, and a stop reaches the handler
    alone, not the slot that runs it.
    """

    __slots__ = ("_context", "_env", "_throw", "_waits_for", "cpu_ns", "stopping")

    def __init__(self, context: Context, env: Environment) -> None:
        self._context = context
        self._env = env
        self._waits_for: Any = None
        self.cpu_ns = 0
        self.stopping = False
        self._throw = False  # at the next step

    def stop(self) -> None:
        """Raise CancelledError where the coroutine waits, or at its next step where it does not."""
        self._context.cancel()
        self.stopping = True
        self._throw = self._waits_for is None or not self._waits_for.cancel()

    @types.coroutine
    def through(self, awaitable: Awaitable[Sequence[Outcome]]) -> Generator[Any, Any, Sequence[Outcome]]:
        inner = contextvars.copy_context()
        inner.run(current.set, self._context)
        steps: Any = awaitable.__await__()
        cpu = self._env.thread_cpu_ns
        value: Any = None
        error: BaseException | None = None
        while True:
            began = cpu()
            try:
                waits_for = inner.run(steps.send, value) if error is None else inner.run(steps.throw, error)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self.cpu_ns += cpu() - began
            value = error = None
            self._waits_for = waits_for
            try:
                value = yield waits_for
            except BaseException as exc:  # noqa: BLE001 - handed on to the coroutine, as Python itself would
                error = exc
            if self._throw:
                self._throw = False
                error = asyncio.CancelledError()
