"""What people and other rooms ask of single tasks: cancel, retry, pause."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter

import msgspec

from mainspring.errors import InvalidInput, TaskNotFound
from mainspring.store.base import (
    BLOB_INPUT,
    CANCEL_ASKED,
    COSTS,
    HAS_REFS,
    RESERVES,
    URGENT,
    WANTS_KEPT,
    Claimed,
    HandlerRecord,
)
from mainspring.store.sql import claims, flights, graph
from mainspring.store.sql.transaction import Transaction, first
from mainspring.store.sql.upkeep import STEP
from mainspring.tasks import CostRate, ErrorInfo, Rate, TaskId
from mainspring.tasks.codec import with_refs
from mainspring.tasks.lifecycle import CANCELLED, CLAIMED, COMPLETED, DELAYED, PARENTS, PENDING, READY, STATUS_OF

logger = logging.getLogger("mainspring.store")

_CANCELLED = ErrorInfo(type="TaskCancelled", message="cancelled before it started", attempts=0)


_RENEWED = HAS_REFS | BLOB_INPUT | WANTS_KEPT | RESERVES | COSTS
"""What a task that is made anew takes over."""


def audit(tx: Transaction, action: str, **detail: object) -> None:
    tx.run("add_audit", tx.now_ms, action, msgspec.json.encode(detail).decode())


def state(tx: Transaction, id: bytes) -> tuple[int, int, int | None, int, int | None, int, int]:
    """Return (seq, status, reason, class, owner, attempt, flags). Raises TaskNotFound."""
    row = tx.one("state_by_id", id)
    if row is None:
        raise not_found(tx, id)
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6])


def not_found(tx: Transaction, id: bytes) -> TaskNotFound:
    pruned = tx.one("tombstone_by_id", id)
    if pruned is None:
        why = f"there is no task {TaskId(id)} in this store; check the id and the store's path"
    else:
        why = f"task {TaskId(id)} ended as {STATUS_OF[pruned[0]].value} and was pruned since"
    return TaskNotFound(why, field="task id", value=TaskId(id))


def cancel(tx: Transaction, id: bytes) -> str:
    """Cancel a task that nobody holds; ask for the stop of one that is held."""
    seq, status, reason, class_id, _, _, flags = state(tx, id)
    if status >= COMPLETED:
        return f"already({STATUS_OF[status].value})"
    if status == PENDING and reason != CLAIMED:
        graph.end(tx, seq, class_id, id, CANCELLED, _CANCELLED)
        audit(tx, "cancel", task=str(TaskId(id)))
        return "cancelled"
    if not flags & CANCEL_ASKED:
        tx.run("note_cancel", seq)
        audit(tx, "cancel", task=str(TaskId(id)))
    tx.stop_asked.append(id)
    return "held" if reason == CLAIMED else "requested"


def withdraw(tx: Transaction, claim: Claimed) -> bool:
    """Cancel an attempt of ours that has not begun and now never will."""
    row = tx.one("held", claim.seq, claim.attempt, claim.owner)
    if row is None:
        return False
    tx.let_go(row[1], (claim.seq, claim.attempt))
    cancel_held(tx, claim.seq, row[1], claim.id)
    return True


def cancel_held(tx: Transaction, seq: int, class_id: int, id: bytes) -> None:
    """End a held task whose holder lets go of it."""
    graph.end(tx, seq, class_id, id, CANCELLED, _CANCELLED)


def join(tx: Transaction, claim: Claimed, keep_ms: int) -> str:
    """Compare a claim that has not begun with equal work. See `Store.join`."""
    row = tx.one("held", claim.seq, claim.attempt, claim.owner)
    if row is None:
        return "lost"
    if row[2] & CANCEL_ASKED:
        tx.let_go(row[1], (claim.seq, claim.attempt))
        cancel_held(tx, claim.seq, row[1], claim.id)
        return "over"
    answer, leader, ends = flights.join(tx, claim, keep_ms)
    if answer == "over":
        tx.let_go(row[1], (claim.seq, claim.attempt))
    if leader is not None:
        graph.raise_parents(tx, [leader.seq], leader.rank)
        if claim.flags & URGENT or graph.is_urgent(tx, claim.priority, claim.deadline_ms):
            graph.hasten(tx, [leader.seq])
    graph.ended(tx, ends)
    return answer


def purge(tx: Transaction, namespace: str, kind: str, version: str) -> int:
    """Forget kept results, '' standing for any: as many as a step can; returns how many."""
    return tx.changed("purge_kept", namespace, kind, version, STEP)


def retry(tx: Transaction, id: bytes, new_id: bytes) -> bytes:
    """Make a new task of one that ended without completing, and new ones of the descendants that failed for it.

    The new one takes over the idempotency key. What the old ones record stays.
    """
    seq, status, *_ = state(tx, id)
    if status <= COMPLETED:
        raise InvalidInput(
            f"task {TaskId(id)} is {STATUS_OF[status].value}: "
            "only failed, timed out and cancelled tasks can be retried",
            field="task_id",
        )
    again = tx.one("retried_as", seq)
    if again is not None:
        raise InvalidInput(f"task {TaskId(id)} was retried already, as {TaskId(again[0])}", field="task_id")
    if tx.one("lacks_parent", seq) is not None:
        raise InvalidInput(
            f"task {TaskId(id)} can't be retried: a task that it depends on was pruned, and its result is gone; "
            "submit it again",
            field="task_id",
        )
    audit(tx, "retry", task=str(TaskId(id)), again=str(TaskId(new_id)))
    renewed: dict[int, int] = {}
    _renew(tx, seq, new_id, renewed)
    for old in _descendants(tx, seq):
        _renew(tx, old, None, renewed)
    return new_id


def _descendants(tx: Transaction, seq: int) -> list[int]:
    """Return the tasks below that never ran because of it and can be made anew, parents first."""
    rows = tx.run("descendants", seq, msgspec.msgpack.encode(_CANCELLED)).fetchall()
    above: dict[int, set[int]] = {child: set() for child, *_ in rows}
    for child, parent, *_ in rows:
        if parent in above:
            above[child].add(parent)
    gone = {child for child, _, is_pruned, _ in rows if is_pruned}
    retried = {child for child, _, _, is_retried in rows if is_retried}
    found = []
    for child in _parents_first(above):
        if child in gone or above[child] & gone:
            gone.add(child)
        elif child not in retried:
            found.append(child)
    return found


def _parents_first(above: dict[int, set[int]]) -> Iterator[int]:
    """Yield tasks in order of submission, but none before its parents: what one of these stands for may be younger."""
    sorter = TopologicalSorter(above)
    sorter.prepare()
    ready: list[int] = []
    while sorter.is_active():
        for seq in sorter.get_ready():
            heapq.heappush(ready, seq)
        seq = heapq.heappop(ready)
        sorter.done(seq)
        yield seq


def _id_of(tx: Transaction, seq: int) -> bytes:
    return first(tx.run("status_and_id", seq))[1]  # type: ignore[no-any-return]


def _renew(tx: Transaction, old: int, new_id: bytes | None, renewed: dict[int, int]) -> None:
    """Insert a copy of an ended task. References to renewed parents, in edges and input, become the new ones."""
    class_id, priority, max_retries, timeout_ms, input, spec, flags, not_before = first(tx.run("to_renew", old))
    new = next(tx.numbers(1))
    new_id = new_id or TaskId.new().bytes
    input = with_refs(input, {_id_of(tx, before): _id_of(tx, after) for before, after in renewed.items()})
    rank = max(tx.now_ms, not_before or 0) - priority * tx.memory.ageing_ms
    found: list[tuple[int, int]] = tx.run("edges_of", old).fetchall()
    parents = [(renewed.get(parent, parent), policy) for parent, policy in found]
    edges = [
        graph.Edge(n, seq, policy, *first(tx.run("status_and_id", seq))[:2]) for n, (seq, policy) in enumerate(parents)
    ]
    unfinished, broken = graph.first_unfinished(edges)
    waits = broken or unfinished
    due = not_before if waits is None and not_before is not None and not_before > tx.now_ms else None
    reason = PARENTS if waits else DELAYED if due else READY
    flags = flags & _RENEWED | tx.group_flag(class_id)
    tx.run(
        "insert_task", new, new_id, class_id, rank, reason, 0, None, flags, priority, max_retries, tx.now_ms,
        tx.now_ms, not_before, due, None, timeout_ms, waits.parent if waits else None, waits.n if waits else None,
        input, spec,
    )  # fmt: skip
    tx.run_many("insert_edge", ((new, edge.n, edge.parent, edge.policy) for edge in edges))
    tx.run("copy_payload_blobs", new, old)
    tx.run("add_retried", old, new)
    tx.run("move_key", new, old)
    tx.count(class_id, 0)
    renewed[old] = new
    if broken:
        graph.fail_child(tx, new, broken)
    elif reason == READY:
        tx.ready.add(class_id, (rank, new))
    elif reason == PARENTS:
        waited_for = [edge.parent for edge in edges if edge.unfinished]
        graph.raise_parents(tx, waited_for, rank)
        if graph.is_urgent(tx, priority, None):
            graph.hasten(tx, waited_for)


def register(
    tx: Transaction, types: Sequence[str], handlers: Sequence[HandlerRecord], slots: Mapping[str, int]
) -> None:
    """Note what this worker serves; a changed source under the same version is told once."""
    owner, tx.memory.slots = tx.memory.owner, slots
    note_slots(tx)
    tx.run("clear_serves", owner)
    tx.run_many("add_serves", ((owner, kind) for kind in types))
    for handler in handlers:
        known = tx.one("handler_source", handler.type, handler.version)
        if known is not None and known[0] and handler.source and known[0] != handler.source:
            logger.warning(
                "handler %s changed its code (or its Python) but not its version %s; give it a new version",
                handler.type,
                handler.version,
            )
        tx.run("put_handler", *handler, tx.now_ms)


def note_slots(tx: Transaction) -> None:
    tx.run("note_slots", msgspec.json.encode(tx.memory.slots).decode(), tx.memory.owner)


def pause(tx: Transaction, namespace: str, kind: str, group: str, who: str) -> None:
    tx.run("add_pause", namespace, kind, group, tx.now_ms, who)
    tx.memory.pauses = frozenset(
        tx.run("pauses").fetchall()
    )  # nothing of it may be claimed in this transaction already
    audit(tx, "pause", namespace=namespace, type=kind, group=group, who=who)


def resume(tx: Transaction, namespace: str, kind: str, group: str) -> int:
    audit(tx, "resume", namespace=namespace, type=kind, group=group)
    tx.is_loosened = True
    return tx.changed("drop_pause", namespace, kind, group)


def limit(
    tx: Transaction, namespace: str, group: str, concurrency: int | None, rate: Rate | None, cost_rate: CostRate | None
) -> None:
    shown, cost_shown = (None if one is None else str(one) for one in (rate, cost_rate))
    audit(tx, "limit", namespace=namespace, group=group, concurrency=concurrency, rate=shown, cost_rate=cost_shown)
    claims.set_limit(tx, namespace, group, concurrency, rate, cost_rate)


def share(tx: Transaction, namespace: str, group: str, weight: float | None) -> None:
    audit(tx, "share", namespace=namespace, group=group, weight=weight)
    claims.set_share(tx, namespace, group, weight)
