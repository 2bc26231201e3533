"""Limits of groups: how many tasks of one may be held at once, and begin in a time, in all processes together.

A claimed or running row is its group's place: how many are taken is counted over a partial index, in the transaction
that takes one more, and stands nowhere else. A class whose group has no place left is left out of what claims look
into. Whatever lets go of a task says so (`Transaction.let_go`), and those that were left out for its group are looked
into again; other processes hear of it as of what became ready.

What has begun can't be counted over rows that go: a rate has a number in the limit's own row, written by the
transaction that claims. What a claim took that never began is given back, as far as it has not been filled up since:
whoever claimed it remembers when that is so. Where a rate lets none begin, its group is looked into again at the moment
when it lets the next one. So it is with what tasks cost (`costs.py`). Once rates are taken off, what is used of them is
forgotten: those that are set later are a limit with another number, which nobody has claimed under.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from mainspring.store.ready import ANYWHERE, Place
from mainspring.store.sql import costs
from mainspring.tasks import CostRate, Rate

if TYPE_CHECKING:
    from mainspring.store.sql.transaction import ClassKey, Transaction

T = TypeVar("T")
_NOBODY_KNOWS = -1
"""Places of a group for which another process is claiming now."""
_AGAIN_MS = 5
"""When to look again for a group that another process was claiming for: nobody tells of the end of that."""
_OTHERS = 0
"""The share of all that have none of their own."""
Claim = tuple[int, int]
"""The number of a task and of an attempt."""
ShareName = tuple[str, str]
"""Namespace and group that a share is named for."""
ALL_OTHERS: Final[ShareName] = ("", "")
_MANY = 1 << 40
"""More than anybody claims."""


class Limit(NamedTuple):
    id: int
    namespace: str  # '' for any
    group: str
    concurrency: int | None
    rate: Rate | None
    cost_rate: CostRate | None

    @property
    def is_any(self) -> bool:
        return self.concurrency is not None or self.rate is not None or self.cost_rate is not None


class Limits:
    """What is remembered of them between transactions."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], Limit] = {}  # by namespace and group; only those that limit something
        self._of: dict[ClassKey, tuple[Limit, ...]] = {}  # the same by class, as far as was asked
        self._rates: dict[int, Rate] = {}  # by limit
        self._took: dict[int, dict[Claim, tuple[Rate, int]]] = {}  # the same: which, and when full, by claim of ours
        self.cost_rates: dict[int, CostRate] = {}  # the same
        self.reserved: dict[Claim, tuple[int, ...]] = {}  # the limits that have reserved costs, by claim of ours
        self.saved_for: dict[int, tuple[float, Place]] = {}  # how much is to be there for which task, by limit
        self.weights: dict[int, float] = {}  # of shares, which have the number that their limit had when they came,
        self._shares: dict[tuple[str, str], int] = {}  # and that by namespace and group
        self.seen = 0  # the newest change that was read
        self.waits_for: dict[int, int] = {}  # classes that are left out, with the limit that keeps them,
        self._kept_by: dict[int, set[int]] = {}  # and the other way round
        self._due_ms: dict[int, int] = {}  # when rates that let none begin let the next one, by limit
        self._next_due: list[tuple[int, int]] = []  # the same as a heap; some are over

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def of(self, key: ClassKey) -> Sequence[Limit]:
        """Return the limits that count the tasks of a class."""
        if not key[2] or not self._by_name:
            return ()
        found = self._of.get(key)
        if found is None:
            namespace, _, group = key
            limits = (self._by_name.get((namespace, group)), self._by_name.get(("", group)))
            found = self._of[key] = tuple(limit for limit in limits if limit is not None)
        return found

    def rate_of(self, limit_id: int) -> Rate | None:
        return self._rates.get(limit_id)

    def took(self, limit_id: int, claim: Claim, rate: Rate, full_us: int, now_us: int) -> None:
        """A claim counts for a rate, whose bucket is full at that moment from then on."""
        took = self._took.setdefault(limit_id, {})
        took[claim] = rate, full_us
        while took[first := next(iter(took))][1] <= now_us:  # what it took is filled up
            del took[first]

    def rest_us(self, limit: Limit, claim: Claim, now_us: int) -> int:
        """Return how much is not filled up yet of what a claim took: nothing where it was of another rate."""
        rate, full_us = self._took.get(limit.id, {}).get(claim, (None, 0))
        return 0 if rate is None or rate != limit.rate else rate.rest_us(full_us, now_us)

    def take_over(
        self, reserved: Mapping[Claim, tuple[int, ...]], lost: Iterable[Claim], held: Container[Claim] | None
    ) -> None:  # fmt: skip
        """Remember for which claims costs are reserved now. Of those from before only the ones `held` are ours, where
        that is known, and not those that were lost."""
        if held is not None:
            self.reserved = {claim: by for claim, by in self.reserved.items() if claim in held}
        for claim in lost:
            self.reserved.pop(claim, None)
        for claim, by in reserved.items():
            if by:
                self.reserved[claim] = by
            else:
                self.reserved.pop(claim, None)

    def goes_by(self, limit_id: int, place: Place) -> bool:
        """Whether a task there need not wait until there is enough for the one that is saved up for."""
        saved = self.saved_for.get(limit_id)
        return saved is not None and place < saved[1]

    def keeps(self, limit: Limit) -> bool:
        """Whether a class waits for it."""
        return limit.id in self._kept_by

    def forget(self) -> None:
        """What was read may not be so: read all anew."""
        self._by_name.clear()
        self._of.clear()
        self._rates.clear()
        self.cost_rates.clear()
        self.weights.clear()
        self._shares.clear()
        self.seen = 0

    def read(self, tx: Transaction) -> set[int]:
        """Read what has changed since the last look; returns classes that may not have to wait any more."""
        freed: set[int] = set()
        for waited_for in () if self.seen else (*self._kept_by,):  # it may be another one now
            freed |= self.let_in(waited_for)
        self._of.clear()
        for changed, *row in tx.run("limits_after", self.seen).fetchall():
            id, namespace, group, concurrency, rate, rate_ms, weight, cost, cost_ms = row
            name = (namespace, group)
            self._weigh(id, name, weight)
            if (before := self._by_name.pop(name, None)) is not None and before.id != id:
                freed |= self._drop(before.id)
            limit = Limit(
                id, namespace, group, concurrency, None if rate is None else Rate(rate, rate_ms),
                None if cost is None else CostRate(cost, cost_ms),
            )  # fmt: skip
            if limit.is_any:
                self._by_name[name] = limit
            _put(self._rates, limit.id, limit.rate)
            _put(self.cost_rates, limit.id, limit.cost_rate)
            self.seen = changed
            tx.forget_places(limit.id)
            freed |= self.let_in(limit.id)
        return freed

    def _drop(self, limit_id: int) -> set[int]:
        """Its rates were taken off: no claim of ours has to do with what its group has now; returns who waited."""
        self._rates.pop(limit_id, None)
        self.cost_rates.pop(limit_id, None)
        self._took.pop(limit_id, None)
        return self.let_in(limit_id)

    def _weigh(self, limit_id: int, name: tuple[str, str], weight: float | None) -> None:
        share = self._shares.get(name, limit_id)
        if weight is None:
            self.weights.pop(share, None)
            self._shares.pop(name, None)
        else:
            self.weights[share] = weight
            self._shares[name] = share

    def share_of(self, key: ClassKey) -> int:
        """Return the share that a class belongs to."""
        shares = self._shares
        return shares.get(share_name(shares, key[0], key[2]), _OTHERS) if shares else _OTHERS

    def weight_of(self, share: int) -> float:
        return self.weights.get(share, 1.0)

    def wake_at(self, limit: Limit, ms: int) -> None:
        """What waits for this limit is let in at that moment."""
        if self._due_ms.get(limit.id) != ms:
            self._due_ms[limit.id] = ms
            heappush(self._next_due, (ms, limit.id))

    def next_ms(self) -> int | None:
        """Return when the next of them is to be let in."""
        heap = self._next_due
        while heap and self._due_ms.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_ms: int) -> set[int]:
        """Let in what was to wait until now."""
        freed: set[int] = set()
        while (next_ms := self.next_ms()) is not None and next_ms <= now_ms:
            freed |= self.let_in(self._next_due[0][1])
        return freed

    def leave_out(self, class_id: int, limit: Limit) -> None:
        self.waits_for[class_id] = limit.id
        self._kept_by.setdefault(limit.id, set()).add(class_id)

    def let_in(self, limit_id: int) -> set[int]:
        """Leave out no more what waited for this limit; returns those classes."""
        self._due_ms.pop(limit_id, None)
        self.saved_for.pop(limit_id, None)
        classes = self._kept_by.pop(limit_id, set())
        for class_id in classes:
            del self.waits_for[class_id]
        return classes

    def let_all_in(self) -> None:
        self.waits_for.clear()
        self._kept_by.clear()
        self._due_ms.clear()
        self.saved_for.clear()


