"""The lanes of a simulated process: they run handlers, or fail their attempts as a test has asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, TypeVar

import msgspec

from mainspring.errors import TaskCancelled, UnsupportedTaskType, invalid
from mainspring.execution.base import BatchReport, Channel, Report, Runner, Work
from mainspring.execution.encoding import report
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.base import failure
from mainspring.tasks import ErrorInfo, Started, Usage

R = TypeVar("R")
_STARTED = Started()
_KILLED = "its child process was killed by the test"


class Crash(BaseException):
    """Stands for the death of the process that runs an attempt: of its child in the process lane, else of the worker.

    For `fail_next`; a worker that died is followed by another one at once.
    """


class Plan(msgspec.Struct):
    """So many of the next attempts of a type fail like this."""

    task_type: str
    error: Exception | Crash | type[Exception | Crash]
    left: int

    def __str__(self) -> str:
        error = self.error.__name__ if isinstance(self.error, type) else repr(self.error)
        return f"fail_next({self.task_type.removeprefix('custom:')}, {error}): {self.left} attempts did not come"


class Plans:
    """What is to fail, by type, in the order in which it was asked for."""

    def __init__(self) -> None:
        self._plans: dict[str, deque[Plan]] = {}

    def add(self, plan: Plan) -> None:
        kind = plan.error if isinstance(plan.error, type) else type(plan.error)
        if not issubclass(kind, Exception | Crash):  # what else there is stops the process, and is no handler's
            raise invalid("error", plan.error, "is no exception", "give one, such as ConnectionError('down') or Crash")
        if type(plan.left) is not int or plan.left < 1:
            raise invalid("times", plan.left, "is no number of attempts", "use 1 or more")
        self._plans.setdefault(plan.task_type, deque()).append(plan)

    def take(self, task_type: str) -> Exception | Crash | None:
        """Return how this attempt fails, if it does."""
        plans = self._plans.get(task_type)
        if not plans:
            return None
        plan = plans[0]
        plan.left -= 1
        if not plan.left:
            plans.popleft()
        return plan.error() if isinstance(plan.error, type) else plan.error

    def unused(self) -> list[str]:
        return [str(plan) for plans in self._plans.values() for plan in plans]


class PlayedLane:
    """A runner whose next attempts may fail."""

    def __init__(
        self,
        inner: Runner,
        plans: Plans,
        crash: Callable[[], Report | None],
        give_up: Callable[[tuple[bytes, int]], None],
    ) -> None:
        self._inner = inner
        self._plans = plans
        self._crash = crash  # None: the process dies, and nobody will be told
        self._give_up = give_up  # told which attempt may go on, unheard
        self._calls: dict[tuple[bytes, int], Sequence[Work]] = {}  # what runs of one, by its first, which may not

    def run(self, work: Work, channel: Channel) -> Report | Awaitable[Report]:
        error = self._plans.take(work.task_type)
        if error is None:
            return self._inner.run(work, channel)
        channel.send(_STARTED)
        if isinstance(error, Crash):
            return self._crash() or asyncio.get_running_loop().create_future()
        return report(failure(error), Usage())

    def run_soon(self, work: Work, channel: Channel, until_s: float | None) -> Report | Awaitable[Report | None]:
        """It begins at once here, as nothing waits for a process."""
        return self.run(work, channel)

    async def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> BatchReport:
        errors = [self._plans.take(work.task_type) for work in works]
        for error, channel in zip(errors, channels, strict=True):
            if error is not None:
                channel.send(_STARTED)
        if any(isinstance(error, Crash) for error in errors):
            return BatchReport([self._crash() or await asyncio.get_running_loop().create_future()] * len(works))
        left = [n for n, error in enumerate(errors) if error is None]
        done = BatchReport([], 0)
        if left:
            name = (works[0].id, works[0].attempt)
            running = self._calls[name] = [works[n] for n in left]
            try:
                done = await self._inner.run_batch(running, [channels[n] for n in left])
            finally:
                del self._calls[name]
        ended = iter(done.reports)
        reports = [next(ended) if error is None else report(failure(error), Usage()) for error in errors]
        return done._replace(reports=reports)

    def stop(self, work: Work, *, hard: bool) -> bool:
        running = self._calls.get((work.id, work.attempt), (work,))
        if hard:
            for one in running:
                self._give_up((one.id, one.attempt))
        return self._inner.stop(running[0], hard=hard)

    def add(self, handler: Any) -> None:
        """In a child process it would be known now."""

    def serve(self, handler: Any) -> None:
        """In a child process it would be imported now."""

    def children(self) -> dict[int, tuple[bytes, int] | None]:
        """There are none."""
        return {}

    def relieve(self) -> None:
        """Nobody rests with memory."""

    async def close(self) -> None:
        await self._inner.close()


class InlineChildren:
    """Stands for child processes: handlers run on the loop or in a thread of the simulated process itself."""

    def __init__(self, executor: TaskExecutor, on_loop: Runner, in_thread: Runner) -> None:
        self._handlers = executor.handlers
        self._on_loop = on_loop
        self._in_thread = in_thread
        self._killed: dict[tuple[bytes, int], asyncio.Future[None]] = {}

    async def run(self, work: Work, channel: Channel) -> Report:
        going = self._runner(work).run(work, channel)
        return going if isinstance(going, Report) else await self._unless_killed(work, going)

    async def run_batch(self, works: Sequence[Work], channels: Sequence[Channel]) -> BatchReport:
        done = await self._unless_killed(works[0], self._runner(works[0]).run_batch(works, channels))
        return BatchReport([done] * len(works)) if isinstance(done, Report) else done

    async def _unless_killed(self, work: Work, going: Awaitable[R]) -> R | Report:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ended = asyncio.ensure_future(going)
        killed = self._killed[work.id, work.attempt] = loop.create_future()
        try:
            await asyncio.wait({ended, killed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._killed[work.id, work.attempt]
        if ended.done():
            return ended.result()
        ended.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody hears of it any more
        error = ErrorInfo(type=TaskCancelled.__name__, message="its child process was killed on request")
        return Report(error=error, usage=Usage(loop.time() - began))

    def stop(self, work: Work, *, hard: bool) -> bool:
        self._runner(work).stop(work, hard=hard)
        killed = self._killed.get((work.id, work.attempt))
        if hard and killed is not None and not killed.done():
            killed.set_result(None)
        return hard

    def _runner(self, work: Work) -> Runner:
        return self._on_loop if self._handlers[work.task_type].is_async else self._in_thread

    async def close(self) -> None:
        await self._on_loop.close()
        await self._in_thread.close()


def play_lanes(
    executor: TaskExecutor,
    plans: Plans,
    die: Callable[[], None],
    give_up: Callable[[tuple[bytes, int]], None],
) -> None:
    """Put played lanes in the place of an executor's own, before it has made any."""
    make = executor._make_runner

    def worker_dies() -> None:  # in a moment: the attempt has begun, and is on record as one that ran
        asyncio.get_running_loop().call_soon(die, context=Context())

    def child_dies() -> Report:
        return Report(error=ErrorInfo(type="ProcessingFailed", message=_KILLED), crashed=True)

    children = InlineChildren(executor, make("async"), make("thread"))
    executor._runners = {
        "async": PlayedLane(make("async"), plans, worker_dies, give_up),
        "thread": PlayedLane(make("thread"), plans, worker_dies, give_up),
        "process": PlayedLane(children, plans, child_dies, give_up),
    }


def type_of(handler: Any, executor: TaskExecutor) -> str:
    """Return the task type that a handler, its name or a type's name stands for. Raises UnsupportedTaskType."""
    declared = getattr(handler, "__mainspring__", None)
    names = [declared.task_type] if declared is not None else [str(handler), f"custom:{handler}"]
    for name in names:
        if name in executor.types:
            return str(name)
    known = ", ".join(sorted(name.removeprefix("custom:") for name in executor.types))
    raise UnsupportedTaskType(f"{handler!r} is no handler of this engine; it has {known}")
