"""What a child has to do: attempts in a line, the desk that they lie on, and what its death means for them."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from signal import SIGKILL
from typing import TypeAlias, cast

import msgspec

from mainspring.children.child import Child, Exit
from mainspring.children.tickets import Issuer
from mainspring.environment import Environment
from mainspring.errors import InvalidInput, TaskCancelled, TaskError, TaskTimeout
from mainspring.execution.base import BatchReport, Channel, Report, Work
from mainspring.execution.batches import Joint, halving
from mainspring.execution.child_frames import (
    Finished,
    FinishedBatch,
    Handlers,
    Key,
    Note,
    Run,
    RunBatch,
    Setup,
    ToChild,
    encode,
)
from mainspring.execution.directory import Entry
from mainspring.execution.encoding import failed
from mainspring.execution.places import Place
from mainspring.execution.shortage import KILLED
from mainspring.processors.base import failure
from mainspring.processors.log import logger
from mainspring.tasks import Effect, ErrorInfo, Failed, ItemDone, Started, Usage, codec

Pair: TypeAlias = tuple[Work, Channel]
_STARTED = Started()
ASKED = "asked to stop before it began"


class Call(msgspec.Struct, eq=False):
    """Works that are done together: in one child, and where that dies in halves, one after the other, in others."""

    key: Key  # of its first work: so it is stopped
    rest: Report | None = None  # what those end with that have not begun; None: they may begin
    told: dict[Key, Report] = {}  # how works ended while others went on

    def stop(self) -> None:
        """Have nothing of it begin any more."""
        self.rest = unstarted(ASKED)

    async def run(
        self, works: Sequence[Work], channels: Sequence[Channel], in_child: Callable[..., Awaitable[End]]
    ) -> BatchReport:
        """Bring all to their end, some at a time, by `in_child`: who is guilty of a death dies alone."""
        pairs = list(zip(works, channels, strict=True))

        def done(start: int, reports: Sequence[Report]) -> None:
            for (work, channel), report in zip(pairs[start:], reports, strict=False):
                self.tell(work, channel, report)

        steps = halving(pairs, blameless, lambda: self.rest, done)
        calls, fits = 0, None
        try:
            some = next(steps)
            while True:
                left = [pair for pair in some if _key(pair[0]) not in self.told]
                end = await in_child(*zip(*left, strict=True), call=self) if left else BatchReport([], 0)
                calls += _calls(end)
                if isinstance(end, Died):
                    some = steps.send(end)
                    continue
                if isinstance(end, BatchReport):
                    fits = end.fits or fits
                some = steps.send(self._reports(some, left, end))
        except StopIteration as stop:
            joint: Joint[Report] = stop.value
        return BatchReport([*joint.outcomes], calls, joint.fits or fits)

    def tell(self, work: Work, channel: Channel, report: Report) -> None:
        """Tell a channel how its work ended, while others go on: once, whatever becomes of its child."""
        if _key(work) not in self.told:
            self.told[_key(work)] = report
            channel.send(ItemDone(report))

    def _reports(self, some: Sequence[Pair], left: Sequence[Pair], end: End) -> list[Report]:
        """Return how all of some ended of which those that were left have been in a child."""
        if isinstance(end, BatchReport):
            reports = end.reports
        else:  # it was asked for, or is that of one alone
            told = [self.told[_key(work)].usage for work, _ in left if _key(work) in self.told]
            reports = [_share_of(cast(Report, end), told, len(left))] * len(left)
        ends = {_key(work): report for (work, _), report in zip(left, reports, strict=True)} | self.told
        found = [cast(Report, ends[_key(work)]) for work, _ in some]
        self._hear(found)
        return found

    def _hear(self, reports: Sequence[Report]) -> None:
        """Where one of these is true for all, those end with it that have not begun."""
        for_all = next((report for report in reports if report.for_all), None)
        if for_all is not None and self.rest is None:
            self.rest = msgspec.structs.replace(for_all, usage=Usage())


class Attempt(msgspec.Struct, eq=False):
    """A call of `run`, or one for a batch: what is said of all of that names its first work."""

    works: Sequence[Work]
    channels: Sequence[Channel]
    place: Place
    ended: asyncio.Future[End]
    soon: bool = False  # it may be sent ahead, and be given back
    until_s: float | None = None  # when it is too late to begin
    ticket: int = 0  # leave to begin, in its child
    desk: Desk | None = None  # None while it waits for a child
    asked: bool = False  # to stop
    loading: bool = False  # its handler is being imported
    patience: asyncio.TimerHandle | None = None  # how long that may take
    too_slow: bool = False  # it took longer
    started_s: float | None = None
    oom_kills: int | None = None  # that there had been when it was sent
    killed: bool = False  # by us
    indexes: dict[Key, int] | None = None  # of its works, made when another than the first is named
    call: Call | None = None  # that it is for, or for a half of

    @property
    def key(self) -> Key:
        return (self.works[0].id, self.works[0].attempt)

    @property
    def name(self) -> Key:
        """By this it is stopped."""
        return self.key if self.call is None else self.call.key

    @property
    def frame(self) -> Run | RunBatch:
        bare = [work.bare() for work in self.works]
        if len(bare) == 1:
            return Run(bare[0], self.place, self.ticket, self.until_s)
        return RunBatch(tuple(bare), self.place, self.ticket)

    def begin(self, now_s: float) -> None:
        """The handler's code is about to begin."""
        self.started_s = now_s
        if self.patience is not None:
            self.patience.cancel()
        for channel in self.channels:
            channel.send(_STARTED)

    def hear(self, index: int, frame: Note | Finished) -> None:
        """One of its works has something to say, or has ended while others of them go on."""
        if isinstance(frame, Note):
            self.channels[index].send(frame.signal)
        elif self.call is not None:
            self.call.tell(self.works[index], self.channels[index], cast(Report, end_of(frame)))

    def index_of(self, key: Key) -> int | None:
        """Return which of its works is meant; None: none of them."""
        if key == self.key:
            return 0
        if self.indexes is None:
            self.indexes = {(work.id, work.attempt): n for n, work in enumerate(self.works)}
        return self.indexes.get(key)


