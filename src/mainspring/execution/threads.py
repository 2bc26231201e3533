"""The thread lane: plain functions beside the loop. A thread can be asked to stop, never made to."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mainspring.environment import Environment, Original
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.batches import Gathered, in_halves
from mainspring.execution.copies import leave
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.processors.base import Item, Processor, failure
from mainspring.processors.context import Child, current
from mainspring.tasks import Outcome, Started, Usage
from mainspring.tracing import Tracing

T = TypeVar("T")
_STARTED = Started()
_Key = tuple[bytes, int]
_Job = tuple[_Key, Callable[[], Any], "asyncio.Future[Any]"]


class ThreadRunner(Original):
    """As many threads as are needed at once, up to one for each slot; one that is given up is replaced."""

    def __init__(
        self,
        processors: Mapping[str, Processor],
        load: Callable[[str], None],
        submit: Callable[..., Child] | None,
        env: Environment,
        slots: int,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__()
        self._processors = processors
        self._load = load
        self._submit = submit
        self._env = env
        self._slots = slots
        self._tracing = tracing
        self._inbox: deque[_Job | None] = deque()
        self._signal = env.turns()
        self._threads = 0
        self._taken = 0  # attempts or calls that a thread has or is to have, lost ones too
        self._lost: set[_Key] = set()  # attempts whose threads were given up
        self._running: dict[_Key, Callable[[], None]] = {}  # how to ask it; what was given up may outlive the next one

    def run(self, work: Work, channel: Channel) -> Awaitable[Report]:
        return self._in_thread(work, partial(self._run, work, channel))

    def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> Awaitable[BatchReport]:
        return self._in_thread(works[0], partial(self._run_batch, works, channels))

    def _in_thread(self, work: Work, run: Callable[[], T]) -> Awaitable[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._taken += 1
        if self._threads < min(self._taken, self._slots + len(self._lost)):
            self._threads += 1
            self._env.start_strand(f"mainspring-thread-{self._threads}", self._work(loop), self._signal)
        self._inbox.append(((work.id, work.attempt), run, future))
        self._signal.raise_()
        return future

    def stop(self, work: Work, *, hard: bool) -> bool:
        """Set the flag that a fair handler looks at. With `hard` the thread is given up and another takes its place."""
        cancel = self._running.get((work.id, work.attempt))
        if cancel is not None:
            cancel()
            if hard:
                self._lost.add((work.id, work.attempt))
        return False

    async def close(self) -> None:
        for _ in range(self._threads):
            self._inbox.append(None)
            self._signal.raise_()

    def _work(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        while True:
            yield
            job = self._inbox.popleft()
            if job is None:
                return
            key, run, future = job
            result = None if future.cancelled() else run()  # it may have been given up before it began
            if key in self._lost:  # it came back, but another thread has its place
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now: nobody counts any more
                    loop.call_soon_threadsafe(self._gone, key)
                return
            try:
                loop.call_soon_threadsafe(self._answer, future, result)
            except RuntimeError:  # the loop was closed while a lost thread was still at it: nobody waits any more
                return

    def _answer(self, future: asyncio.Future[T], result: T) -> None:
        self._taken -= 1
        if not future.done():
            future.set_result(result)

    def _gone(self, key: _Key) -> None:
        self._lost.discard(key)
        self._threads -= 1
        self._taken -= 1

    def _run(self, work: Work, channel: Channel) -> Report:
        env = self._env
        try:
            item = item_of(work, channel, self._submit)
        except Exception as exc:  # noqa: BLE001 - a stored payload that does not decode is that attempt's failure
            return failed(failure(exc), Usage())
        key = (work.id, work.attempt)
        self._running[key] = item.context.cancel
        channel.send(_STARTED)
        began, cpu = env.monotonic(), env.thread_cpu_ns()
        try:
            outcome = contextvars.copy_context().run(self._process, work, item)
        except BaseException as exc:  # noqa: BLE001 - whatever a handler raises is its attempt's outcome, not our end
            outcome = failure(exc)
        finally:
            if self.is_copy:
                leave()
            del self._running[key]
        context = item.context
        context.close_blocking()
        cpu_time = (env.thread_cpu_ns() - cpu) / 1e9
        usage = Usage(env.monotonic() - began, cpu_time, None, context.network_bytes, 1, context.cost)
        return report(outcome, usage)

    def _process(self, work: Work, item: Item) -> Outcome:
        return self._processed(work, (item,))[0]

    def _run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> BatchReport:
        env = self._env
        batch = Gathered(works, channels, self._submit)
        key = (works[0].id, works[0].attempt)
        self._running[key] = batch.cancel
        for channel in channels:
            channel.send(_STARTED)
        began, cpu = env.monotonic(), env.thread_cpu_ns()
        processed = partial(self._processed, works[0])

        def done(start: int, outcomes: Sequence[Outcome]) -> None:
            if self.is_copy:
                leave()
            for item in batch.items[start : start + len(outcomes)]:
                item.context.close_blocking()
            batch.tell(start, outcomes, env.monotonic() - began, (env.thread_cpu_ns() - cpu) / 1e9)

        try:
            joint = contextvars.copy_context().run(in_halves, batch.items, processed, batch.rest, done)
        finally:
            if self.is_copy:
                leave()
            del self._running[key]
        for item in batch.items:
            item.context.close_blocking()
        return batch.report(joint, env.monotonic() - began, (env.thread_cpu_ns() - cpu) / 1e9)

    def _processed(self, work: Work, items: Sequence[Item]) -> Sequence[Outcome]:
        current.set(items[0].context)
        if self._tracing is not None and work.trace is not None:
            self._tracing.enter(work.trace)
        self._load(work.task_type)
        return self._processors[work.task_type].process(items)  # type: ignore[return-value]  # a plain function, in here
