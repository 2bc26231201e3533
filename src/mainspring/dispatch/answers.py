"""Asking how tasks ended, and what they have cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from mainspring.config import seconds
from mainspring.errors import StoreUnavailable, TaskError, TaskNotFound, invalid
from mainspring.processors.calls import id_of
from mainspring.processors.context import current, waiting_inside
from mainspring.results.values import Values, completed, is_at_hand
from mainspring.results.waiters import Waiters, Waiting, within
from mainspring.store.base import STANDS_FOR, Ended
from mainspring.store.sql.store import SqlStore
from mainspring.tasks import LEDGER_KEYS, ErrorInfo, Ledger, LedgerKey, TaskId, TaskResult
from mainspring.tasks.codec import decode_output


class Answers:
    """What of a manager concerns tasks that have ended."""

    store: SqlStore
    values: Values
    waiters: Waiters

    async def get_task_result(self, task_id: TaskId | str, timeout: float | str | None = None) -> TaskResult:
        """Wait until the task has ended and return how; a failure is a result, not an exception.

        Where the output stands for other tasks, their values are in it, once they have ended too. Where one of those
        has none, the result of a completed task has that one's error instead of an output.

        Raises: TaskNotFound; TaskTimeout: not ended within `timeout` seconds (the task goes on); InvalidInput: inside a
        handler, whose slot it would hold.
        """
        if current.get() is not None:
            raise waiting_inside()
        key = id_of(task_id).bytes
        async with within(timeout, key):
            ended = await self.waiters.wait(self.waiters.find(key))
            result = await self.store.result(key)
            assert result is not None
            return await self._whole(result, ended) if ended.flags & STANDS_FOR else result

    async def _whole(self, result: TaskResult, ended: Ended) -> TaskResult:
        """Return the result with the values of those tasks that its output stands for."""
        try:
            output = await self.values.output(ended, self._value_of)
        except (StoreUnavailable, TaskNotFound):
            raise
        except TaskError as exc:
            error = exc.info or ErrorInfo(type=type(exc).__name__, message=str(exc))
            return msgspec.structs.replace(result, output=None, error=error)
        return msgspec.structs.replace(result, output=output)

    async def value(self, waiting: Waiting, timeout: float | str | None = None) -> Any:
        """Wait for a task, and for those that its output stands for, and return the plain value, or raise its error."""
        if timeout is not None:
            async with within(timeout, waiting.key):
                return await self.value(waiting)
        ended = waiting.ended or await self.waiters.wait(waiting)
        if is_at_hand(ended):
            return decode_output(ended.output).value  # type: ignore[arg-type]
        return (await self.values.output(completed(ended), self._value_of)).value

    async def _value_of(self, task_id: TaskId) -> Any:
        return await self.value(self.waiters.find(task_id.bytes))

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
        keys = (by,) if isinstance(by, str) else tuple(by)
        for key in keys:
            if key not in LEDGER_KEYS:
                raise invalid("by", key, "is nothing to sum up by", f"use {', '.join(LEDGER_KEYS)}")
        return await self.store.ledger(keys, None if since is None else self._since_ms(since))

    def _since_ms(self, since: datetime | float | str) -> int:
        if not isinstance(since, datetime):
            return self.store.now_ms() - int(seconds(since, "since") * 1000)
        if since.tzinfo is None:
            raise invalid("since", since, "names no zone", "pass an aware datetime, as datetime.now(UTC)")
        return int(since.timestamp() * 1000)
