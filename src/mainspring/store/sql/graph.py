"""Dependencies: what a child waits for, and how ends travel.

A waiting child stores one unfinished parent and the number of the edge to it. When that parent ends, the search goes on
from there and never back: readiness is derived from rows, and each edge is looked at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from mainspring.errors import InvalidInput, TaskNotFound
from mainspring.store.base import STANDS_FOR, Ended
from mainspring.store.sql import flights
from mainspring.store.sql.flights import Failure
from mainspring.store.sql.transaction import Crowded, Transaction, first
from mainspring.tasks import ErrorInfo, TaskId, TaskPriority
from mainspring.tasks.lifecycle import CANCELLED, CLAIMED, COMPLETED, FAILED, PARENTS, READY, SAME_WORK

REQUIRE, ALLOW_FAILURE, SKIP = range(3)
TRAVEL_LIMIT = 1_000
"""Children that hear of their parents' ends within one transaction; the rest stands in a durable work list, and the
writer goes on with it in the next ones."""
_PAGE = 250
_ALL = 1 << 62
RAISE_LIMIT = 1_000
"""Ancestors whose rank one submit may raise."""


class Edge(NamedTuple):
    n: int
    parent: int
    policy: int
    status: int
    parent_id: bytes

    @property
    def unfinished(self) -> bool:
        return self.status < COMPLETED

    @property
    def broken(self) -> bool:
        return self.status > COMPLETED and self.policy != ALLOW_FAILURE


class End(NamedTuple):
    """An end on its way to the tasks below."""

    seq: int
    status: int
    id: bytes
    past: int = 0  # children up to this one have heard that it did not complete


def link(
    tx: Transaction, child: int, parents: Iterable[tuple[int, int, bytes]], policy: int, first: int = 0
) -> list[Edge]:
    """Return the edges of a child; a completed parent whose output stands for other tasks adds edges to those."""
    edges: dict[int, Edge] = {}
    wave = list(parents)
    while wave:
        completed = []
        for seq, status, id in wave:
            if seq in edges or seq == child:
                continue
            edges[seq] = Edge(first + len(edges), seq, policy, status, id)
            if status == COMPLETED:
                completed.append(seq)
        wave = _stood_for(tx, completed) if completed else []
    return list(edges.values())


def _stood_for(tx: Transaction, seqs: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return (seq, status, id) of what the outputs of these stand for, in their order."""
    refs: dict[int, list[tuple[int, int, bytes]]] = {}
    for seq, *ref in tx.run("stood_for", tx.listed(seqs)):
        refs.setdefault(seq, []).append(tuple(ref))
    return [ref for seq in seqs for ref in refs.get(seq, ())]


def first_unfinished(edges: Sequence[Edge]) -> tuple[Edge | None, Edge | None]:
    """Return the first edge to wait for, and the first one that will never be met."""
    waits = next((edge for edge in edges if edge.unfinished), None)
    broken = next((edge for edge in edges if edge.broken), None)
    return waits, broken


def raise_parents(tx: Transaction, parents: Sequence[int], rank: int) -> None:
    """Give unfinished ancestors the rank of the best task that waits for them."""
    level, left = list(parents), RAISE_LIMIT
    while level and left > 0:
        level = level[:left]
        left -= len(level)
        raised = tx.run("raise_ranks", rank, tx.listed(level), rank).fetchall()
        for seq, class_id, reason in raised:
            if reason == READY:
                tx.ready.add(class_id, (rank, seq))
        level = _waited_for(tx, [(seq, reason) for seq, _, reason in raised])


def is_urgent(tx: Transaction, priority: int, deadline_ms: int | None) -> bool:
    """Whether what a task waits for must not wait for others: by its priority, or as its deadline is near."""
    near_ms = tx.now_ms + tx.memory.ageing_ms
    return priority > TaskPriority.NORMAL or (deadline_ms is not None and deadline_ms <= near_ms)


def hasten(tx: Transaction, parents: Sequence[int]) -> None:
    """Note that somebody urgent waits for these, and for what those wait for; who holds them is told."""
    level, left = list(parents), RAISE_LIMIT
    while level and left > 0:
        level = level[:left]
        left -= len(level)
        found = tx.run("hasten", tx.listed(level)).fetchall()
        tx.hastened += [(bytes(id), rank) for _, reason, id, rank in found if reason == CLAIMED]
        level = _waited_for(tx, [(seq, reason) for seq, reason, *_ in found])


