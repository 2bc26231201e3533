"""Whoever sees what handlers do, and says at once what must not be: from the rows as they are at that moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apsw
import msgspec

from mainspring.processors.batch import Batch
from mainspring.processors.context import Context
from mainspring.store.base import BLOB_INPUT, HAS_REFS, SUSPECT, WANTS_KEPT, Claimed
from mainspring.store.sql.transaction import ClassKey, Transaction
from mainspring.tasks import TaskId
from mainspring.testing.events import Ended, Event, Started
from mainspring.testing.history import check_history
from mainspring.testing.simulator.ages import Aged
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.plans import action_of
from mainspring.testing.simulator.rations import Rations
from mainspring.testing.simulator.together import Member, can_spoil_others
from mainspring.testing.violation import Violation

_ROW = """SELECT seq, status, attempt, owner, flags, not_before_ms, deadline_ms, namespace, type, grp
    FROM task JOIN class ON class.id = class WHERE task.id = ?"""
_PARENTS = """SELECT lower(hex(parent.id)), parent.status, policy FROM edge LEFT JOIN task AS parent
    ON parent.seq = edge.parent WHERE edge.child = ? AND (parent.status < 2 OR (parent.status > 2 AND policy <> 1))"""
_READY = """SELECT task.rank, task.seq, lower(hex(task.id)), class, namespace, type, grp
    FROM task JOIN class ON class.id = class
    WHERE reason = 0 AND ready_ms < ? ORDER BY rank, seq"""
CARE = HAS_REFS | BLOB_INPUT | SUSPECT | WANTS_KEPT
"""Flags of claims that slots have to wait for something with, before they run."""
_TICK_MS = 1
"""How far the clocks of two processes differ by rounding."""
LAGS = 4
"""So many times threads may have to be waited for between the check of a claim and its start."""


class Running(msgspec.Struct):
    task: str
    attempt: int
    process: Process
    is_suspect: bool
    is_stubborn: bool  # its slot may be given up while it runs
    work: str | None = None  # what equal tasks have in common that are to run once


class Witness:
    """Keeps the history, and what runs now."""

    def __init__(self, clocks: Callable[[Process], tuple[int, int]], *, has_one_code: bool) -> None:
        self.events: list[Event] = []
        self.violations: list[Violation] = []
        self.lonely_deaths: dict[str, int] = {}  # by task: how often a process died in which it alone ran
        self.rows: apsw.Connection | None = None
        self.pauses: dict[Process, list[ClassKey]] = {}  # that somebody in the process was told are in force
        self._resuming = 0
        self._resumed = 0  # how often somebody was told that pauses are taken back
        self._returned: dict[Process, list[tuple[str, int]]] = {}
        self._had_suspects: set[Process] = set()  # where claims may have waited in their slots
        self.codes: dict[str, set[str]] = {}  # by task: the code of those who submitted or claimed it
        self.spoilt: set[tuple[str, int]] = set()  # attempts whose end may be that of others in their call
        self.rations: Rations | None = None  # in worlds where groups have limits or shares
        self.aged: Aged | None = None  # in worlds that last for hours or days
        self._has_one_code = has_one_code  # else equal work may run once for each
        self._in_calls: dict[Context, Running] = {}
        self._clocks = clocks  # the store's clock of a process, and the one that is furthest
        self._running: list[Running] = []
        self._newest: dict[str, int] = {}

    def see(self, kind: Callable[..., Event], *values: Any) -> None:
        task, *rest = values
        self.events.append(kind(task, len(self.events), *rest))

    def accuse(self, invariant: str, task: str | None, what: str, **figures: Any) -> None:
        self.violations.append(Violation(invariant=invariant, task=task, what=what, figures=figures))

    def began_together(
        self, process: Process, members: Sequence[Member], inputs: list[Any], lane: str, policy: Batch
    ) -> None:
        """A call begins: with attempts that begin in it, or with some of those whose call has raised."""
        if len(members) > policy.max_size or (
            policy.max_cost is not None
            and policy.cost is not None
            and len(members) > 1
            and sum(policy.cost(plan) for _, plan, _ in members) > policy.max_cost
        ):
            self.accuse("bounds", str(members[0].context.id), "is in a call that is too large", n=len(members))
        is_stubborn = any(member.action[0] == "stubborn" for member in members)
        spoils = can_spoil_others(members)
        for context, plan, _ in members:
            known = self._in_calls.get(context)
            if known is None:
                self.began(process, context, plan, inputs, lane)
                known = self._in_calls[context] = self._running[-1]
                known.is_stubborn = is_stubborn
            else:
                self._running.append(known)
            if spoils:
                self.spoilt.add((known.task, known.attempt))

    def began(self, process: Process, ctx: Context, plan: dict[str, Any], inputs: list[Any], lane: str) -> None:
        id = str(ctx.id)
        self.see(Started, id, ctx.attempt)
        seq, status, attempt, owner, flags, not_before, deadline, *key = self._row(ctx)
        if attempt != ctx.attempt or owner is None:
            self.accuse("fencing", id, "began without its claim", began=ctx.attempt, attempt=attempt, status=status)
        if ctx.attempt <= self._newest.get(id, 0):
            self.accuse("fencing", id, "an older attempt began", began=ctx.attempt, newest=self._newest[id])
        self._newest[id] = max(ctx.attempt, self._newest.get(id, 0))
        now, latest = self._clocks(process)
        is_prompt = lane == "async" and not flags & CARE and process not in self._had_suspects
        # A thread, or a look for a blob, makes a start late that was checked before.
        late = 0 if is_prompt else int(process.machine.longest_lag_s * LAGS * 1000)
        if process.is_draining and lane == "async":
            self.accuse("draining", id, "began in a drain", attempt=ctx.attempt)
        if not_before is not None and latest < not_before - _TICK_MS:
            self.accuse("times", id, "began before its time", now=latest, not_before=not_before)
        if deadline is not None and now > deadline + late and not process.has_stood_still:
            self.accuse("times", id, "began after its deadline", now=now, deadline=deadline)
        for parent, parent_status, policy in self.find(_PARENTS, seq):
            self.accuse("dependencies", id, "began before a parent", parent=parent, status=parent_status, policy=policy)
        if is_prompt and not self._resuming and any(_covers(pause, key) for pause in self.pauses.get(process, ())):
            self.accuse("pauses", id, "began although its kind is paused", type=key[1], group=key[2])
        if not _fit(plan.get("wants", []), inputs):
            self.accuse("dependencies", id, "got other results", wants=plan["wants"], inputs=inputs)
        self._note_company(Running(
            id, ctx.attempt, process, bool(flags & SUSPECT), action_of(plan, ctx.attempt)[0] == "stubborn",
            f"{key} {plan} {inputs}" if flags & WANTS_KEPT and self._has_one_code else None,
        ))  # fmt: skip

    def _note_company(self, new: Running) -> None:
        if new.is_suspect:
            self._had_suspects.add(new.process)
        for other in self._running:
            if not other.process.is_alive or other.is_stubborn:
                continue
            if other.task == new.task:
                self.accuse("fencing", new.task, "two attempts run at once", first=other.attempt, second=new.attempt)
            elif other.work is not None and other.work == new.work:
                self.accuse("flights", new.task, "runs beside equal work", other=other.task)
            if other.process is new.process and (other.is_suspect or new.is_suspect):
                self.accuse("blame", new.task, "runs beside a suspect", other=other.task)
        self._running.append(new)

    def has_begun(self, task: str, attempt: int) -> bool:
        return self._newest.get(task) == attempt

    def has_stubborn(self, process: Process) -> bool:
        """Whether a handler runs there that does not stop when it is asked to."""
        return any(one.is_stubborn and one.process is process for one in self._running)

    def has_one_beside_given_up(self, process: Process) -> bool:
        """Whether just one handler runs there beside some whose slots were given up: it would not die alone."""
        here = [one for one in self._running if one.process is process]
        return sum(not one.is_stubborn or self._is_held(one.task, one.attempt) for one in here) == 1 < len(here)

    @contextlib.contextmanager
    def pausing(self, process: Process, pause: ClassKey) -> Iterator[None]:
        """It is in force from the end on; unless it may have been taken back before anybody was told of it."""
        resumed = self._resumed
        yield
        if resumed == self._resumed:
            self.pauses.setdefault(process, []).append(pause)

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Meanwhile nobody can say which pauses are in force; nor ever again, when it dies in between."""
        self._resuming += 1
        yield
        self.pauses.clear()
        self._resumed += 1
        self._resuming -= 1

    def handed_over(self, claims: Sequence[Claimed], code: str) -> None:
        """A process of that code gets claims, be it long after the commit that made them."""
        for claim in claims:
            self.codes.setdefault(str(TaskId(claim.id)), set()).add(code)

    def claimed(self, process: Process, claims: list[Claimed], tx: Transaction) -> None:
        """A commit handed over claims: no better task that was ready before may have been passed over.

        New tasks may have gone by what became ready later in the same transaction.
        """
        lane_of, before = tx.memory.lane_of_type, tx.now_ms - _TICK_MS
        worst: dict[tuple[str, Any, bool], tuple[int, int]] = {}
        rations = self.rations
        if rations is not None:
            rations.look(tx)
        for claim in claims:
            if (lane := lane_of.get(claim.task_type)) is not None:
                name = (lane.name, rations and rations.share_of(claim.class_key), claim.ready_ms >= before)
                worst[name] = max(worst.get(name, (claim.rank, claim.seq)), (claim.rank, claim.seq))
        eased = {tx.class_key(class_id)[2] for class_id in tx.freed}  # perhaps after new tasks went by
        waiting = [row for row in self.find(_READY, before) if self._may_run(row[4:], tx)]
        for rank, seq, id, class_id, *key in waiting:
            share = rations and rations.share_of(key)
            for is_new in (False, True)[: 1 if class_id in tx.ready or key[2] in eased or tx.sets_limits else 2]:
                worse = worst.get((lane_of[key[1]].name, share, is_new), (rank, seq))
                if (rank, seq) < worse:
                    self.accuse("order", id, "was passed over by a worse one", rank=rank, seq=seq, worse=worse)
        if rations is not None:
            rations.claimed(process, claims, tx, waiting)

    def _may_run(self, key: Sequence[str], tx: Transaction) -> bool:
        if tx.memory.lane_of_type.get(key[1]) is None or tx.memory.is_paused((key[0], key[1], key[2])):
            return False
        return self.rations is None or not self.rations.is_full(key, tx.now_ms)

    def accepted(self, ids: set[bytes], limit: int | None) -> None:
        """A submit returned: of the tasks that clients submitted, no more than the limit may be unfinished."""
        if limit is not None:
            unfinished = [row[0] for row in self.find("SELECT id FROM task WHERE status < 2") if row[0] in ids]
            if len(unfinished) > limit:
                self.accuse("bounds", None, "more is unfinished than the queue takes", n=len(unfinished), limit=limit)

    def look(self, slack_ms: int) -> None:
        """The rows must be sound in every state that is committed."""
        assert self.rows is not None
        self.violations += check_history(self.rows, slack_ms=slack_ms)

    def came_back(self, process: Process, ctx: Context) -> None:
        if process.is_alive:
            self.see(Ended, str(ctx.id), ctx.attempt)
            self._returned.setdefault(process, []).append((str(ctx.id), ctx.attempt))
            self._running = [one for one in self._running if (one.task, one.attempt) != (str(ctx.id), ctx.attempt)]

    def died(self, process: Process) -> None:
        """Note who can be blamed: only what ran with nothing beside it, or had come back and was not let go of yet."""
        ran = [one.task for one in self._running if one.process is process]
        if not ran:
            ran = [task for task, attempt in self._returned.get(process, ()) if self._is_held(task, attempt)]
        elif len(ran) > 1:
            ran = []
        for task in ran:
            self.lonely_deaths[task] = self.lonely_deaths.get(task, 0) + 1
        self._running = [one for one in self._running if one.process is not process]

    def _is_held(self, task: str, attempt: int) -> bool:
        held = "SELECT 1 FROM task WHERE id = ? AND attempt = ? AND owner IS NOT NULL"
        return bool(self.find(held, TaskId(task).bytes, attempt))

    def _row(self, ctx: Context) -> Any:
        assert self.rows is not None
        row = self.rows.execute(_ROW, (ctx.id.bytes,)).fetchone()
        return row or (-1, None, None, None, 0, None, None, "", "", "")

    def find(self, sql: str, *values: Any) -> list[Any]:
        assert self.rows is not None
        return self.rows.execute(sql, values).fetchall()


def _covers(pause: ClassKey, key: list[str]) -> bool:
    return all(a in ("", b) for a, b in zip(pause, key, strict=True))


def _fit(wants: list[int], inputs: list[Any]) -> bool:
    """Whether these are the results of the plans of these numbers; one that was allowed to fail has none."""
    return len(wants) == len(inputs) and all(
        value is None or value["n"] == n for n, value in zip(wants, inputs, strict=True)
    )
