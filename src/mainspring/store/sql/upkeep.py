"""What time and death bring: delays that end, deadlines that pass, workers that are gone, tasks that grow old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from mainspring.config import StoreConfig
from mainspring.errors import TaskNotFound
from mainspring.store.base import (
    CANCEL_ASKED,
    CRASHED,
    MAX_CRASHES,
    MAX_RELEASES,
    RELEASED,
    SUSPECT,
    CrashEvidence,
)
from mainspring.store.sql import graph, reads
from mainspring.store.sql.reads import View
from mainspring.store.sql.transaction import Row, Transaction, first
from mainspring.tasks import ErrorInfo
from mainspring.tasks.lifecycle import CANCELLED, COMPLETED, FAILED, RUNNING, TIMEOUT

STEP = 500
"""Rows or pages that one transaction moves for upkeep, so that it stays short."""
_Ended = tuple[int, bytes, int, int]
"""seq, id, status, ended_ms"""


def promote(tx: Transaction) -> None:
    """Delays and backoffs that are over: their tasks become ready."""
    for class_id, *place in tx.run("promote", tx.now_ms, tx.now_ms, STEP).fetchall():
        tx.ready.add(class_id, (place[0], place[1]))


def expire(tx: Transaction) -> None:
    """Deadlines that passed before a start."""
    for seq, class_id, *_ in tx.run("overdue", tx.now_ms, STEP).fetchall():
        status, id, tries = first(tx.run("status_and_id", seq))
        if status >= COMPLETED:  # a parent that is overdue too has just taken it along
            continue
        error = ErrorInfo(type="TaskTimeout", message="deadline passed before start", attempts=tries)
        graph.end(tx, seq, class_id, id, TIMEOUT, error)


def next_event_ms(tx: Transaction) -> int | None:
    """When the next delay ends or deadline passes."""
    times = [
        row[0] for name in ("next_due", "next_deadline") if (row := tx.one(name)) is not None and row[0] is not None
    ]
    return min(times) if times else None


def rescue(tx: Transaction, owner: int, evidence: CrashEvidence) -> int:
    """Take back what a dead worker held, a step at a time; returns how many there were.

    What had not started is charged nothing. If one attempt alone ran in the process, it is charged the crash; of
    several, each becomes a suspect and runs alone next. Attempts in child processes can't have killed their parent.
    """
    rows = tx.run("held_by", owner, STEP).fetchall()
    # The marks are empty after a power cut, which was nobody's fault.
    suspects = evidence.started
    for seq, id, attempt, status, class_id, retries, crashes, rank, flags in rows:
        ran = (seq, attempt) in suspects
        tx.let_go(class_id)  # may have come back, and counts as begun
        alone = ran and len(suspects) == 1
        error = ErrorInfo(
            type="ProcessingFailed",
            message=f"worker {evidence.worker} (pid {evidence.pid}) died while it ran"
            + (" alone" if alone else f" beside {len(suspects) - 1} others" if ran else ""),
            attempts=retries + crashes + 1,
        )
        if flags & CANCEL_ASKED:
            tries = retries + crashes + int(ran or status == RUNNING)
            _stopped(tx, (seq, class_id, id), "died before it could stop", tries)
        elif alone and crashes + 1 >= MAX_CRASHES:
            graph.end(tx, seq, class_id, id, FAILED, error)
        else:
            tx.must_change("give_back", 0, int(alone), SUSPECT if ran else 0, seq)
            tx.ready.add(class_id, (rank, seq))
        if ran or status == RUNNING:
            _note(tx, seq, attempt, CRASHED, owner, error)
    return len(rows)


class Stall(NamedTuple):
    """A process that lives and does nothing, as another one sees it."""

    owner: int
    worker: str
    pid: int
    silent_s: float
    running: frozenset[tuple[int, int]]  # (seq, attempt) of handlers in it


def take_back(tx: Transaction, claims: Sequence[tuple[int, int]], stall: Stall) -> int:
    """Take claims (seq, attempt) back from a process that may wake up yet; returns how many it still held.

    Nothing is charged. What ran counts as handed back unfinished: no task may stall one process after the other.
    """
    taken = 0
    for seq, attempt in claims:
        row = tx.one("held", seq, attempt, stall.owner)
        if row is None:
            continue
        status, class_id, flags, _, retries, _, crashes, releases, _, id, rank = row
        ran = status == RUNNING or (seq, attempt) in stall.running
        tx.let_go(class_id)  # may have come back, and counts as begun
        error = ErrorInfo(
            type="ProcessingFailed",
            message=f"worker {stall.worker} (pid {stall.pid}) was silent for {stall.silent_s:.0f} s; "
            "its claim was taken back",
            attempts=retries + crashes + releases + 1,
        )
        if flags & CANCEL_ASKED:
            _stopped(tx, (seq, class_id, id), "was silent and could not stop", retries + crashes + int(ran))
        elif ran and releases >= MAX_RELEASES:
            graph.end(tx, seq, class_id, id, FAILED, error)
        else:
            tx.must_change("give_back", int(ran), 0, 0, seq)
            tx.ready.add(class_id, (rank, seq))
        if ran:
            _note(tx, seq, attempt, RELEASED, stall.owner, error)
        taken += 1
    return taken


def _stopped(tx: Transaction, task: tuple[int, int, bytes], why: str, tries: int) -> None:
    """End a task that was asked to stop, by a worker that can't any more."""
    seq, class_id, id = task
    error = ErrorInfo(type="TaskCancelled", message=f"cancelled; its worker {why}", attempts=tries)
    graph.end(tx, seq, class_id, id, CANCELLED, error)


