"""The one writing thread: whatever came in since the last commit goes into the next one."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from mainspring.environment import Environment
from mainspring.errors import InternalError, StoreUnavailable, SubmitIndeterminate, TaskError
from mainspring.store.base import CANCEL_ASKED, FAILED, RELEASED, Behind, Claimed, Finish, Line
from mainspring.store.sql import claims, graph, outcomes, queueing, upkeep
from mainspring.store.sql.operations import Command, Group, Operation, Started
from mainspring.store.sql.outage import OutageLog
from mainspring.store.sql.queueing import Submission
from mainspring.store.sql.transaction import Crowded, Memory, Transaction
from mainspring.tasks import ErrorInfo, TaskId
from mainspring.tasks.codec import encode

logger = logging.getLogger("mainspring.store")
_PART = "writing"


Report = Callable[[Transaction, Group, int | None], None]
"""Told after each commit: what happened, for whom, and when the next delay or deadline falls due."""


class Writer(ABC):
    """Runs operations in transactions. `put` may be called from the loop at any time; answers come through `report`.

    A store brings the connection, and what begins and ends a transaction on it.
    """

    OUTAGES: ClassVar[tuple[type[BaseException], ...]]
    """What the driver raises when the store can't be written now."""
    CONFLICTS: ClassVar[tuple[type[BaseException], ...]]
    """What it raises when the rows refuse a write."""
    DOUBTS: ClassVar[tuple[type[BaseException], ...]]
    """What a commit raises that may have gone through."""
    REFUSALS: ClassVar[tuple[type[BaseException], ...]] = ()
    """What it raises of these when it surely has not."""

    def __init__(
        self,
        memory: Memory,
        now_ms: Callable[[], int],
        env: Environment,
        batch: int,
        report: Report,
        retry_later: Callable[[int], None],
        outage: OutageLog,
    ) -> None:
        self._memory = memory
        self._now_ms = now_ms
        self._batch = batch
        self._report = report
        self._retry_later = retry_later
        self._outage_log = outage
        self._inbox: deque[Operation] = deque()
        self.signal = env.signal()
        self._monotonic = env.monotonic
        self._stopping = False
        self._leaving = False
        self._more = (
            False  # the last commit handed over as much as one may, or left something to go on with: there can be more
        )
        self._is_travelling = False
        self._is_astray = True  # what memory says of ready classes may be wrong
        self._next_event: int | None = None
        self._outages = 0  # in a row
        self._doubtful: list[Claimed] = []  # handed over by a commit whose fate could not be told yet

    # What a store brings

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether there is a connection that is taken for good."""

    @abstractmethod
    def open(self) -> None:
        """Connect. Raises a TaskError, or one of OUTAGES."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _begin(self, group: Group) -> Transaction: ...

    @abstractmethod
    def _nothing(self) -> Transaction:
        """Return a transaction in which nothing happens."""

    @abstractmethod
    def _commit(self, tx: Transaction) -> None:
        """Raises one of DOUBTS when nobody knows whether it is committed."""

    @abstractmethod
    def _roll_back(self) -> None: ...

    @abstractmethod
    def _mark(self) -> None:
        """Begin a part of the transaction that can be undone alone."""

    @abstractmethod
    def _undo(self) -> None:
        """Undo all since the mark, which stays."""

    @abstractmethod
    def _unmark(self) -> None: ...

    @abstractmethod
    def _catch_up(self, tx: Transaction, is_astray: bool) -> None:
        """What others committed and what time brought comes first, so that nothing new is handed over before it."""

    @abstractmethod
    def _tell(self, tx: Transaction) -> None:
        """Leave word for other processes of what became ready."""

    @abstractmethod
    def _settle(self, tx: Transaction, group: Group) -> bool | None:
        """Look for a commit that failed, and make what is found last; None where that can't be told."""

    @abstractmethod
    def _tidy(self) -> None:
        """Called after each commit."""

    @abstractmethod
    def _mend(self, exc: BaseException) -> TaskError | None:
        """Called in an outage, when the connection is closed. Returns what callers are told if no new try can help."""

    # What all share

    def put(self, operation: Operation) -> None:
        self._inbox.append(operation)
        self.signal.raise_()

    def lay(self, operation: Operation) -> None:
        """Have it written with whatever comes next: who lays something down kicks in the end."""
        self._inbox.append(operation)

    @property
    def has_more(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._inbox)

    def kick(self) -> None:
        """Look again: a lane has room, or time has passed."""
        self.signal.raise_()

    def look_anew(self) -> None:
        """Look through everything: what may run here has changed."""
        self._is_astray = True
        self.signal.raise_()

    def leave(self) -> None:
        """Write only what is asked for: what falls due or is under way is for others, as nobody would be told of it."""
        self._leaving = True

    def stop(self) -> None:
        self._stopping = self._leaving = True
        self.signal.raise_()

    def run(self) -> Iterator[None]:
        """The thread's whole life; the connection must be open."""
        while True:
            if not self._more:
                yield
            self._more = False
            operations = self._gather()
            if operations or not self._leaving:
                self.commit(Group(operations))
            if self._stopping and (not self.has_more or not self.is_open):
                break
        self.close()

    def _gather(self) -> list[Operation]:
        """Return what goes into the next commit."""
        operations = []
        while self._inbox:
            operations.append(self._inbox.popleft())
        return operations

    def commit(self, group: Group) -> None:
        """Run a group in one transaction; when one operation can't go with the others, each under its own savepoint."""
        try:
            if not self.is_open:
                self.open()
        except Exception as exc:  # noqa: BLE001 - whatever keeps the store from opening: callers are told
            self._outage(group, exc)
            return
        began = self._monotonic()
        try:
            tx = self._transact(group, self._together)
        except CommitFailed as exc:
            self._outage(group, exc)
            return
        except self.OUTAGES as exc:
            self._outage(group, exc)
            return
        except Exception as exc:
            if not isinstance(exc, (outcomes.Replay, TaskError, *self.CONFLICTS)):
                logger.exception("a group commit failed; its operations are run one by one")
            try:
                tx = self._transact(group, self._one_by_one)
            except Exception as exc:  # noqa: BLE001 - the boundary of the thread: nobody may hang for it
                self._outage(group, exc)
                return
        if group.finishes or group.calls or group.starts or tx.claims:
            self._memory.counts.commits.observe(self._monotonic() - began)
        self._told(tx, group)

    def _told(self, tx: Transaction, group: Group) -> None:
        """It is committed: take over what it means, and report it."""
        self._tidy()
        self._outages = 0
        self._outage_log.back(_PART)
        tx.committed()
        self._doubtful = []
        self._is_travelling = tx.is_travelling
        self._more = tx.is_travelling or tx.looks_on or any(n >= self._batch for n in tx.taken.values())
        queueing.break_lines(group.submissions)
        self._report(tx, group, self._next_event)

    def _transact(self, group: Group, body: Callable[[Transaction, Group], None]) -> Transaction:
        tx = self._begin(group)
        is_astray = self._is_astray
        if is_astray:
            self._is_astray = False  # before the look: the loop may set it again meanwhile
            self._memory.limits.let_all_in()  # kinds that were left out may have come to nothing with their transaction
        try:
            self._clear_doubt(tx)
            self._catch_up(tx, is_astray)
            is_astray = False
            body(tx, group)
            if tx.is_loosened:
                self._is_astray = True
            if self._is_travelling and not self._leaving:
                graph.go_on(tx)
            self._look_ahead(tx)
            self._let_time_pass(tx)
            is_astray = True  # with what it claims, until that is committed
            claims.claim(tx, self._batch)
            if (next_ms := claims.next_ms(tx)) is not None:
                self._next_event = next_ms if self._next_event is None else min(self._next_event, next_ms)
            self._tell(tx)
            for class_id in tx.ready:
                tx.class_key(class_id)  # known to memory from the commit on, also where another process made it
            tx.write_tally()
        except BaseException:
            self._is_astray = self._is_astray or is_astray or bool(tx.new_classes)
            if tx.sets_limits:
                self._memory.limits.forget()
            self._roll_back()
            raise
        try:
            self._commit(tx)
        except self.REFUSALS:
            raise
        except self.DOUBTS as exc:
            raise CommitFailed(tx) from exc
        return tx

    def _clear_doubt(self, tx: Transaction) -> None:
        """Hand over the claims of a commit in doubt that are in the file after all: nobody else would ever run them."""
        for claim in self._doubtful:
            row = tx.one("held", claim.seq, claim.attempt, claim.owner)
            if row is None:
                continue
            if (lane := tx.memory.lane_of_type.get(claim.task_type)) is not None:
                tx.taken[lane.name] = tx.taken.get(lane.name, 0) + 1
            tx.claims.append(claim)
            if row[2] & CANCEL_ASKED:
                tx.stop_asked.append(claim.id)

    def _look_ahead(self, tx: Transaction) -> None:
        self._next_event = upkeep.next_event_ms(tx)

    def _let_time_pass(self, tx: Transaction) -> None:
        if self._leaving:
            return
        if self._next_event is not None and self._next_event <= tx.now_ms:
            upkeep.promote(tx)
            upkeep.expire(tx)
            self._look_ahead(tx)

    def _together(self, tx: Transaction, group: Group) -> None:
        if group.finishes:
            outcomes.finish_all(tx, group.finishes)
        if group.starts:
            outcomes.start(tx, group.starts)
        if group.submissions:
            queueing.submit_together(tx, group.submissions)
        for command in group.commands:
            command.result = command.run(tx)

    def _one_by_one(self, tx: Transaction, group: Group) -> None:
        for finish in outcomes.each_in_turn(group.finishes):
            self._guarded_finish(tx, finish)
        if group.starts:
            outcomes.start(tx, group.starts)
        left_out: set[Line] = set()  # lines that this transaction leaves something out of
        for submission in group.submissions:
            line = submission.line
            if line is not None and (line.is_broken or line in left_out):
                submission.error = Behind()
                continue
            self._guarded(tx, submission, partial(queueing.submit_alone, submission=submission))
            if line is not None and submission.leaves_out:
                left_out.add(line)
        for command in group.commands:
            self._guarded(tx, command, command.run)

    def _guarded(self, tx: Transaction, call: Submission | Command, run: Callable[[Transaction], Any]) -> None:
        part = tx.part()
        self._mark()
        try:
            call.result = run(part)
        except Crowded:
            raise
        except self.OUTAGES:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary: whoever asked gets it
            self._undo()
            self._unmark()
            call.error = exc if isinstance(exc, TaskError) else _bug(exc)
            return
        self._unmark()
        tx.keep(part)

    def _guarded_finish(self, tx: Transaction, finish: Finish) -> None:
        """An outcome whose effects are refused becomes a failure: the attempt is over either way."""
        part = tx.part()
        self._mark()
        try:
            outcomes.finish_one(part, finish)
        except Crowded:
            raise
        except self.OUTAGES:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary: it becomes the attempt's recorded failure
            self._undo()
            part = self._refuse(tx, finish, exc)
        self._unmark()
        tx.keep(part)

    def _refuse(self, tx: Transaction, finish: Finish, exc: Exception) -> Transaction:
        """Record the failure; where not even that can be, the outcome is dropped, so that all others go on."""
        part = tx.part()
        try:
            outcomes.finish_one(part, _refused(finish, exc))
        except Crowded:
            raise
        except self.OUTAGES:
            raise
        except Exception:  # the boundary: tried again it would fail again, and everything with it
            logger.exception(
                "the end of task %s attempt %d can't be recorded and is dropped; please report this",
                finish.claim.task_id, finish.claim.attempt, extra=finish.claim.labels(),
            )  # fmt: skip
            self._undo()
            return tx.part()
        return part

    def _outage(self, group: Group, exc: BaseException) -> None:
        """The store can't write now. Callers are told, outcomes kept and tried again, the connection made anew."""
        cause = exc.__cause__ or exc
        why = str(cause) or type(cause).__name__
        self._memory.limits.forget()
        self._outage_log.lost(_PART, why)
        self.close()
        final = self._mend(cause if isinstance(exc, CommitFailed) else exc)
        if isinstance(exc, CommitFailed) and self._resolve(exc.tx, group):
            self._told(exc.tx, group)
            return
        for call in group.calls:
            call.result = None  # what was found before the rollback is void
            if call.error is None:
                call.error = final or StoreUnavailable(
                    f"the store can't be written now ({why}); nothing was stored: try again"
                )
        queueing.break_lines(group.submissions)
        for finish in group.finishes:
            finish.is_repeated = True
        self._inbox.extendleft(reversed(group.finishes))
        self._inbox.extend(Started(claim, started_ms) for claim, started_ms in group.starts)
        self._report(self._nothing(), group, None)
        self._retry_later(self._outages)
        self._outages += 1

    def _resolve(self, tx: Transaction, group: Group) -> bool:
        """After a failed commit: open anew and look whether it is there after all."""
        found: bool | None = None
        try:
            self.open()
            found = self._settle(tx, group)
        except Exception as exc:  # noqa: BLE001 - whatever keeps it from being read: callers are told of the doubt
            self._outage_log.lost(_PART, f"whether a commit is stored can't be told now: {exc}")
            self.close()
        if found is None:
            self._doubtful = tx.claims
            for call in group.calls:
                call.error = call.error or _indeterminate(call)
        return found is True

    def _is_stored(self, tx: Transaction, group: Group, ask: Callable[..., Any]) -> bool | None:
        """Whether a transaction is in the store, judged by one of its rows: all of it is there, or nothing.

        `ask` returns the first row of a named statement.
        """
        fresh = [new.id for submission in group.submissions for new in submission.result or () if not new.existed]
        if fresh:
            return ask("task_by_id", fresh[0]) is not None
        if taken := [claim for claim in tx.claims if all(claim is not doubtful for doubtful in self._doubtful)]:
            return ask("held", taken[0].seq, taken[0].attempt, taken[0].owner) is not None
        if recorded := [f.claim for f in group.finishes if _is_evidence(f, tx)]:
            return ask("attempt_is_there", recorded[0].seq, recorded[0].attempt) is not None
        return None


