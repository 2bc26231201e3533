"""The async lane: handlers run on the event loop, each in its own context, timed while they really run."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from mainspring.environment import Environment, Original
from mainspring.errors import TaskCancelled
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.batches import Answer, Gathered, Joint, failed_of, halving
from mainspring.execution.blocked import LoopWatch
from mainspring.execution.copies import leave
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.execution.metering import Metering
from mainspring.execution.steps import StepClock
from mainspring.processors.base import Item, Processor, failure
from mainspring.processors.context import Child, Context, current
from mainspring.tasks import Done, Outcome, Started, Usage
from mainspring.tracing import Tracing

_STARTED = Started()


class LoopRunner(Original):
    """Runs processors whose `process` is a coroutine, inside the asyncio task of whoever calls `run`.

    Most handlers that wait for nothing end with their first step: nothing is set up for the case that they don't.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        submit: Callable[..., Child] | None,
        env: Environment,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__()
        self._processors = processors
        self._submit = submit
        self._env = env
        self._clock = StepClock(env)
        self._tracing = tracing
        self._watch: LoopWatch | None = None
        self._metering: Metering | None = None
        # An attempt that was given up may outlive the next one.
        self._running: dict[tuple[bytes, int], _Drive | Gathered] = {}

    def run(self, work: Work, channel: Channel) -> Report | Awaitable[Report]:
        clock = self._clock
        if self._watch is None:
            self._begin()
        try:
            item = item_of(work, channel, self._submit)
        except Exception as exc:  # noqa: BLE001 - a stored payload that does not decode is that attempt's failure
            return failed(failure(exc), Usage())
        context = item.context
        inner = contextvars.copy_context()
        inner.run(current.set, context)
        if self._tracing is not None and work.trace is not None:
            inner.run(self._tracing.enter, work.trace)
        channel.send(_STARTED)
        began = clock.monotonic()
        base_ns = clock.begin(began)
        outcome: Outcome
        try:
            steps: Any = self._processors[work.task_type].process((item,)).__await__()  # type: ignore[union-attr]
            waits_for = inner.run(steps.send, None)
        except StopIteration as stop:
            outcome = stop.value[0]
        except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its attempt's outcome, not our end
            outcome = failure(exc)
        else:
            if self.is_copy:
                leave()
            cpu_s = clock.spent(base_ns, clock.monotonic() - began)
            drive = _Drive(self, (context,), inner, steps, waits_for, cpu_s, clock)
            return self._go_on(work, drive, began)
        if self.is_copy:
            leave()
        took_s = clock.monotonic() - began
        usage = Usage(took_s, clock.spent(base_ns, took_s), None, None, 1, context.cost)
        if context.is_open:
            return _wind_up(context, outcome, usage)
        return report(outcome, usage)

    def _begin(self) -> None:
        self._watch = LoopWatch(self._env)
        self._metering = Metering.begin(self._env)

    def _with_made(self, cpu_s: float, contexts: Iterable[Context]) -> float | None:
        """Return what these have cost with the asyncio tasks that they made; None where those could not be seen."""
        if self._metering is None or not self._metering.is_in_force:
            return None
        return cpu_s + sum(context.made_cpu_s for context in contexts)

    async def _go_on(self, work: Work, drive: _Drive, began: float) -> Report:
        """See an attempt that waits for something to its end."""
        key = (work.id, work.attempt)
        self._running[key] = drive
        outcome: Outcome
        try:
            outcome = (await drive.through())[0]
        except asyncio.CancelledError as exc:
            if not drive.stopping and _is_cancelled_from_outside():
                raise
            outcome = failure(TaskCancelled("stopped while it ran") if drive.stopping else exc)
        except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its attempt's outcome, not our end
            outcome = failure(exc)
        finally:
            del self._running[key]
        usage = Usage(self._env.monotonic() - began, self._with_made(drive.cpu_s, drive.contexts))
        return await _wind_up(drive.contexts[0], outcome, usage)

    async def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> BatchReport:
        env = self._env
        if self._watch is None:
            self._begin()
        batch = Gathered(works, channels, self._submit)
        for channel in channels:
            channel.send(_STARTED)
        began, cpu_s = env.monotonic(), 0.0

        def cpu_time() -> float | None:
            return self._with_made(cpu_s, [item.context for item in batch.items])

        def done(start: int, outcomes: Sequence[Outcome]) -> None:
            batch.tell(start, outcomes, env.monotonic() - began, cpu_time())

        steps = halving(batch.items, failed_of, batch.rest, done)
        try:
            some = next(steps)
            while True:
                answer, spent_s = await self._call(works[0], batch, some)
                cpu_s += spent_s
                some = steps.send(await self._closed(works[0], batch, some, answer))
        except StopIteration as stop:
            joint: Joint[Outcome] = stop.value
        for n, item in enumerate(batch.items):
            joint.outcomes[n] = await _children_stored(item.context, joint.outcomes[n])
            await item.context.close()
        return batch.report(joint, env.monotonic() - began, cpu_time())

    async def _call(self, work: Work, batch: Gathered, items: Sequence[Item]) -> tuple[Answer[Outcome], float]:
        """Return what came of one call for some items of a batch, and the CPU time that it took. A stop is for all."""
        inner = contextvars.copy_context()
        inner.run(current.set, items[0].context)
        if self._tracing is not None and work.trace is not None:
            inner.run(self._tracing.enter, work.trace)
        clock = self._clock
        began = clock.monotonic()
        base_ns = clock.begin(began)
        key = (work.id, work.attempt)
        drive: _Drive | None = None
        answer: Answer[Outcome]
        try:
            steps: Any = self._processors[work.task_type].process(items).__await__()  # type: ignore[union-attr]
            waits_for = inner.run(steps.send, None)
            cpu_s = clock.spent(base_ns, clock.monotonic() - began)
            drive = self._running[key] = _Drive(
                self, [item.context for item in batch.items], inner, steps, waits_for, cpu_s, clock
            )
            answer = await drive.through()
        except StopIteration as stop:
            answer = stop.value
        except asyncio.CancelledError as exc:
            if not (drive is not None and drive.stopping) and _is_cancelled_from_outside():
                raise
            answer = TaskCancelled("stopped while it ran") if drive is not None and drive.stopping else exc
        except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its items' outcome, not our end
            answer = exc
        finally:
            self._running.pop(key, None)
            if self.is_copy:
                leave()
        return answer, clock.spent(base_ns, clock.monotonic() - began) if drive is None else drive.cpu_s

    async def _closed(
        self, work: Work, batch: Gathered, items: Sequence[Item], answer: Answer[Outcome]
    ) -> Answer[Outcome]:
        """Return what came of a call once what it has begun is over, too."""
        if isinstance(answer, BaseException) or not any(item.context.is_open for item in items):
            return answer
        key = (work.id, work.attempt)
        self._running[key] = batch
        try:
            answer = [await _children_stored(item.context, one) for item, one in zip(items, answer, strict=True)]
            for item in items:
                await item.context.close()
        finally:
            del self._running[key]
        return answer

    def stop(self, work: Work, *, hard: bool) -> bool:
        running = self._running.get((work.id, work.attempt))
        if running is not None:
            running.cancel()
        return False  # a coroutine may swallow its cancellation

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._metering is not None:
            self._metering.end()
            self._metering = None