def _put(into: dict[int, T], id: int, value: T | None) -> None:
    if value is None:
        into.pop(id, None)
    else:
        into[id] = value


def share_name(shares: Container[ShareName], namespace: str, group: str) -> ShareName:
    """Return whose share tasks belong to: their group's, else their namespace's, else what all others have."""
    names = ((namespace, group), ("", group), (namespace, "")) if group else ((namespace, ""),)
    return next((name for name in names if name in shares), ALL_OTHERS)


def places(tx: Transaction, class_id: int, limits: Sequence[Limit], most: int, bound: Place = ANYWHERE) -> int:
    """Return how many tasks of a class, none of which goes before `bound`, may be claimed now, up to `most`; where none
    may, it is left out from now on."""
    for limit in limits:
        free = _free(tx, limit)
        if free == _NOBODY_KNOWS:
            tx.put_off.add(class_id)
            return 0
        if free <= 0 or costs.is_saved(tx, limit, bound):
            tx.memory.limits.leave_out(class_id, limit)
            _set_timer(tx, limit)
            return 0
        most = min(most, free)
    return most


def take(tx: Transaction, limits: Sequence[Limit], n: int = 1) -> bool:
    """Take places for tasks that will be held from this transaction on; false where there are not so many."""
    if not _are_free(tx, limits, n):
        return False
    for limit in limits:
        tx.places[limit.id] -= n
    return True