def _is_evidence(finish: Finish, tx: Transaction) -> bool:
    """Whether the attempt's row can only have come with this transaction."""
    return finish.outcome != RELEASED and not finish.is_repeated and all(finish is not lost for lost in tx.lost)


class CommitFailed(Exception):
    """The commit itself failed: what was in it may or may not be stored."""

    def __init__(self, tx: Transaction) -> None:
        super().__init__("the commit failed")
        self.tx = tx


def _indeterminate(call: Submission | Command) -> TaskError:
    if isinstance(call, Command):
        return StoreUnavailable(
            "the commit failed; the call may or may not have been carried out: look before a new try"
        )
    first = TaskId(call.tasks[0].id)
    return SubmitIndeterminate(
        f"the commit of task {first} failed and the store can't be read now; it may or may not be stored: "
        "look it up by its id later, or submit the same task again",
        task_id=first,
    )


def _bug(exc: Exception) -> InternalError:
    error = InternalError(f"the store failed with {type(exc).__name__}: {exc}; nothing was stored, please report this")
    error.__cause__ = exc
    return error


def _refused(finish: Finish, exc: BaseException) -> Finish:
    field = exc.field if isinstance(exc, TaskError) else None
    tries = finish.claim.tried + 1
    error = ErrorInfo(type=type(exc).__name__, message=str(exc), attempts=tries, field=field)
    return Finish(
        finish.claim, FAILED, finish.ended_ms, finish.started_ms, None, finish.lane, finish.usage, encode(error)[0]
    )
