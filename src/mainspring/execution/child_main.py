"""The program of a child process: receive work, find its handler, run it, report.

The main thread runs handlers, one at a time; a reader thread hears what the parent says meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import msgspec

from mainspring.children.frames import BlockingPipe
from mainspring.children.measure import Meter, Sample
from mainspring.children.parent import die_before_parent, kill_own_group, take_pipe
from mainspring.children.tickets import Holder
from mainspring.environment import SYSTEM, Original
from mainspring.errors import RetryAfter, TaskCancelled, from_info
from mainspring.execution import places
from mainspring.execution.base import BatchReport, Report
from mainspring.execution.batches import Gathered, in_halves
from mainspring.execution.child_frames import (
    Finished,
    FinishedBatch,
    Handlers,
    Key,
    Loading,
    Note,
    Prepare,
    Ready,
    Run,
    RunBatch,
    Setup,
    Stop,
    Store,
    Stored,
    ToParent,
    decode_to_child,
    encode,
)
from mainspring.execution.directory import Calls, Directory
from mainspring.execution.encoding import failed, report
from mainspring.execution.items import item_of
from mainspring.execution.shortage import with_limit
from mainspring.processors.base import Item, failure
from mainspring.processors.calls import submitter
from mainspring.processors.context import Child, current
from mainspring.processors.custom import HandlerProcessor
from mainspring.processors.log import fields_of, logger
from mainspring.tasks import ItemDone, Log, Outcome, Progress, Signal, Started, Task, TaskId, Usage, codec
from mainspring.tracing import Trace, Tracing

_STARTED = Started()
_PROGRESS_BURST, _PROGRESS_PER_S = 20.0, 100.0  # a million steps must not flood the parent


def main() -> None:
    """Work until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to decide about
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()  # a segfault leaves the Python stack as evidence
    cast(Any, sys.stdout).reconfigure(line_buffering=True)  # what was printed before a crash is seen
    link = Link(BlockingPipe(take_pipe()))
    setup = link.begin()
    sys.argv = list(setup.arguments)
    os.set_inheritable(setup.tickets, False)  # programs that a handler starts hold no leave to work
    link.send(Ready(Meter.cpu_s()))
    die_before_parent()
    desk = Desk(link, Holder(setup.tickets), setup.traceback_chars, is_traced=setup.is_traced)
    logger.addHandler(LogSignals(link))
    logger.setLevel(min(setup.log_level, logging.INFO))  # who lowers it later still gets what is usual
    logger.propagate = False
    desk.serve()


