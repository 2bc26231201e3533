"""Claims: the best ready tasks of the lanes that have room, over all classes that may run now."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace

from mainspring.store.base import BLOB_INPUT, HAS_REFS, STANDS_FOR, Claimed, ParentResult
from mainspring.store.lane import Lane
from mainspring.store.ready import FREED, Place, Ready
from mainspring.store.sql import costs, limits, weighing
from mainspring.store.sql.transaction import Row, Transaction
from mainspring.tasks import CostRate, Rate
from mainspring.tasks.needs import Passes


def look_everywhere(tx: Transaction) -> None:
    """Find all classes that have ready tasks."""
    for lane in tx.memory.lanes.values():
        lane.ready.clear()
        lane.passing.clear()
    tx.memory.limits.let_all_in()
    for class_id, *place in tx.ready_classes():
        note(tx, class_id, (place[0], place[1]))


def note(tx: Transaction, class_id: int, bound: Place = FREED) -> None:
    """Remember that a class may have ready tasks, and what came. One that is left out for its group's limit stays so,
    unless what it got goes before the one that its group saves up for."""
    lane, left_out = tx.lane_for(class_id, bound), tx.memory.limits
    if lane is not None and lane.passing.passes.types and _has_to_weigh(tx, lane.passing.passes, class_id):
        seen = lane.passing.seen(class_id)
        for place in (bound, *tx.ready.ranks(class_id)):
            seen.came(place)
    if class_id in left_out.waits_for and left_out.goes_by(limit_id := left_out.waits_for[class_id], bound):
        _let_in(tx, left_out.let_in(limit_id))
    if lane is not None and class_id not in left_out.waits_for:
        lane.ready.lower(class_id, bound, tx.memory.limits.share_of(tx.class_key(class_id)))


def hear(tx: Transaction, class_id: int, bound: Place = FREED) -> None:
    """Other processes made tasks of a class ready, or let go of some."""
    _let_in(tx, limits.freed(tx, class_id))
    note(tx, class_id, bound)


def read_limits(tx: Transaction, newest: int | None) -> None:
    """Take over what other processes changed in the limits of groups."""
    if newest is not None and newest != tx.memory.limits.seen:
        _read(tx)


def set_limit(
    tx: Transaction, namespace: str, group: str, concurrency: int | None, rate: Rate | None, cost_rate: CostRate | None
) -> None:
    limits.put(tx, namespace, group, concurrency, rate, cost_rate)
    _read(tx)
    limits.begin_rate(tx, namespace, group)


def set_share(tx: Transaction, namespace: str, group: str, weight: float | None) -> None:
    limits.put_share(tx, namespace, group, weight)
    _read(tx)


def _read(tx: Transaction) -> None:
    """From here on memory has the limits as they are in this transaction: nothing of it may fail but the whole."""
    shares = dict(tx.memory.limits.weights)
    freed = tx.memory.limits.read(tx)
    if shares != tx.memory.limits.weights:
        look_everywhere(tx)
    else:
        _let_in(tx, freed)


def _let_in(tx: Transaction, classes: set[int]) -> None:
    for class_id in classes:
        note(tx, class_id)


def claim(tx: Transaction, most: int) -> None:
    """Take what the lanes have room for, up to `most` each."""
    memory = tx.memory
    _let_in(tx, limits.due(tx))
    for class_id in tx.freed:
        _let_in(tx, limits.freed(tx, class_id))
    for class_id, place in tx.ready.items():
        note(tx, class_id, place)
    if not tx.is_loosened:
        for lane in list(memory.lanes.values()):
            for class_id in lane.passing.due(tx.now_ms):
                note(tx, class_id)
            room = min(tx.room(lane), most)
            if room > 0 and lane.ready:
                _claim_for(tx, lane, room)
    for class_id in tx.put_off:
        note(tx, class_id)
    if memory.limits:
        limits.mark_last(tx)
    limits.write(tx)
    if memory.has_peers:
        tx.ready.update(class_id for class_id in tx.freed if memory.limits.of(tx.class_key(class_id)))


def next_ms(tx: Transaction) -> int | None:
    """Return when classes have to be looked into again that had to wait."""
    first_ms = limits.next_ms(tx)
    for lane in tx.memory.lanes.values():
        for ms in lane.passing.later.values():
            first_ms = ms if first_ms is None else min(first_ms, ms)
    return first_ms


def _claim_for(tx: Transaction, lane: Lane, room: int) -> None:
    turns = lane.ready.turns(tx.memory.limits.weight_of)
    if len(turns) > 1:
        _claim_by_turns(tx, lane, turns, room)
    else:
        taken = _claim_of_share(tx, lane, lane.ready.part(turns[0][1]), room)
        lane.ready.took(turns[0], taken, tx.memory.limits.weight_of(turns[0][1]))


def _claim_by_turns(tx: Transaction, lane: Lane, turns: list[tuple[float, int]], room: int) -> None:
    """Take one task after the other, each of the share whose turn it is."""
    merges: dict[int, _Merge] = {}
    best: list[int] = []
    while turns and len(best) < room:
        share = turns[0][1]
        merge = merges.get(share)
        if merge is None:
            merge = merges[share] = _Merge(tx, lane, lane.ready.part(share), room)
        seq = merge.next()
        if seq is None:
            heappop(turns)
            continue
        best.append(seq)
        heapreplace(turns, lane.ready.took(turns[0], 1, tx.memory.limits.weight_of(share)))
    for merge in merges.values():
        merge.close()
    if tx.memory.limits:
        _pass_turn(tx, lane, list(merges.values()))
    if best:
        looked_into = {class_id for merge in merges.values() for class_id in merge.looked_into}
        _take_these(tx, lane, best, looked_into)


def _take_these(tx: Transaction, lane: Lane, best: Sequence[int], looked_into: set[int]) -> int:
    taken = _take(tx, lane, tx.run("claim", tx.memory.owner, tx.listed(best)).fetchall())
    if taken < len(best):
        for class_id in looked_into:
            hear(tx, class_id)  # places of its group that were not needed after all are free for others
    return taken


def _claim_of_share(tx: Transaction, lane: Lane, ready: Ready, room: int) -> int:
    """Take the best tasks of classes that keep one order; returns how many."""
    if len(ready) > 1:
        return _claim_one_by_one(tx, lane, ready, room)
    (class_id,) = ready
    passes = lane.passing.passes
    may_run = tx.lane_for(class_id, ready.bound(class_id)) is lane
    limited = tx.memory.limits.of(tx.class_key(class_id)) if may_run else ()
    if (may_run and _may_leave_some(tx, lane, passes, class_id)) or (limited and costs.are_counted(limited)):
        return _claim_one_by_one(tx, lane, ready, room)
    if limited and not (room := limits.places(tx, class_id, limited, room)):
        ready.discard(class_id)
        return 0
    taken, head = 0, ready.bound(class_id)
    if may_run:
        rows, head = tx.claim_of_class(class_id, room, head)
        ready.set(class_id, head)
        taken = _take(tx, lane, rows)
    if limited:
        limits.take(tx, limited, taken)
        _go_last(tx, lane)
    if taken < room and not (may_run and _is_contested(tx, class_id, head)):
        _nothing_left(tx, lane, passes, ready, class_id)
    return taken


def _claim_one_by_one(tx: Transaction, lane: Lane, ready: Ready, room: int) -> int:
    """The same for several classes, or for tasks of which each has to be looked at before."""
    merge = _Merge(tx, lane, ready, room)
    best = merge.run()
    if tx.memory.limits:
        _pass_turn(tx, lane, [merge])
    return _take_these(tx, lane, best, merge.looked_into) if best else 0


def _pass_turn(tx: Transaction, lane: Lane, merges: Sequence[_Merge]) -> None:
    """A lane that had its turn at places of groups goes last the next time; one with a task that is saved up for keeps
    its turn, or the others would spend that."""
    if any(merge.had_turn for merge in merges) and not any(merge.is_saving for merge in merges):
        _go_last(tx, lane)


def _go_last(tx: Transaction, lane: Lane) -> None:
    """A lane that had its turn at places of a group lets the others go first the next time."""
    lanes = tx.memory.lanes
    if lane.name in lanes:  # serving may have stopped meanwhile
        lanes[lane.name] = lanes.pop(lane.name)


class _Merge:
    """The best tasks of all classes of a lane that keep one order, up to `room`.

    Only those classes are looked into whose bound goes before what is found so far.
    """

    def __init__(self, tx: Transaction, lane: Lane, ready: Ready, room: int) -> None:
        self._tx = tx
        self._lane = lane
        self._passes = lane.passing.passes  # once: the worker may set others meanwhile
        self._ready = ready
        self._room = room
        self._best: list[int] = []
        self._found: dict[int, list[Place]] = {}  # the best of a class, the next one last
        self._heads: list[tuple[Place, int]] = []
        self._has_more: dict[int, Place] = {}  # classes that perhaps have more than was found, and from where on
        self._aside: list[tuple[Place, int]] = []  # those of which all that was found is taken
        self._limited: dict[int, Sequence[limits.Limit]] = {}  # classes whose groups have limits
        self._costs: dict[int, float] = {}  # what those found are to cost that say so, where that counts
        self.looked_into: set[int] = set()
        self.is_saving = False  # the cost of one that goes first is not there yet

    def run(self) -> list[int]:
        """Return them in order."""
        while self.next() is not None:
            pass
        self.close()
        return self._best

    def next(self) -> int | None:
        """Return the next one."""
        n = len(self._best)
        while n == len(self._best) < self._room:
            self._look()
            if not self._heads:
                return None
            self._take_first()
        return self._best[-1] if len(self._best) > n else None

    def close(self) -> None:
        """Remember what was found and not taken."""
        for place, class_id in (*self._heads, *self._aside):
            self._ready.set(class_id, min(place, self._has_more.get(class_id, place)))

    @property
    def had_turn(self) -> bool:
        """Whether it looked at places of groups."""
        return not self._limited.keys().isdisjoint(self.looked_into)

    def _look(self) -> None:
        """Look into the classes of which a task may go before the best one that is found so far."""
        ready, heads = self._ready, self._heads
        while (bound := ready.first()) is not None and (not heads or bound < heads[0][0]):
            class_id = ready.pop()
            if not (most := self._most(class_id, bound)):
                continue
            self.looked_into.add(class_id)
            rows, on = self._best_of(class_id, most, bound)
            if on is not None:
                self._has_more[class_id] = on
            if class_id in self._limited and costs.are_counted(self._limited[class_id]):
                self._costs |= costs.estimates(self._tx, [seq for _, seq in rows])
            if rows:
                rows.reverse()
                self._found[class_id] = rows
                heappush(heads, (rows[-1], class_id))
            elif on is not None:
                self._aside.append((on, class_id))
            else:
                _nothing_left(self._tx, self._lane, self._passes, ready, class_id)

    def _best_of(self, class_id: int, most: int, bound: Place) -> tuple[list[Row], Place | None]:
        """Return the best tasks of a class that can run here, and where to look on; None: there are no more."""
        if _has_to_weigh(self._tx, self._passes, class_id):
            rows, on = weighing.heads(self._tx, self._lane, self._passes, class_id, most, bound)
        else:
            rows = self._tx.heads(class_id, most, bound)
            on = rows[-1] if len(rows) == most else None
        end = self._lane.withheld.get(self._tx.class_key(class_id)[1])
        if end is None:
            return rows, on
        taken = [row for row in rows if row < end]
        return taken, on if len(taken) == len(rows) and on is not None and on < end else None

    def _most(self, class_id: int, bound: Place) -> int:
        """Return how many tasks of a class may be taken: none where it is paused, served no more, or at its limit."""
        tx = self._tx
        if tx.lane_for(class_id, bound) is not self._lane:
            return 0
        most = self._room - len(self._best)
        if limited := tx.memory.limits.of(tx.class_key(class_id)):
            self._limited[class_id] = limited
            return limits.places(tx, class_id, limited, most, bound)
        return most

    def _may_take(self, limited: Sequence[limits.Limit], place: Place) -> bool:
        """Take a place of a task's group: others of it may have taken the last ones, or its cost is not there yet."""
        tx = self._tx
        if not costs.are_counted(limited):
            return limits.take(tx, limited)
        if limits.take_at_cost(tx, limited, self._costs.get(place[1], costs.UNSAID), place):
            return True
        saved_for = tx.memory.limits.saved_for
        self.is_saving = self.is_saving or any(saved_for.get(limit.id, (0, None))[1] == place for limit in limited)
        return False

    def _take_first(self) -> None:
        heads, ready = self._heads, self._ready
        place, class_id = heads[0]
        limited = self._limited.get(class_id)
        if limited and not self._may_take(limited, place):
            heappop(heads)
            ready.set(class_id, place)
            return
        self._best.append(place[1])
        rows = self._found[class_id]
        rows.pop()
        if rows:
            heapreplace(heads, (rows[-1], class_id))
            return
        heappop(heads)
        if class_id in self._has_more:  # until they are taken they would be found again
            self._aside.append((place, class_id))
        else:
            _nothing_left(self._tx, self._lane, self._passes, ready, class_id)


