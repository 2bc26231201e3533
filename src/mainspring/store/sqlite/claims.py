"""Claims: the best ready tasks of the lanes that have room, over all classes that may run now."""

from __future__ import annotations

import heapq
from itertools import islice

from mainspring.store.base import BLOB_INPUT, HAS_REFS, STANDS_FOR, Claimed, Lane, ParentResult
from mainspring.store.sqlite.transaction import Row, Rows, Transaction


def scan_ready(tx: Transaction) -> None:
    """Look through the whole index for classes with ready tasks: one step a class, however many tasks it has."""
    class_id = -1
    while (row := tx.one("next_ready_class", class_id)) is not None:
        class_id = int(row[0])
        tx.class_key(class_id)
        tx.ready.add(class_id)


def claim(tx: Transaction, most: int) -> None:
    """Take what the lanes have room for, up to `most` each."""
    for lane in tx.memory.lanes.values():
        room = min(tx.room(lane), most)
        if room > 0:
            _claim_for(tx, lane, room)


def _classes(tx: Transaction, lane: Lane) -> list[int]:
    fresh = [class_id for class_id in tx.ready if class_id not in lane.ready and tx.lane_for(class_id) is lane]
    return [class_id for class_id in lane.ready if tx.lane_for(class_id) is lane] + fresh


def _claim_for(tx: Transaction, lane: Lane, room: int) -> None:
    classes = _classes(tx, lane)
    if not classes:
        return
    if len(classes) == 1:
        taken = _take(tx, lane, tx.run("claim_of_class", tx.memory.owner, classes[0], room))
        if taken < room:
            _nothing_left(tx, lane, classes[0])
        return
    heads = {class_id: tx.run("heads", class_id, room).fetchall() for class_id in classes}
    best = list(islice(heapq.merge(*heads.values()), room))
    if best:
        _take(tx, lane, tx.run("claim", tx.memory.owner, str([seq for _, seq in best])))
    for class_id, rows in heads.items():
        if len(rows) < room and (not rows or rows[-1] <= best[-1]):
            _nothing_left(tx, lane, class_id)


def _take(tx: Transaction, lane: Lane, rows: Rows) -> int:
    owner = tx.memory.owner
    taken = [_from_row(tx, row, owner) for row in rows.fetchall()]
    tx.taken[lane.name] = tx.taken.get(lane.name, 0) + len(taken)
    tx.claims += taken
    children = {claim.seq: claim for claim in taken if claim.flags & HAS_REFS}
    if children:
        for claim in children.values():
            claim.parents = {}
        for child, id, *result in tx.run("parent_results", str(list(children))):
            children[child].parents[id] = ParentResult(*result)  # type: ignore[index]
        _add_heirs(tx, children)
    return len(taken)


def _add_heirs(tx: Transaction, children: dict[int, Claimed]) -> None:
    """A task may have been made anew since it was referred to: its name brings what the new one left.

    So it is where an output stands for it, or where a blob holds the input: that one still names the old one.
    """
    for seq, claim in children.items():
        assert claim.parents is not None
        if claim.flags & BLOB_INPUT or any(parent.flags & STANDS_FOR for parent in claim.parents.values()):
            for id, *result in tx.run("heirs_results", seq):
                claim.parents.setdefault(id, ParentResult(*result))


def _nothing_left(tx: Transaction, lane: Lane, class_id: int) -> None:
    """Forget a class that has no ready tasks any more, so that the next claim does not look at it."""
    lane.ready.discard(class_id)
    tx.ready.discard(class_id)


def _from_row(tx: Transaction, row: Row, owner: int) -> Claimed:
    (
        seq, id, attempt, class_id, rank, flags, priority, retry_count, max_retries, crashes, releases, ready_ms,
        deadline_ms, timeout_ms, input, spec,
    ) = row  # fmt: skip
    key = tx.class_key(class_id)
    return Claimed(
        id, attempt, key[1], input, key[0], None, None, retry_count, deadline_ms, seq, owner, key, rank, flags,
        priority, max_retries, crashes, releases, ready_ms, timeout_ms, spec,
    )  # fmt: skip
