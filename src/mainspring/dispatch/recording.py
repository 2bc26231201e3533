"""Outcomes on their way to the store: what an attempt came to, and what goes down with it in the same commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec

from mainspring.dispatch.attempt import Attempt
from mainspring.dispatch.counting import Counting
from mainspring.dispatch.intake import Intake
from mainspring.dispatch.spans import Spans
from mainspring.dispatch.verdict import is_completed, verdict
from mainspring.environment import Environment
from mainspring.execution.base import Report
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.base import failure
from mainspring.resources import ResourceMonitor, ResourceUsage
from mainspring.results.cache import ResultCache
from mainspring.results.values import Values
from mainspring.store.base import (
    BLOB_OUTPUT,
    COMPLETED,
    FAILED,
    OUTCOMES,
    RELEASED,
    SHORT,
    TIMEOUT,
    Claimed,
    Finish,
    NewTask,
    Store,
)
from mainspring.tasks import ChildTasks, Effect, ErrorInfo, Task, Usage

logger = logging.getLogger("mainspring.dispatch")

_encoder = msgspec.msgpack.Encoder()


class Recorder:
    """Gives outcomes to the store, which writes them with its next commit."""

    def __init__(
        self, store: Store, executor: TaskExecutor, cache: ResultCache, values: Values, intake: Intake,
        env: Environment, spans: Spans | None, monitor: ResourceMonitor,
    ) -> None:  # fmt: skip
        self.counting = Counting()
        self._store = store
        self._executor = executor
        self._cache = cache
        self._changed: set[str] = set()  # types whose files were changed, as was told
        self._values = values
        self._intake = intake
        self._env = env
        self._spans = spans
        self._monitor = monitor

    def too_late(self, claim: Claimed, now_ms: int) -> None:
        """Record that the deadline passed before the start."""
        error = ErrorInfo(type="TaskTimeout", message="deadline passed before start", attempts=claim.tried)
        self._finish(Finish(claim, TIMEOUT, now_ms, error=_encoder.encode(error)))

    def refuse(self, claim: Claimed, exc: BaseException, lane: str) -> None:
        """Record that an attempt could not begin."""
        error = msgspec.structs.replace(failure(exc).error, traceback=None, attempts=claim.tried + 1)
        self._finish(Finish(claim, FAILED, self._store.now_ms(), error=_encoder.encode(error), lane=lane))

    def released(self, attempt: Attempt, usage: Usage) -> None:
        """Record that an attempt is to run again, in another call or process, and what this one cost."""
        started = attempt.started_ms
        lane = "process" if attempt.in_child else attempt.desk.lane
        spec = None if self._spans is None else self._spans.end(attempt, RELEASED)
        self._finish(Finish(attempt.claim, RELEASED, self._store.now_ms(), started, lane=lane, usage=usage, spec=spec))

    def _finish(self, finish: Finish, *, is_pressing: bool = True) -> None:
        self._store.finish(finish, is_pressing=is_pressing)
        self.counting.add(finish)

    def record(
        self, attempt: Attempt, report: Report, *, output: bytes | None = None, flags: int = 0,
        output_bytes: int = 0, blobs: tuple[str, ...] = (), effects: tuple[Effect, ...] = (),
        children: tuple[Any, ...] = (),
    ) -> None:  # fmt: skip
        """Record how an attempt ended; what it brings counts only when it completed."""
        if attempt.is_last and report.short_of_memory:
            report = _in_vain(report, self._monitor.sample())
        claim, usage = attempt.claim, report.usage
        lane = "process" if attempt.in_child else attempt.desk.lane
        started, kind = attempt.started_ms, None
        began = attempt.started_at
        ended = self._store.now_ms() if began is None else self._store.ms_at(began + usage.duration)
        if is_completed(claim, report, attempt.cause):
            if claim.work is not None and (report.other_code or not self._cache.is_same(claim)):
                self._not_kept(claim)
            finish = Finish(claim, COMPLETED, ended, started, output or report.output, lane, usage)
            if report.refs or effects or children or flags:
                finish.refs, finish.effects, finish.children = report.refs, effects, children
                finish.flags, finish.blobs, finish.output_bytes = flags, blobs, output_bytes
        else:
            end = verdict(claim, report, attempt.cause, self._executor.retry_of(claim.task_type), self._env)
            error = None
            if end.error is not None:
                error, kind = _encoder.encode(end.error), end.error.type
            finish = Finish(claim, end.outcome, ended, started, None, lane, usage, error, end.delay_ms)
            if logger.isEnabledFor(logging.INFO):
                _say(claim, OUTCOMES[end.outcome], kind, usage.duration)
            finish.flags = SHORT if report.short_of_memory else 0
        if self._spans is not None:
            finish.spec = self._spans.end(attempt, finish.outcome, kind)
        self._finish(finish, is_pressing=not attempt.desk.is_supplied)

    def _not_kept(self, claim: Claimed) -> None:
        """Give equal work nothing: other code or another model has done it than its name says."""
        claim.work = None
        if claim.task_type not in self._changed:
            self._changed.add(claim.task_type)
            logger.warning(
                "%s was changed in its files since it was loaded here: results of it are not kept; start again to keep "
                "them", claim.task_type,
            )  # fmt: skip

    async def _children(self, attempt: Attempt, tasks: Sequence[Task]) -> tuple[NewTask, ...]:
        with nullcontext() if self._spans is None else self._spans.below(attempt):
            return tuple(await self._intake.new_tasks(tasks))

    async def record_whole(self, attempt: Attempt, report: Report) -> None:
        """Record an outcome that brings more than a small value: children, other effects, large output."""
        effects = tuple(effect for effect in report.effects if not isinstance(effect, ChildTasks))
        tasks = [task for effect in report.effects if isinstance(effect, ChildTasks) for task in effect.tasks]
        if len(effects) < len(report.effects):  # equal work must make its own children, also beside those in the store
            attempt.claim.work = None
        try:
            children = await self._children(attempt, tasks) if tasks else ()
            output, flags = report.output, 0
            size = 0 if output is None else len(output)
            blobs: tuple[str, ...] = ()
            if output is not None and len(output) > self._values.inline_bytes:
                output = await self._values.put(output, "output")
                flags, blobs = BLOB_OUTPUT, (output.decode(),)
        except Exception as exc:  # noqa: BLE001 - what a handler hands over may be refused; that is its attempt's failure
            failed = failure(exc)
            self.record(attempt, Report(error=failed.error, retryable=failed.retryable, usage=report.usage))
            return
        self.record(
            attempt,
            report,
            output=output,
            flags=flags,
            output_bytes=size,
            blobs=blobs,
            effects=effects,
            children=children,
        )


def _say(claim: Claimed, outcome: str, error: str | None, duration: float) -> None:
    """Log an attempt that did not complete. An error is told by its type: messages may hold what was worked on."""
    logger.info(
        "task %s attempt %d of %s: %s%s", claim.task_id, claim.attempt, claim.task_type, outcome,
        "" if error is None else f" ({error})",
        extra={**claim.labels(), "outcome": outcome, "error_type": error, "duration_s": round(duration, 6)},
    )  # fmt: skip


def _in_vain(report: Report, usage: ResourceUsage) -> Report:
    """More memory than it had there is none: it is not tried again."""
    assert report.error is not None
    others = max(0, usage.memory_bytes - usage.own_memory_bytes) >> 20
    message = (
        f"{report.error.message}; nothing ran beside it on its worker, and others used {others} MiB: it needs a "
        "machine with more memory, or with less in use by others, or a smaller input"
    )
    error = msgspec.structs.replace(report.error, message=message)
    return msgspec.structs.replace(report, error=error, crashed=False, retryable=False)