def _take(tx: Transaction, lane: Lane, rows: Sequence[Row]) -> int:
    owner = tx.memory.owner
    taken = [_from_row(tx, row, owner) for row in rows]
    tx.taken[lane.name] = tx.taken.get(lane.name, 0) + len(taken)
    if tx.memory.limits:
        for claim in taken:
            if limited := tx.memory.limits.of(claim.class_key):
                number = (claim.seq, claim.attempt)
                limits.spend(tx, limited, number)
                if costs.are_counted(limited):
                    costs.spend(tx, limited, number, costs.estimate(claim))
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


def _has_to_weigh(tx: Transaction, passes: Passes, class_id: int) -> bool:
    """Whether tasks of a class that need more than there is here have to be passed over."""
    return bool(passes.types) and tx.class_key(class_id)[1] in passes.types


def _may_leave_some(tx: Transaction, lane: Lane, passes: Passes, class_id: int) -> bool:
    """Whether ready tasks of a class may be left that are not for this lane, or not now."""
    return tx.class_key(class_id)[1] in lane.withheld or _has_to_weigh(tx, passes, class_id)


def _is_contested(tx: Transaction, class_id: int, bound: Place) -> bool:
    """Whether ready tasks are left that another process is taking now: should that come to nothing, they stay."""
    return not tx.is_alone and bool(tx.heads(class_id, 1, bound))


def _nothing_left(tx: Transaction, lane: Lane, passes: Passes, ready: Ready, class_id: int) -> None:
    """Forget a class that has no ready tasks any more, so that the next claim does not look at it."""
    ready.discard(class_id)
    if not _may_leave_some(tx, lane, passes, class_id):  # else they are for others
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
