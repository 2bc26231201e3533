"""The machine's own credibility: one safeguard of the store taken out at a time. Each of these must be found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

from tests.conformance.kit import OUTPUT
from tests.model.machine import StoreMachine, examine

from mainspring.results.cache import ResultCache
from mainspring.store.base import CANCEL_ASKED, WANTS_KEPT, Finish, NewTask
from mainspring.store.sql import claims, commands, costs, flights, graph, intake, limits, outcomes, upkeep
from mainspring.store.sql import leaving as rules
from mainspring.store.sql.limits import Limits
from mainspring.store.sql.transaction import Memory, Transaction
from mainspring.store.sql.writer import Writer
from mainspring.store.sqlite import store
from mainspring.store.sqlite.statements import SQL, WIDE
from mainspring.tasks.lifecycle import CLAIMED, COMPLETED

Ablation = Callable[[], AbstractContextManager[Any]]


@contextmanager
def sql(before: str, after: str, *names: str) -> Iterator[None]:
    """Named statements with a part of them replaced, the wide ones too."""
    with ExitStack() as stack:
        for name in names:
            assert before in SQL[name], f"statement {name} has no {before!r} any more"
            stack.enter_context(mock.patch.dict(SQL, {name: SQL[name].replace(before, after)}))
            if name in WIDE:
                wide = tuple((n, text.replace(before, after)) for n, text in WIDE[name])
                stack.enter_context(mock.patch.dict(WIDE, {name: wide}))
        yield


@contextmanager
def flipped(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """A function or value, made into another one that may use it."""
    with mock.patch.object(owner, name, make(getattr(owner, name))):
        yield


def _cancel_without_asking(real: Any) -> Any:
    def cancel(tx: Transaction, id: bytes) -> str:
        _, _, reason, *_ = commands.state(tx, id)
        return "cancelled" if reason == CLAIMED else str(real(tx, id))

    return cancel


def _count_completed_twice(real: Any) -> Any:
    return lambda tx, class_id, status, n=1: real(tx, class_id, status, n + (status == COMPLETED and n > 0))


def _unbounded_rank(real: Any) -> Any:
    def rank_of(task: NewTask, now_ms: int, ageing_ms: int) -> int:
        rank = max(now_ms, task.not_before_ms or 0) - task.priority * ageing_ms
        return rank if task.deadline_ms is None else min(rank, task.deadline_ms - ageing_ms)

    return rank_of


def _door_always_open(real: Any) -> Any:
    def door(tx: Transaction, class_key: Any, entry: Any) -> Any:
        class_id = tx.class_id(class_key)
        lane = tx.lane_for(class_id)
        return intake._Door(class_id, tx.group_flag(class_id), lane, 0 if lane is None else lane.room())

    return door


def _forget_pauses(real: Any) -> Any:
    return lambda self, key: False


def _nothing(real: Any) -> Any:
    return lambda *args, **kwargs: None


def _none_found(real: Any) -> Any:
    return lambda tx, seqs: []


def _all_alone(real: Any) -> Any:
    """Blame whoever ran, as if it had been alone."""

    def rescue(tx: Transaction, owner: int, evidence: Any) -> Any:
        if not evidence.started:
            return real(tx, owner, evidence)
        found = 0
        for mark in sorted(evidence.started):
            found = real(tx, owner, evidence._replace(started=frozenset([mark])))
        return found

    return rescue


def _keep_what_is_refused(real: Any) -> Any:
    """Record the failure beside what was written before it, instead of taking that back."""

    def guarded_finish(self: Any, tx: Transaction, finish: Any) -> None:
        try:
            outcomes.finish_one(tx, finish)
        except Exception:  # noqa: BLE001 - as the real one does
            finish.effects, finish.children, finish.refs = (), (), ()
            finish.outcome, finish.output, finish.error = 1, None, finish.error or b"\x84\xa4type\xa1x"
            real(self, tx, finish)

    return guarded_finish


def _clock_of_the_wall(real: Any) -> Any:
    def set_clock(self: Any, connection: Any) -> None:
        real(self, connection)
        self.clock._wall_ms = self.env.wall_ms()

    return set_clock


def _without_deadline(finish: Any) -> Any:
    finish.claim.deadline_ms = None
    return finish


@contextmanager
def _cancel_is_forgotten() -> Iterator[None]:
    with (
        flipped(outcomes, "CANCEL_ASKED", lambda flag: flag & ~CANCEL_ASKED),
        sql(" AND flags & 1 = 0", "", "complete"),
        sql(" AND task.flags & 1 = 0", "", "complete_many", "again_many"),
        sql("task.flags & 1 = 0 OR", "task.flags & 1 >= 0 OR", "end_many"),
    ):
        yield


def _without_kept(real: Any) -> Any:
    return lambda tx, works: {}


def _of_any_namespace(real: Any) -> Any:
    def name(self: Any, kind: str, namespace: str, *rest: Any) -> Any:
        return real(self, kind, "", *rest)

    return name


def _answered_in_any_case(real: Any) -> Any:
    """Take an end for that of the work, whatever came with it and whoever did it."""

    def failure(finish: Finish, outcome: int, error: bytes | None) -> Any:
        return None if error is None else flights.Failure(outcomes._STATUS[outcome], error, None)

    return failure


def _with_whatever_came(real: Any) -> Any:
    def shareable(finish: Finish, output: bytes | None) -> Any:
        namespace, kind, _ = finish.claim.class_key
        assert finish.claim.work is not None
        assert output is not None
        return flights.Result(finish.claim.work, namespace, kind, output, 0, len(output))

    return shareable


def _as_if_asked_for(real: Any) -> Any:
    """Give what other code made to those that wait."""

    def go_on(tx: Transaction, key: bytes, end: Any) -> Any:
        if end is not None and end.work is not None:
            end = end._replace(work=end.work._replace(key=key))
        return real(tx, key, end)

    return go_on


def _failures_are_kept(real: Any) -> Any:
    def failure(finish: Finish, outcome: int, error: bytes | None) -> Any:
        namespace, kind, _ = finish.claim.class_key
        if finish.claim.work is not None:
            return flights.Result(finish.claim.work, namespace, kind, OUTPUT, 0, len(OUTPUT))
        return real(finish, outcome, error)

    return failure


def _never_full(real: Any) -> Any:
    return lambda tx, class_id, limits, most: most


def _always_granted(real: Any) -> Any:
    return lambda tx, limits, n=1: True


def _nobody_let_in(real: Any) -> Any:
    def read(self: Any, tx: Transaction) -> set[int]:
        real(self, tx)
        return set()

    return read


def _as_without_a_rate(real: Any) -> Any:
    return lambda tx, limit: real(tx, limit._replace(rate=None))


def _all_of_it(real: Any) -> Any:
    """Give back what is filled up since as well."""

    def rest_us(memory: Limits, limit: limits.Limit, claim: limits.Claim, now_us: int) -> int:
        return 0 if limit.rate is None else limit.rate.rest_us(1 << 60, now_us)

    return rest_us


def _nothing_saved(real: Any) -> Any:
    """Let others go by who cost less; only a debt keeps them."""

    def is_saved(tx: Transaction, limit: limits.Limit, place: Any) -> bool:
        tx.memory.limits.saved_for.pop(limit.id, None)
        return bool(real(tx, limit, place))

    return is_saved


def _all_alike(real: Any) -> Any:
    return lambda self, key: 0


def _place_kept(real: Any) -> Any:
    return lambda tx, class_id: set()


OWNED = "seq = ? AND attempt = ? AND owner = ?"
ABLATIONS: dict[str, Ablation] = {
    "claims ignore the rank": lambda: sql("ORDER BY rank, seq", "ORDER BY seq", "heads", "claim_of_class"),
    "a finish is taken from whoever sends it": lambda: sql(
        OWNED, "seq = ? AND ? >= 0 AND ? >= 0 AND owner IS NOT NULL", "held"
    ),
    "a completion is not fenced by the attempt": lambda: sql(
        " AND task.attempt = v.column5 AND task.owner = v.column6",
        " AND v.column5 >= 0 AND v.column6 >= 0 AND task.owner IS NOT NULL",
        "complete_many",
    ),
    "a start is not fenced": lambda: sql(
        "attempt = ? AND owner = ? AND reason = 4", "? >= 0 AND ? >= 0 AND reason = 4", "start"
    ),
    "a retry is not charged": lambda: sql(
        "retry_count = retry_count + 1", "retry_count = retry_count", "again", "again_many"
    ),
    "a crash is not charged": lambda: sql("crashes = crashes + 1", "crashes = crashes", "again_after_crash"),
    "releases are not counted": lambda: sql("releases = releases + ?", "releases = releases + 0 * ?", "give_back"),
    "a task may be handed back for ever": lambda: flipped(outcomes, "MAX_RELEASES", lambda _: 10**6),
    "crashes never end a task": lambda: flipped(outcomes, "MAX_CRASHES", lambda _: 10**6),
    "keys are shared by namespaces": lambda: sql(
        "namespace = ? AND key = ?", "? IS NOT NULL AND key = ?", "task_by_key"
    ),
    "params don't tell payloads apart": lambda: flipped(intake, "_work_of", lambda _: lambda raw: None),
    "queue_size is not looked at": lambda: flipped(intake, "_refuse_overflow", _nothing),
    "completed tasks are counted twice": lambda: flipped(Transaction, "count", _count_completed_twice),
    "policy skip is taken for require": lambda: flipped(graph, "SKIP", lambda _: -1),
    "failures don't travel": lambda: flipped(graph, "_break_children", lambda _: lambda tx, end, broken: end),
    "a child goes on when its first parent ends": lambda: sql(
        "edge.n >= child.waits_at", "edge.n < child.waits_at", "waiting_on"
    ),
    "parents don't take their children's rank": lambda: sql("status < 2 AND rank > ?", "rank > ? AND 0", "raise_ranks"),
    "dependents don't wait for what a parent stands for": lambda: sql(
        "WHERE edge.parent = ?", "WHERE edge.parent = -?", "all_children_of"
    ),
    "late dependents don't wait for what a parent stands for": lambda: flipped(graph, "_stood_for", _none_found),
    "tasks may come to depend on themselves": lambda: sql(
        "WHERE seq = ?2 LIMIT", "WHERE seq = -?2 LIMIT", "depends_on"
    ),
    "deadlines are not looked at": lambda: flipped(upkeep, "expire", _nothing),
    "delays end a second early": lambda: sql("due_ms <= ?", "due_ms <= ? + 1000", "promote"),
    "a retry comes after its deadline": lambda: flipped(
        outcomes, "_after_all", lambda real: lambda tx, f, outcome: real(tx, _without_deadline(f), outcome)
    ),
    "nothing bounds what priority and deadline are worth": lambda: flipped(intake, "rank_of", _unbounded_rank),
    "new tasks overtake waiting ones": lambda: flipped(intake, "_door", _door_always_open),
    "a pause is forgotten": lambda: flipped(Memory, "is_paused", _forget_pauses),
    "cancel says cancelled and stops nothing": lambda: flipped(commands, "cancel", _cancel_without_asking),
    "a wish to cancel is not kept": _cancel_is_forgotten,
    "ends don't travel": lambda: flipped(graph, "ended", _nothing),
    "a retry by hand leaves the key behind": lambda: sql("SET task = ?", "SET task = task + 0 * ?", "move_key"),
    "a retry by hand leaves descendants behind": lambda: flipped(
        commands, "_descendants", lambda _: lambda tx, seq: []
    ),
    "parents of the living are pruned": lambda: sql("status < 2", "status < 0", "with_live_child"),
    "what others stand for is pruned": lambda: sql("WHERE ref IN", "WHERE 0 AND ref IN", "stand_for_these"),
    "pruning keeps the key": lambda: sql("WHERE task IN", "WHERE -task IN", "prune_keys"),
    "a crash is blamed on all that ran": lambda: flipped(upkeep, "rescue", _all_alone),
    "suspects are not marked": lambda: flipped(upkeep, "SUSPECT", lambda _: 0),
    "a process that signs off keeps its claims": lambda: flipped(rules, "hand_back", _nothing),
    "refused outcomes are kept in part": lambda: flipped(Writer, "_guarded_finish", _keep_what_is_refused),
    "kept results are not taken": lambda: flipped(flights, "kept", _without_kept),
    "equal work runs beside equal work": lambda: flipped(flights, "leaders", _without_kept),
    "claims are not compared with equal work": lambda: flipped(
        commands, "join", lambda _: lambda tx, claim, keep_ms: "leads"
    ),
    "a wish to cancel is not looked at before equal work": lambda: flipped(commands, "CANCEL_ASKED", lambda _: 0),
    "how old a kept result is does not count": lambda: flipped(
        flights, "is_fresh", lambda _: lambda tx, found, keep_ms: found is not None
    ),
    "kept results don't expire": lambda: sql("expires_ms > ?", "expires_ms > 0 * ?", "kept"),
    "a result is kept for another time than was said": lambda: flipped(
        flights, "_keep", lambda real: lambda tx, results: real(tx, [(result, 60_000) for result, _ in results])
    ),
    "failures are kept": lambda: flipped(outcomes, "_failure", _failures_are_kept),
    "failures are nobody else's": lambda: flipped(flights, "_share_failure", lambda _: lambda tx, key, failure: []),
    "whatever ends a task ends equal work": lambda: flipped(outcomes, "_failure", _answered_in_any_case),
    "results with children and effects are for all": lambda: flipped(outcomes, "_shareable", _with_whatever_came),
    "other code answers for those that wait": lambda: flipped(flights, "_go_on", _as_if_asked_for),
    "nobody goes on for who led equal work": lambda: flipped(flights, "_elect", _nothing),
    "any one goes on for who led equal work": lambda: sql(
        "ORDER BY task.rank, task.seq", "ORDER BY task.seq DESC", "best_follower"
    ),
    "who leads is not as urgent as those that wait": lambda: sql(
        "WHERE key = mine.key", "WHERE key = mine.key || 'x'", "leaders_of"
    ),
    "equal work of other namespaces will do": lambda: flipped(ResultCache, "name", _of_any_namespace),
    "equal work of other code will do": lambda: flipped(
        ResultCache, "_code_of", lambda _: lambda self, kind, model_id: ("1", "")
    ),
    "what is made anew forgets that a kept result will do": lambda: flipped(
        commands, "_RENEWED", lambda flags: flags & ~WANTS_KEPT
    ),
    "purge looks at no version": lambda: sql("version = ?3", "?3 = ?3", "purge_kept"),
    "limits are not looked at by claims": lambda: flipped(limits, "places", _never_full),
    "limits are not looked at by what enters": lambda: flipped(limits, "take", _always_granted),
    "each process counts for itself": lambda: sql(
        "task.owner IS NOT NULL", "task.owner = (SELECT max(id) FROM worker)", "held_in_group"
    ),
    "limits of a namespace count all": lambda: sql("class.namespace = ?2", "?2 = ?2", "held_in_group"),
    "places that fall free are not given on": lambda: flipped(limits, "freed", _place_kept),
    "a limit that is raised lets nobody in": lambda: flipped(Limits, "read", _nobody_let_in),
    "rates are not looked at": lambda: flipped(limits, "_count", _as_without_a_rate),
    "what never began is not given back to its rate": lambda: flipped(limits, "give_back", _nothing),
    "a claim gives back to a rate what it did not take": lambda: flipped(Limits, "rest_us", _all_of_it),
    "a rate is not heard by other processes": lambda: flipped(claims, "read_limits", _nothing),
    "a slower rate than before lasts on": lambda: flipped(limits, "begin_rate", _nothing),
    "costs are not looked at": lambda: flipped(limits, "take_at_cost", lambda _: lambda tx, limits, *rest: True),
    "a cost is not settled": lambda: flipped(Transaction, "settle", _nothing),
    "what never began has cost its estimate": lambda: flipped(costs, "give_back", _nothing),
    "nothing is saved up for what is dear": lambda: flipped(costs, "is_saved", _nothing_saved),
    "more is taken in than a group may ever cost": lambda: flipped(costs, "refuse_too_much", _nothing),
    "a debt outlasts its rate": lambda: sql("WHEN excluded.cost_rate IS NULL THEN 0", "WHEN false THEN 0", "put_limit"),
    "a limit that is set anew knows earlier claims": lambda: sql(
        "THEN excluded.id", "THEN group_limit.id", "put_limit"
    ),
    "shares are ignored": lambda: flipped(Limits, "share_of", _all_alike),
    "the clock may go back": lambda: flipped(store.SqliteStore, "_set_clock", _clock_of_the_wall),
}
"""What is taken out, by what the store does without it."""


def examples_until_found(name: str, most: int, seed: int = 0) -> int | None:
    """Return after how many examples the machine finds what is taken out; None when it does not."""
    done = 0

    class Ablated(StoreMachine):
        def teardown(self) -> None:
            nonlocal done
            done += 1
            super().teardown()

    logger = logging.getLogger("mainspring.store")
    with ABLATIONS[name](), mock.patch.object(logger, "disabled", True):
        try:
            examine(Ablated, most, seed)
        except Exception:  # noqa: BLE001 - whatever it is that fails: without the ablation nothing does
            return done
    return None
