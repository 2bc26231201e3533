"""Outcomes: how attempts end. Every write is conditional on the claim; no row means that it is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from mainspring.errors import InternalError
from mainspring.store.base import (
    BLOB_OUTPUT,
    CANCEL_ASKED,
    CANCELLED,
    COMPLETED,
    CRASHED,
    FAILED,
    MAX_CRASHES,
    MAX_RELEASES,
    RELEASED,
    RETRY,
    STANDS_FOR,
    SUSPECT,
    TIMEOUT,
    WANTS_KEPT,
    Claimed,
    Ended,
    Finish,
)
from mainspring.store.sql import flights, graph
from mainspring.store.sql.flights import Failure, Result
from mainspring.store.sql.intake import refuse_large_referrer, submit, submit_children
from mainspring.store.sql.transaction import Transaction
from mainspring.tasks import ErrorInfo, TaskStatus
from mainspring.tasks.codec import with_refs
from mainspring.tasks.lifecycle import STATUS_CODE

_STATUS = {
    COMPLETED: STATUS_CODE[TaskStatus.COMPLETED],
    FAILED: STATUS_CODE[TaskStatus.FAILED],
    TIMEOUT: STATUS_CODE[TaskStatus.TIMEOUT],
    CANCELLED: STATUS_CODE[TaskStatus.CANCELLED],
}


_UNSTARTED = (RELEASED, TIMEOUT, CANCELLED)
"""How attempts end that never began."""
_IN_VAIN = (FAILED, TIMEOUT, CANCELLED, RETRY)
"""How attempts end without a result, where nothing about their tasks has to be known for it."""


class Replay(Exception):
    """One of a batch did not go through: run them one by one."""


def start(tx: Transaction, starts: Sequence[tuple[Claimed, int]]) -> None:
    """Note which attempts run. One that ended meanwhile or is lost changes nothing."""
    tx.run_many("start", ((claim.seq, claim.attempt, claim.owner) for claim, _ in starts))


class InTurn(NamedTuple):
    """Outcomes of a commit in the order in which they count, whether together or one by one. What is looked at for
    itself goes first: what is written together after that misses a claim that was given twice."""

    others: list[Finish]
    vain: list[Finish]
    unbegun: list[Finish]
    plain: list[Finish]


def in_turn(finishes: Sequence[Finish]) -> InTurn:
    turns = InTurn([], [], [], [])
    others, vain, unbegun, plain = turns
    for finish in finishes:
        if finish.is_plain:
            plain.append(finish)
        elif finish.outcome in _IN_VAIN:
            vain.append(finish)
        elif finish.outcome == RELEASED and finish.started_ms is None and not finish.is_counted:
            unbegun.append(finish)
        else:
            others.append(finish)
    return turns


def each_in_turn(finishes: Sequence[Finish]) -> Iterator[Finish]:
    """Yield them in the same order, for one after the other. Of several for one claim the first given counts."""
    firsts: dict[tuple[int, int], Finish] = {}
    for finish in finishes:
        firsts.setdefault((finish.claim.seq, finish.claim.attempt), finish)
    for turn in in_turn(list(firsts.values())):
        yield from turn
    yield from (finish for finish in finishes if firsts[finish.claim.seq, finish.claim.attempt] is not finish)


def finish_all(tx: Transaction, finishes: Sequence[Finish]) -> None:
    """Record outcomes in one go. Raises Replay when one of them needs a look of its own."""
    turns = in_turn(finishes)
    for finish in turns.others:
        finish_one(tx, finish)
    if turns.vain:
        _end_in_vain(tx, turns.vain)
    if turns.unbegun:
        _hand_back(tx, turns.unbegun)
    if turns.plain:
        _complete(tx, turns.plain)


def _complete(tx: Transaction, plain: Sequence[Finish]) -> None:
    """Record results, with new tasks and large values that come with them."""
    classes = Counter([f.claim.class_key for f in plain])
    for class_key in classes:
        tx.let_go(tx.class_id(class_key))
    if tx.memory.limits.reserved:
        for f in plain:
            tx.settle(f.claim, f.usage.cost)
    if children := [child for f in plain for child in f.children]:
        submit(tx, children, is_limited=False)
    if blobs := [(digest, f.claim.seq) for f in plain for digest in f.blobs]:
        tx.run_many("add_payload_blob", blobs)
    done = tx.complete(
        [(f.ended_ms, f.output, f.flags, f.claim.seq, f.claim.attempt, f.claim.owner) for f in plain],
        [_attempt_row(f, COMPLETED) for f in plain],
    )
    if done != len(plain):
        raise Replay
    completed = _STATUS[COMPLETED]
    for class_key, n in classes.items():
        class_id = tx.class_id(class_key)
        tx.count(class_id, 0, -n)
        tx.count(class_id, completed, n)
    tx.ended += [Ended(f.claim.id, completed, f.output, f.flags, None) for f in plain]
    kept = [(f.claim.seq, _shareable(f, f.output)) for f in plain if f.claim.flags & WANTS_KEPT]
    shared = flights.leave(tx, kept) if kept else []
    graph.ended(tx, [*((f.claim.seq, completed, f.claim.id) for f in plain), *shared])


def _end_in_vain(tx: Transaction, finishes: Sequence[Finish]) -> None:
    """Record attempts without a result: their tasks come again, or are over. One that somebody asked to cancel may
    only be cancelled: where it says anything else, it has to be looked at."""
    again: list[tuple[Any, ...]] = []
    over: list[tuple[Any, ...]] = []
    attempts: list[tuple[Any, ...]] = []
    ends: list[tuple[int, int, bytes]] = []
    kept: list[tuple[int, Failure | None]] = []
    for f in finishes:
        claim, class_id = f.claim, tx.class_id(f.claim.class_key)
        _let_go(tx, f, class_id)
        outcome, error = _after_all(tx, f, f.outcome)
        if outcome == RETRY:
            again.append((tx.now_ms + f.delay_ms, error, f.flags, claim.seq, claim.attempt, claim.owner, f.spec))
        else:
            status = _STATUS[outcome]
            over.append((status, f.ended_ms, error, claim.seq, claim.attempt, claim.owner))
            tx.count(class_id, 0, -1)
            tx.count(class_id, status)
            tx.ended.append(Ended(claim.id, status, None, 0, error))
            ends.append((claim.seq, status, claim.id))
            if claim.flags & WANTS_KEPT:
                kept.append((claim.seq, _failure(f, outcome, error)))
        if _is_noted(f, outcome):
            attempts.append(_attempt_row(f, outcome))
    if tx.run_wide("again_many", again) + tx.run_wide("end_many", over) != len(finishes):
        raise Replay
    tx.run_wide("insert_attempt", attempts)
    graph.ended(tx, [*ends, *(flights.leave(tx, kept) if kept else ())])


def _hand_back(tx: Transaction, unbegun: Sequence[Finish]) -> None:
    """Make ready again what others can begin sooner, or what a process that leaves has not begun."""
    if tx.run_wide("hand_back", [(f.claim.seq, f.claim.attempt, f.claim.owner) for f in unbegun]) != len(unbegun):
        raise Replay
    handed_back: dict[int, list[int]] = {}
    for finish in unbegun:
        class_id = tx.class_id(finish.claim.class_key)
        tx.let_go(class_id, (finish.claim.seq, finish.claim.attempt))
        handed_back.setdefault(class_id, []).append(finish.claim.seq)
    for class_id, seqs in handed_back.items():
        for place in tx.run("still_ready", class_id, tx.listed(seqs)).fetchall():  # better ones than they had then
            tx.ready.add(class_id, (place[0], place[1]))


def _attempt_row(f: Finish, outcome: int) -> tuple[Any, ...]:
    claim, usage, started = f.claim, f.usage, f.started_ms
    cpu = usage.cpu_time
    return (
        claim.seq, claim.attempt, outcome, claim.owner, started, f.ended_ms,
        None if started is None else int(usage.duration * 1e6), None if cpu is None else int(cpu * 1e6),
        usage.memory_bytes, usage.network_bytes, usage.batch_size,
        None if started is None else max(0, started - claim.ready_ms), f.lane, f.error,
    )  # fmt: skip


def finish_one(tx: Transaction, finish: Finish) -> None:
    """Record one outcome with everything that goes with it; a claim that is not held any more is reported as lost."""
    claim = finish.claim
    row = tx.one("held", claim.seq, claim.attempt, claim.owner)
    if row is None:
        if not finish.is_repeated or tx.one("attempt_is_there", claim.seq, claim.attempt) is None:
            tx.lost.append(finish)
        elif (ended := tx.one("outcome_by_id", claim.id)) is not None:
            tx.ended.append(Ended(*ended))  # the commit went through, and nobody heard of it
        return
    class_id, asked, crashes = row[1], row[2] & CANCEL_ASKED, row[6]
    _let_go(tx, finish, class_id)
    outcome = finish.outcome
    if asked:  # whatever the attempt says: somebody was told that it ends so
        outcome = CANCELLED
    elif outcome == CRASHED and crashes + 1 >= MAX_CRASHES:
        outcome = FAILED
    outcome, error = _after_all(tx, finish, outcome)
    if outcome in (RETRY, CRASHED):
        _again(tx, finish, outcome)
    elif outcome == RELEASED:
        _release(tx, finish, class_id, row[7], row[10])
    else:
        _end(tx, finish, class_id, outcome, error, wants_kept=bool(row[2] & WANTS_KEPT))
    if _is_noted(finish, outcome):
        tx.run("insert_attempt", *_attempt_row(finish, outcome))


def _let_go(tx: Transaction, finish: Finish, class_id: int) -> None:
    claim = finish.claim
    if finish.started_ms is not None or finish.outcome not in _UNSTARTED:
        tx.let_go(class_id)
        tx.settle(claim, finish.usage.cost)
    else:
        tx.let_go(class_id, (claim.seq, claim.attempt))


def _is_noted(finish: Finish, outcome: int) -> bool:
    return finish.started_ms is not None or outcome not in (RELEASED, CANCELLED)


def _after_all(tx: Transaction, finish: Finish, outcome: int) -> tuple[int, bytes | None]:
    """Return the outcome after all, and the task's error: there is no other try when the deadline would pass before.

    The error of the attempt stays what it was.
    """
    deadline_ms = finish.claim.deadline_ms
    if outcome == CANCELLED:
        return outcome, _cancelled(finish)
    if outcome in (RETRY, CRASHED) and deadline_ms is not None and tx.now_ms + finish.delay_ms > deadline_ms:
        return TIMEOUT, _timed_out(finish.error, "deadline would pass before the next try")
    return outcome, finish.error


def _again(tx: Transaction, finish: Finish, outcome: int) -> None:
    """Put the task back for another try."""
    claim, due = finish.claim, tx.now_ms + finish.delay_ms
    if finish.flags:
        tx.must_change("add_flags", finish.flags, claim.seq)
    _put_spec(tx, finish)
    if outcome == CRASHED:
        tx.must_change("again_after_crash", due, finish.error, SUSPECT, claim.seq)
    else:
        tx.must_change("again", due, finish.error, claim.seq)


def _timed_out(raw: bytes | None, why: str) -> bytes:
    last = "" if raw is None else f"; the last error was {msgspec.msgpack.decode(raw, type=ErrorInfo).message}"
    attempts = 0 if raw is None else msgspec.msgpack.decode(raw, type=ErrorInfo).attempts
    return msgspec.msgpack.encode(ErrorInfo(type="TaskTimeout", message=why + last, attempts=attempts))


def _release(tx: Transaction, finish: Finish, class_id: int, releases: int, rank: int) -> None:
    if finish.is_counted and releases + 1 > MAX_RELEASES:
        error = ErrorInfo(
            type="InternalError",
            message=f"was handed back unfinished {MAX_RELEASES} times",
            attempts=finish.claim.tried + releases + 1,
        )
        graph.end(tx, finish.claim.seq, class_id, finish.claim.id, _STATUS[FAILED], error)
        return
    _put_spec(tx, finish)
    tx.must_change("give_back", int(finish.is_counted), 0, 0, finish.claim.seq)
    tx.ready.add(class_id, (rank, finish.claim.seq))


def _put_spec(tx: Transaction, finish: Finish) -> None:
    if finish.spec is not None:
        tx.must_change("put_spec", finish.spec, finish.claim.seq)


def _end(
    tx: Transaction, finish: Finish, class_id: int, outcome: int, error: bytes | None, *, wants_kept: bool
) -> None:
    claim, status = finish.claim, _STATUS[outcome]
    shared: list[tuple[int, int, bytes]] = []
    if outcome == COMPLETED:
        output, refs = _apply(tx, finish)
        flags = finish.flags | (STANDS_FOR if refs else 0)
        tx.must_change("complete", finish.ended_ms, output, flags, claim.seq, claim.attempt, claim.owner)
        tx.ended.append(Ended(claim.id, status, output, flags, None))
        if wants_kept:
            shared = flights.leave(tx, [(claim.seq, _shareable(finish, output))])
        if refs:
            graph.stand_for(tx, claim.seq, refs)
    else:
        tx.must_change("end", status, finish.ended_ms, error, claim.seq)
        tx.ended.append(Ended(claim.id, status, None, 0, error))
        if wants_kept:
            shared = flights.leave(tx, [(claim.seq, _failure(finish, outcome, error))])
    tx.count(class_id, 0, -1)
    tx.count(class_id, status)
    graph.ended(tx, [(claim.seq, status, claim.id), *shared])


def _shareable(finish: Finish, output: bytes | None) -> Result | None:
    """Return what equal work may have of a result: nothing where more than the value came with it."""
    work = finish.claim.work
    if work is None or output is None or finish.refs or finish.effects or finish.children:
        return None
    namespace, kind, _ = finish.claim.class_key
    return Result(work, namespace, kind, output, finish.flags & BLOB_OUTPUT, finish.output_bytes or len(output))


def _failure(finish: Finish, outcome: int, error: bytes | None) -> Failure | None:
    """Return what equal work has to know of a failure: nothing where it was not the work that failed."""
    is_of_work = outcome == FAILED or (
        outcome == TIMEOUT and finish.outcome == TIMEOUT and finish.started_ms is not None
    )
    return Failure(_STATUS[outcome], error, finish.claim.work) if is_of_work and error is not None else None


def _cancelled(finish: Finish) -> bytes:
    """A cancelled task reads as one, also where its attempt ended with an error of its own."""
    last = None if finish.error is None else msgspec.msgpack.decode(finish.error, type=ErrorInfo)
    if last is not None and last.type == "TaskCancelled":
        return msgspec.msgpack.encode(last)
    why = "" if last is None else f"; its last attempt ended with {last.type}: {last.message}"
    tries = finish.claim.tried + (finish.started_ms is not None)
    return msgspec.msgpack.encode(ErrorInfo(type="TaskCancelled", message=f"cancelled{why}", attempts=tries))


def _apply(tx: Transaction, finish: Finish) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Write what commits with the outcome: effects, children, references to blobs.

    Returns: the output, and the tasks that it stands for.
    """
    namespace = finish.claim.class_key[0]
    output, refs = finish.output, finish.refs
    stand_ins = submit_children(tx, finish.children) if finish.children else {}
    if output is not None and not stand_ins.keys().isdisjoint(refs):
        refuse_large_referrer(finish.flags & BLOB_OUTPUT)
        output, refs = with_refs(output, stand_ins), tuple(dict.fromkeys(stand_ins.get(id, id) for id in refs))
    for effect in finish.effects:
        applier = tx.memory.appliers.get(type(effect))
        if applier is None:
            raise InternalError(f"nobody applies {type(effect).__name__}; please report this")
        applier(tx.cursor, effect, namespace, tx.now_ms)
    for digest in finish.blobs:
        tx.run("add_payload_blob", digest, finish.claim.seq)
    return output, refs