def take_at_cost(tx: Transaction, limits: Sequence[Limit], cost: float, place: Place) -> bool:
    """The same for one task that is to cost so much. Where only that is not there yet, it is saved up for."""
    return _are_free(tx, limits, 1) and costs.reserve(tx, limits, cost, place) and take(tx, limits)


def are_awaited(tx: Transaction) -> bool:
    """Whether a class that is left out waits for a place that falls free in this transaction."""
    of, keeps, key = tx.memory.limits.of, tx.memory.limits.keeps, tx.class_key
    return any(keeps(limit) for class_id in tx.freed for limit in of(key(class_id)))


def freed(tx: Transaction, class_id: int) -> set[int]:
    """Places of a class's group have fallen free: count them anew; returns the classes that waited for one."""
    memory = tx.memory
    waited: set[int] = set()
    for limit in memory.limits.of(tx.class_key(class_id)):
        tx.forget_places(limit.id)
        waited |= memory.limits.let_in(limit.id)
    return waited


def due(tx: Transaction) -> set[int]:
    """Return the classes that waited for a rate which lets the next one begin by now."""
    return tx.memory.limits.due(tx.now_ms)


def next_ms(tx: Transaction) -> int | None:
    """Return when classes have to be looked into again that had to wait."""
    due_ms = tx.memory.limits.next_ms()
    if tx.put_off:
        again_ms = tx.now_ms + _AGAIN_MS
        return again_ms if due_ms is None else min(due_ms, again_ms)
    return due_ms


def mark_last(tx: Transaction) -> None:
    """Let claims tell that no more of their group may be held at once than are now: nobody need wait for more."""
    known: dict[ClassKey, bool] = {}
    for claim in tx.claims:
        key = claim.class_key
        is_last = known.get(key)
        if is_last is None:
            is_last = known[key] = any(_is_at_most(tx, limit) for limit in tx.memory.limits.of(key))
        claim.is_last = is_last


def _is_at_most(tx: Transaction, limit: Limit) -> bool:
    """Whether all places of a group are taken, and it is not its rate alone that lets no more begin."""
    if limit.concurrency is None or tx.places.get(limit.id) != 0:
        return False
    return limit.rate is None or _left_of(tx, limit.id, limit.rate) > 0


def spend(tx: Transaction, limits: Sequence[Limit], claim: Claim) -> None:
    """Count a claim for the rates of its group."""
    for limit in limits:
        if limit.rate is not None:
            tx.spent.setdefault(limit.id, []).append(claim)


def give_back(tx: Transaction, limits: Sequence[Limit], claim: Claim) -> None:
    """A claim that never began counts no more."""
    for limit in limits:
        if rest_us := tx.memory.limits.rest_us(limit, claim, tx.now_ms * 1_000):
            tx.given_us[limit.id] = tx.given_us.get(limit.id, 0) + rest_us


