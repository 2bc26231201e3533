"""Submissions: how new tasks enter, and when they may skip the queue of claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from mainspring.errors import Conflict, InvalidInput, QueueFull, TaskNotFound, invalid
from mainspring.store.base import (
    BLOB_INPUT,
    BLOB_OUTPUT,
    LEADS,
    SHARED,
    Accepted,
    Claimed,
    Ended,
    NewTask,
    Spec,
)
from mainspring.store.lane import Lane
from mainspring.store.ready import Place
from mainspring.store.sql import costs, limits
from mainspring.store.sql.flights import Entrance, Found, Leader
from mainspring.store.sql.graph import Edge, fail_child, first_unfinished, hasten, is_urgent, link, raise_parents
from mainspring.store.sql.transaction import ClassKey, IdempotencyKey, Memory, Row, Transaction
from mainspring.tasks import TaskId
from mainspring.tasks.codec import with_refs
from mainspring.tasks.lifecycle import CLAIMED, COMPLETED, DELAYED, PARENTS, PENDING, READY, SAME_WORK


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
    """Store the tasks, however many; those with a key or an id that exist already are recognised. All or none.

    Raises: TaskNotFound, Conflict; InvalidInput: an id is all zeros; where it is limited, one is to cost more than its
    group ever has.
    """
    accepted: list[Accepted] = []
    entry = _Entry(tx, tasks)
    holders = _holders(tx, tasks)
    may_cost_too_much = is_limited and tx.memory.limits.cost_rates
    old = max(0, tx.now_ms - tx.memory.fresh_ms).to_bytes(6, "big")  # ids begin with the time they were made at
    for task in tasks:
        found = None
        if task.key is not None:
            found = _found_by_key(holders, task)
        if found is None and task.id < old:
            refuse_no_id(task.id)
            if tx.one("tombstone_by_id", task.id) is not None:
                found = Accepted(task.id, True)
        if found is None:
            if may_cost_too_much:
                costs.refuse_too_much(tx, task)
            entry.add(task)
            if task.key is not None:
                holders[task.class_key[0], task.key] = _Holder(task.class_key[1], task.input, task.spec, task.id)
        accepted.append(found or Accepted(task.id, False))
    entry.write()
    return accepted


def submit_again(tx: Transaction, tasks: Sequence[NewTask], *, is_limited: bool = True) -> list[Accepted]:
    """Like `submit`, for tasks of which some may be stored already under the same id."""
    accepted = []
    for task in tasks:
        known = (None if task.key is None else _found_by_key(_holders(tx, [task]), task)) or _existing_id(tx, task)
        accepted.append(known or submit(tx, [task], is_limited=is_limited)[0])
    if is_limited and not all(one.existed for one in accepted):
        _refuse_overflow(tx)
    return accepted


def submit_first(tx: Transaction, tasks: Sequence[NewTask]) -> list[Accepted]:
    """Store as many as there is room for, in order, and return what was stored. Raises QueueFull: none."""
    if (room := room_left(tx)) is None or room >= len(tasks):
        return submit_again(tx, tasks)
    if room <= 0:
        _refuse_overflow(tx, 1)
    return submit_again(tx, tasks[:room])


def submit_children(tx: Transaction, tasks: Sequence[NewTask]) -> dict[bytes, bytes]:
    """Store what an attempt has submitted: the work that made them is done, so that no limit may lose them.

    Returns: for children whose idempotency key has a task already, that task's id by the child's own. Those of the call
    that refer to them refer to it.
    """
    stand_ins: dict[bytes, bytes] = {}
    for task in tasks:
        if stand_ins.keys().isdisjoint(task.after):
            (accepted,) = submit_again(tx, [task], is_limited=False)
        else:
            refuse_large_referrer(task.flags & BLOB_INPUT)
            after = list(dict.fromkeys(stand_ins.get(id, id) for id in task.after))
            changed = msgspec.structs.replace(task, after=after, input=with_refs(task.input, stand_ins))
            (accepted,) = submit_again(tx, [changed], is_limited=False)
        if accepted.id != task.id:
            stand_ins[task.id] = accepted.id
    return stand_ins


def refuse_no_id(id: bytes) -> None:
    """Raise InvalidInput for the id that stands for none: all who left theirs unset would share one task."""
    if not any(id):
        raise invalid("id", TaskId(id), "is the id of no task", "leave it out for a new one")


def refuse_large_referrer(is_blob: int) -> None:
    """Raise InvalidInput where a value that refers to a child with a stand-in is a blob, which nobody can change."""
    if is_blob:
        raise InvalidInput(
            "a child was submitted with an idempotency key that has a task already, and is referred to from a value "
            "that is too large to be changed; pass the child on by itself, or raise StoreConfig.inline_bytes",
            field="idempotency_key",
        )


def room_left(tx: Transaction) -> int | None:
    """Return how many more tasks may be stored; None where there is no limit."""
    limit = tx.memory.queue_size
    return None if limit is None else limit - _unfinished(tx)


def _unfinished(tx: Transaction) -> int:
    """As the transaction would leave it behind: repeated submits add nothing, and ends in it make room."""
    return int(tx.one("unfinished")[0]) + sum(count for (_, status), count in tx.tally.items() if status == 0)


def _refuse_overflow(tx: Transaction, more: int = 0) -> None:
    if (limit := tx.memory.queue_size) is not None:
        refuse_too_many(_unfinished(tx) + more, limit, tx.memory)


def refuse_too_many(unfinished: int, limit: int, memory: Memory) -> None:
    if unfinished > limit:
        raise QueueFull(
            f"{unfinished} tasks would be unfinished, whoever submitted them, more than queue_size = {limit} of "
            f"{memory.whose_queue}; nothing was stored: wait for some to end (wait_for_room= does), or raise "
            "queue_size",
            retry_after=memory.seconds_for(unfinished - limit),
            field="queue_size",
            value=limit,
        )


def is_same_work(kind: str, input: bytes, spec: bytes | None, task: NewTask) -> bool:
    """The same type, input, model and params; other options may differ."""
    same_input = kind == task.class_key[1] and input == task.input
    return same_input and (spec == task.spec or _work_of(spec) == _work_of(task.spec))


class _Holder(NamedTuple):
    """The task that has an idempotency key."""

    kind: str
    input: bytes
    spec: bytes | None
    id: bytes


def _holders(tx: Transaction, tasks: Sequence[NewTask]) -> dict[IdempotencyKey, _Holder]:
    """Return who has those keys of the call that somebody has."""
    keys = {(task.class_key[0], task.key) for task in tasks if task.key is not None}
    return {key: _holder(tx, row) for key, row in tx.tasks_by_key(keys)}


def _holder(tx: Transaction, row: Row) -> _Holder:
    return _Holder(tx.class_key(row[2])[1], row[3], row[5], row[6])


def _found_by_key(holders: Mapping[IdempotencyKey, _Holder], task: NewTask) -> Accepted | None:
    assert task.key is not None
    holder = holders.get((task.class_key[0], task.key))
    if holder is None:
        return None
    if not is_same_work(holder.kind, holder.input, holder.spec, task):
        raise key_conflict(task, holder.id)
    return Accepted(holder.id, True)


def key_conflict(task: NewTask, id: bytes) -> Conflict:
    return Conflict(
        f"idempotency key {task.key!r} of namespace {task.class_key[0]!r} belongs to task {TaskId(id)} with another "
        "payload; use another key, or submit the same payload"
    )


def id_conflict(task: NewTask) -> Conflict:
    return Conflict(f"task {TaskId(task.id)} exists already with another payload; leave the id out, or use a fresh one")


def _work_of(raw: bytes | None) -> tuple[str | None, dict[str, Any]]:
    spec = Spec() if raw is None else msgspec.msgpack.decode(raw, type=Spec)
    return spec.model_id, spec.params


def _existing_id(tx: Transaction, task: NewTask) -> Accepted | None:
    row = tx.one("task_by_id", task.id)
    if row is None:
        return None
    if not is_same_work(tx.class_key(row[2])[1], row[3], row[5], task):
        raise id_conflict(task)
    return Accepted(task.id, True)


class _Entry:
    """New tasks of one call on their way in: their rows are written together, when somebody has to find them there."""

    def __init__(self, tx: Transaction, tasks: Sequence[NewTask]) -> None:
        self._tx = tx
        self._tasks = tasks
        self._now = tx.now_ms
        self._ageing = tx.memory.ageing_ms
        self._numbers = tx.numbers(len(tasks))
        self._seq = 0
        self._rows: list[tuple[Any, ...]] = []
        self._edges: list[tuple[int, int, int, int]] = []
        self._doors: dict[ClassKey, _Door] = {}
        self._keys: list[tuple[str, str, int]] = []
        self._blobs: list[tuple[str, int]] = []
        self._here: dict[bytes, tuple[int, int]] = {}  # (seq, rank) of those whose rows are not written yet
        self._entrance: Entrance | None = None  # for those whose result may be that of equal work
        self._done: list[tuple[Any, ...]] = []  # rows of those that end as they enter,
        self._done_ids: set[bytes] = set()
        self._flights: list[tuple[int, bytes, int, int]] = []

    @property
    def size(self) -> int:
        return len(self._tasks)

    @cached_property
    def is_in_order(self) -> bool:
        """Whether each task of the call goes before those that follow."""
        now, ageing = self._now, self._ageing
        return all(a <= b for a, b in pairwise(rank_of(task, now, ageing) for task in self._tasks))

    def add(self, task: NewTask) -> None:
        now = self._now
        rank = (
            now - task.priority * self._ageing
            if task.not_before_ms is None and task.deadline_ms is None
            else rank_of(task, now, self._ageing)
        )
        door = self._doors.get(task.class_key)
        if door is None:
            door = self._doors[task.class_key] = _door(self._tx, task.class_key, self)
        door.entered += 1
        task.flags |= door.flag
        self._seq = next(self._numbers)
        if task.work is not None and self._may_start(task):
            self._add_same(task, task.work, door, rank)
        elif task.after:
            self._add_linked(task, door, rank)
        else:
            self._add_free(task, door, rank)
        if task.key is not None:
            self._keys.append((task.class_key[0], task.key, self._seq))
        if task.flags & BLOB_INPUT:
            self._blobs.append((task.input.decode(), self._seq))

    def _row(
        self, task: NewTask, door: _Door, rank: int, reason: int, due: int | None,
        *, attempt: int = 0, owner: int | None = None, waits: Edge | None = None,
    ) -> None:  # fmt: skip
        now, seq = self._now, self._seq
        waits_for, waits_at = (None, None) if waits is None else (waits.parent, waits.n)
        self._rows.append(
            (seq, task.id, door.class_id, rank, reason, attempt, owner, task.flags, task.priority, task.max_retries,
             now, now, task.not_before_ms, due, task.deadline_ms, task.timeout_ms, waits_for, waits_at, task.input,
             task.spec)
        )  # fmt: skip

    def _add_free(self, task: NewTask, door: _Door, rank: int) -> None:
        """A task without parents. Where a lane has room and nothing waits for it, it enters already claimed."""
        tx, now = self._tx, self._now
        if task.not_before_ms is not None and task.not_before_ms > now:
            self._row(task, door, rank, DELAYED, task.not_before_ms)
        elif task.deadline_ms is not None and task.deadline_ms <= now:
            tx.ready.add(door.class_id, (rank, self._seq))  # it ends with this transaction
            self._row(task, door, rank, READY, None)
        elif (
            door.lane is not None
            and tx.taken.get(door.lane.name, 0) < door.room
            and (not door.limited or _takes_place(tx, door, task, (rank, self._seq)))
        ):
            tx.taken[door.lane.name] = tx.taken.get(door.lane.name, 0) + 1
            owner = tx.memory.owner
            if door.limited:
                limits.spend(tx, door.limited, (self._seq, 1))
                if door.counts_cost:
                    costs.spend(tx, door.limited, (self._seq, 1), costs.estimate(task))
            tx.claims.append(claim_of(task, self._seq, rank, owner, now))
            self._row(task, door, rank, CLAIMED, None, attempt=1, owner=owner)
        else:
            tx.ready.add(door.class_id, (rank, self._seq))
            self._row(task, door, rank, READY, None)
        self._here[task.id] = (self._seq, rank)

    def _may_start(self, task: NewTask) -> bool:
        """Whether it would be ready at once. What has to wait is compared with equal work when it is claimed."""
        now = self._now
        return (
            not task.after
            and (task.not_before_ms is None or task.not_before_ms <= now)
            and (task.deadline_ms is None or task.deadline_ms > now)
        )

    def _add_same(self, task: NewTask, work: bytes, door: _Door, rank: int) -> None:
        """A task whose result may be that of equal work: it has that at once, or follows, or leads."""
        if self._entrance is None:
            self._entrance = Entrance(self._tx, self._tasks)
        task.flags &= ~LEADS  # it may have entered in a transaction that came to nothing
        kind = task.class_key[1]
        if (found := self._entrance.result_for(task)) is not None:
            self._tx.look_up(kind, "hit")
            self._add_done(task, found, door, rank)
            return
        leader = self._entrance.leader_for(work)
        self._tx.look_up(kind, "miss" if leader is None else "joined")
        self._flights.append((self._seq, work, int(leader is None), task.keep_ms))
        if leader is None:
            task.flags |= LEADS
            self._entrance.leads(work, Leader(self._seq, rank, self._is_urgent(task)))
            self._add_free(task, door, rank)
            return
        self._row(task, door, rank, SAME_WORK, None)
        self._here[task.id] = (self._seq, rank)
        hastens = not leader.is_urgent and self._is_urgent(task)
        if rank < leader.rank or hastens:
            self.write()
            raise_parents(self._tx, [leader.seq], rank)
            if hastens:
                hasten(self._tx, [leader.seq])
            raised = Leader(leader.seq, min(rank, leader.rank), leader.is_urgent or hastens)
            self._entrance.leads(work, raised)

    def _add_done(self, task: NewTask, found: Found, door: _Door, rank: int) -> None:
        tx, now, flags = self._tx, self._now, task.flags | found.flags | SHARED
        self._done.append(
            (self._seq, task.id, door.class_id, rank, flags, task.priority, task.max_retries, now, now,
             task.not_before_ms, task.deadline_ms, task.timeout_ms, now, task.input, task.spec, found.output)
        )  # fmt: skip
        self._done_ids.add(task.id)
        door.entered -= 1
        tx.count(door.class_id, COMPLETED)
        tx.ended.append(Ended(task.id, COMPLETED, found.output, flags, None))

    def _add_linked(self, task: NewTask, door: _Door, rank: int) -> None:
        """A task with parents: it waits for one of them that has not ended, or is ready, or ends at once."""
        tx, seq = self._tx, self._seq
        edges = link(tx, seq, self._parents(task), task.policy)
        unfinished, failed = first_unfinished(edges)
        waits = failed or unfinished  # for one that will never be met it waits until it ends, below
        reason, due = READY, None
        if waits is not None:
            reason = PARENTS
        elif task.not_before_ms is not None and task.not_before_ms > self._now:
            reason, due = DELAYED, task.not_before_ms
        self._row(task, door, rank, reason, due, waits=waits)
        self._edges += [(seq, edge.n, edge.parent, edge.policy) for edge in edges]
        self._here[task.id] = (seq, rank)
        if failed is not None:
            self.write()
            fail_child(tx, seq, failed)
        elif reason == READY:
            tx.ready.add(door.class_id, (rank, seq))
        elif reason == PARENTS:
            self._raise(edges, rank, hastens=self._is_urgent(task))

    def _is_urgent(self, task: NewTask) -> bool:
        return is_urgent(self._tx, task.priority, task.deadline_ms)

    def _raise(self, edges: Sequence[Edge], rank: int, *, hastens: bool) -> None:
        """Let unfinished parents go before those that wait for them; those that are as urgent need no look."""
        here = self._here
        urgent = [
            edge.parent
            for edge in edges
            if edge.unfinished and ((known := here.get(edge.parent_id)) is None or known[1] > rank)
        ]
        if urgent:
            self.write()
            raise_parents(self._tx, urgent, rank)
            if hastens:
                hasten(self._tx, urgent)

    def _parents(self, task: NewTask) -> list[tuple[int, int, bytes]]:
        """Return (seq, status, id) of the parents, in order. Raises for unknown, pruned and self-referring ones."""
        found = []
        for id in task.after:
            if id == task.id:
                raise invalid("dependencies", TaskId(id), "is the task itself", "leave it out")
            known = self._here.get(id)
            if id in self._done_ids:
                self.write()
            found.append((known[0], PENDING, id) if known is not None else _parent(self._tx, id))
        return found

    def write(self) -> None:
        """Write what was added."""
        tx = self._tx
        tx.run_wide("insert_task", self._rows)
        if self._edges:
            tx.run_wide("insert_edge", self._edges)
        if self._flights:
            tx.run_wide("join_flight", self._flights)
        if self._done:
            tx.run_wide("insert_done", self._done)
            kept_blobs = [(row[-1].decode(), row[0]) for row in self._done if row[4] & BLOB_OUTPUT]
            tx.run_many("add_payload_blob", kept_blobs)
        for door in self._doors.values():
            tx.count(door.class_id, 0, door.entered)
            door.entered = 0
        if self._keys:  # in order: of two writers with the same keys none then waits for what the other one holds
            tx.run_many("add_key", sorted(self._keys))
        if self._blobs:
            tx.run_many("add_payload_blob", self._blobs)
        self._rows, self._edges, self._keys, self._blobs, self._here = [], [], [], [], {}
        self._flights, self._done, self._done_ids = [], [], set()


class _Door:
    """How new tasks of a class enter: with a lane, up to `room` claims of this transaction go straight to it."""

    __slots__ = ("class_id", "counts_cost", "entered", "flag", "lane", "limited", "room")

    def __init__(
        self, class_id: int, flag: int, lane: Lane | None = None, room: int = 0, limited: Sequence[limits.Limit] = ()
    ) -> None:
        self.class_id = class_id
        self.flag = flag  # of all its tasks
        self.lane = lane
        self.room = room
        self.limited = limited
        self.counts_cost = costs.are_counted(limited) if limited else False
        self.entered = 0


def _door(tx: Transaction, class_key: ClassKey, entry: _Entry) -> _Door:
    """Past the ready index only when nothing waits for the lane, so that the order stays the one order."""
    class_id = tx.class_id(class_key)
    flag, lane = tx.group_flag(class_id), tx.lane_for(class_id)
    if lane is None or lane.ready or any(tx.lane_for(ready) is lane for ready in tx.ready):
        return _Door(class_id, flag)
    if class_key[1] in lane.passing.passes.types:
        return _Door(class_id, flag)
    limited = tx.memory.limits.of(class_key)
    if limits.are_awaited(tx) or any(tx.memory.limits.keeps(limit) for limit in limited):
        return _Door(class_id, flag)
    room = lane.room()
    if (limited or entry.size > room - tx.taken.get(lane.name, 0)) and not entry.is_in_order:
        return _Door(class_id, flag)
    return _Door(class_id, flag, lane, room, limited)


def _takes_place(tx: Transaction, door: _Door, task: NewTask, place: Place) -> bool:
    if door.counts_cost:
        return limits.take_at_cost(tx, door.limited, costs.estimate(task), place)
    return limits.take(tx, door.limited)


def claim_of(task: NewTask, seq: int, rank: int, owner: int, now: int) -> Claimed:
    """Return the claim of a task that enters held by a worker."""
    key = task.class_key
    return Claimed(
        task.id, 1, key[1], task.input, key[0], None, None, 0, task.deadline_ms, None, seq, owner, key, rank,
        task.flags, task.priority, task.max_retries, 0, 0, now, task.timeout_ms, task.spec,
    )  # fmt: skip


def _parent(tx: Transaction, id: bytes) -> tuple[int, int, bytes]:
    row = tx.one("task_by_id", id)
    if row is not None:
        return int(row[0]), int(row[1]), id
    raise no_parent(id, is_pruned=tx.one("tombstone_by_id", id) is not None)


def no_parent(id: bytes, *, is_pruned: bool) -> TaskNotFound:
    why = (
        "that task ended and was pruned, its result is gone; submit it again"
        if is_pruned
        else "there is no such task; submit parents before their children (or all of them in one call)"
    )
    return TaskNotFound(f"dependencies = {TaskId(id)}: {why}", field="dependencies", value=TaskId(id))