class Link(Original):
    """The pipe, and the thread that reads it. In a copy that a handler forks nothing is sent: there the pipe is the
    original's, and whoever holds its lock is not there.
    """

    def __init__(self, pipe: BlockingPipe) -> None:
        super().__init__()
        self._pipe = pipe
        self._inbox: queue.SimpleQueue[Run | RunBatch | Prepare | None] = queue.SimpleQueue()
        self._running: tuple[Key, Callable[[], None]] | None = None  # what the main thread has, and how to stop it
        self._stopped: set[Key] = set()
        self._answers: dict[int, queue.SimpleQueue[Stored]] = {}
        self._numbers = itertools.count(1)
        self._ended = False
        self._held: Finished | None = None  # the main thread's alone, as all that tells of it
        self.directory = Directory()
        self.busy = False

    def send(self, frame: ToParent) -> None:
        if self.is_copy:
            return
        try:
            self._pipe.send(encode(frame))
        except OSError:  # the parent is gone, or the handler closed our pipe: whatever is computed here is lost
            kill_own_group()

    def started(self, key: Key) -> None:
        """Tell that a handler's code is about to begin, in one frame with the end before it that was held back."""
        if self._held is None:
            self.send(Note(*key, _STARTED))
        else:
            self.release(key)

    def loads(self, key: Key) -> None:
        """Tell that a handler's module is about to be imported."""
        self.release()
        self.send(Loading(*key))

    def release(self, begins: Key | None = None) -> None:
        """Tell the end that was held back, if there is one: before whatever else the main thread has to say."""
        held, self._held = self._held, None
        if held is None:
            return
        held.begins = begins
        try:
            self.send(held)
        except Exception as exc:  # noqa: BLE001 - what can't be sent, as too large a result, becomes a failure
            held.report, held.effects = failed(failure(exc), held.report.usage), None
            self.send(held)

    def begin(self) -> Setup:
        """Return the first frame, and start to hear what follows."""
        frames = self._pipe.receive()
        if frames is None:
            sys.exit(0)  # the parent is gone already
        SYSTEM.start_thread("pipe", self._read, frames[1:])
        return cast(Setup, decode_to_child(frames[0]))

    def next(self) -> Run | RunBatch | Prepare | None:
        """Block until there is something to do; None when there will be nothing any more."""
        self.busy = False
        if self._inbox.empty():
            self.release()
        taken = self._inbox.get()
        self.busy = True
        return None if self._ended else taken

    def _read(self, frames: list[bytes] | None) -> None:
        while frames is not None:
            for frame in frames:
                self._hear(frame)
            frames = self._pipe.receive()
        self._ended = True
        if self.busy:  # nobody wants the result
            kill_own_group()
        self._inbox.put(None)

    def _hear(self, data: bytes) -> None:
        frame = decode_to_child(data)
        if isinstance(frame, Run | RunBatch | Prepare):
            self._inbox.put(frame)
        elif isinstance(frame, Stop):
            self._stopped.add((frame.id, frame.attempt))
            if (running := self._running) is not None:
                self._cancel_if_stopped(*running)
        elif isinstance(frame, Handlers):
            self.directory.learn(frame.entries)
        elif isinstance(frame, Stored):
            self._answers[frame.number].put(frame)

    def _cancel_if_stopped(self, key: Key, cancel: Callable[[], None]) -> None:
        if key in self._stopped:
            cancel()

    def taken_up(self, key: Key, cancel: Callable[[], None]) -> None:
        """From now on the parent's stop reaches this work; one that came before does so now."""
        self._running = (key, cancel)
        self._cancel_if_stopped(key, cancel)

    def finished(self, key: Key, report: Report, sample: Sample | None) -> None:
        """Report an attempt's end.

        It goes with the next one's start, or from `next` where there is none: whoever dies of the next is known by it.
        """
        self._let_go(key)
        self.release()
        self._held = Finished(*key, *_without_effects(report), *_after(sample))

    def finished_batch(self, key: Key, batch: BatchReport, sample: Sample | None) -> None:
        """Report the end of a batch."""
        self._let_go(key)
        self.release()
        bare = [(None, None) if report is None else _without_effects(report) for report in batch.reports]
        effects = {n: data for n, (_, data) in enumerate(bare) if data is not None}
        reports = tuple(report for report, _ in bare)
        self.send(FinishedBatch(*key, reports, effects, batch.calls, batch.fits, *_after(sample)))

    def item_done(self, key: Key, report: Report) -> None:
        """Report the end of one item of a batch, while others go on."""
        self._held = Finished(*key, *_without_effects(report))
        self.release()

    def _let_go(self, key: Key) -> None:
        self._running = None
        self._stopped.discard(key)

    def store_now(self, key: Key, task: Task) -> TaskId:
        """Block until the parent has stored the task, and return its id there. Raises: what storing it raised."""
        number = next(self._numbers)
        answer = self._answers[number] = queue.SimpleQueue()
        self.send(Store(*key, number, codec.encode(task)[0]))
        stored = answer.get()
        del self._answers[number]
        if stored.error is not None:
            raise from_info(stored.error)
        return TaskId(stored.id)


class Signals:
    """An attempt's way to send signals. Fast progress is thinned out to a hundred values a second."""

    def __init__(self, link: Link, key: Key) -> None:
        self._link = link
        self._key = key
        self._credit = _PROGRESS_BURST
        self._last_s = 0.0

    def send(self, signal: Signal) -> None:
        if isinstance(signal, Progress) and not self._has_credit():
            return
        if isinstance(signal, ItemDone):
            self._link.item_done(self._key, signal.report)
        else:
            self._link.send(Note(*self._key, signal))

    def _has_credit(self) -> bool:
        now = SYSTEM.monotonic()
        self._credit = min(_PROGRESS_BURST, self._credit + (now - self._last_s) * _PROGRESS_PER_S)
        self._last_s = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


