"""Submissions that share a transaction: all together, or each as far as there is room and its line goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from mainspring.store.base import Accepted, Line, NewTask
from mainspring.store.sql import intake
from mainspring.store.sql.outcomes import Replay
from mainspring.store.sql.transaction import Transaction


class Submission:
    __slots__ = ("error", "future", "line", "result", "tasks")

    def __init__(
        self, tasks: Sequence[NewTask], future: asyncio.Future[list[Accepted]], line: Line | None = None
    ) -> None:
        self.tasks = tasks
        self.future = future
        self.line = line
        self.result: Any = None  # list[Accepted] once it ran
        self.error: BaseException | None = None

    @property
    def leaves_out(self) -> bool:
        """Whether something of it is not stored."""
        return self.error is not None or len(self.result) < len(self.tasks)


def submit_together(tx: Transaction, submissions: Sequence[Submission]) -> None:
    """Store all of them at once. Raises what makes the group run one by one."""
    first, *more = submissions
    tasks = [task for submission in submissions for task in submission.tasks] if more else first.tasks
    room = intake.room_left(tx)
    if room is not None and len(tasks) > room:
        raise Replay
    if any(submission.line is not None and submission.line.is_broken for submission in submissions):
        raise Replay
    accepted = intake.submit(tx, tasks)
    at = 0
    for submission in submissions:
        submission.result = accepted[at : at + len(submission.tasks)] if more else accepted
        at += len(submission.tasks)


def submit_alone(tx: Transaction, submission: Submission) -> list[Accepted]:
    return (intake.submit_again if submission.line is None else intake.submit_first)(tx, submission.tasks)


def break_lines(submissions: Sequence[Submission]) -> None:
    """It is known what becomes of them: where something is left out nothing else of its line enters."""
    for submission in submissions:
        if submission.line is not None and submission.leaves_out:
            submission.line.is_broken = True
