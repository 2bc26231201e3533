"""Submissions: how new tasks enter, and when they may skip the queue of claims."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from mainspring.errors import Conflict, QueueFull, TaskNotFound, invalid
from mainspring.store.base import BLOB_INPUT, Accepted, Claimed, Lane, NewTask, Spec
from mainspring.store.sqlite.graph import fail_child, first_unfinished, link, raise_parents
from mainspring.store.sqlite.transaction import ClassKey, Transaction, first
from mainspring.tasks import TaskId
from mainspring.tasks.lifecycle import CLAIMED, DELAYED, PARENTS, READY


def rank_of(task: NewTask, now_ms: int, ageing_ms: int) -> int:
    """Return the place in the one order of ready tasks: smaller goes first, ties by sequence.

    It is constant, so that an index serves it. A step of priority is worth `ageing_ms` of waiting, a deadline counts as
    if the task had waited until one step before it, and nothing is worth more than four steps: starvation is bounded.
    """
    base = now_ms if task.not_before_ms is None else max(now_ms, task.not_before_ms)
    rank = base - task.priority * ageing_ms
    if task.deadline_ms is not None:
        rank = min(rank, task.deadline_ms - ageing_ms)
    return max(base - 4 * ageing_ms, rank)


def submit(tx: Transaction, tasks: Sequence[NewTask], *, is_limited: bool = True) -> list[Accepted]:
    """Store the tasks; those with a key or an id that exist already are recognised. All or none."""
    accepted: list[Accepted] = []
    fresh: list[NewTask] = []
    for task in tasks:
        if task.key is None and not task.after:
            fresh.append(task)
            accepted.append(Accepted(task.id, False))
            continue
        _insert(tx, fresh)
        fresh = []
        found = None if task.key is None else _existing_key(tx, task)
        if found is None:
            _insert_linked(tx, task) if task.after else _insert(tx, [task])
        accepted.append(found or Accepted(task.id, False))
    _insert(tx, fresh)
    if is_limited:
        _refuse_overflow(tx)
    return accepted


def submit_again(tx: Transaction, tasks: Sequence[NewTask], *, is_limited: bool = True) -> list[Accepted]:
    """Like `submit`, for tasks of which some may be stored already under the same id."""
    accepted = []
    for task in tasks:
        known = _existing_id(tx, task)
        accepted.append(known or submit(tx, [task], is_limited=is_limited)[0])
    return accepted


def _refuse_overflow(tx: Transaction) -> None:
    """Judge by what the transaction would leave behind: repeated submits add nothing, and ends in it make room."""
    limit = tx.memory.queue_size
    if limit is None:
        return
    unfinished = tx.one("unfinished")[0] + sum(count for (_, status), count in tx.tally.items() if status == 0)
    if unfinished > limit:
        raise QueueFull(
            f"{unfinished} tasks would be unfinished, more than queue_size = {limit}; nothing was stored: "
            "wait for some to end, or raise queue_size",
            retry_after=1.0,
        )


def _same_payload(tx: Transaction, row: Any, task: NewTask) -> bool:
    """The same type, input, model and params; other options may differ."""
    same_input = tx.class_key(row[2])[1] == task.class_key[1] and row[3] == task.input
    return same_input and (row[5] == task.spec or _work_of(row[5]) == _work_of(task.spec))


def _work_of(raw: bytes | None) -> tuple[str | None, dict[str, Any]]:
    spec = Spec() if raw is None else msgspec.msgpack.decode(raw, type=Spec)
    return spec.model_id, spec.params


def _existing_key(tx: Transaction, task: NewTask) -> Accepted | None:
    assert task.key is not None
    namespace = task.class_key[0]
    row = tx.one("find_key", namespace, task.key)
    if row is None:
        return None
    stored = first(tx.ask("SELECT seq, status, class, input, flags, spec, id FROM task WHERE seq = ?", *row))
    if not _same_payload(tx, stored, task):
        raise Conflict(
            f"idempotency key {task.key!r} of namespace {namespace!r} belongs to task {TaskId(stored[6])} with another "
            "payload; use another key, or submit the same payload"
        )
    return Accepted(stored[6], True)


def _existing_id(tx: Transaction, task: NewTask) -> Accepted | None:
    row = tx.one("task_by_id", task.id)
    if row is None:
        return None
    if not _same_payload(tx, row, task):
        raise Conflict(
            f"task {TaskId(task.id)} exists already with another payload; leave the id out, or use a fresh one"
        )
    return Accepted(task.id, True)


def _next_seq(tx: Transaction) -> int:
    row = tx.one("last_seq")
    return 1 if row is None else int(row[0]) + 1


def _insert(tx: Transaction, tasks: Sequence[NewTask]) -> None:
    """Insert tasks without parents. Where a lane has room and nothing waits for it, they enter already claimed."""
    if not tasks:
        return
    now, memory = tx.now_ms, tx.memory
    ageing = memory.ageing_ms
    ranks = [rank_of(task, now, ageing) for task in tasks]
    in_order = all(a <= b for a, b in pairwise(ranks))
    doors: dict[ClassKey, _Door] = {}
    seq = _next_seq(tx)
    owner = memory.owner
    rows: list[tuple[Any, ...]] = []
    marked = False
    for task, rank in zip(tasks, ranks, strict=True):
        door = doors.get(task.class_key)
        if door is None:
            door = doors[task.class_key] = _door(tx, task.class_key, len(tasks), in_order)
        reason, attempt, due, held = READY, 0, None, None
        if task.not_before_ms is not None and task.not_before_ms > now:
            reason, due = DELAYED, task.not_before_ms
        elif task.deadline_ms is not None and task.deadline_ms <= now:
            tx.ready.add(door.class_id)  # it ends with this transaction
        elif door.lane is not None and tx.taken.get(door.lane.name, 0) < door.room:
            tx.taken[door.lane.name] = tx.taken.get(door.lane.name, 0) + 1
            reason, attempt, held = CLAIMED, 1, owner
            tx.claims.append(_claimed(task, seq, rank, owner, now))
        else:
            tx.ready.add(door.class_id)
        rows.append(
            (seq, task.id, door.class_id, rank, reason, attempt, held, task.flags, task.priority, task.max_retries, now,
             now, task.not_before_ms, due, task.deadline_ms, task.timeout_ms, None, None, task.input, task.spec)
        )  # fmt: skip
        door.entered += 1
        marked = marked or task.key is not None or task.flags & BLOB_INPUT != 0
        seq += 1
    tx.run_wide("insert_task", rows)
    for door in doors.values():
        tx.count(door.class_id, 0, door.entered)
    if marked:
        for task, row in zip(tasks, rows, strict=True):
            _note(tx, task, row[0])


def _note(tx: Transaction, task: NewTask, seq: int) -> None:
    if task.key is not None:
        tx.run("add_key", task.class_key[0], task.key, seq)
    if task.flags & BLOB_INPUT:
        tx.run("add_payload_blob", task.input.decode(), seq)


class _Door:
    """How new tasks of a class enter: with a lane, up to `room` claims of this transaction go straight to it."""

    __slots__ = ("class_id", "entered", "lane", "room")

    def __init__(self, class_id: int, lane: Lane | None, room: int) -> None:
        self.class_id = class_id
        self.lane = lane
        self.room = room
        self.entered = 0


def _door(tx: Transaction, class_key: ClassKey, n: int, in_order: bool) -> _Door:
    """Past the ready index only when nothing waits for the lane, so that the order stays the one order."""
    class_id = tx.class_id(class_key)
    lane = tx.lane_for(class_id)
    if lane is None or lane.ready or any(tx.lane_for(ready) is lane for ready in tx.ready):
        return _Door(class_id, None, 0)
    room = lane.room()
    if n > room - tx.taken.get(lane.name, 0) and not in_order:
        return _Door(class_id, None, 0)
    return _Door(class_id, lane, room)


def _claimed(task: NewTask, seq: int, rank: int, owner: int, now: int) -> Claimed:
    key = task.class_key
    return Claimed(
        task.id, 1, key[1], task.input, key[0], None, None, 0, task.deadline_ms, seq, owner, key, rank, task.flags,
        task.priority, task.max_retries, 0, 0, now, task.timeout_ms, task.spec,
    )  # fmt: skip


def _insert_linked(tx: Transaction, task: NewTask) -> None:
    """Insert a task that has parents: it waits for one of them that has not ended, or is ready, or ends at once."""
    parents = _parents(tx, task)
    seq = _next_seq(tx)
    class_id = tx.class_id(task.class_key)
    now = tx.now_ms
    rank = rank_of(task, now, tx.memory.ageing_ms)
    edges = link(tx, seq, parents, task.policy)
    waits, failed = first_unfinished(edges)
    reason, due = READY, None
    if waits is not None and failed is None:
        reason = PARENTS
    elif task.not_before_ms is not None and task.not_before_ms > now:
        reason, due = DELAYED, task.not_before_ms
    waits_for, waits_at = (waits.parent, waits.n) if reason == PARENTS and waits is not None else (None, None)
    tx.run(
        "insert_task", seq, task.id, class_id, rank, reason, 0, None, task.flags, task.priority, task.max_retries, now,
        now, task.not_before_ms, due, task.deadline_ms, task.timeout_ms, waits_for, waits_at, task.input, task.spec,
    )  # fmt: skip
    tx.run_wide("insert_edge", [(seq, edge.n, edge.parent, edge.policy) for edge in edges])
    tx.count(class_id, 0)
    _note(tx, task, seq)
    if failed is not None:
        fail_child(tx, seq, failed)
    elif reason == READY:
        tx.ready.add(class_id)
    elif reason == PARENTS:
        raise_parents(tx, [edge.parent for edge in edges if edge.unfinished], rank)


def _parents(tx: Transaction, task: NewTask) -> list[tuple[int, int, bytes]]:
    """Return (seq, status, id) of the parents, in order. Raises for unknown, pruned and self-referring ones."""
    found = []
    for id in task.after:
        if id == task.id:
            raise invalid("dependencies", TaskId(id), "is the task itself", "leave it out")
        row = tx.one("task_by_id", id)
        if row is None:
            pruned = tx.one("tombstone_by_id", id)
            if pruned is None:
                raise TaskNotFound(
                    f"dependencies = {TaskId(id)}: there is no such task; submit parents before their children "
                    "(or all of them in one call)"
                )
            raise TaskNotFound(
                f"dependencies = {TaskId(id)}: that task ended and was pruned, its result is gone; submit it again"
            )
        found.append((int(row[0]), int(row[1]), id))
    return found
