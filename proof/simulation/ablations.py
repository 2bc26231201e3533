"""The engine's safeguards, each with the smallest change to the code that takes it away.

A simulator that does not notice that one is missing is too weak. An edit names a function and replaces a piece of its
text; where the text is not there any more, the safeguard has moved, and its edit must follow.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any, Final
from unittest import mock

import msgspec

from mainspring.dispatch import manager, recording, verdict
from mainspring.dispatch.course import Course
from mainspring.dispatch.desk import Desk
from mainspring.dispatch.gathering import Gathering
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.manager import TaskManager
from mainspring.dispatch.recording import Recorder
from mainspring.execution import batches
from mainspring.execution.threads import ThreadRunner
from mainspring.processors.batch import Call
from mainspring.processors.custom import HandlerProcessor
from mainspring.results.cache import ResultCache
from mainspring.store.clock import StoreClock
from mainspring.store.sql import (
    claims,
    commands,
    flights,
    graph,
    intake,
    leaving,
    limits,
    line,
    outcomes,
    standing,
    upkeep,
)
from mainspring.store.sql.caretaker import Caretaker
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sql.writer import Writer
from mainspring.store.sqlite import news, statements
from mainspring.store.sqlite.caretaker import SqliteCaretaker
from mainspring.store.sqlite.store import SqliteStore
from mainspring.store.sqlite.writer import SqliteWriter
from mainspring.testing.simulator.run import simulate


class Edit(msgspec.Struct, frozen=True):
    """A piece of a function's text, and what stands there instead."""

    owner: Any  # module or class
    name: str
    old: str
    new: str


class Safeguard(msgspec.Struct, frozen=True):
    name: str
    promise: str  # that falls with it
    edits: tuple[Edit, ...] = ()
    sql: Mapping[str, tuple[str, str]] = {}  # the same for named statements

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(_edited(edit))
            stack.enter_context(_restated(self.sql))
            yield


class Found(msgspec.Struct, frozen=True):
    """What the loss of a safeguard came to."""

    name: str
    seed: int | None  # the first that noticed
    violation: str


def ablate(name: str, patience: int) -> Found:
    """Take one safeguard away, and look for the first of so many seeds that notices."""
    (safeguard,) = [safeguard for safeguard in SAFEGUARDS if safeguard.name == name]
    with safeguard.removed():
        for seed in range(patience):
            violations = simulate(seed).violations
            if violations:
                return Found(name, seed, str(violations[0]))
    return Found(name, None, "nobody noticed")


@contextlib.contextmanager
def _edited(edit: Edit) -> Iterator[None]:
    function = inspect.unwrap(getattr(edit.owner, edit.name))
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert edit.old in source, f"{edit.name} does not say {edit.old!r} any more"
    made: dict[str, Any] = {}
    exec(compile(source.replace(edit.old, edit.new), f"<{edit.name} edited>", "exec"), function.__globals__, made)
    with mock.patch.object(edit.owner, edit.name, made[edit.name]):
        yield


