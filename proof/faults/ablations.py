"""Safeguards taken away, one at a time: the proof programs must notice, or they prove nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import apsw

from mainspring.errors import TaskError
from mainspring.store.base import CrashEvidence
from mainspring.store.sql import caretaker, graph, outcomes
from mainspring.store.sql.caretaker import Caretaker
from mainspring.store.sql.operations import Group
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sqlite import connection as opening
from mainspring.store.sqlite import log
from mainspring.store.sqlite.transaction import SqliteTransaction
from mainspring.store.sqlite.view import FileView
from mainspring.store.sqlite.writer import SqliteWriter
from proof.faults import world

Ablation = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def when_opened(change: Callable[[apsw.Connection], Any]) -> Iterator[None]:
    """Change each writing connection once it is open."""
    real = SqliteWriter.open

    def opened(self: SqliteWriter) -> None:
        real(self)
        assert self.connection is not None
        change(self.connection)

    with mock.patch.object(SqliteWriter, "open", opened):
        yield


def synchronous_normal() -> contextlib.AbstractContextManager[None]:
    return when_opened(lambda connection: connection.pragma("synchronous", "normal"))


def synchronous_off() -> contextlib.AbstractContextManager[None]:
    return when_opened(lambda connection: connection.pragma("synchronous", "off"))


def autocheckpoint() -> contextlib.AbstractContextManager[None]:
    """SQLite moves the log into the file by itself, within the commit."""
    return when_opened(lambda connection: connection.wal_autocheckpoint(5))


@contextlib.contextmanager
def answers_before_the_commit() -> Iterator[None]:
    """Callers are told once their rows are written, not once they are on the disk."""
    real = SqliteWriter._transact

    def transact(self: SqliteWriter, group: Group, body: Any) -> Transaction:
        def early(tx: Transaction, group: Group) -> None:
            body(tx, group)
            self._report(self._nothing(), group, None)
            _let_the_loop_turn(self)

        return real(self, group, early)

    with mock.patch.object(SqliteWriter, "_transact", transact):
        yield


def _let_the_loop_turn(writer: SqliteWriter) -> None:
    """Wait in the writer's thread until whoever was told has noted it."""
    loop = writer._report.__self__._loop  # type: ignore[attr-defined]
    turned = threading.Event()

    def turn(times: int) -> None:
        if times:
            loop.call_soon(turn, times - 1)
        else:
            turned.set()

    loop.call_soon_threadsafe(turn, 8)
    turned.wait(world.PATIENCE_S)


@contextlib.contextmanager
def no_look_after_a_failed_commit() -> Iterator[None]:
    """A commit that failed is taken for one that is not there."""
    with mock.patch.object(SqliteWriter, "_resolve", return_value=False):
        yield


@contextlib.contextmanager
def a_look_that_writes_nothing() -> Iterator[None]:
    """A commit that failed is looked for, but nothing takes its place in the log."""
    with (
        mock.patch.object(
            SqliteWriter, "_settle", lambda self, tx, group: self._is_stored(tx, group, FileView(self.connection).one)
        ),
        opening_that_writes_nothing(),
    ):
        yield


@contextlib.contextmanager
def opening_that_writes_nothing() -> Iterator[None]:
    """Opening a store again commits nothing, which by itself breaks no promise."""
    real = SqliteWriter.open
    paths: WeakKeyDictionary[SqliteWriter, str] = WeakKeyDictionary()

    def opened(self: SqliteWriter) -> None:
        if self not in paths:
            real(self)
            assert self.connection is not None
            paths[self] = self.connection.db_filename("main")
            return
        self.connection = apsw.Connection(paths[self])
        self.connection.set_busy_timeout(1000)
        self.connection.pragma("synchronous", "full")
        self._cursor = self.connection.cursor()
        self._log.watch(self.connection)
        self._seen_version = -1

    with mock.patch.object(SqliteWriter, "open", opened):
        yield


@contextlib.contextmanager
def a_log_taken_as_it_is() -> Iterator[None]:
    """Who opens a store goes on behind whatever can be read of its log, and folds it."""
    with mock.patch.object(opening, "write_log_anew"), mock.patch.object(log, "write_log_anew"):
        yield


@contextlib.contextmanager
def forgotten_outcomes() -> Iterator[None]:
    """What attempts ended with is not kept while the disk is broken."""
    real = SqliteWriter._outage

    def outage(self: SqliteWriter, group: Group, exc: BaseException) -> None:
        group.finishes.clear()
        real(self, group, exc)

    with mock.patch.object(SqliteWriter, "_outage", outage), mock.patch.object(world, "PATIENCE_S", 0.3):
        yield


def effects_in_a_transaction_of_their_own() -> contextlib.AbstractContextManager[None]:
    """What comes with an outcome is written right after it."""
    return _later(outcomes, "_apply")


def ends_that_travel_later() -> contextlib.AbstractContextManager[None]:
    """Whoever waits for a task is told of its end right after it."""
    return _later(graph, "ended")


@contextlib.contextmanager
def _later(module: ModuleType, name: str) -> Iterator[None]:
    """Let a step of each transaction have one of its own, after it."""
    real, real_told = getattr(module, name), SqliteWriter._told
    late: list[Any] = []

    def told(self: SqliteWriter, tx: Transaction, group: Group) -> None:
        while late and self.connection is not None:
            self.connection.execute("BEGIN IMMEDIATE")
            part = SqliteTransaction(self.connection.cursor(), self._memory, tx.now_ms)
            with contextlib.suppress(TaskError):  # a refused effect is part of the scenario
                real(part, late.pop(0))
                part.write_tally()
            self.connection.execute("COMMIT")
            part.committed()
        real_told(self, tx, group)

    with (
        mock.patch.object(module, name, lambda tx, what: late.append(what)),
        mock.patch.object(SqliteWriter, "_told", told),
    ):
        yield


@contextlib.contextmanager
def buried_before_the_rescue() -> Iterator[None]:
    """A dead worker is noted as gone before what it held is taken back."""
    real = Caretaker._rescue

    async def rescue(self: Caretaker, owner: int, evidence: CrashEvidence) -> None:
        await self._store.write(lambda tx: caretaker.bury(tx, owner))
        await real(self, owner, evidence)

    with mock.patch.object(Caretaker, "_rescue", rescue):
        yield


@contextlib.contextmanager
def errors_for_stored_commits() -> Iterator[list[object]]:
    """No ablation: count the commits that failed and were stored all the same."""
    real = SqliteWriter._resolve
    found: list[object] = []

    def resolve(self: SqliteWriter, tx: Transaction, group: Group) -> bool:
        is_stored = real(self, tx, group)
        found.extend([tx] * is_stored)
        return is_stored

    with mock.patch.object(SqliteWriter, "_resolve", resolve):
        yield found
