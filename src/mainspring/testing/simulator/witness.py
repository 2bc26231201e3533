"""Whoever sees what handlers do, and says at once what must not be: from the rows as they are at that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw
import msgspec

from mainspring.processors.context import Context
from mainspring.store.base import SUSPECT
from mainspring.testing.events import Ended, Event, Started
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.plans import action_of
from mainspring.testing.violation import Violation

_ROW = "SELECT seq, status, attempt, owner, flags, not_before_ms, deadline_ms FROM task WHERE id = ?"
_PARENTS = """SELECT lower(hex(parent.id)), parent.status, policy FROM edge LEFT JOIN task AS parent
    ON parent.seq = edge.parent WHERE edge.child = ? AND (parent.status < 2 OR (parent.status > 2 AND policy <> 1))"""
_TICK_MS = 1
"""How far the clocks of two processes differ by rounding."""
_THREAD_MS = 150
"""How late a thread, or a look for a blob, may make a start that was checked before."""


class Running(msgspec.Struct):
    task: str
    attempt: int
    process: Process
    is_suspect: bool
    is_stubborn: bool  # its slot may be given up while it runs
    had_company: bool = False


class Witness:
    """Keeps the history, and what runs now."""

    def __init__(self, clocks: Callable[[Process], tuple[int, int]]) -> None:
        self.events: list[Event] = []
        self.violations: list[Violation] = []
        self.lonely_deaths: dict[str, int] = {}  # by task: how often a process died in which it alone ran
        self.rows: apsw.Connection | None = None
        self._clocks = clocks  # the store's clock of a process, and the one that is furthest
        self._running: list[Running] = []
        self._newest: dict[str, int] = {}

    def see(self, kind: Callable[..., Event], *values: Any) -> None:
        task, *rest = values
        self.events.append(kind(task, len(self.events), *rest))

    def accuse(self, invariant: str, task: str | None, what: str, **figures: Any) -> None:
        self.violations.append(Violation(invariant=invariant, task=task, what=what, figures=figures))

    def began(self, process: Process, ctx: Context, plan: dict[str, Any], inputs: list[Any], lane: str) -> None:
        id = str(ctx.id)
        self.see(Started, id, ctx.attempt)
        seq, status, attempt, owner, flags, not_before, deadline = self._row(ctx)
        if attempt != ctx.attempt or owner is None:
            self.accuse("fencing", id, "began without its claim", began=ctx.attempt, attempt=attempt, status=status)
        if ctx.attempt <= self._newest.get(id, 0):
            self.accuse("fencing", id, "an older attempt began", began=ctx.attempt, newest=self._newest[id])
        self._newest[id] = max(ctx.attempt, self._newest.get(id, 0))
        now, latest = self._clocks(process)
        late = 0 if lane == "async" and not flags & 20 else _THREAD_MS
        if not_before is not None and latest < not_before - _TICK_MS:
            self.accuse("times", id, "began before its time", now=latest, not_before=not_before)
        if deadline is not None and now > deadline + late and process.stalled_until == 0.0:
            self.accuse("times", id, "began after its deadline", now=now, deadline=deadline)
        for parent, parent_status, policy in self._rows(_PARENTS, seq):
            self.accuse("dependencies", id, "began before a parent", parent=parent, status=parent_status, policy=policy)
        if not _fit(plan.get("wants", []), inputs):
            self.accuse("dependencies", id, "got other results", wants=plan["wants"], inputs=inputs)
        self._note_company(Running(
            id, ctx.attempt, process, bool(flags & SUSPECT), action_of(plan, ctx.attempt)[0] == "stubborn"
        ))  # fmt: skip

    def _note_company(self, new: Running) -> None:
        for other in self._running:
            if not other.process.is_alive or other.is_stubborn:
                continue
            if other.task == new.task:
                self.accuse("fencing", new.task, "two attempts run at once", first=other.attempt, second=new.attempt)
            if other.process is new.process and (other.is_suspect or new.is_suspect):
                self.accuse("blame", new.task, "runs beside a suspect", other=other.task)
        self._running.append(new)

    def came_back(self, process: Process, ctx: Context) -> None:
        if process.is_alive:
            self.see(Ended, str(ctx.id), ctx.attempt)
            self._running = [one for one in self._running if (one.task, one.attempt) != (str(ctx.id), ctx.attempt)]

    def died(self, process: Process) -> None:
        """Note who can be blamed: only what ran with nothing beside it."""
        ran = [one for one in self._running if one.process is process]
        if len(ran) <= 1:
            self.lonely_deaths[""] = self.lonely_deaths.get("", 0) + 1
        for one in ran if len(ran) == 1 else ():
            self.lonely_deaths[one.task] = self.lonely_deaths.get(one.task, 0) + 1
        self._running = [one for one in self._running if one.process is not process]

    def _row(self, ctx: Context) -> Any:
        assert self.rows is not None
        row = self.rows.execute(_ROW, (ctx.id.bytes,)).fetchone()
        return row or (-1, None, None, None, 0, None, None)

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        assert self.rows is not None
        return self.rows.execute(sql, values).fetchall()


def _fit(wants: list[int], inputs: list[Any]) -> bool:
    """Whether these are the results of the plans of these numbers; one that was allowed to fail has none."""
    return len(wants) == len(inputs) and all(
        value is None or value["n"] == n for n, value in zip(wants, inputs, strict=True)
    )
