"""The clock over running attempts: asks those to stop whose time is over, and gives up on those that don't."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from mainspring.dispatch.attempt import Attempt
from mainspring.environment import Environment
from mainspring.execution.base import StopCause

logger = logging.getLogger("mainspring.dispatch")


class Watch:
    """One timer for all attempts of a manager: the running ones are few, so it looks at each when it fires."""

    def __init__(
        self,
        running: Callable[[], Iterable[Attempt]],
        give_up: Callable[[Attempt], None],
        grace_s: float,
        env: Environment,
    ) -> None:
        self._running = running
        self._give_up = give_up
        self._grace_s = grace_s
        self._env = env
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")

    def watch(self, attempt: Attempt) -> None:
        """Call it when an attempt that has a timeout goes to its runner."""
        assert attempt.claim.timeout_ms is not None
        self._arm((attempt.started_at or self._env.monotonic()) + attempt.claim.timeout_ms / 1000)

    def ask(self, attempt: Attempt, cause: StopCause) -> None:
        """Ask an attempt to stop; a child process that ran out of time is killed at once, others get their grace."""
        if attempt.cause is not None or attempt.ended:
            return
        attempt.cause = cause
        attempt.asked_at = self._env.monotonic()
        hard = cause == "timeout" and (attempt.in_child or attempt.desk.lane == "process")
        if not attempt.runner.stop(attempt.claim, hard=hard):
            self._arm(attempt.asked_at + self._grace_s)

    def leave(self, attempt: Attempt) -> None:
        """One of a call has ended. Where all others were asked to stop, so is the call now."""
        if not attempt.runner.leave(attempt.claim):
            self._arm(self._env.monotonic() + self._grace_s)

    def _arm(self, due: float) -> None:
        if due >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, due - self._env.monotonic()) + 0.001, self._look)

    def _look(self) -> None:
        self._timer, self._due = None, float("inf")
        now = self._env.monotonic()
        for attempt in list(self._running()):
            if attempt.ended or attempt.abandoned:  # as of now: with one of a call all of it are given up
                continue
            if attempt.cause is not None:
                self._press(attempt, now)
            elif attempt.claim.timeout_ms is not None:
                due = (attempt.started_at or now) + attempt.claim.timeout_ms / 1000
                if now >= due:
                    self.ask(attempt, "timeout")
                else:
                    self._arm(due)

    def _press(self, attempt: Attempt, now: float) -> None:
        """It was asked and did not stop within its grace."""
        due = attempt.asked_at + self._grace_s
        if now < due:
            self._arm(due)
            return
        if not attempt.runner.stop(attempt.claim, hard=True):
            logger.warning(
                "task %s attempt %d ignores its %s in lane %s; its slot is given up and replaced",
                attempt.claim.task_id,
                attempt.claim.attempt,
                attempt.cause,
                attempt.desk.lane,
                extra=attempt.claim.labels(),
            )
            self._give_up(attempt)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = float("inf")