def _note(tx: Transaction, seq: int, attempt: int, outcome: int, owner: int, error: ErrorInfo) -> None:
    """Record an attempt whose worker can't say how it ended."""
    tx.run(
        "insert_attempt", seq, attempt, outcome, owner, None, tx.now_ms, None, None, None, None, 1, None, None,
        msgspec.msgpack.encode(error),
    )  # fmt: skip


class Step(NamedTuple):
    """What retention finds in a step through the tasks."""

    has_old: bool  # tasks or tombstones that may go
    next: int  # where the next one begins; 0: there are no more


def look_for_old(view: View, after: int, now_ms: int, fresh_ms: int, config: StoreConfig) -> Step:
    """Look at the tasks of a step from a cursor on, so that nobody who writes waits where all of them stay."""
    rows = view.rows("prunable", after, STEP)
    old = _old(rows, dict(view.rows("totals")), now_ms, fresh_ms, config)
    forgotten = view.one("old_tombstone", int(now_ms - config.keep_tombstones_s * 1000))
    return Step(bool(old or forgotten), _next(rows))


def prune(tx: Transaction, after: int, config: StoreConfig) -> int:
    """Remove ended tasks that are old enough, from a cursor on; returns the new cursor, 0 when the end was reached.

    Parents of unfinished tasks stay, and so do tasks whose result another one stands for.
    """
    rows = tx.run("prunable", after, STEP).fetchall()
    old = _old(rows, dict(tx.run("totals").fetchall()), tx.now_ms, tx.memory.fresh_ms, config)
    if old and (free := _not_needed(tx, [seq for seq, *_ in old])):
        _remove(tx, [row for row in old if row[0] in free])
    forgotten_ms = int(tx.now_ms - config.keep_tombstones_s * 1000)
    tx.run("drop_tombstones", forgotten_ms, STEP)  # as many as a step can make
    tx.run("drop_audit", STEP, forgotten_ms)  # likewise: each task may have been cancelled
    if after == 0:
        tx.run("forget_workers", forgotten_ms)
    return _next(rows)


def buried(view: View, ids: Sequence[bytes]) -> list[tuple[bytes, TaskNotFound]]:
    """Return those of the tasks that have ended and were pruned since, and what is to be said of each."""
    return [(row[0], reads.not_found(view, row[0])) for row in view.of_ids("buried_id", ids)]


def _old(
    rows: Sequence[Row], totals: Mapping[int, int], now_ms: int, fresh_ms: int, config: StoreConfig
) -> list[_Ended]:
    """Return those that are over and old enough to go, or more than are to be kept."""
    surplus = totals.get(COMPLETED, 0) - config.max_completed
    old = []
    for seq, id, status, ended_ms in rows:
        if status < COMPLETED:
            continue
        keep_s = config.keep_completed_s if status == COMPLETED else config.keep_failed_s
        if status == COMPLETED and surplus > 0 and ended_ms <= now_ms - fresh_ms:
            surplus -= 1
        elif ended_ms > now_ms - keep_s * 1000:
            continue
        old.append((seq, id, status, ended_ms))
    return old


def _next(rows: Sequence[Row]) -> int:
    return int(rows[-1][0]) if len(rows) == STEP else 0


def prune_kept(tx: Transaction) -> bool:
    """Remove kept results that are too old, and beyond the limit those that were not used for longest.

    Returns: whether more are to go.
    """
    if tx.changed("drop_expired", tx.now_ms, STEP) == STEP:
        return True
    surplus = tx.one("kept_bytes")[0] - tx.memory.cache_bytes
    return bool(surplus > 0 and tx.changed("drop_unused", STEP, surplus) == STEP)


def _not_needed(tx: Transaction, seqs: Sequence[int]) -> set[int]:
    """Return those that no unfinished task depends on, and no kept one stands for."""
    needed = {row[0] for row in tx.run("with_live_child", tx.listed(seqs))}
    stand_in: dict[int, set[int]] = {}
    for ref, task in tx.run("stand_for_these", tx.listed(seqs)):
        stand_in.setdefault(ref, set()).add(task)
    free: set[int] = set()
    for seq in seqs:
        if seq not in needed and stand_in.get(seq, free) <= free:
            free.add(seq)
    return free


def _remove(tx: Transaction, tasks: Sequence[_Ended]) -> None:
    seqs = tx.listed([seq for seq, *_ in tasks])
    for class_id, status in tx.run("prune_tasks", seqs).fetchall():
        tx.count(class_id, status, -1)
    tx.run_wide("add_tombstone", [(id, status, ended_ms) for _, id, status, ended_ms in tasks])
    for name in ("attempts", "edges", "keys", "progress", "stands_for", "payload_blobs", "retried"):
        tx.run(f"prune_{name}", seqs)
