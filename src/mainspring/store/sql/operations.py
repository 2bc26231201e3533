"""What is asked of a store's writer, and what goes into one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from mainspring.store.base import Claimed, Finish
from mainspring.store.sql.queueing import Submission
from mainspring.store.sql.transaction import Transaction


class Command:
    """Anything else that has to be written: a function of the transaction.

    A light one writes only what belongs to this process, and needs no other to wait.
    """

    __slots__ = ("error", "future", "is_light", "result", "run")

    def __init__(
        self, run: Callable[[Transaction], Any], future: asyncio.Future[Any], *, is_light: bool = False
    ) -> None:
        self.run = run
        self.future = future
        self.is_light = is_light
        self.result: Any = None
        self.error: BaseException | None = None


class Started:
    __slots__ = ("claim", "started_ms")

    def __init__(self, claim: Claimed, started_ms: int) -> None:
        self.claim = claim
        self.started_ms = started_ms


Operation = Submission | Command | Finish | Started


class Group:
    """The operations of one commit, by kind. Ends come first, so that the room they make is there for what follows."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.finishes: list[Finish] = []
        self.submissions: list[Submission] = []
        self.commands: list[Command] = []
        self.starts: list[tuple[Claimed, int]] = []
        self.add(operations)

    def add(self, operations: Sequence[Operation]) -> None:
        """Take in more, which came after the others."""
        self.finishes += [op for op in operations if type(op) is Finish]
        self.submissions += [op for op in operations if type(op) is Submission]
        self.commands += [op for op in operations if type(op) is Command]
        self.starts += [(op.claim, op.started_ms) for op in operations if type(op) is Started]
        if self.starts and self.finishes:
            over = {id(finish.claim) for finish in self.finishes}
            self.starts = [start for start in self.starts if id(start[0]) not in over]

    @property
    def calls(self) -> list[Submission | Command]:
        return [*self.submissions, *self.commands]
