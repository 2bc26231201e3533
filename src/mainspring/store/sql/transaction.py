"""One transaction in the making: the cursor, the time, and what to tell whom once it is committed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias

from mainspring.config import StoreConfig
from mainspring.errors import InternalError
from mainspring.store.base import GROUPED, Claimed, Ended, Finish
from mainspring.store.counting import StoreCounts
from mainspring.store.lane import Lane
from mainspring.store.ready import Place, Woken
from mainspring.store.sql import costs, limits
from mainspring.store.sql.limits import Claim, Limits
from mainspring.tasks import Rate

ClassKey = tuple[str, str, str]
IdempotencyKey = tuple[str, str]
"""A namespace and a key that is one task's there."""
Applier = Callable[[Any, Any, str, int], Any]
"""Writes an effect: (the store's own cursor, effect, namespace, now in ms)."""

Row: TypeAlias = tuple[Any, ...]


class Rows(Protocol):
    """What a statement finds. The driver types a value as anything SQLite can hold; the schema says what it is."""

    def __iter__(self) -> Iterator[Row]: ...
    def fetchone(self) -> Row | None: ...
    def fetchall(self) -> list[Row]: ...


def first(rows: Rows) -> Row:
    """Return the first row of a statement that always finds one."""
    row = rows.fetchone()
    if row is None:
        raise InternalError("a row that must be in the store is missing; please report this")
    return row


class Crowded(Exception):
    """Other processes may write meanwhile, and this must not happen beside them."""


class Memory:
    """What the writer's thread remembers between transactions; all of it can be read again from the file."""

    def __init__(self, config: StoreConfig) -> None:
        self.ageing_ms = int(config.ageing_s * 1000)
        self.fresh_ms = int(min(60.0, config.keep_completed_s, config.keep_failed_s) * 1000)
        """Younger tasks are not pruned, so that a submit need not look for their tombstones."""
        self.counts = StoreCounts()
        self.owner = 0  # this process's row in `worker`
        self.class_ids: dict[ClassKey, int] = {}
        self.class_keys: dict[int, ClassKey] = {}
        self.pauses: frozenset[ClassKey] = frozenset()
        self.limits = Limits()
        self.lanes: dict[str, Lane] = {}
        self.lane_of_type: dict[str, Lane] = {}
        self.slots: Mapping[str, int] = {}  # of the worker's lanes, by their names
        self.queue_size: int | None = None
        self.whose_queue = "this process"
        self.seconds_for: Callable[[int], float] = lambda ends: 1.0  # how long so many ends take
        self.cache_bytes = config.cache_bytes
        self.blob_fault: Callable[[str], str | None] = lambda digest: None  # what is wrong with a blob
        self.appliers: dict[type, Applier] = {}
        self.has_peers = False  # other processes that may want to hear of ready tasks
        self.seen_news = 0  # how far in `news` this process has looked

    def is_paused(self, key: ClassKey) -> bool:
        namespace, kind, group = key
        return any(a in ("", namespace) and b in ("", kind) and c in ("", group) for a, b, c in self.pauses)