class Died(Exception):
    """The child of a batch died, and nobody asked for it."""


class DiedForMemory(Died, MemoryError):
    """By a SIGKILL that is not ours, which is how a kernel ends those for whom no memory is left."""


End: TypeAlias = Report | BatchReport | Died | None
"""None: it was given back."""


class Desk:
    """A child, and what it has to do."""

    __slots__ = (
        "attempts", "child", "cpu_s", "leaves", "oom_kills", "patience", "ready", "resident_bytes", "tasks", "tickets",
        "told",
    )  # fmt: skip

    def __init__(self, oom_kills: int | None = None) -> None:
        self.oom_kills = oom_kills  # that there had been when it was made, or got its last attempt
        self.child: Child | None = None  # None until it is spawned
        self.tickets = Issuer()
        self.ready = False
        self.patience: asyncio.TimerHandle | None = None  # how long it may take to become ready
        self.attempts: deque[Attempt] = deque()  # it runs the first; the others were sent ahead
        self.tasks = 0
        self.told = 0  # of the engine's handlers
        self.leaves = False  # it is not to get any more
        self.resident_bytes = 0  # after the last attempt
        self.cpu_s = 0.0  # used before the attempt it has now

    @property
    def is_killed(self) -> bool:
        """Whether we have killed it, for the attempt that it runs."""
        return bool(self.attempts) and (self.attempts[0].killed or self.attempts[0].too_slow)

    @property
    def oom_kills_before(self) -> int | None:
        """How many there had been before what it does now."""
        return self.attempts[0].oom_kills if self.attempts else self.oom_kills

    def set_up(self, traceback_chars: int, *, is_traced: bool) -> None:
        """Say the first word to a child that was just started."""
        level = logger.getEffectiveLevel()
        self.send(Setup(tuple(sys.argv), traceback_chars, self.tickets.descriptor, level, is_traced))

    def tell(self, entries: Sequence[Entry]) -> None:
        """Have its child know these handlers, as far as it does not yet."""
        if self.told < len(entries):
            self.send(Handlers(tuple(entries[self.told :])))
            self.told = len(entries)

    def send(self, frame: ToChild) -> None:
        if self.child is not None:
            self.child.send(encode(frame))