def _waited_for(tx: Transaction, tasks: Sequence[tuple[int, int]]) -> list[int]:
    """Return what these, (seq, reason), wait for: parents, and the leaders of equal work."""
    seqs = [seq for seq, _ in tasks]
    parents = [row[0] for row in tx.run("parents_of_all", tx.listed(seqs))] if seqs else []
    followers = [seq for seq, reason in tasks if reason == SAME_WORK]
    return parents + ([row[0] for row in tx.run("leaders_of", tx.listed(followers))] if followers else [])


def ended(tx: Transaction, tasks: Sequence[tuple[int, int, bytes]]) -> None:
    """Let these ends, (seq, status, id), travel to the tasks that wait for them."""
    if not tasks or tx.one("any_waiting") is None:
        return
    ends = [End(*task) for task in tasks]
    if not tx.is_alone:
        if not _unheard(tx, ends):
            return
        raise Crowded
    _travel(tx, _without_childless(tx, ends))


def _travel(tx: Transaction, ends: Sequence[End]) -> None:
    left = list(ends)
    while left and tx.travelled < TRAVEL_LIMIT:
        broken: list[End] = []
        told = [end if end.status == COMPLETED else _break_children(tx, end, broken) for end in left]
        is_over = _advance(tx, [end.seq for end in told], broken)
        left = _unheard(tx, broken) if is_over else told + broken
    if left:
        left = _unheard(tx, left)
        tx.run_many("add_cascade", ((end.seq, end.past) for end in left))
        tx.is_travelling = tx.is_travelling or bool(left)


def _unheard(tx: Transaction, ends: Sequence[End]) -> list[End]:
    """Return those ends that somebody still has to hear of."""
    if not ends:
        return []
    heard = {row[0] for row in tx.run("awaited", tx.listed([end.seq for end in ends]))}
    failed = [end.seq for end in ends if end.status != COMPLETED and end.past != _ALL]
    if failed:
        heard.update(row[0] for row in tx.run("having_children", tx.listed(failed)))
    return [end for end in ends if end.seq in heard]


def _without_childless(tx: Transaction, ends: Sequence[End]) -> list[End]:
    """Of many that did not complete, mark those as heard that nobody depends on: they are looked for at once."""
    failed = [end.seq for end in ends if end.status != COMPLETED]
    if len(failed) < 2:
        return list(ends)
    parents = {row[0] for row in tx.run("having_children", tx.listed(failed))}
    return [end if end.status == COMPLETED or end.seq in parents else end._replace(past=_ALL) for end in ends]


def _break_children(tx: Transaction, end: End, broken: list[End]) -> End:
    """End the children that needed this one to complete, and say how far that went."""
    while tx.travelled < TRAVEL_LIMIT and end.past != _ALL:
        rows = tx.run("children_after", end.seq, end.past, _PAGE).fetchall()
        tx.travelled += len(rows)
        for policy in (REQUIRE, SKIP):
            waiting = [child for child, its, reason in rows if its == policy and reason == PARENTS]
            if waiting:
                broken += _fail_waiting(tx, waiting, Edge(0, end.seq, policy, end.status, end.id))
        end = end._replace(past=rows[-1][0] if len(rows) == _PAGE else _ALL)
    return end


def _advance(tx: Transaction, parents: Sequence[int], broken: list[End]) -> bool:
    """Go on from the edges at which children wait for these parents; returns whether that is over.

    Which edge is the next that is unfinished or broken is searched from the present one on, so none is visited twice.
    """
    most = TRAVEL_LIMIT - tx.travelled
    if most <= 0:
        return False
    found = tx.run("waiting_on", tx.listed(parents), most).fetchall()
    tx.travelled += len(found)
    free, late = [], []
    for child, class_id, rank, not_before, at in found:
        if at is not None:
            edge = Edge(*first(tx.run("edge_of", child, at)))
            if edge.broken:
                broken.append(fail_child(tx, child, edge, travel=False))
            else:
                tx.must_change("wait_on", edge.parent, edge.n, child)
        elif not_before is not None and not_before > tx.now_ms:
            late.append(child)
        else:
            free.append(child)
            tx.ready.add(class_id, (rank, child))
    if free:
        tx.must_change_all("release_children", len(free), tx.now_ms, tx.listed(free))
    if late:
        tx.must_change_all("delay_children", len(late), tx.listed(late))
    return len(found) < most


def fail_child(tx: Transaction, child: int, edge: Edge, *, travel: bool = True) -> End:
    """End a child whose parent did not complete: FAILED by policy require, CANCELLED by policy skip."""
    status, error = _failure(edge)
    class_id, id = first(tx.run("class_and_id", child))
    end_task(tx, child, class_id, id, status, error)
    if travel:
        ended(tx, [(child, status, id)])
    return End(child, status, id)