def write(tx: Transaction) -> None:
    """Write down what was given back, and spent after that. What is given back while another process claims for the
    group is not: its rate is a little lower then."""
    now_us = tx.now_ms * 1_000
    for limit_id in dict.fromkeys((*tx.given_us, *tx.spent)):
        rate, claims = tx.memory.limits.rate_of(limit_id), tx.spent.get(limit_id, [])
        if rate is not None and (claims or tx.hold_limit(limit_id)):
            full_us = _full_us(tx, limit_id, rate)
            tx.took += [(limit_id, claim, rate, rate.after(full_us, now_us, n)) for n, claim in enumerate(claims, 1)]
            tx.run("use_rate", rate.after(full_us, now_us, len(claims)), limit_id)
    if tx.costs or tx.settled:
        costs.write(tx)


def _set_timer(tx: Transaction, limit: Limit) -> None:
    """Where it is a rate that lets none begin, wake up when it lets the next one."""
    next_ms = costs.next_ms(tx, limit)
    if limit.rate is not None:
        now_us = tx.now_ms * 1_000
        full_us = limit.rate.after(_full_us(tx, limit.id, limit.rate), now_us, len(tx.spent.get(limit.id, ())))
        next_us = limit.rate.next_us(full_us, now_us)
        if next_us > now_us:
            next_ms = max(next_ms or 0, -(-next_us // 1_000))
    if next_ms is not None:
        tx.memory.limits.wake_at(limit, next_ms)


def _are_free(tx: Transaction, limits: Sequence[Limit], n: int) -> bool:
    for limit in limits:  # noqa: SIM110 - asked for each task: `all` would take twice as long
        if _free(tx, limit) < n:
            return False
    return True


def _free(tx: Transaction, limit: Limit) -> int:
    free = tx.places.get(limit.id)
    if free is None:
        free = tx.places[limit.id] = _count(tx, limit) if tx.hold_limit(limit.id) else _NOBODY_KNOWS
    return free


def _count(tx: Transaction, limit: Limit) -> int:
    free = _MANY
    if limit.concurrency is not None:
        free = max(0, limit.concurrency - int(tx.one("held_in_group", limit.group, limit.namespace)[0]))
    if limit.rate is not None and free:
        free = min(free, _left_of(tx, limit.id, limit.rate))
    return free


def _left_of(tx: Transaction, limit_id: int, rate: Rate) -> int:
    """Return how many a rate lets begin now, after those of this transaction."""
    full_us = _emptied(tx, limit_id, rate) - tx.given_us.get(limit_id, 0)
    return max(0, rate.left(full_us, tx.now_ms * 1_000) - len(tx.spent.get(limit_id, ())))


def _emptied(tx: Transaction, limit_id: int, rate: Rate) -> int:
    """Return when a bucket will be full. One that would take longer than from empty is empty from now on: what a slower
    rate or a clock that was ahead has left there must hold nobody up for as long as that said."""
    full_us = _stored_us(tx, limit_id)
    from_empty_us = rate.after(full_us, tx.now_ms * 1_000, 0)
    if from_empty_us < full_us:
        tx.run("use_rate", from_empty_us, limit_id)
        return from_empty_us
    return full_us


def _full_us(tx: Transaction, limit_id: int, rate: Rate) -> int:
    """Return when a bucket will be full with what this transaction gives back: at once, where that is more than it
    lacks."""
    return rate.after(_stored_us(tx, limit_id), tx.now_ms * 1_000, 0) - tx.given_us.get(limit_id, 0)


def _stored_us(tx: Transaction, limit_id: int) -> int:
    return int(tx.one("rate_used", limit_id)[0])


def put(
    tx: Transaction, namespace: str, group: str, concurrency: int | None, rate: Rate | None, cost_rate: CostRate | None
) -> None:
    """Set the limits of a group."""
    held = tx.one("held_in_group", group, namespace)[0]
    nothing = (None, None)
    tx.run("put_limit", namespace, group, concurrency, *(rate or nothing), *(cost_rate or nothing), held)
    tx.sets_limits = True


def begin_rate(tx: Transaction, namespace: str, group: str) -> None:
    """A limit was set, and read: its rate begins now, with what was begun so far."""
    for limit in tx.memory.limits.of((namespace, "", group)):
        if limit.rate is not None and limit.namespace == namespace:
            _emptied(tx, limit.id, limit.rate)


def put_share(tx: Transaction, namespace: str, group: str, weight: float | None) -> None:
    """Set the share of a group or ('') of a namespace."""
    tx.run("put_share", namespace, group, weight)
    tx.sets_limits = True