async def _wind_up(context: Context, outcome: Outcome, usage: Usage) -> Report:
    """See an attempt to its end after its handler: its children are stored, and what it used is closed."""
    outcome = await _children_stored(context, outcome)
    network = context.network_bytes
    await context.close()
    return report(outcome, Usage(usage.duration, usage.cpu_time, None, network, 1, context.cost))


async def _children_stored(context: Context, outcome: Outcome) -> Outcome:
    """Wait for children that the handler did not wait for, as its result may refer to them."""
    for result in await asyncio.gather(*context.storing, return_exceptions=True) if context.storing else ():
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

    __slots__ = ("_clock", "_inner", "_runner", "_steps", "_throw", "_waits_for", "contexts", "cpu_s", "stopping")

    def __init__(
        self, runner: LoopRunner, contexts: Sequence[Context], inner: contextvars.Context, steps: Any, waits_for: Any,
        cpu_s: float, clock: StepClock,
    ) -> None:  # fmt: skip
        self._runner = runner
        self.contexts = contexts
        self.cpu_s = cpu_s  # of the first step
        self.stopping = False
        self._inner = inner
        self._steps = steps
        self._waits_for = waits_for
        self._clock = clock
        self._throw = False  # at the next step

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits, or at its next step where it does not."""
        for context in self.contexts:
            context.cancel()
        self.stopping = True
        self._throw = self._waits_for is None or not self._waits_for.cancel()

    @types.coroutine
    def through(self) -> Generator[Any, Any, Sequence[Outcome]]:
        run, steps, clock = self._inner.run, self._steps, self._clock
        while True:
            value: Any = None
            error: BaseException | None = None
            try:
                value = yield self._waits_for
            except BaseException as exc:  # noqa: BLE001 - handed on to the coroutine, as Python itself would
                error = exc
            if self._throw:
                self._throw = False
                error = asyncio.CancelledError()
            began = clock.monotonic()
            base_ns = clock.begin(began)
            try:
                self._waits_for = run(steps.send, value) if error is None else run(steps.throw, error)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self.cpu_s += clock.spent(base_ns, clock.monotonic() - began)
                if self._runner.is_copy:
                    leave()
