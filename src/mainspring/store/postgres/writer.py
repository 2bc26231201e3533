"""The writer of a process on a server: its transactions run beside those of others, or alone where they must."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import asyncpg

from mainspring.environment import Environment
from mainspring.errors import StoreMoved, StoreReadOnly, StoreRefused, StoreUnavailable, TaskError
from mainspring.store.base import WANTS_KEPT, Finish
from mainspring.store.postgres import connection as server
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.arrivals import take_in
from mainspring.store.postgres.session import Session
from mainspring.store.postgres.streams import Streams
from mainspring.store.postgres.transaction import PostgresTransaction
from mainspring.store.sql import claims, upkeep
from mainspring.store.sql.operations import Command, Group, Operation
from mainspring.store.sql.outage import OutageLog
from mainspring.store.sql.queueing import Submission
from mainspring.store.sql.transaction import Crowded, Memory, Transaction
from mainspring.store.sql.writer import Report, Writer

logger = logging.getLogger("mainspring.store")
_RESOLVE_S, _AGAIN_S = 15.0, 0.1
"""How long after a failed commit the server is waited for, to tell what became of it; and how often it is tried."""


_TOLD_S = 0.005
"""How long a commit goes untold at most where the next transaction has to wait for others before it can begin."""


class _CaughtUp(NamedTuple):
    """What the statement of that name tells."""

    seen: str
    is_behind: bool
    news: list[list[int]]
    peers: int
    pauses: list[list[str]]
    newest_limit: int | None
    due: int | None
    deadline: int | None
    is_open: bool
    has_arrivals: bool
    numbers: list[int]
    unfinished: int


class _Filling(Exception):
    """There may be too many tasks when all processes that store some now have done so: one at a time then."""


class _Unopened(Exception):
    """The connection had to be made anew and was refused; a refusal of something that is written is no outage."""


class PostgresWriter(Writer):
    OUTAGES = (*server.OUTAGES, StoreUnavailable, _Unopened)
    CONFLICTS = server.CONFLICTS
    DOUBTS = (asyncpg.PostgresError, *server.LOST)
    REFUSALS = (asyncpg.InsufficientPrivilegeError,)  # of what is written with it, in front of it

    def __init__(
        self,
        connect: Callable[[], Session],
        memory: Memory,
        now_ms: Callable[[], int],
        env: Environment,
        batch: int,
        report: Report,
        retry_later: Callable[[int], None],
        rejoin: Callable[[Transaction], None],
        where: Server,
        outage: OutageLog,
    ) -> None:
        super().__init__(memory, now_ms, env, batch, self._report_in_order, retry_later, outage)
        self._report_now = report
        self._untold: tuple[Transaction, Group, int | None] | None = None  # a commit that is to be reported
        self._server = where
        self._connect = connect
        self._env = env
        self._rejoin = rejoin  # called in a transaction when others took this process for dead
        self._streams = Streams(memory, env.monotonic, self.kick)
        self.session: Session | None = None
        self.number = 0  # of the schema, for locks
        self._alone = False
        self._new_tasks = 0  # of the group
        self._is_filling = False  # others may not store new tasks meanwhile
        self._seen = "1:1:"  # the snapshot that was looked at last
        self._next_deadline: int | None = None
        self._next_due: int | None = None

    # The connection

    @property
    def is_open(self) -> bool:
        return self.session is not None

    def open(self) -> None:
        self.session = self._connect()
        self._is_astray = True

    def close(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def _tidy(self) -> None:
        """The server does."""

    def _mend(self, exc: BaseException) -> TaskError | None:
        """The server does. Rights that are missing somebody has to grant; a store that was moved does not come back."""
        if isinstance(exc, (StoreMoved, StoreReadOnly)):
            return exc
        is_refused = isinstance(exc, asyncpg.InsufficientPrivilegeError)
        return server.translated(self._server, exc) if is_refused else None

    # Transactions

    @property
    def has_more(self) -> bool:
        return super().has_more or bool(self._streams)

    def _gather(self) -> list[Operation]:
        self._streams.begin()
        operations = [op for op in super()._gather() if not self._enters_in_pieces(op)]
        return operations + self._streams.pieces(all=self._leaving)

    def _enters_in_pieces(self, op: Operation) -> bool:
        return type(op) is Submission and self._streams.takes(op)

    def _transact(self, group: Group, body: Callable[[Transaction, Group], None]) -> Transaction:
        self._alone = body == self._one_by_one or any(_needs_rest(op) for op in (*group.finishes, *group.calls))
        self._new_tasks = _new_tasks(group)
        while True:
            try:
                return super()._transact(group, body)
            except Crowded:
                self._alone = True
            except _Filling:
                self._is_filling = True

    def begin(self, *, alone: bool) -> PostgresTransaction:
        """Begin a transaction. Those beside others wait for one that is alone, and it for them."""
        assert self.session is not None
        if self._untold is not None:
            self.session.later(_TOLD_S, self._tell_untold)
        locks = f"SELECT {server.seen(self._server)};" + _lock(server.WRITING, self.number, shared=not alone)
        if self._new_tasks and not alone and self._memory.queue_size is not None:
            locks += _lock(server.QUEUEING, self.number, shared=not self._is_filling)
        self.session.begin(then=locks)
        return PostgresTransaction(self.session, self._memory, self._now_ms(), alone=alone)

    def _begin(self, group: Group) -> Transaction:
        tx = self._begun()
        self._take_along(group, may_submit=self._memory.queue_size is None or self._new_tasks > 0)  # locks are taken
        tx.now_ms = self._now_ms()  # not before what came along
        return tx

    def _take_along(self, group: Group, *, may_submit: bool) -> None:
        """Add what has come since the transaction began: it would wait for all of that.

        Of operations that are given at once the first one wakes this thread, and the others follow while the server
        answers. What has to wait keeps whatever came after it waiting.
        """
        if self._alone:
            return
        inbox, late = self._inbox, []
        while inbox and (may_submit or type(inbox[0]) is not Submission) and not _needs_rest(inbox[0]):
            if not self._enters_in_pieces(op := inbox.popleft()):
                late.append(op)
        if may_submit:
            late += self._streams.pieces(all=self._leaving)
        if late:
            group.add(late)
            self._new_tasks = _new_tasks(group)

    def _begun(self) -> PostgresTransaction:
        try:
            return self.begin(alone=self._alone)
        except server.LOST:  # while nothing was asked of it the server may have gone and come back
            self._tell_untold()
            self.close()
            try:
                self.open()
            except StoreRefused as exc:
                raise _Unopened from exc
            return self.begin(alone=self._alone)

    def _nothing(self) -> Transaction:
        return PostgresTransaction(None, self._memory, self._now_ms())  # type: ignore[arg-type]

    def _commit(self, tx: Transaction) -> None:
        assert self.session is not None
        assert isinstance(tx, PostgresTransaction)
        self.session.command(f"{tx.closing()}COMMIT")

    def _roll_back(self) -> None:
        if self.session is None:
            return
        try:
            self.session.command("ROLLBACK")
        except server.OUTAGES as exc:  # what broke it is being raised, and tells
            logger.debug("a transaction ended with its connection: %s", exc)

    def _mark(self) -> None:
        self._command("SAVEPOINT one")

    def _undo(self) -> None:
        self._command("ROLLBACK TO one")

    def _unmark(self) -> None:
        self._command("RELEASE one")

    def _command(self, sql: str) -> None:
        assert self.session is not None
        self.session.command(sql)

    # What others did

    def _catch_up(self, tx: Transaction, is_astray: bool) -> None:
        assert isinstance(tx, PostgresTransaction)
        memory = self._memory
        found = _CaughtUp(*tx.one("catch_up", self._seen, memory.owner, self._new_tasks))
        if self._untold is not None:
            tx.cursor.meanwhile(self._tell_untold)
        tx.drawn, tx.unfinished = found.numbers, found.unfinished
        memory.has_peers, self._next_due, self._next_deadline = found.peers > 0, found.due, found.deadline
        self._watch_room(tx, found)
        if not found.is_open:
            self._rejoin(tx)
        before, memory.pauses = memory.pauses, frozenset((a, b, c) for a, b, c in found.pauses)
        claims.read_limits(tx, found.newest_limit)
        if is_astray or found.is_behind or not before <= memory.pauses:
            claims.look_everywhere(tx)
        else:
            for class_id, rank in found.news:
                claims.hear(tx, class_id, (rank, 0))
        self._seen = found.seen
        if found.has_arrivals:
            take_in(tx, self._attempt)
        self._let_time_pass(tx)

    def _watch_room(self, tx: PostgresTransaction, found: _CaughtUp) -> None:
        """Each of all processes may fill its share of the queue without a look at what the others do meanwhile."""
        limit = self._memory.queue_size
        if limit is None or not self._new_tasks or tx.is_alone:
            return
        is_filling = (found.unfinished + self._new_tasks) * (found.peers + 1) > limit
        if is_filling and not self._is_filling:
            raise _Filling
        self._is_filling = is_filling

    def _attempt(self, tx: PostgresTransaction, run: Callable[[PostgresTransaction], None]) -> Exception | None:
        """Run a part that can be undone alone; returns why it was."""
        part = tx.part()
        self._mark()
        try:
            run(part)
        except (Crowded, *self.OUTAGES):
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary: whoever asks for the part records it
            self._undo()
            self._unmark()
            return exc
        self._unmark()
        tx.keep(part)
        return None

    def _told(self, tx: Transaction, group: Group) -> None:
        super()._told(tx, group)
        assert isinstance(tx, PostgresTransaction)
        self._more = self._more or tx.has_arrivals or self._streams.can_go_on

    def _report_in_order(self, tx: Transaction, group: Group, next_event_ms: int | None) -> None:
        """Report a commit; where more is there to be written, while the server works on that.

        Whoever hears of it is busy with it at once, and has the interpreter: before the next transaction begins this
        thread would wait for it at each small step, and the server with it.
        """
        self._tell_untold()
        if self.session is not None and self._inbox:
            self._untold = (tx, group, next_event_ms)
        else:
            self._report_now(tx, group, next_event_ms)

    def _tell_untold(self) -> None:
        if self._untold is not None:
            untold, self._untold = self._untold, None
            self._report_now(*untold)

    def _look_ahead(self, tx: Transaction) -> None:
        assert isinstance(tx, PostgresTransaction)
        if tx.moves_times:
            tx.moves_times = False
            self._next_due, self._next_deadline = tx.one("next_events")
        self._set_next()

    def _set_next(self) -> None:
        times = [ms for ms in (self._next_due, self._next_deadline) if ms is not None]
        self._next_event = min(times, default=None)

    def _let_time_pass(self, tx: Transaction) -> None:
        if self._leaving:
            return
        is_due = self._next_due is not None and self._next_due <= tx.now_ms
        is_overdue = self._next_deadline is not None and self._next_deadline <= tx.now_ms
        if is_due:
            upkeep.promote(tx)
        if is_overdue:
            upkeep.expire(tx)
        if is_due or is_overdue:
            self._look_ahead(tx)
        else:
            self._set_next()

    def _tell(self, tx: Transaction) -> None:
        """It goes with the commit."""

    # A commit in doubt

    def _resolve(self, tx: Transaction, group: Group) -> bool:
        """Wait for the server: it alone knows, and nothing else can be done meanwhile."""
        until = self._env.monotonic() + _RESOLVE_S
        while True:
            try:
                self.open()
                assert self.session is not None
                self.session.command("SELECT 1", _RESOLVE_S)  # a pooler lets us in also while the server is gone
                self.close()
                break
            except (StoreUnavailable, StoreRefused, *server.OUTAGES):  # a refusal may pass as well
                if self._stopping or self._env.monotonic() >= until:
                    break
                self._env.sleep(_AGAIN_S)
        return super()._resolve(tx, group)

    def _settle(self, tx: Transaction, group: Group) -> bool | None:
        """The lock is free only when the transaction is over, wherever it is: then what is found stays so."""
        assert self.session is not None
        session = self.session
        look = self.begin(alone=True)
        found = self._is_stored(tx, group, session.one)
        self._commit(look)
        return found


def _lock(what: int, number: int, *, shared: bool) -> str:
    return f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}({what}, {number});"


def _new_tasks(group: Group) -> int:
    return sum(len(submission.tasks) for submission in group.submissions)


def _needs_rest(op: Operation) -> bool:
    """Whether an operation is known to need rows that stand still."""
    if isinstance(op, Finish):
        return _goes_on(op)
    if isinstance(op, Submission):
        return any(task.after for task in op.tasks)
    return isinstance(op, Command) and not op.is_light


def _goes_on(finish: Finish) -> bool:
    joins = finish.claim.flags & WANTS_KEPT
    return bool(joins or finish.refs or finish.effects or any(child.after for child in finish.children))