class Transaction(ABC):
    """Side effects wait here for the commit; a part of it can be thrown away with its savepoint.

    A store brings the statements, by the names that the rules of this room use, and the ways to run them.
    """

    __slots__ = (
        "budgets",
        "claims",
        "costs",
        "cursor",
        "ended",
        "freed",
        "given_us",
        "hastened",
        "held",
        "is_loosened",
        "is_travelling",
        "looked_up",
        "looks_on",
        "lost",
        "memory",
        "new_classes",
        "now_ms",
        "places",
        "put_off",
        "ready",
        "reserved",
        "sets_limits",
        "settled",
        "spent",
        "stop_asked",
        "taken",
        "tally",
        "took",
        "travelled",
    )

    def __init__(self, cursor: Any, memory: Memory, now_ms: int) -> None:
        self.cursor = cursor
        self.memory = memory
        self.now_ms = now_ms
        self.claims: list[Claimed] = []
        self.ended: list[Ended] = []
        self.held: tuple[int, frozenset[tuple[int, int]]] | None = None  # what is ours, after how many revocations
        self.looked_up: dict[tuple[str, str], int] = {}  # see StoreCounts.lookups
        self.lost: list[Finish] = []
        self.stop_asked: list[bytes] = []
        self.hastened: list[tuple[bytes, int]] = []  # claimed ones that somebody urgent waits for now, with their rank
        self.tally: dict[tuple[int, int], int] = {}
        self.new_classes: dict[ClassKey, int] = {}
        self.freed: set[int] = set()  # classes of which it lets go of tasks
        self.places: dict[int, int] = {}  # free ones of groups, by limit, less what it takes
        self.given_us: dict[int, int] = {}  # what was given back of rates, by limit,
        self.spent: dict[int, list[Claim]] = {}  # and by whom they were spent after that
        self.took: list[tuple[int, Claim, Rate, int]] = []  # for memory to keep: see `Limits.took`
        self.budgets: dict[int, float] = {}  # what is left of cost rates, by limit, less what it takes
        self.costs: dict[int, float] = {}  # what was spent of these,
        self.settled: dict[int, float] = {}  # and before that settled or given back
        self.reserved: dict[Claim, tuple[int, ...]] = {}  # by which limits for which claims; none: what was is settled
        self.put_off: set[int] = set()  # classes that another process claims for now
        self.sets_limits = False
        self.ready = Woken()  # classes in which it makes tasks ready, or better ones
        self.is_loosened = False  # more may run after it: it claims nothing, the next one takes the best of all
        self.taken: dict[str, int] = {}  # claims by lane
        self.travelled = 0  # children that heard of an end
        self.is_travelling = False  # ends are left that have to go on
        self.looks_on = False  # not all was looked at that is to be passed over

    def part(self) -> Self:
        """Begin a part that may be thrown away."""
        part = type(self)(self.cursor, self.memory, self.now_ms)
        part.tally = dict(self.tally)
        part.new_classes = dict(self.new_classes)
        part.taken = dict(self.taken)
        part.freed = set(self.freed)
        part.places = dict(self.places)
        part.given_us = dict(self.given_us)
        part.spent = {limit_id: [*claims] for limit_id, claims in self.spent.items()}
        part.budgets = dict(self.budgets)
        part.costs = dict(self.costs)
        part.settled = dict(self.settled)
        part.ready = self.ready.copy()
        part.is_loosened = self.is_loosened
        part.travelled = self.travelled
        part.is_travelling = self.is_travelling
        return part

    def keep(self, part: Transaction) -> None:
        self.claims += part.claims
        self.ended += part.ended
        self.held = part.held or self.held
        for key, n in part.looked_up.items():
            self.looked_up[key] = self.looked_up.get(key, 0) + n
        self.lost += part.lost
        self.stop_asked += part.stop_asked
        self.hastened += part.hastened
        self.tally = part.tally
        self.new_classes = part.new_classes
        self.taken = part.taken
        self.freed = part.freed
        self.places = part.places
        self.given_us = part.given_us
        self.spent = part.spent
        self.budgets = part.budgets
        self.costs = part.costs
        self.settled = part.settled
        self.reserved |= part.reserved
        self.put_off |= part.put_off
        self.sets_limits = self.sets_limits or part.sets_limits
        self.ready = part.ready
        self.is_loosened = part.is_loosened
        self.travelled = part.travelled
        self.is_travelling = part.is_travelling

    @property
    def is_alone(self) -> bool:
        """Whether no other process can write meanwhile."""
        return True

    def hold_limit(self, limit_id: int) -> bool:
        """Keep others from claiming for a group until the commit; false where another one does that now."""
        return True

    def hold_limit_surely(self, limit_id: int) -> None:
        """The same where nothing can be put off. Raises Crowded."""
        if not self.hold_limit(limit_id) and not self.is_alone:
            raise Crowded("hold_limit")

    @abstractmethod
    def run(self, name: str, *values: Any) -> Rows:
        """Run a named statement."""

    @abstractmethod
    def run_many(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a statement once for each row of values."""

    @abstractmethod
    def run_wide(self, name: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement for many rows in as few steps as there can be; returns how many rows it changed."""

    @abstractmethod
    def changed(self, name: str, *values: Any) -> int:
        """Run a write and return how many rows it changed."""

    @abstractmethod
    def listed(self, numbers: Sequence[int]) -> Any:
        """Return a list as the value of a statement."""

    @abstractmethod
    def listed_keys(self, keys: Sequence[bytes]) -> Any:
        """The same for keys of work."""

    @abstractmethod
    def numbers(self, n: int) -> Iterator[int]:
        """Yield the sequence numbers of at least n new tasks."""

    @abstractmethod
    def ready_classes(self) -> Iterator[Row]:
        """Yield every class that has ready tasks, with rank and sequence of the best of them."""

    def heads(self, class_id: int, most: int, bound: Place) -> list[Row]:
        """Return the best ready tasks of a class, of which none goes before `bound`."""
        return self.run("heads", class_id, most).fetchall()

    def claim_of_class(self, class_id: int, most: int, bound: Place) -> tuple[list[Row], Place]:
        """Take the best ready tasks of a class; returns them, and a place that none goes before which was ready."""
        return self.run("claim_of_class", self.memory.owner, class_id, most).fetchall(), bound

    def complete(self, ends: Sequence[Row], attempts: Sequence[Row]) -> int:
        """Complete attempts and record them; returns how many were held. If one was not, none may stay."""
        done = self.run_wide("complete_many", ends)
        if done == len(ends):
            self.run_wide("insert_attempt", attempts)
        return done

    def tasks_by_key(self, keys: Collection[IdempotencyKey]) -> Iterator[tuple[IdempotencyKey, Row]]:
        """Yield those of these keys that have a task, each with its row of `task_by_key`."""
        for key in keys:
            if (row := self.one("task_by_key", *key)) is not None:
                yield key, row

    def one(self, name: str, *values: Any) -> Any:
        """Return the first row, or None."""
        return self.run(name, *values).fetchone()

    def must_change(self, name: str, *values: Any) -> None:
        if self.changed(name, *values) != 1:
            raise InternalError(f"statement {name} found no row for {values[-1]!r}; please report this")

    def must_change_all(self, name: str, n: int, *values: Any) -> None:
        if (changed := self.changed(name, *values)) != n:
            raise InternalError(f"statement {name} changed {changed} rows instead of {n}; please report this")

    def look_up(self, kind: str, found: str) -> None:
        """Note what came of looking for equal work."""
        key = (kind, found)
        self.looked_up[key] = self.looked_up.get(key, 0) + 1

    def count(self, class_id: int, status: int, n: int = 1) -> None:
        """Note that n more tasks of a class are in a status; 0 stands for all that have not ended."""
        key = (class_id, status)
        self.tally[key] = self.tally.get(key, 0) + n

    def class_id(self, key: ClassKey) -> int:
        """Return the number of a class, making it when it is new."""
        found = self.memory.class_ids.get(key) or self.new_classes.get(key)
        if found is None:
            row = self.one("find_class", *key) or self.one("add_class", *key)
            found = int(row[0])
            self.new_classes[key] = found
        return found

    def class_key(self, class_id: int) -> ClassKey:
        key = self.memory.class_keys.get(class_id)
        if key is None:
            row = self.one("class_by_id", class_id)
            key = (row[0], row[1], row[2])
            self.new_classes[key] = class_id
        return key

    def lane_for(self, class_id: int, bound: Place | None = None) -> Lane | None:
        """Return the lane that takes tasks of a class now; with `bound`: some of those that don't go before that."""
        memory = self.memory
        key = self.class_key(class_id)
        if memory.pauses and memory.is_paused(key):
            return None
        lane = memory.lane_of_type.get(key[1])
        if lane is None or (end := lane.withheld.get(key[1])) is None:
            return lane
        return lane if bound is not None and bound < end else None

    def let_go(self, class_id: int, unbegun: Claim | None = None) -> None:
        """Note that a task of the class is held no more. A claim that has not begun counts for no rate."""
        known = self.memory.limits
        if known:
            self.freed.add(class_id)
        if unbegun is not None and (known or known.reserved):
            limited = known.of(self.class_key(class_id))
            limits.give_back(self, limited, unbegun)
            costs.give_back(self, limited, unbegun)

    def fall_out(self, class_id: int) -> None:
        """Note that a waiting task of the class has ended: what its group saves up may have been for this one."""
        if self.memory.limits.cost_rates and costs.are_counted(self.memory.limits.of(self.class_key(class_id))):
            self.freed.add(class_id)

    def settle(self, claim: Claimed, cost: float | None) -> None:
        """Note what an attempt has cost its group; None: what was reserved for it stays taken."""
        if self.memory.limits.reserved:
            costs.settle(self, self.memory.limits.of(claim.class_key), claim, cost)

    def forget_places(self, limit_id: int) -> None:
        """Count anew what is free of a limit."""
        self.places.pop(limit_id, None)
        self.budgets.pop(limit_id, None)

    def group_flag(self, class_id: int) -> int:
        """Return the flag of tasks that belong to a group, where those of the class do."""
        return GROUPED if self.class_key(class_id)[2] else 0

    def room(self, lane: Lane) -> int:
        return lane.room() - self.taken.get(lane.name, 0)

    def write_tally(self) -> None:
        if not self.tally:
            return
        totals: dict[int, int] = {}
        rows = []
        for (class_id, status), n in self.tally.items():
            if n:
                rows.append((class_id, status, n))
                totals[status] = totals.get(status, 0) + n
        rows += [(0, status, n) for status, n in totals.items() if n]
        self.run_wide("add_tally", rows)

    def committed(self) -> None:
        """Take over into memory what the file holds now."""
        memory = self.memory
        if self.looked_up:
            lookups = memory.counts.lookups
            for found, n in self.looked_up.items():
                lookups[found] = lookups.get(found, 0) + n
        for key, class_id in self.new_classes.items():
            memory.class_ids[key] = class_id
            memory.class_keys[class_id] = key
        for took in self.took:
            memory.limits.took(*took, self.now_ms * 1_000)
        if self.reserved or memory.limits.reserved:
            lost = [(finish.claim.seq, finish.claim.attempt) for finish in self.lost]
            memory.limits.take_over(self.reserved, lost, None if self.held is None else self.held[1])
        for name, n in self.taken.items():
            lane = memory.lanes.get(name)
            if lane is not None:  # serving may have stopped meanwhile
                lane.taken += n
