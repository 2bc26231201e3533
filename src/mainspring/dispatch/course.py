"""Claims on their way through slots: from the claim to its recorded outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, cast

from mainspring.dispatch.alone import Alone
from mainspring.dispatch.attempt import Attempt, complete, is_completed, is_out_of_time
from mainspring.dispatch.desk import Desk, is_suspect
from mainspring.dispatch.gathering import Call, Gathering
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.members import Members, left_of
from mainspring.dispatch.preparing import Preparing
from mainspring.dispatch.recording import Recorder
from mainspring.dispatch.reservations import Reservations
from mainspring.dispatch.spans import Spans
from mainspring.dispatch.starts import Starts
from mainspring.dispatch.verdict import is_late
from mainspring.dispatch.watch import Watch
from mainspring.environment import Environment
from mainspring.errors import InternalError, StoreUnavailable
from mainspring.execution.base import AheadRunner, BatchReport, Report, Runner
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.base import failure, text_of
from mainspring.results.cache import ResultCache
from mainspring.results.values import Values
from mainspring.store.base import (
    BLOB_INPUT,
    CANCELLED,
    FAILED,
    HAS_REFS,
    RELEASED,
    RESERVES,
    SHORT,
    SUSPECT,
    WANTS_KEPT,
    Claimed,
    Finish,
    Store,
)
from mainspring.tasks import ErrorInfo, TaskId, Usage
from mainspring.tasks.needs import Need

logger = logging.getLogger("mainspring.dispatch")

_UNMARKED = -1
_NEEDS_CARE = HAS_REFS | BLOB_INPUT | SUSPECT | WANTS_KEPT | RESERVES | SHORT


class Course:
    """What slots do with claims. The desks are the manager's; what runs now is theirs."""

    def __init__(
        self,
        desks: dict[str, Desk],
        store: Store,
        executor: TaskExecutor,
        values: Values,
        cache: ResultCache,
        recorder: Recorder,
        reservations: Reservations,
        alone: Alone,
        grace_s: float,
        env: Environment,
        spans: Spans | None = None,
    ) -> None:
        self.recorder = recorder
        self._spans = spans
        self.reservations = reservations
        self.watch = Watch(self.attempts, self._give_up, grace_s, env)
        self._desks = desks
        self._store = store
        self._executor = executor
        self._values = values
        self._preparing = Preparing(store, values, cache, recorder)
        self._env = env
        self._alone = alone
        self._starts = Starts(self.attempts, store)
        self._recording: set[asyncio.Task[None]] = set()  # of ends of single tasks of calls

    def attempts(self) -> list[Attempt]:
        """Return what runs now."""
        return [attempt for desk in self._desks.values() for attempt in desk.running.values()]

    def hurry(self) -> None:
        """Ask all that runs to stop, to be handed back."""
        for attempt in self.attempts():
            self.watch.ask(attempt, "drain")

    def close(self) -> None:
        self.watch.close()
        self._starts.close()
        for recording in self._recording:
            recording.cancel()

    def serve(self, desk: LaneDesk, claim: Claimed, mark: int, task: asyncio.Task[Any]) -> Awaitable[bool] | None:
        """Run one claim in a slot, from claim to outcome: to its end at once where its handler waits for nothing.

        Returns: None when it is over, else what ends with it; that tells whether the slot is still good.
        """
        if claim.deadline_ms is not None and self._is_too_late(desk, claim):
            return None
        attempt = Attempt(claim, desk, mark, task)
        care = claim.flags & _NEEDS_CARE
        if care == HAS_REFS and (whole := self._values.input_at_hand(claim)) is not None:
            claim.input, claim.parents, care = whole, None, 0
        if care or claim.task_type in self.reservations.types or (claim.spec and not is_completed(claim)):
            return self._serve_with_care(attempt)
        return self._run(attempt, desk.runner())

    def _is_too_late(self, desk: Desk, claim: Claimed) -> bool:
        """Whether the deadline has passed; then the claim is over."""
        now_ms = self._store.now_ms()
        if claim.deadline_ms is None or now_ms <= claim.deadline_ms:
            return False
        desk.freed()  # before the record, whose commit looks for room
        self.recorder.too_late(claim, now_ms)
        return True

    async def _serve_with_care(self, attempt: Attempt) -> bool:
        """The same for a claim that something has to be done for before it runs."""
        desk, claim = attempt.desk, attempt.claim
        need = self.reservations.need(claim, desk.lane)
        if claim.flags & SHORT:
            if (need := await self._raised(attempt, need)) is None:
                return True
        elif need is None:
            return await self._serve_prepared(attempt)
        if not self.reservations.take(desk, [claim], need):
            return True
        attempt.reserves = True
        try:
            return await self._serve_prepared(attempt)
        finally:
            self.reservations.give_back(claim)

    async def _raised(self, attempt: Attempt, need: Need | None) -> Need | None:
        """Return what to reserve after attempts that were short of memory; None: it is not to run now."""
        desk, claim = attempt.desk, attempt.claim
        desk.waits(claim)
        try:
            tries = (await self._store.info(claim.id)).attempts
        except StoreUnavailable:
            self._preparing.put_back(desk, claim)
            return None
        if not desk.begins(claim):
            return None
        need, attempt.is_last = self.reservations.raised(need, tries, desk.lane)
        return need

    async def _serve_prepared(self, attempt: Attempt) -> bool:
        """The same once what it needs is reserved."""
        desk, claim = attempt.desk, attempt.claim
        desk.waits(claim)
        if not await self._preparing.is_to_run(desk, claim):
            return True
        if self._alone.bars(desk):
            self._preparing.put_back(desk, claim)
            return True
        if attempt.is_last:
            async with self._alone.run(attempt, "has run out of memory twice"):
                return await self._run_where_it_may(attempt)
        return await self._run_where_it_may(attempt)

    async def _run_where_it_may(self, attempt: Attempt) -> bool:
        desk = attempt.desk
        if desk.mark is not None and is_suspect(attempt.claim):
            return await self._run_suspect(attempt)
        return await self._ran(attempt, desk.runner())

    def broken(self, desk: Desk, claim: Claimed, exc: Exception) -> None:
        """Something of ours failed around an attempt: record that, so that nobody waits for ever."""
        logger.error(
            "task %s attempt %d broke its slot; please report this", TaskId(claim.id), claim.attempt,
            exc_info=exc, extra=claim.labels(),
        )  # fmt: skip
        desk.withdraw(claim.id)  # where it had not begun
        attempt = desk.running.get(claim.id)
        if desk.over is not claim and not (attempt is not None and attempt.ended):
            desk.freed()
        if attempt is not None and attempt.claim is claim:
            self._let_go(attempt)
            self._end_span(attempt, FAILED)
        error = InternalError(
            f"the engine failed around it with {type(exc).__name__}: {text_of(exc)}; please report this"
        )
        self.recorder.refuse(claim, error, desk.lane)

    async def _run_suspect(self, attempt: Attempt) -> bool:
        """It may have killed its process: run it where it harms nobody, or at least with nobody beside it."""
        if self._executor.can_run_in_child(attempt.claim.task_type):
            attempt.in_child = True
            return await self._ran(attempt, self._executor.child_runner(attempt.claim.task_type))
        if attempt.is_last:  # it has no company already
            return await self._ran(attempt, attempt.desk.runner())
        async with self._alone.run(attempt, "was running when its process died", inside=True):
            return await self._ran(attempt, attempt.desk.runner())

    async def _ran(self, attempt: Attempt, runner: Runner) -> bool:
        """Its turn has come. It had to wait for it: it may have been taken back, or its deadline have passed."""
        desk, claim = attempt.desk, attempt.claim
        if not desk.begins(claim) or self._is_too_late(desk, claim):
            return True
        going = self._run(attempt, runner)
        return going is None or await going

    def _run(self, attempt: Attempt, runner: Runner) -> Awaitable[bool] | None:
        attempt.runner = runner
        if self._spans is not None:
            self._spans.begin(attempt)
        if attempt.desk.ahead and not is_suspect(attempt.claim) and not attempt.reserves:
            going: Report | Awaitable[Report | None] = cast(AheadRunner, runner).run_soon(
                attempt.claim, attempt, attempt.until_s
            )
        else:
            going = runner.run(attempt.claim, attempt)
        if isinstance(going, Report) and not self._is_bulky(going):
            self._over(attempt)
            if attempt.desk.mark is not None:
                attempt.desk.mark(attempt.slot, 0, 0)
            self.recorder.record(attempt, going)
            return None
        self._enter(attempt)
        return self._see_through(attempt, going)

    def _enter(self, attempt: Attempt) -> None:
        """Note that it runs."""
        attempt.desk.running[attempt.claim.id] = attempt
        self._alone.enter(attempt)
        if attempt.claim.timeout_ms is not None:
            self.watch.watch(attempt)
        if not self._starts.looks:
            self._starts.look_soon()

    async def _see_through(self, attempt: Attempt, going: Report | Awaitable[Report | None]) -> bool:
        """Await the end of an attempt that did not end at once, and record it."""
        desk = attempt.desk
        try:
            report = going if isinstance(going, Report) else await going
        except asyncio.CancelledError as exc:
            if attempt.abandoned:
                return False
            if desk.is_ending:
                desk.freed()
                self.recorder.released(attempt, self._so_far(attempt))
                self._let_go(attempt)
                raise
            while attempt.task.uncancel():  # the handler cancelled the asyncio task that it runs in
                pass
            report = Report(error=failure(exc).error)
        if attempt.abandoned:
            self._unmark(attempt)
            return False
        if report is None:
            self._give_back(attempt)
            return True
        self._over(attempt)
        if desk.lane == "process" and report.usage.memory_bytes is not None:
            self.reservations.learn(attempt.claim, report.usage.memory_bytes)
        if attempt.task.cancelling() and not desk.is_ending:
            await desk.absorb(attempt.task)
        await self._record(attempt, report)
        self._let_go(attempt)  # last: a drain waits for it, and what is not recorded by then would be lost
        return True

    async def _record(self, attempt: Attempt, report: Report) -> None:
        if attempt.in_child and report.misses_handler and attempt.cause in (None, "drain"):
            self._keep_here(attempt, report)
        elif self._is_bulky(report):
            await self.recorder.record_whole(attempt, report)
        else:
            self.recorder.record(attempt, report)

    def _keep_here(self, attempt: Attempt, report: Report) -> None:
        """A suspect wanted in a child what only this process has: it runs again, here, with nobody beside it."""
        claim = attempt.claim
        logger.info(
            "task %s attempt %d of %s needs a handler that no child process finds: it runs alone in its own lane",
            claim.task_id, claim.attempt, claim.task_type, extra=claim.labels(),
        )  # fmt: skip
        self._executor.keep_here(claim.task_type)
        self.recorder.released(attempt, report.usage)

    def _give_back(self, attempt: Attempt) -> None:
        """Its runner has not begun with it: whoever comes to it first runs it, or nobody if that was asked for."""
        attempt.ended = True
        attempt.desk.gave_back(attempt.claim)
        outcome = CANCELLED if attempt.cause == "cancel" else RELEASED
        self._end_span(attempt, outcome)
        self._store.finish(Finish(attempt.claim, outcome, self._store.now_ms(), is_counted=False))
        self._let_go(attempt)

    # Batches

    def prepare(self, desk: Gathering, claim: Claimed) -> Awaitable[bool] | None:
        """Put in place what a claim came without: at once, or with what ends with whether it can still join."""
        if claim.flags & _NEEDS_CARE:
            desk.waits(claim)
            return self._prepare(desk, claim)
        complete(claim, claim.input)
        return None

    async def _prepare(self, desk: Gathering, claim: Claimed) -> bool:
        return await self._preparing.is_to_run(desk, claim) and desk.begins(claim)

    async def serve_call(self, desk: Gathering, call: Call, mark: int, task: asyncio.Task[Any]) -> bool:
        """Run claims in one call, from there to their outcomes; returns whether the slot is still good."""
        claims = call.claims
        if is_suspect(claims[0]):
            return await self._serve_with_care(Attempt(claims[0], desk, mark, task))
        claims = [claim for claim in claims if not self._is_too_late(desk, claim)]
        if not claims:
            return True
        need = self.reservations.need_of_call(claims, desk.lane)
        if need is None:
            return await self._run_together(desk, call, claims, task)
        if not self.reservations.take(desk, claims, need):
            return True
        try:
            return await self._run_together(desk, call, claims, task)
        finally:
            self.reservations.give_back(claims[0])

    async def _run_together(self, desk: Gathering, call: Call, claims: list[Claimed], task: asyncio.Task[Any]) -> bool:
        """Run those of a call that are left."""
        members = Members(desk.runner(), claims, self._item_done)
        marks = desk.marks.take(len(claims))
        attempts = [Attempt(claim, desk, mark, task, members) for claim, mark in zip(claims, marks, strict=True)]
        desk.begin(call, len(claims))
        for attempt in attempts:
            attempt.together = attempts
            self._enter(attempt)
        span = None if self._spans is None else self._spans.begin_call(attempts)
        began = self._env.monotonic()
        try:
            done = await self._joint_end(desk, attempts, members)
            if done is None:
                return False
            for attempt in attempts:
                if attempt.report is not None:
                    self._item_done(attempt)
            left = left_of(attempts)
            for attempt in left:
                attempt.ended = True
            desk.end([attempt.claim for attempt in left], done.calls)
            if len(claims) == len(call.claims) and done.is_whole:
                desk.took(call, self._env.monotonic() - began)
            if task.cancelling() and not desk.is_ending:
                await desk.absorb(task)
            await self._record_together(desk, call, attempts, done, left)
            return True
        finally:
            if self._spans is not None and span is not None:
                self._spans.end_call(span, attempts)
            desk.marks.give_back(marks)

    async def _joint_end(self, desk: Gathering, attempts: list[Attempt], members: Members) -> BatchReport | None:
        """Await the end of a call; None where its slot was given up meanwhile."""
        task = attempts[0].task
        try:
            done = await members.run(attempts)
        except asyncio.CancelledError as exc:
            if not attempts[0].abandoned and desk.is_ending:
                left = left_of(attempts)
                desk.end([attempt.claim for attempt in left])
                for attempt in left:
                    attempt.ended = True
                    self.recorder.released(attempt, self._so_far(attempt))
                    self._let_go(attempt)
                raise
            while not attempts[0].abandoned and task.uncancel():  # the handler cancelled the task that it runs in
                pass
            done = BatchReport([Report(error=failure(exc).error)] * len(attempts))
        if not attempts[0].abandoned:
            return done
        for attempt in attempts:
            self._unmark(attempt)
        return None

    def _item_done(self, attempt: Attempt) -> None:
        """Record what one of a call came to in time, while others go on: that is not theirs to wait for, or to lose."""
        report = attempt.report
        if report is None or attempt.ended or attempt.abandoned or is_late(attempt.claim, report):
            return
        if attempt.cause == "timeout":  # this was on its way
            attempt.cause = None
        attempt.ended = True
        self._unmark(attempt)
        attempt.desk.leave([attempt.claim])
        self.watch.leave(attempt)
        task = asyncio.get_running_loop().create_task(self._record_item(attempt, report))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _record_item(self, attempt: Attempt, report: Report) -> None:
        try:
            await self._record_end(attempt, report)
        except Exception as exc:  # noqa: BLE001 - the boundary: a bug may cost a task, never leave it without an end
            self.broken(attempt.desk, attempt.claim, exc)

    async def _record_together(
        self, desk: Gathering, call: Call, attempts: list[Attempt], done: BatchReport, left: list[Attempt]
    ) -> None:
        """Record what those of a call came to whose end was not told before."""
        if done.fits is not None:
            desk.ran_out_of_memory(call, done.fits)
        reports: dict[bytes, Report] = {}
        for attempt, report in zip(attempts, done.reports, strict=True):
            if (end := report or attempt.report) is not None:
                reports[attempt.claim.id] = end
        late: dict[bytes, Claimed] = {}
        if len(attempts) > 1:
            late = {one.claim.id: one.claim for one in left if is_out_of_time(one, reports[one.claim.id])}
        if late:
            desk.ran_out_of_time([*late.values()])
        for attempt in left:
            end = reports[attempt.claim.id]
            if attempt.claim.id in late:
                self.recorder.released(attempt, end.usage)
                self._let_go(attempt)
            else:
                await self._record_end(attempt, end)

    async def _record_end(self, attempt: Attempt, report: Report) -> None:
        attempt.desk.forget(attempt.claim)
        await self._record(attempt, report)
        self._let_go(attempt)

    def _over(self, attempt: Attempt) -> None:
        """Its handler is done; room for another claim comes before the record, whose commit looks for room."""
        attempt.ended = True
        attempt.desk.over = attempt.claim
        attempt.desk.freed()

    def _is_bulky(self, report: Report) -> bool:
        """Whether more than a small value has to be stored with the outcome."""
        output = report.output
        return bool(report.effects or report.refs) or (output is not None and len(output) > self._values.inline_bytes)

    def _let_go(self, attempt: Attempt) -> None:
        running = attempt.desk.running
        if running.get(attempt.claim.id) is attempt:  # not where it was lost, and claimed again meanwhile
            del running[attempt.claim.id]
        if not attempt.abandoned:  # else it still runs, and whoever dies beside it did not run alone
            self._unmark(attempt)
        self._alone.leave(attempt)

    def _end_span(self, attempt: Attempt, outcome: int) -> None:
        if self._spans is not None:
            self._spans.end(attempt, outcome)

    def _unmark(self, attempt: Attempt) -> None:
        if attempt.desk.mark is not None and attempt.slot != _UNMARKED:
            attempt.desk.mark(attempt.slot, 0, 0)
            attempt.slot = _UNMARKED  # from now on that mark may be another's

    def _give_up(self, attempt: Attempt) -> None:
        """Record the end of an attempt whose handler does not come back, and replace its slot."""
        members = left_of(attempt.together) or [attempt]
        for member in attempt.together or members:
            member.abandoned = True
        if attempt.together:
            attempt.desk.end([member.claim for member in members])
        else:
            attempt.desk.freed()
        for member in members:
            self._let_go(member)
        attempt.desk.lose_slot(attempt.task)
        if attempt.desk.lane != "async":  # the slot itself only waits for the thread
            attempt.task.cancel()
        error = ErrorInfo(type="TaskTimeout", message="did not stop when asked")
        for member in members:
            self.recorder.record(member, Report(error=error, retryable=True, usage=self._so_far(member)))

    def _so_far(self, attempt: Attempt) -> Usage:
        """What is known of an attempt that still runs: for how long it does."""
        began, together = attempt.started_at, max(1, len(attempt.together))
        return Usage(0.0 if began is None else self._env.monotonic() - began, batch_size=together)