@contextlib.contextmanager
def _restated(changes: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Change named statements, also where they are written over many rows."""
    changed = {}
    for name, (old, new) in changes.items():
        assert old in statements.SQL[name], f"statement {name} does not say {old!r} any more"
        changed[name] = statements.SQL[name].replace(old, new)
    with mock.patch.dict(statements.SQL, changed), mock.patch.dict(statements.WIDE):
        for name in changed.keys() & statements.WIDE.keys():
            statements.WIDE[name] = statements.widened(name)
        yield


SAFEGUARDS: Final = (
    # Claims and fencing
    Safeguard(
        "owner guard",
        "a claim is worth nothing once it is over",
        sql={
            "held": ("AND owner = ?", "AND ? IS NOT NULL"),
            "complete_many": ("AND task.owner = v.column6", "AND v.column6 IS NOT NULL"),
            "hand_back": ("AND task.owner = v.column3", "AND v.column3 IS NOT NULL"),
        },
    ),
    Safeguard(
        "attempt guard",
        "what a given-up handler still returns does not count",
        (
            Edit(
                Course,
                "_see_through",
                "self._unmark(attempt)\n        return False",
                "self.recorder.record(attempt, report)\n        return False",
            ),
        ),
        {
            "held": ("AND attempt = ?", "AND ? > 0"),
            "complete_many": ("task.attempt = v.column5", "v.column5 > 0"),
            "hand_back": ("task.attempt = v.column2", "v.column2 > 0"),
        },
    ),
    Safeguard(
        "rescue guard",
        "only the dead lose their claims",
        (
            Edit(
                SqliteCaretaker,
                "rescue_dead",
                "if started is not None:",
                "if (started := started or frozenset()) == started:",
            ),
        ),
    ),
    Safeguard(
        "claims in doubt",
        "claims of a commit in doubt are not forgotten",
        (Edit(Writer, "_clear_doubt", "for claim in self._doubtful:", "for claim in ():"),),
    ),
    Safeguard(
        "release on drain",
        "what a stopping process holds is handed back",
        (
            Edit(leaving, "hand_back", 'while rows := tx.run("held_by", owner, 500).fetchall():', "while rows := []:"),
            Edit(TaskManager, "_release_queued", "self._desks.values()", "()"),
        ),
    ),
    Safeguard(
        "turns in a drain",
        "nothing begins once a drain has begun",
        (
            Edit(
                Desk,
                "take",
                "waiting = [claim for claim in self._waiting.values() if is_wanted(claim)]",
                "waiting = []",
            ),
            Edit(ThreadRunner, "_work", "None if future.cancelled() else run()", "run()"),
        ),
    ),
    # Limits of groups
    Safeguard(
        "limit at the door",
        "tasks that are handed over as they enter count for their group's limit",
        (
            Edit(
                intake._Entry,
                "_add_free",
                "not door.limited or _takes_place(tx, door, task, (rank, self._seq))",
                "True",
            ),
        ),
    ),
    Safeguard(
        "limit in the queue",
        "no more of a group are claimed than its limit allows",
        (Edit(limits, "_count", "limit.concurrency - ", "2 * limit.concurrency - "),),
    ),
    Safeguard(
        "places that fall free",
        "what waits for its group's limit goes on when a member ends",
        (Edit(Transaction, "let_go", "if known:", "if False:"),),
    ),
    Safeguard(
        "places that others let go of",
        "what waits for its group's limit goes on when a member ends in another process",
        (Edit(claims, "claim", "if memory.has_peers:", "if False:"),),
    ),
    Safeguard(
        "rates",
        "no more of a group begin in a time than its rate allows",
        (Edit(limits, "_count", "if limit.rate is not None and free:", "if False:"),),
    ),
    Safeguard(
        "rates keep what has begun",
        "only what has not begun is given back to a rate",
        (Edit(outcomes, "_let_go", "finish.started_ms is not None or finish.outcome not in _UNSTARTED", "False"),),
    ),
    Safeguard(
        "changed rates",
        "what a slower rate has left holds nobody up",
        (Edit(limits, "_emptied", "if from_empty_us < full_us:", "if False:"),),
    ),
    Safeguard(
        "changed limits",
        "a change of limits is heard by all processes",
        (Edit(claims, "read_limits", "if newest is not None and", "if not tx.memory.limits.seen and newest and"),),
    ),
    Safeguard(
        "turns of shares",
        "shares take turns by weight",
        (
            Edit(
                claims,
                "_claim_by_turns",
                "heapreplace(turns, lane.ready.took(turns[0], 1, tx.memory.limits.weight_of(share)))",
                "pass",
            ),
        ),
    ),
    # Cancels
    Safeguard(
        "conditional cancel",
        "a held task is only asked to stop",
        (Edit(commands, "cancel", "if status == PENDING and reason != CLAIMED:", "if True:"),),
    ),
    Safeguard(
        "no start after cancelled",
        "a claim that is cancelled leaves the queue",
        (
            Edit(
                TaskManager,
                "asked_to_stop",
                "desk.withdraw(id)",
                "next((one for one in [*desk._waiting.values(), *getattr(desk, '_queue', ())] if one.id == id), None)",
            ),
        ),
    ),
    Safeguard(
        "no outcome after requested",
        "nothing completes after `requested`",
        (Edit(outcomes, "finish_one", "row[2] & CANCEL_ASKED", "0"),),
        {"complete": ("AND flags & 1 = 0", ""), "complete_many": ("AND task.flags & 1 = 0", "")},
    ),
    # Dependencies
    Safeguard(
        "edge walk",
        "a child waits for all its parents",
        (Edit(graph, "_advance", "if at is not None:", "if False:"),),
    ),
    Safeguard(
        "failures travel",
        "a failure reaches those that needed it at once",
        (Edit(graph, "_travel", "if end.status == COMPLETED else", "if True else"),),
    ),
    Safeguard(
        "results that stand for others",
        "dependents wait for the tasks that a handler returned",
        (Edit(graph, "stand_for", "stood_for = [", "return\n    stood_for = ["),),
    ),
    # Outcomes and what goes with them
    Safeguard(
        "effects in the finishing transaction",
        "children are stored with the outcome, or not at all",
        (Edit(manager, "submitter", "if now:\n            stored", "if True:\n            stored"),),
    ),
    Safeguard(
        "derived ids",
        "a child submitted at once has the same id in every attempt",
        (Edit(manager, "submitter", "child_id(context.id, context.calls)", "TaskId()"),),
    ),
    Safeguard(
        "outcomes kept",
        "outcomes that could not be written are tried again",
        (Edit(Writer, "_outage", "self._inbox.extendleft(reversed(group.finishes))", "pass"),),
    ),
    Safeguard(
        "completions counted",
        "of many completions at once, one that did not go through is noticed",
        (Edit(outcomes, "_complete", "raise Replay", "pass"),),
    ),
    # Blame
    Safeguard(
        "blame",
        "a crash is charged only to what ran alone",
        (Edit(upkeep, "rescue", "alone = ran and len(suspects) == 1", "alone = ran"),),
    ),
    Safeguard(
        "suspects alone",
        "suspects run alone",
        (Edit(Course, "_run_where_it_may", "is_suspect(attempt.claim)", "False"),),
    ),
    Safeguard(
        "marks of the given up",
        "a handler that was given up still counts as running",
        (Edit(Course, "_let_go", "if not attempt.abandoned:", "if True:"),),
    ),
    Safeguard(
        "crash limit",
        "the third crash is final",
        (Edit(upkeep, "rescue", "elif alone and crashes + 1 >= MAX_CRASHES:", "elif False:"),),
    ),
    # Time and order
    Safeguard(
        "clock",
        "order and delays go by a clock that does not jump",
        (
            Edit(
                StoreClock,
                "now_ms",
                "self._wall_ms + int((now - self._began) * 1000)",
                "self._env.wall_ms()",
            ),
        ),
    ),
    Safeguard(
        "not before",
        "nothing starts before its time",
        sql={
            "promote": ("due_ms <= ?", "due_ms - 86400000 <= ?"),
            "next_due": ("SELECT min(due_ms)", "SELECT min(due_ms) - 86400000"),
        },
    ),
    Safeguard(
        "deadline",
        "nothing starts after its deadline",
        (Edit(Course, "_is_too_late", "now_ms <= claim.deadline_ms", "True"),),
    ),
    Safeguard(
        "timeout",
        "an attempt past its timeout does not complete",
        (
            Edit(
                recording,
                "is_completed",
                "by_itself and report.error is None and not is_late(claim, report)",
                "report.error is None",
            ),
        ),
    ),
    Safeguard(
        "retry limit",
        "retries are limited",
        (Edit(verdict, "_again_or", "if claim.retry_count < claim.max_retries:", "if True:"),),
    ),
    Safeguard(
        "one order",
        "the best ready task goes first",
        sql={
            "claim_of_class": ("ORDER BY rank, seq", "ORDER BY seq DESC"),
            "heads": ("ORDER BY rank, seq", "ORDER BY seq DESC"),
        },
    ),
    Safeguard(
        "door",
        "new tasks do not pass those that wait",
        (
            Edit(
                intake,
                "_door",
                "if lane is None or lane.ready or any(tx.lane_for(ready) is lane for ready in tx.ready):",
                "if lane is None:",
            ),
        ),
    ),
    Safeguard(
        "pauses",
        "what is paused does not start",
        (Edit(TaskManager, "paused", "self._desks.values()", "()"),),
    ),
    Safeguard(
        "reasons",
        "what is said of a task that waits is so",
        (Edit(standing._Kept, "__init__", "if self.pauses:", "if False:"),),
    ),
    Safeguard(
        "roots",
        "what is waited for is said to be kept by what keeps it",
        (Edit(standing, "_other", "if not to_root or", "if True or"),),
    ),
    Safeguard(
        "figures of turns",
        "who is told how many go first is told so by turns where shares hold",
        (Edit(line, "_turns", "(own + 1) *", "0 *"),),
    ),
    # Upkeep
    Safeguard(
        "retention",
        "nothing is pruned that is not old enough",
        (Edit(upkeep, "_old", "elif ended_ms > now_ms - keep_s * 1000:", "elif False:"),),
    ),
    Safeguard(
        "retention of failures",
        "what failed is kept for as long as was said",
        (
            Edit(
                upkeep,
                "_old",
                "config.keep_completed_s if status == COMPLETED else config.keep_failed_s",
                "config.keep_completed_s",
            ),
        ),
    ),
    Safeguard(
        "parents of the living",
        "what an unfinished task depends on stays",
        (Edit(upkeep, "_not_needed", "seq not in needed and", ""),),
    ),
    Safeguard(
        "tombstones",
        "that a task was there is known for as long as was said",
        (Edit(upkeep, "prune", "now_ms - config.keep_tombstones_s * 1000", "now_ms"),),
    ),
    Safeguard(
        "sweeps",
        "what is old enough is pruned",
        (Edit(Caretaker, "_sweep", "if found.has_old or not self._cursor:", "if False:"),),
    ),
    # Wake-ups
    Safeguard(
        "waiters",
        "an end wakes who waits for it in another process",
        (Edit(SqliteStore, "_ring", "if tx.ended:", "if False:"),),
    ),
    Safeguard(
        "timer",
        "a delay that ends wakes the writer",
        (Edit(SqliteStore, "_arm", "if next_event_ms is not None:", "if False:"),),
    ),
    Safeguard(
        "slots",
        "a claim wakes a slot",
        (Edit(LaneDesk, "put", "self.wake_one()", "pass"),),
    ),
    Safeguard(
        "data version",
        "what other processes committed is seen",
        (Edit(SqliteWriter, "_catch_up", "if version != self._seen_version or", "if self._seen_version < 0 or"),),
    ),
    Safeguard(
        "news",
        "other processes learn where tasks became ready",
        (Edit(news, "tell", "if not tx.ready or not memory.has_peers:", "if True:"),),
    ),
    Safeguard(
        "bounds",
        "a better task in a class that is known is not passed over",
        (Edit(claims, "claim", "note(tx, class_id, place)", "note(tx, class_id, (1 << 62, 0))"),),
    ),
    Safeguard(
        "welcome",
        "a newcomer looks once it is known",
        (Edit(SqliteStore, "_heard", "elif kind in (WELCOME, GONE):", "elif kind == GONE:"),),
    ),
    Safeguard(
        "word of the dead",
        "what a process had to tell when it died, the others look up",
        (Edit(Caretaker, "_rescue", "self._store.missed()", "pass"),),
    ),
    # Equal work
    Safeguard(
        "version in the key",
        "a result of other code is not taken",
        (Edit(ResultCache, "_code_of", 'f"{handler.version}\\0{handler.source_hash}"', "handler.source_hash"),),
    ),
    Safeguard(
        "inputs in the key",
        "a result of other arguments is not taken",
        (Edit(ResultCache, "name", "_in_one_order(_decoder.decode(input))", 'b""'),),
    ),
    Safeguard(
        "single flight",
        "equal work under way runs once",
        (
            Edit(
                intake._Entry,
                "_add_same",
                "leader = self._entrance.leader_for(work)",
                "leader, work = None, task.id",
            ),
            Edit(flights, "join", "key = claim.work.key", "key = claim.id"),
        ),
    ),
    Safeguard(
        "failures kept",
        "a failure is no result",
        (
            Edit(
                outcomes,
                "_failure",
                "return Failure(",
                'return Result(finish.claim.work, "", "", finish.claim.input, 0, 9) if finish.claim.work else Failure(',
            ),
        ),
    ),
    Safeguard(
        "age",
        "no result is taken that is too old",
        (Edit(flights, "is_fresh", "found.made_ms > tx.now_ms - keep_ms", "True"),),
        {"kept": ("expires_ms > ?", "expires_ms > 0 * ?")},
    ),
    Safeguard(
        "hand-over",
        "where the one that leads comes to nothing for the others, the best of them leads",
        (Edit(flights, "_elect", "if best is None:", "if True:"),),
    ),
    Safeguard(
        "other code",
        "who waits gets the result of the code that it asked for",
        (Edit(flights, "_go_on", "and end.work.key == key", ""),),
    ),
    Safeguard(
        "more than a value",
        "a result that came with children is shared with nobody",
        (
            Edit(outcomes, "_shareable", "or finish.refs or finish.effects or finish.children", ""),
            Edit(Recorder, "record_whole", "attempt.claim.work = None", "pass"),
        ),
    ),
    Safeguard(
        "a failure of the work",
        "only the work's own failure is shared",
        (Edit(outcomes, "_failure", "if is_of_work and error is not None", "if error is not None"),),
    ),
    # Together
    Safeguard(
        "one place each",
        "each task of a call gets its own result",
        (Edit(Call, "outcomes", "results = zip(found, ", "results = zip(found[::-1], "),),
    ),
    Safeguard(
        "halves",
        "what can't be done fails alone",
        (Edit(batches, "halving", "if end - start == 1 or", "if True or"),),
    ),
    Safeguard(
        "equal arguments join",
        "a call has one set of arguments",
        (Edit(HandlerProcessor, "join", "[others, shape]", "[shape]"),),
    ),
    Safeguard(
        "size of a call",
        "no call is larger than its handler takes",
        (Edit(Gathering, "form", "self._size(group.key), self._budget(group.key)", "99, Budget(99)"),),
    ),
    # Sharing between processes
    Safeguard(
        "shares",
        "who has nothing to do gets half of what waits elsewhere",
        (Edit(LaneDesk, "share", "waiting[len(waiting) // 2 :]", "[]"),),
    ),
    Safeguard(
        "release of shares",
        "what is given away is released",
        (Edit(TaskManager, "asked_to_share", "self._hand_back(desk, desk.share(is_wanted))", "desk.share(is_wanted)"),),
    ),
    Safeguard(
        "what has begun stays",
        "nothing is given away that has begun",
        (
            Edit(
                TaskManager,
                "asked_to_share",
                "desk.share(is_wanted)",
                "[*desk.share(is_wanted), *(one.claim for one in desk.running.values())]",
            ),
        ),
    ),
    Safeguard(
        "step back",
        "who gave work away does not take it back before the other has come",
        (Edit(LaneDesk, "share", "self._step_back()", "pass"),),
    ),
    # Submitting
    Safeguard(
        "idempotency",
        "one key is one task",
        (Edit(intake, "_found_by_key", "if holder is None:", "if True:"),),
        {"add_key": ("INSERT INTO", "INSERT OR REPLACE INTO")},
    ),
    Safeguard(
        "savepoints",
        "of a refused call nothing stays",
        (Edit(Writer, "_guarded", "self._undo()", "pass"),),
    ),
    Safeguard(
        "commit in doubt",
        "after a failed commit the truth is looked up",
        (Edit(Writer, "_outage", "and self._resolve(exc.tx, group)", "and False"),),
    ),
    Safeguard(
        "queue size",
        "the queue is bounded",
        (Edit(intake, "_refuse_overflow", "if (limit := tx.memory.queue_size) is not None:", "if False:"),),
    ),
)

__all__ = ["SAFEGUARDS", "Found", "Safeguard", "ablate"]
