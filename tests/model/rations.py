"""The specification's part on groups: how many tasks of one are held, how many begin in a time, what they cost, and
whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from tests.model.equal_work import EqualWork
from tests.model.words import Kind, Task, Took

from mainspring.errors import InvalidInput

Name = tuple[str, str]
"""Namespace and group: of a limit ('' is any namespace) or a share ('' is any group)."""
OTHERS: Name = ("", "")
"""All that have no share of their own."""


class Bucket(NamedTuple):
    """So many in a time: it holds all of them, and fills evenly."""

    n: int
    ms: int

    @property
    def each_us(self) -> int:
        return self.ms * 1_000 // self.n


class Limit(NamedTuple):
    """What a group may have, and how much of that is used."""

    most: int | None = None  # tasks that are held at once
    rate: Bucket | None = None  # tasks that begin in a time
    cost_rate: Bucket | None = None  # what they may cost
    full_us: int = 0  # when as many may begin as there can
    used: float = 0.0  # of the cost,
    at: int = 0  # at that moment

    def lag_us(self, now: int) -> int:
        return max(0, self.full_us - now * 1_000)

    def begun(self, n: int, now: int) -> Limit:
        """So many more have begun."""
        if self.rate is None:
            return self
        return self._replace(full_us=now * 1_000 + self.lag_us(now) + n * self.rate.each_us)

    def given_back(self, took: Took | None, now: int) -> Limit:
        """What one took never began. A full bucket takes nothing back, and what has been filled up is not there."""
        if self.rate is None or took is None or took.rate != self.rate:
            return self
        rest_us = min(max(0, took.full_us - now * 1_000), self.rate.each_us)
        return self._replace(full_us=now * 1_000 + max(0, self.lag_us(now) - rest_us))

    def spent(self, cost: float, now: int) -> Limit:
        """So much more is reserved, or turned out to be spent; there is never more than all."""
        if self.cost_rate is None:
            return self
        return self._replace(used=max(0.0, self.used_by(now) + cost), at=now)

    def used_by(self, now: int) -> float:
        """What is past the whole is a debt, which is paid first."""
        assert self.cost_rate is not None
        return max(0.0, self.used - (now - self.at) * self.cost_rate.n / self.cost_rate.ms)

    def affords(self, cost: float, now: int, taken: float = 0.0) -> bool:
        """Whether so much may begin; more than there can be waits for all of it."""
        if self.cost_rate is None:
            return True
        return self.cost_rate.n - self.used_by(now) - taken >= min(cost, self.cost_rate.n)


class Rations(EqualWork):
    """Of a group no more begins than it may have; where shares hold, they take turns by weight."""

    def limit(
        self, name: Name, most: int | None, rate: Bucket | None, cost_rate: Bucket | None, now: int
    ) -> None:  # fmt: skip
        """What was begun so far counts on, but nobody waits for longer than the new rate takes from nothing. Once a
        cost rate is taken off, or a rate where none of cost stays, that is forgotten, and earlier claims count for
        nothing that is set later."""
        before = self.limits.get(name, Limit())
        limit = before._replace(most=most, rate=rate, cost_rate=cost_rate)
        if cost_rate is None:
            limit = limit._replace(used=0.0, full_us=0 if rate is None else limit.full_us)
            if before.cost_rate is not None or (before.rate is not None and rate is None):
                for task in self.tasks.values():
                    task.took.pop(name, None)
                    task.reserved -= {name}
        if rate is not None:
            limit = limit._replace(full_us=min(limit.full_us, now * 1_000 + rate.n * rate.each_us))
        self.limits[name] = limit

    def limits_of(self, kind: Kind) -> dict[Name, Limit]:
        """The limits that a task counts for."""
        namespace, _, group = kind
        names = [(namespace, group), ("", group)] if group else []
        return {name: self.limits[name] for name in names if name in self.limits}

    def refuse_too_dear(self, task: Task) -> None:
        for limit in self.limits_of(task.kind).values():
            if limit.cost_rate is not None and task.cost > limit.cost_rate.n:
                raise InvalidInput("costs more than there ever is", field="cost")

    def begin(self, tasks: Iterable[Task], now: int) -> None:
        """These were claimed: they count for the rates of their groups, and what they are to cost is reserved."""
        for task in tasks:
            task.took = {}
            limits = self.limits_of(task.kind)
            task.reserved = frozenset(name for name, limit in limits.items() if limit.cost_rate is not None)
            for name, limit in limits.items():
                self.limits[name] = begun = limit.begun(1, now).spent(task.cost, now)
                if begun.rate is not None:
                    task.took[name] = Took(begun.rate, begun.full_us)

    def give_back(self, task: Task, now: int, by: str | None = None) -> None:
        """A claim that never began is held no more. What it took, and reserved, only whoever claimed it knows."""
        for name, limit in self.limits_of(task.kind).items():
            took = task.took.get(name) if by in (None, task.holder) else None
            self.limits[name] = limit.given_back(took, now)
        self._owe(task, -task.cost, by)

    def pay(self, task: Task, cost: float | None, by: str | None = None) -> None:
        """One has ended: the difference to what was reserved is taken or given back. What says nothing keeps it."""
        if cost is not None:
            self._owe(task, cost - task.cost, by)

    def _owe(self, task: Task, cost: float, by: str | None) -> None:
        for name in task.reserved if by in (None, task.holder) else ():
            self.owed[name] = self.owed.get(name, 0.0) + cost

    def settle_up(self, now: int) -> None:
        """What a commit pays and gives back is one sum."""
        for name, cost in self.owed.items():
            self.limits[name] = self.limits[name].spent(cost, now)
        self.owed = {}

    def is_full(self, kind: Kind, now: int) -> bool:
        """Whether no more of a kind may begin. Those behind one that can't be afforded wait for it too."""
        held = self._held()
        for name, limit in self.limits_of(kind).items():
            if limit.most is not None and held[name] >= limit.most:
                return True
            if limit.rate is not None and _left(limit, now) <= 0:
                return True
            ready = [task for task in self.tasks.values() if task.reason == "ready"]
            waiting = [task for task in ready if name in self.limits_of(task.kind)]
            if waiting and not limit.affords(min(waiting, key=place).cost, now):
                return True
        return False

    def _held(self, others: Iterable[bytes] = ()) -> Counter[Name]:
        held = [task for task in self.tasks.values() if task.holder is not None]
        return Counter(name for task in [*held, *self.family(others)] for name in self.limits_of(task.kind))

    def best(self, ready: Iterable[Task], room: int, now: int, others: Iterable[bytes] = ()) -> list[Task]:
        """What there is room for of those that are ready, best first: not of groups that have their limit, nor behind
        one that has to be saved up for. `others` are claimed at the same time."""
        held, begun, costs = self._held(others), Counter[Name](), Counter[Name]()
        for task in self.family(others):
            begun.update([*self.limits_of(task.kind)])
            costs.update(dict.fromkeys(self.limits_of(task.kind), task.cost))
        saved, best = set[Name](), list[Task]()
        for task in ready:
            limits = self.limits_of(task.kind)
            if len(best) == room or any(
                (limit.most is not None and held[name] >= limit.most)
                or (limit.rate is not None and begun[name] >= _left(limit, now))
                or name in saved
                for name, limit in limits.items()
            ):
                continue
            lacking = {name for name, limit in limits.items() if not limit.affords(task.cost, now, costs[name])}
            saved |= lacking
            if not lacking:
                best.append(task)
                held.update([*limits])
                begun.update([*limits])
                costs.update(dict.fromkeys(limits, task.cost))
        return best

    # Shares

    def share(self, name: Name, weight: float | None) -> None:
        """Where turns were taken before, what was a turn by the old weight, at most one, may be over or not."""
        self.carried = 1.0 if any(task.attempt for task in self.tasks.values()) else self.carried
        self.shares.pop(name, None)
        if weight is not None:
            self.shares[name] = weight
        self.turns.clear()

    def share_of(self, kind: Kind) -> Name:
        namespace, _, group = kind
        names = [(namespace, group), ("", group), (namespace, "")] if group else [(namespace, "")]
        return next((name for name in names if name in self.shares), OTHERS)

    def best_of_shares(self, ready: Sequence[Task], got: Sequence[bytes], room: int) -> list[Task]:
        """What there is room for where shares take turns: of each the best ones, as many as it had turns."""
        turns = Counter(self.share_of(task.kind) for task in self.family(got))
        best = list[Task]()
        for share, n in turns.items():
            best += [task for task in ready if self.share_of(task.kind) == share][:n]
        return best if len(best) == min(room, len(ready)) else []

    def are_fair(self, lane: tuple[str, str], got: Sequence[bytes], left: Iterable[Task]) -> bool:
        """A share that waits is gone before by no other for more than a turn of each: 1 / weight.

        `left` waited before these were claimed, and still wait.
        """
        taken = Counter(self.share_of(task.kind) for task in self.family(got))
        waits: dict[Name, set[bytes]] = {}
        for task in left:
            waits.setdefault(self.share_of(task.kind), set()).add(task.id)
        before, now = self.turns.get(lane, {}), dict[Name, tuple[set[bytes], Counter[Name]]]()
        for share, ids in waits.items():
            waited, had = before.get(share, (set[bytes](), Counter[Name]()))
            now[share] = ids, (had if waited & ids else Counter[Name]()) + taken
        self.turns[lane] = now
        return all(
            n * self._turn(other) <= (had[share] + 1) * self._turn(share) + self._turn(other) + self.carried
            for share, (_, had) in now.items()
            for other, n in had.items()
            if other != share
        )

    def _turn(self, share: Name) -> float:
        return 1 / self.shares.get(share, 1.0)


def place(task: Task) -> tuple[int, int]:
    return task.rank, task.seq


def _left(limit: Limit, now: int) -> int:
    """How many more may begin by the rate."""
    assert limit.rate is not None
    return limit.rate.n - ceil(limit.lag_us(now) / limit.rate.each_us)