def _fail_waiting(tx: Transaction, children: Sequence[int], edge: Edge) -> list[End]:
    """The same for many that wait."""
    status, error = _failure(edge)
    raw = msgspec.msgpack.encode(error)
    rows = tx.run("fail_children", status, tx.now_ms, raw, tx.listed(children)).fetchall()
    for _, class_id, id in rows:
        tx.count(class_id, 0, -1)
        tx.count(class_id, status)
        tx.ended.append(Ended(id, status, None, 0, raw))
    return [End(seq, status, id) for seq, _, id in rows]


def _failure(edge: Edge) -> tuple[int, ErrorInfo]:
    status = CANCELLED if edge.policy == SKIP else FAILED
    how = ("pending", "running", "completed", "failed", "cancelled", "timeout")[edge.status]
    error = ErrorInfo(
        type="DependencyNotMet" if status == FAILED else "TaskCancelled",
        message=f"parent {TaskId(edge.parent_id)} ended as {how}",
        attempts=0,
    )
    return status, error


def end(tx: Transaction, seq: int, class_id: int, id: bytes, status: int, error: ErrorInfo) -> None:
    """Give a task without a result its final status, and tell those that wait for it."""
    end_task(tx, seq, class_id, id, status, error)
    failure = Failure(status, msgspec.msgpack.encode(error), None) if status == FAILED else None
    ended(tx, [(seq, status, id), *flights.leave(tx, [(seq, failure)])])


def end_task(tx: Transaction, seq: int, class_id: int, id: bytes, status: int, error: ErrorInfo | None) -> None:
    """Give a task that is not running its final status. Its children are the caller's to tell."""
    raw = None if error is None else msgspec.msgpack.encode(error)
    tx.must_change("end", status, tx.now_ms, raw, seq)
    tx.fall_out(class_id)
    tx.count(class_id, 0, -1)
    tx.count(class_id, status)
    tx.ended.append(Ended(id, status, None, 0, raw))


def stand_for(tx: Transaction, seq: int, refs: Sequence[bytes]) -> None:
    """Record that a task's output stands for other tasks, and make its dependents wait for those too.

    Raises: TaskNotFound, InvalidInput: the result could never be resolved.
    """
    targets = []
    for n, id in enumerate(refs):
        row = tx.one("task_by_id", id)
        if row is None:
            raise TaskNotFound(f"the result refers to task {TaskId(id)}, which is not in this store")
        targets.append((int(row[0]), int(row[1]), id))
        tx.run("add_stands_for", seq, n, row[0])
    stood_for = [edge.parent for edge in link(tx, 0, targets, REQUIRE)]
    if seq in stood_for:
        raise InvalidInput("the result stands, through others or at once, for the task itself", field="output")
    if tx.one("depends_on", tx.listed(stood_for), seq) is not None:
        raise InvalidInput(
            "the result stands for a task that depends on this one: neither would ever end; "
            "leave one of the two dependencies out",
            field="output",
        )
    failed = []
    for child, policy, rank, reason, priority, deadline_ms in tx.run("all_children_of", seq).fetchall():
        last = tx.one("last_edge", child)[0]
        known = {row[0] for row in tx.run("parents_of", child)}
        edges = [edge for edge in link(tx, child, targets, policy, last + 1) if edge.parent not in known]
        tx.run_many("insert_edge", ((child, edge.n, edge.parent, edge.policy) for edge in edges))
        broken = next((edge for edge in edges if edge.broken), None)
        if reason != PARENTS:  # it is over; the edges are for a retry
            continue
        if broken is not None:
            failed.append(fail_child(tx, child, broken, travel=False))
        else:
            parents = [edge.parent for edge in edges if edge.unfinished]
            raise_parents(tx, parents, rank)
            if is_urgent(tx, priority, deadline_ms):
                hasten(tx, parents)
    ended(tx, [(end.seq, end.status, end.id) for end in failed])  # not before each has been looked at


def go_on(tx: Transaction) -> None:
    """Let ends that have not reached all their children travel on, by as much as fits into a transaction."""
    tx.travelled = min(tx.travelled, TRAVEL_LIMIT // 2)  # what goes on is not kept back by new ends
    while tx.travelled < TRAVEL_LIMIT and (found := tx.run("next_cascade", _PAGE).fetchall()):
        tx.run_many("drop_cascade", ((row[0],) for row in found))
        _travel(tx, [End(*row) for row in found if row[2] is not None])
    tx.is_travelling = tx.one("next_cascade", 1) is not None


__all__ = [
    "STANDS_FOR",
    "Edge",
    "end",
    "end_task",
    "ended",
    "fail_child",
    "first_unfinished",
    "go_on",
    "hasten",
    "is_urgent",
    "link",
    "raise_parents",
    "stand_for",
]
