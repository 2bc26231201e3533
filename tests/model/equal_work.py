"""The specification's first part: what a place for tasks has, and how equal work meets in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from tests.model.words import Claim, Flight, Kept, Kind, Rules, Task, Work

from mainspring.errors import TaskNotFound


class Place:
    """All that there is."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.seq = 0
        self.tasks: dict[bytes, Task] = {}  # in order of submission
        self.keys: dict[tuple[str, str], bytes] = {}
        self.retried: dict[bytes, bytes] = {}  # as which new task
        self.tombstones: dict[bytes, tuple[str, int]] = {}
        self.pauses: set[Kind] = set()
        self.limits: dict[tuple[str, str], Any] = {}  # what a group may have, in a namespace or ('') in all
        self.owed: dict[tuple[str, str], float] = {}  # what is to be taken of it for what was more than reserved
        self.shares: dict[tuple[str, str], float] = {}  # weights
        self.carried = 0.0  # of turns by weights that are no more
        self.turns: dict[tuple[str, str], Any] = {}  # what shares had in a lane of a process while others waited
        self.flights: dict[bytes, Flight] = {}  # tasks that lead or wait for equal work
        self.kept: dict[Work, Kept] = {}
        self.met = Counter[str]()  # what came of equal work
        self.workers: dict[str, frozenset[str]] = {}  # processes that have not signed off, with the types they serve
        self.effects: list[str] = []
        self.ends: list[bytes] = []

    def task(self, id: bytes) -> Task:
        if id not in self.tasks:
            raise TaskNotFound("pruned" if id in self.tombstones else "unknown")
        return self.tasks[id]

    def family(self, ids: Iterable[bytes]) -> list[Task]:
        return [self.tasks[id] for id in ids]

    def children(self, id: bytes) -> list[Task]:
        return [task for task in self.tasks.values() if id in task.parents]

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        before = {name: copy(value) for name, value in vars(self).items()}
        tasks = [(task, copy(task)) for task in self.tasks.values()]
        try:
            yield
        except Exception:
            vars(self).update(before)
            for task, as_it_was in tasks:
                vars(task).update(vars(as_it_was))
            raise

    def held(self, claim: Claim) -> Task | None:
        """The task of a claim that still stands."""
        task = self.tasks.get(claim.id)
        stands = task is not None and (task.attempt, task.holder) == (claim.attempt, claim.holder)
        return task if stands else None

    def settle(self, now: int) -> None:
        """Let ends and ranks travel until nothing moves any more."""
        raise NotImplementedError

    def give_back(self, task: Task, now: int, by: str | None = None) -> None:
        """A claim that never began is held no more."""
        raise NotImplementedError

    def _wait_or_ready(self, task: Task, due: int | None, reason: str, now: int) -> None:
        task.status, task.holder = "pending", None
        task.reason, task.due = ("ready", None) if due is None or due <= now else (reason, due)

    def _end(self, task: Task, status: str, at: int, error: str | None) -> None:
        task.status, task.ended, task.error = status, at, error
        task.reason = task.due = task.holder = None
        self.ends.append(task.id)


class EqualWork(Place):
    """A result that is kept is not computed again, and what is under way runs once: the others wait for it."""

    def _leader(self, work: Work) -> Task | None:
        return next((self.tasks[id] for id, one in self.flights.items() if one.leads and one.work == work), None)

    def _compare(self, task: Task, work: Work, now: int) -> bool:
        """A task takes a kept result, waits for the one that does the same, or leads; return whether it leads."""
        kept = self.kept.get(work)
        if kept is not None and kept.expires > now and kept.made > now - task.keep:
            self._end(task, "completed", now, None)
            task.output, task.is_shared = kept.output, True
            self.met["kept"] += 1
            self._pass_on(task, now, work)
            return False
        leader = self._leader(work)
        task.is_leader = leader is None
        self.flights[task.id] = Flight(work, task.is_leader, task.keep)
        if leader is not None:
            task.reason, task.holder = "same_work", None
        self.met["leads" if leader is None else "waits"] += 1
        return task.is_leader

    def _pass_on(self, task: Task, now: int, work: Work | None = None, *, is_of_work: bool = False) -> None:
        """A task has ended: those that wait for it end as it did, or the best of them goes on.

        `work` is what was done, where the result is that of any equal task; `is_of_work`: it is the work that failed.
        """
        flight = self.flights.pop(task.id, None)
        if flight is None:
            return
        is_result = task.status == "completed" and work is not None
        others = [one for one in self.flights.values() if flight.leads and one.work == flight.work]
        if is_result and not task.is_shared:
            assert work is not None
            wishes = [flight.keep, *(one.keep for one in others if one.work == work)]
            before = self.kept.get(work)
            expires = max(now + max(wishes), 0 if before is None else before.expires)
            self.kept[work] = Kept(task.output, now, expires)
        if not flight.leads:
            return
        told = is_result or is_of_work
        waiting = [self.tasks[id] for id, one in self.flights.items() if one.work == flight.work]
        if told and work in (None, flight.work):
            for other in waiting[: self.rules.share if is_result else None]:
                waiting.remove(other)
                del self.flights[other.id]
                self._end(other, task.status, now, task.error)
                other.output, other.is_shared = task.output, True
                self.met[f"{task.status} for another"] += 1
        else:
            is_result = False
        self.met[f"goes on after {task.status}"] += bool(waiting)
        self._go_on(flight.work, now, has_result=is_result)

    def _go_on(self, work: Work, now: int, *, has_result: bool) -> None:
        """The best of those that wait leads; where there is a result it looks for that before it runs."""
        waiting = [self.tasks[id] for id, one in self.flights.items() if one.work == work]
        if waiting:
            best = min(waiting, key=lambda other: (other.rank, other.seq))
            self.flights[best.id] = self.flights[best.id]._replace(leads=True)
            best.is_leader = not has_result
            self._wait_or_ready(best, None, "", now)

    def join(self, claim: Claim, work: Work, now: int) -> str:
        """Compare a claim that has not begun with equal work."""
        task = self.held(claim)
        if task is None:
            return "lost"
        if task.is_asked:
            self.give_back(task, now)
            self._end(task, "cancelled", now, "TaskCancelled")
            self._pass_on(task, now)
            leads = False
        else:
            flight = self.flights.get(task.id)
            if flight is not None and flight.work != work:  # other code than it waited for has it now
                del self.flights[task.id]
                self._go_on(flight.work, now, has_result=True)
            leads = self._compare(task, work, now)
            if not leads:
                self.give_back(task, now)
        self.settle(now)
        return "leads" if leads else "over"

    def purge(self, namespace: str, kind: str, version: str) -> int:
        found = [
            work for work in self.kept
            if all(a in ("", b) for a, b in zip((namespace, kind, version), (*work[:2], work[3]), strict=True))
        ]  # fmt: skip
        for work in found:
            del self.kept[work]
        return len(found)
