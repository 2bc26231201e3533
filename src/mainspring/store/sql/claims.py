"""Claims: the best ready tasks of the lanes that have room, over all classes that may run now."""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

from mainspring.store.base import BLOB_INPUT, HAS_REFS, STANDS_FOR, Claimed, Lane, ParentResult
from mainspring.store.ready import ANYWHERE, Place
from mainspring.store.sql.transaction import Row, Rows, Transaction


def look_everywhere(tx: Transaction) -> None:
    """Find all classes that have ready tasks."""
    for lane in tx.memory.lanes.values():
        lane.ready.clear()
    for class_id, *place in tx.ready_classes():
        note(tx, class_id, (place[0], place[1]))


def note(tx: Transaction, class_id: int, bound: Place = ANYWHERE) -> None:
    """Remember that a class may have ready tasks."""
    lane = tx.lane_for(class_id)
    if lane is not None:
        lane.ready.add(class_id, bound)


def claim(tx: Transaction, most: int) -> None:
    """Take what the lanes have room for, up to `most` each."""
    for class_id in tx.ready:
        note(tx, class_id)
    if tx.is_loosened:
        return
    for lane in tx.memory.lanes.values():
        room = min(tx.room(lane), most)
        if room > 0 and lane.ready:
            _claim_for(tx, lane, room)


def _claim_for(tx: Transaction, lane: Lane, room: int) -> None:
    ready = lane.ready
    if len(ready) > 1:
        looked_into: set[int] = set()
        best = _best(tx, lane, room, looked_into)
        if best and _take(tx, lane, tx.run("claim", tx.memory.owner, tx.listed(best))) < len(best):
            for class_id in looked_into:
                note(tx, class_id)
        return
    (class_id,) = ready
    may_run = tx.lane_for(class_id) is lane
    taken = _take(tx, lane, tx.run("claim_of_class", tx.memory.owner, class_id, room)) if may_run else 0
    if taken < room and not (may_run and _is_contested(tx, class_id)):
        _nothing_left(tx, lane, class_id)


def _best(tx: Transaction, lane: Lane, room: int, looked_into: set[int]) -> list[int]:
    """Return the best tasks of all classes. Only those are looked into whose bound goes before what is found so far."""
    ready = lane.ready
    found: dict[int, list[Place]] = {}  # the best of a class, the next one last
    heads: list[tuple[Place, int]] = []
    best: list[int] = []
    while len(best) < room:
        while (bound := ready.first()) is not None and (not heads or bound < heads[0][0]):
            class_id = ready.pop()
            if tx.lane_for(class_id) is not lane:  # paused, or served no more
                continue
            looked_into.add(class_id)
            rows = tx.run("heads", class_id, room - len(best)).fetchall()
            if rows:
                rows.reverse()
                found[class_id] = rows
                heappush(heads, (rows[-1], class_id))
            else:
                _nothing_left(tx, lane, class_id)
        if not heads:
            break
        place, class_id = heads[0]
        best.append(place[1])
        rows = found[class_id]
        rows.pop()
        if rows:
            heapreplace(heads, (rows[-1], class_id))
        else:
            heappop(heads)
            if len(best) < room:
                _nothing_left(tx, lane, class_id)
            else:
                ready.add(class_id, place)
    for place, class_id in heads:
        ready.add(class_id, place)
    return best


def _take(tx: Transaction, lane: Lane, rows: Rows) -> int:
    owner = tx.memory.owner
    taken = [_from_row(tx, row, owner) for row in rows.fetchall()]
    tx.taken[lane.name] = tx.taken.get(lane.name, 0) + len(taken)
    tx.claims += taken
    children = {claim.seq: claim for claim in taken if claim.flags & HAS_REFS}
    if children:
        for claim in children.values():
            claim.parents = {}
        for child, id, *result in tx.run("parent_results", tx.listed(list(children))):
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


def _is_contested(tx: Transaction, class_id: int) -> bool:
    """Whether ready tasks are left that another process is taking now: should that come to nothing, they stay."""
    return not tx.is_alone and tx.one("heads", class_id, 1) is not None


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
        id, attempt, key[1], input, key[0], None, None, retry_count, deadline_ms, None, seq, owner, key, rank, flags,
        priority, max_retries, crashes, releases, ready_ms, timeout_ms, spec,
    )  # fmt: skip