class LogSignals(logging.Handler):
    """Sends what a handler writes to `ctx.log`, from whatever thread."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = fields_of(record)
            if "task_id" not in fields:
                return
            if self._link.is_copy:
                sys.stderr.write(f"{self._formatter.format(record)}\n")
                return
            exception = record.exc_info and self._formatter.formatException(record.exc_info)
            log = Log(
                record.levelno, record.getMessage(), fields, exception or None,
                record.pathname, record.lineno, record.funcName or "",
            )  # fmt: skip
            self._link.send(Note(TaskId(fields["task_id"]).bytes, fields["attempt"], log))
        except Exception:  # noqa: BLE001 - as every handler of a log does: a broken line costs itself, not its writer
            self.handleError(record)


class Desk:
    """Where the work is done."""

    def __init__(self, link: Link, tickets: Holder, traceback_chars: int, *, is_traced: bool) -> None:
        self._link = link
        self._tickets = tickets
        self._traceback_chars = traceback_chars
        self._is_traced = is_traced
        self._tracing: Tracing | None = None
        self._processors: dict[places.Place, HandlerProcessor] = {}
        self._meter = Meter()

    def serve(self) -> None:
        while (taken := self._link.next()) is not None:
            if isinstance(taken, Prepare):
                self._link.release()  # imports may take long
                self._prepare(taken.places)
            elif not self._tickets.may_begin(taken.ticket):  # it was taken back
                continue
            elif isinstance(taken, RunBatch):
                self._run_batch(taken)
            else:
                self._run(taken)

    def _prepare(self, wanted: Sequence[places.Place]) -> None:
        for place in wanted:
            with contextlib.suppress(BaseException):  # told when a task needs it
                self._processor(place)

    def _processor(self, place: places.Place) -> HandlerProcessor:
        processor = self._processors.get(place)
        if processor is None:
            processor = self._processors[place] = HandlerProcessor(places.load(place), self._traceback_chars)
        return processor

    def _is_other(self, processor: HandlerProcessor, place: places.Place) -> bool:
        """Whether this process has found other code than the one that asks has."""
        return processor.handler.source_hash != place.code

    def _run(self, frame: Run) -> None:
        work = frame.work
        key = (work.id, work.attempt)
        if frame.place not in self._processors:
            self._link.loads(key)
        sample, calls = None, Calls(self._link.directory)
        try:
            processor = self._processor(frame.place)
            item = item_of(work, Signals(self._link, key), self._submitter(key, calls))
        except BaseException as exc:  # noqa: BLE001 - the handler's module may raise anything, as may a broken payload
            result = failed(failure(exc, self._traceback_chars), Usage())
        else:
            self._link.taken_up(key, item.context.cancel)
            if item.context.cancelled or (frame.until_s is not None and SYSTEM.monotonic() > frame.until_s):
                result = _unstarted()
            else:
                result, sample = self._measured(processor, item, work.trace)
            if self._is_other(processor, frame.place):
                result = msgspec.structs.replace(result, other_code=True)
        if result.error is not None and (calls.missed or frame.place not in self._processors):
            result = msgspec.structs.replace(result, misses_handler=True)
        self._link.finished(key, result, sample)

    def _run_batch(self, frame: RunBatch) -> None:
        first = frame.works[0]
        key = (first.id, first.attempt)
        if frame.place not in self._processors:
            self._link.loads(key)
        try:
            processor = self._processor(frame.place)
        except BaseException as exc:  # noqa: BLE001 - the handler's module may raise anything
            refused = failed(failure(exc, self._traceback_chars), Usage())
            self._link.finished_batch(key, BatchReport([refused] * len(frame.works), 0), None)
            return
        channels = [Signals(self._link, (work.id, work.attempt)) for work in frame.works]
        batch = Gathered(frame.works, channels, self._submitter(key, Calls(self._link.directory)))
        self._link.taken_up(key, batch.cancel)
        if batch.is_cancelled:
            self._link.finished_batch(key, BatchReport([_unstarted()] * len(frame.works), 0), None)
            return
        self._link.started(key)
        self._meter.start()
        start = SYSTEM.monotonic()
        is_other = self._is_other(processor, frame.place)

        def done(start_at: int, outcomes: Sequence[Outcome]) -> None:
            if self._link.is_copy:
                os._exit(0)
            batch.tell(start_at, outcomes, SYSTEM.monotonic() - start, *self._meter.so_far(), other_code=is_other)

        with self._traced(first.trace):
            joint = in_halves(batch.items, partial(_outcomes, processor), batch.rest, done)
        duration = SYSTEM.monotonic() - start
        sample = self._meter.stop()
        if self._link.is_copy:  # a fork that the handler let escape: only the original reports
            os._exit(0)
        ended = batch.report(joint, duration, sample.cpu_s, sample.peak_bytes)
        if is_other:
            reports = [report and msgspec.structs.replace(report, other_code=True) for report in ended.reports]
            ended = ended._replace(reports=reports)
        self._link.finished_batch(key, ended, sample)

    def _submitter(self, key: Key, calls: Calls) -> Callable[..., Child]:
        return submitter(self._link, partial(self._link.store_now, key), calls.task_of)

    @contextlib.contextmanager
    def _traced(self, trace: Trace | None) -> Iterator[None]:
        """Let what the handler does belong to the span that the parent has begun for it."""
        if trace is None or not self._is_traced:
            yield
            return
        if self._tracing is None:
            self._tracing = Tracing()
        with self._tracing.within(trace):
            yield

    def _measured(self, processor: HandlerProcessor, item: Item, trace: Trace | None) -> tuple[Report, Sample]:
        context = item.context
        self._link.started((context.id.bytes, context.attempt))
        self._meter.start()
        start = SYSTEM.monotonic()
        for_all = False
        try:
            with self._traced(trace):
                outcome = _outcomes(processor, (item,))[0]
        except BaseException as exc:  # noqa: BLE001 - SystemExit and its like end the attempt, not the child
            outcome = failure(exc, self._traceback_chars)
            for_all = isinstance(exc, RetryAfter)
        duration = SYSTEM.monotonic() - start
        sample = self._meter.stop()
        if self._link.is_copy:  # a fork that the handler let escape: only the original reports
            os._exit(0)
        usage = Usage(duration, sample.cpu_s, sample.peak_bytes, context.network_bytes, 1, context.cost)
        result = with_limit(report(outcome, usage), sample.program_bytes)
        return (msgspec.structs.replace(result, for_all=True) if for_all else result), sample


def _after(sample: Sample | None) -> tuple[float, int | None]:
    """Return the CPU time of this process so far, and its memory now, where work that was measured has just ended."""
    return (Meter.cpu_s(), None) if sample is None else (sample.total_cpu_s, sample.resident_bytes)


def _without_effects(report: Report) -> tuple[Report, bytes | None]:
    """Return a report as it can be sent, and what is to be written with it."""
    if not report.effects:
        return report, None
    try:
        return msgspec.structs.replace(report, effects=()), codec.encode(report.effects)[0]
    except BaseException as exc:  # noqa: BLE001 - values' own methods run when a child task is encoded
        return failed(failure(exc), report.usage), None


def _unstarted() -> Report:
    stopped = failed(failure(TaskCancelled("asked to stop before it began")), Usage())
    return msgspec.structs.replace(stopped, unstarted=True)


def _outcomes(processor: HandlerProcessor, items: Sequence[Item]) -> Sequence[Outcome]:
    token = current.set(items[0].context)
    try:
        if processor.handler.is_async:
            import asyncio

            return asyncio.run(_awaited(processor, items))
        try:
            return cast(Sequence[Outcome], processor.process(items))
        finally:
            for item in items:
                item.context.close_blocking()
    finally:
        current.reset(token)


async def _awaited(processor: HandlerProcessor, items: Sequence[Item]) -> Sequence[Outcome]:
    try:
        outcomes = processor.process(items)
        return outcomes if isinstance(outcomes, Sequence) else await outcomes
    finally:
        for item in items:
            await item.context.close()