def death(
    desk: Desk, attempt: Attempt, exit: Exit, limit_s: float, env: Environment, shortage: str | None
) -> Report | Died:
    """Return what the end of its child means for the attempt that it ran; `shortage` where that was one of memory."""
    began = attempt.started_s is not None
    if attempt.too_slow and not attempt.killed:
        return refused(TaskTimeout(f"importing the handler took longer than child_start_timeout_s = {limit_s} s"))
    if attempt.killed:
        message = "its child process was killed on request"
    elif shortage is not None:
        used = "" if exit.peak_bytes is None else f"it used {exit.peak_bytes >> 20} MiB, and "
        message = f"its child process was killed by the system, out of memory: {used}{shortage}"
    else:
        message = f"its child process {exit}" + (
            " while it imported the handler" if attempt.loading and not began else ""
        )
    usage = Usage()
    if attempt.started_s is not None:
        cpu_time = None if exit.cpu_time is None else max(0.0, exit.cpu_time - desk.cpu_s)
        duration = env.monotonic() - attempt.started_s
        usage = Usage(duration, cpu_time, exit.peak_bytes)
    report = Report(
        error=ErrorInfo(
            type="ProcessingFailed" if shortage is None else KILLED, message=message, traceback=exit.output or None
        ),
        usage=usage,
        crashed=not attempt.killed and (began or attempt.loading),
        unstarted=not began and (attempt.killed or not attempt.loading),
        short_of_memory=shortage is not None,
    )
    if len(attempt.works) == 1 or not (report.crashed and began):
        return report
    return DiedForMemory() if exit.signal == SIGKILL else Died()


def refused(exc: TaskError) -> Report:
    return failed(failure(exc), Usage())


def unstarted(message: str) -> Report:
    error = ErrorInfo(type=TaskCancelled.__name__, message=message)
    return msgspec.structs.replace(failed(Failed(error), Usage()), unstarted=True)


def end_of(frame: Finished | FinishedBatch) -> Report | BatchReport:
    """Return how an attempt ended, or those of a batch, each with what is to be written with it."""
    if isinstance(frame, Finished):
        return frame.report if frame.effects is None else _with_effects(frame.report, frame.effects)
    reports = list(frame.reports)
    for n, data in frame.effects.items():
        reports[n] = _with_effects(cast(Report, reports[n]), data)
    return BatchReport(reports, frame.calls, frame.fits)


def _with_effects(report: Report, data: bytes) -> Report:
    try:
        effects: tuple[Effect, ...] = codec.convert(codec.decode(data), tuple[Effect, ...], "effects")
    except InvalidInput as exc:  # the handler submitted what is no task
        return failed(failure(exc), report.usage)
    return msgspec.structs.replace(report, effects=effects)


def _calls(end: End) -> int:
    """Return how many calls of the handler were made in a child; one that died may have made more than was told."""
    if isinstance(end, BatchReport):
        return end.calls
    return 0 if isinstance(end, Report) and end.unstarted else 1


def _key(work: Work) -> Key:
    return work.id, work.attempt


def _share_of(report: Report, told: Sequence[Usage], together: int) -> Report:
    """Return what each of several has of the report of all: an equal part of the CPU time that is not told yet."""
    usage = report.usage
    if usage.cpu_time is None or together == 1:
        return report
    left_s = max(0.0, usage.cpu_time - sum(one.cpu_time or 0.0 for one in told))
    usage = msgspec.structs.replace(usage, cpu_time=left_s / (together - len(told)), batch_size=together)
    return msgspec.structs.replace(report, usage=usage)


def blameless(_: BaseException, together: int) -> Report:
    """Whose fault it was could not be found out: it is charged to nobody."""
    return unstarted(f"its child process died of one of {together} tasks in a batch")
