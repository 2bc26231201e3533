"""What is asked of a manager: how tasks stand, how they ended, and what they have cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from mainspring.config import seconds
from mainspring.dispatch.course import Course
from mainspring.dispatch.desk import Desk, Stage
from mainspring.dispatch.gathering import Forming, Gathering
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.reservations import Reservations
from mainspring.environment import Environment
from mainspring.errors import StoreUnavailable, TaskError, TaskNotFound, invalid
from mainspring.processors.calls import id_of
from mainspring.processors.context import current, waiting_inside
from mainspring.results.values import Values, completed, is_at_hand
from mainspring.results.waiters import Waiters, Waiting, within
from mainspring.store.base import STANDS_FOR, Ended
from mainspring.store.sql.store import SqlStore
from mainspring.store.standing import Standing
from mainspring.tasks import (
    LEDGER_KEYS,
    ErrorInfo,
    Ledger,
    LedgerKey,
    RunningTask,
    TaskId,
    TaskInfo,
    TaskPriority,
    TaskResult,
    TaskType,
)
from mainspring.tasks.codec import stored_output

_FOUND_WHEN_ASKED = ("paused", "limit", "no_worker", "resources")


class Answers:
    """What of a manager only looks."""

    store: SqlStore
    reservations: Reservations
    values: Values
    waiters: Waiters
    _env: Environment
    _course: Course
    _desks: dict[str, Desk]
    _gatherings: dict[str, Gathering]

    async def get_task(self, task_id: TaskId | str) -> TaskInfo:
        """Return all the store knows about a task. Raises TaskNotFound.

        Where a ready task is kept from running its reason says by what: `paused`, `limit` of its group, `no_worker`
        that serves its type, or `resources` that it lacks. One that this process has claimed and that waits for others
        to join has `batch`.
        """
        return await self.with_reason(await self.store.info(id_of(task_id).bytes))

    async def with_reason(self, info: TaskInfo) -> TaskInfo:
        """Return it with the reason that only a look at everything tells; see `get_task`. Raises TaskNotFound."""
        key = info.task.id.bytes
        if info.reason == "claimed" and self.forming(key) is not None:
            return msgspec.structs.replace(info, reason="batch")
        if info.reason not in ("ready", "claimed"):
            return info
        self.reservations.tell()
        reason = (await self.store.standing(key)).reason
        return msgspec.structs.replace(info, reason=reason) if reason in _FOUND_WHEN_ASKED else info

    def forming(self, key: bytes) -> Forming | None:
        """Return the batch in this process that a task waits in; None: in none."""
        found = (gathering.forming(key) for gathering in self._gatherings.values())
        return next((forming for forming in found if forming is not None), None)

    async def standing(self, key: bytes) -> Standing:
        """Return where a task stands, with what goes before it. Raises TaskNotFound."""
        self.reservations.tell()
        return await self.store.standing(key, in_line=True)

    def stage(self, key: bytes) -> Stage | None:
        """Return how far a claim of this process is; None: it has just come, or its end is on its way to the store."""
        return next((stage for desk in self._desks.values() if (stage := desk.stage(key)) is not None), None)

    async def get_task_result(self, task_id: TaskId | str, timeout: float | str | None = None) -> TaskResult:
        """Wait until the task has ended and return how; a failure is a result, not an exception.

        Where the output stands for other tasks, their values are in it, once they have ended too. Where one of those
        has none, the result of a completed task has that one's error instead of an output.

        Raises: TaskNotFound; TaskTimeout: not ended within `timeout` seconds (the task goes on; 0 looks once);
        InvalidInput: inside a handler, whose slot it would hold.
        """
        if current.get() is not None:
            raise waiting_inside()
        key = id_of(task_id).bytes
        async with within(timeout, key) as until:
            ended = await self.waiters.wait(self.waiters.find(key), until)
            result = await self.store.result(key)
            assert result is not None
            return await self._whole(result, ended, until) if ended.flags & STANDS_FOR else result

    async def _whole(self, result: TaskResult, ended: Ended, until: float | None) -> TaskResult:
        """Return the result with the values of those tasks that its output stands for."""
        try:
            output = await self.values.output(ended, partial(self._value_of, until))
        except (StoreUnavailable, TaskNotFound):
            raise
        except TaskError as exc:
            error = exc.info or ErrorInfo(type=type(exc).__name__, message=str(exc))
            return msgspec.structs.replace(result, output=None, error=error)
        return msgspec.structs.replace(result, output=output)

    async def value(self, waiting: Waiting, timeout: float | str | None = None) -> Any:
        """Wait for a task, and for those that its output stands for, and return the plain value, or raise its error."""
        if timeout is None:
            ended = waiting.ended
            if ended is not None and is_at_hand(ended):  # as most are
                return stored_output(ended.id, ended.output).value  # type: ignore[arg-type]
            return await self._value(waiting, None)
        async with within(timeout, waiting.key) as until:
            return await self._value(waiting, until)

    async def _value(self, waiting: Waiting, until: float | None) -> Any:
        ended = waiting.ended or await self.waiters.wait(waiting, until)
        if is_at_hand(ended):
            return stored_output(ended.id, ended.output).value  # type: ignore[arg-type]
        return (await self.values.output(completed(ended), partial(self._value_of, until))).value

    async def _value_of(self, until: float | None, task_id: TaskId) -> Any:
        return await self._value(self.waiters.find(task_id.bytes), until)

    def running_tasks(self) -> list[RunningTask]:
        """Return what runs in this process now."""
        return [
            RunningTask(
                task_id=TaskId(attempt.claim.id),
                task_type=TaskType(attempt.claim.task_type),
                attempt=attempt.claim.attempt,
                priority=TaskPriority(attempt.claim.priority),
                start_time=datetime.fromtimestamp(self.store.ms_at(attempt.started_at) / 1000, UTC),
                worker_id=self.store.worker_id,
                lane=attempt.desk.lane,
            )
            for attempt in self._course.attempts()
            if attempt.started_at is not None
        ]

    async def stats(self) -> dict[str, Any]:
        """Return counts by status, reason, type and lane."""
        return {**await self.store.stats(), **self.lane_stats()}

    def lane_stats(self) -> dict[str, Any]:
        """Return counts by lane, and of batches by type: what this process knows by itself."""
        lanes = {
            desk.lane: {
                "slots": desk.slots,
                "running": sum(one.begun for one in (desk, *desk.gatherings)),
                "claimed": sum(
                    one.queued + len(one.parked) + len(one.running) - one.begun for one in (desk, *desk.gatherings)
                ),
                "given": sum(one.given for one in (desk, *desk.gatherings)),
            }
            for desk in self._desks.values()
            if isinstance(desk, LaneDesk)
        }
        return {"lanes": lanes, "batches": {kind: gathering.stats() for kind, gathering in self._gatherings.items()}}

    async def ledger(
        self, by: LedgerKey | Sequence[LedgerKey] = (), *, since: datetime | float | str | None = None
    ) -> Ledger:
        """Return what attempts have cost, summed up by type, group and day, whichever of these are named.

        What retention has removed is missing, and `Ledger.pruned` says how much that is. It looks at every attempt, on
        a connection of its own: about a second for a million.

        Args:
            since: attempts that ended before are left out; a time with its zone, or for how long back, as "24h".

        Raises: InvalidInput, StoreUnavailable.
        """
        keys = tuple(by) if isinstance(by, Iterable) and not isinstance(by, str) else (by,)
        for key in keys:
            if key not in LEDGER_KEYS:
                raise invalid("by", key, "is nothing to sum up by", f"use {', '.join(LEDGER_KEYS)}")
        return await self.store.ledger(keys, None if since is None else self._since_ms(since))

    def _since_ms(self, since: datetime | float | str) -> int:
        if not isinstance(since, datetime):
            return self.store.now_ms() - int(seconds(since, "since") * 1000)
        if since.tzinfo is None:
            raise invalid("since", since, "names no zone", "pass an aware datetime, as datetime.now(UTC)")
        since_ms = int(since.timestamp() * 1000)
        if since_ms > self._env.wall_ms():  # of the clock that whoever asks may have read
            raise invalid(
                "since", since, "is still to come", 'pass a time that is over, or for how long back, as "24h"'
            )
        return since_ms
