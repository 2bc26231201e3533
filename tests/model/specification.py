"""What a store must do, as a plain program over dicts: the specification that stores are compared with.

A `Model` is one place where tasks live, whatever process writes to it. Each verb does at once, and in the simplest way
that can be, what docs/guarantees.md promises; it knows no tables, indexes, transactions or threads. `now` is the clock
of the process that asks. What is refused raises the store's own errors and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.model.rations import Rations, place
from tests.model.words import ALLOW_FAILURE, SKIP, Claim, Kind, Outcome, Task

from mainspring.errors import Conflict, InvalidInput, QueueFull, TaskNotFound
from mainspring.store.base import MAX_CRASHES, MAX_RELEASES

FRESH = 60_000
"""What has ended within this time is kept in any case."""


class Model(Rations):
    """One place where tasks live."""

    # Coming in

    def submit(self, tasks: Sequence[Task], now: int, *, is_limited: bool = True) -> list[tuple[bytes, bool]]:
        """Return for each task the id it has and whether it was there already."""
        with self.all_or_nothing():
            answers = [self._submit(task, now, is_limited=is_limited) for task in tasks]
            unfinished = sum(not task.is_over for task in self.tasks.values())
            adds = not all(existed for _, existed in answers)
            if is_limited and adds and self.rules.queue_size is not None and unfinished > self.rules.queue_size:
                raise QueueFull("queue_size", retry_after=1.0)
        return answers

    def _submit(self, task: Task, now: int, *, is_limited: bool) -> tuple[bytes, bool]:
        known = self.keys.get((task.kind[0], task.key)) if task.key is not None else None
        known = known or (task.id if task.id in self.tasks else None)
        if known is not None:
            other = self.tasks[known]
            if (other.kind[1], other.payload) != (task.kind[1], task.payload):
                raise Conflict("another payload")
            return known, True
        if task.id in self.tombstones:
            return task.id, True
        if is_limited:
            self.refuse_too_dear(task)
        if task.id in task.parents:
            raise InvalidInput("waits for itself", field="dependencies")
        for parent in task.parents:
            self.task(parent)
        if task.key is not None:
            self.keys[task.kind[0], task.key] = task.id
        self._enter(replace(task, parents=self.and_what_they_stand_for(task.parents)), now)
        return task.id, False

    def _enter(self, task: Task, now: int) -> None:
        self.seq += 1
        base = max(now, task.not_before or 0)
        rank = base - task.priority * self.rules.ageing
        if task.deadline is not None:
            rank = min(rank, task.deadline - self.rules.ageing)
        task.rank = max(rank, base - 4 * self.rules.ageing)
        task.seq, task.submitted, task.reason = self.seq, now, "parents"
        self.tasks[task.id] = task
        has_to_wait = bool(task.parents) or base > now or (task.deadline is not None and task.deadline <= now)
        if task.work is not None and not has_to_wait:
            self._compare(task, task.work, now)
        self.settle(now)

    def and_what_they_stand_for(self, ids: Sequence[bytes]) -> tuple[bytes, ...]:
        """Whoever waits for a task whose output stands for others waits for those too."""
        found: dict[bytes, None] = {}
        queue = list(ids)
        while queue:
            if (id := queue.pop(0)) not in found:
                found[id] = None
                queue += self.tasks[id].stands_for
        return tuple(found)

    # Waiting, and what time brings

    def settle(self, now: int) -> None:
        """Let ends and ranks travel until nothing moves any more."""
        waiting = ("parents", "same_work")
        while any(self._settle(task, now) for task in self.tasks.values() if task.reason in waiting):
            pass

    def _settle(self, task: Task, now: int) -> bool:
        if task.reason == "same_work":
            leader = self._leader(self.flights[task.id].work)
            assert leader is not None
            is_urgent = leader.rank > task.rank
            leader.rank = min(leader.rank, task.rank)  # who leads is as urgent as the most urgent of those that wait
            return is_urgent
        parents = self.family(task.parents)
        if task.policy != ALLOW_FAILURE and any(parent.is_broken for parent in parents):
            task.is_spoiled = True
            if task.policy == SKIP:
                self._end(task, "cancelled", now, "TaskCancelled")
            else:
                self._end(task, "failed", now, "DependencyNotMet")
            return True
        left = [parent for parent in parents if not parent.is_over]
        if not left:
            self._wait_or_ready(task, task.not_before, "delayed", now)
            return True
        urgent = [parent for parent in left if parent.rank > task.rank]
        for parent in urgent:  # a parent is as urgent as the most urgent of those that wait for it
            parent.rank = task.rank
        return bool(urgent)

    def pass_time(self, now: int) -> None:
        """Delays end; deadlines of what nobody holds pass, in their order."""
        for task in self.tasks.values():
            if task.due is not None and task.due <= now:
                self._wait_or_ready(task, None, "", now)
        late = [task for task in self.tasks.values() if task.deadline is not None and task.deadline <= now]
        for task in sorted(late, key=lambda task: (task.deadline, task.seq)):
            if task.status == "pending" and task.reason != "claimed":
                self._end(task, "timeout", now, "TaskTimeout")
                self._pass_on(task, now)
                self.settle(now)

    # Being worked on

    def is_paused(self, kind: Kind) -> bool:
        return any(all(a in ("", b) for a, b in zip(pause, kind, strict=True)) for pause in self.pauses)

    def ready(self, types: Iterable[str]) -> list[Task]:
        """What may be claimed, best first."""
        ready = [task for task in self.tasks.values() if task.reason == "ready" and task.kind[1] in types]
        return sorted((t for t in ready if not self.is_paused(t.kind)), key=place)

    def claim(
        self, worker: str, types: Sequence[str], room: int, got: Sequence[bytes], waited: Container[bytes], now: int,
        others: Iterable[bytes] = (),
    ) -> bool:  # fmt: skip
        """A process that has room got these; return whether it had to be these.

        Of tasks that became ready in the same commit any may go first; nothing that waited before is passed over, nor
        passes over a better one. `others` were claimed at the same time, and have their groups' places.
        """
        ready = self.ready(types)
        if self.shares:
            first = {task.id for task in self.best_of_shares(ready, got, room)}
        else:
            first = {task.id for task in self.best(ready, room, now, others)}
        better = [task for task in ready if task.id in first - set(got)]
        worse = [task for task in ready if task.id in set(got) - first]
        for task in self.family(got):
            task.reason, task.holder = "claimed", worker
            task.attempt += 1
        self.begin(self.family(got), now)
        left = [task for task in ready if task.id in waited and task.id not in got]
        is_fair = not self.shares or self.are_fair((worker, types[0]), got, left)
        return is_fair and len(got) == len(first) == len(set(got)) and not any(t.id in waited for t in better + worse)

    def results(self, task: Task) -> dict[bytes, Task]:
        """The parents as a claim brings them; where one stands for others, these may have been made anew since."""
        results = {parent.id: parent for parent in self.family(task.parents)}
        if any(parent.stands_for for parent in results.values()):
            for old, heir in reversed(self.retried.items()):
                if heir in results and old not in results:
                    results[old] = results[heir]
        return results

    def start(self, claim: Claim) -> None:
        task = self.held(claim)
        if task is not None:
            task.status, task.reason = "running", None

    def finish(self, claim: Claim, outcome: Outcome, now: int, by: str | None = None) -> bool:
        """Return whether the claim still stood; otherwise nothing changes. `by` says who tells, if not its holder."""
        task = self.held(claim)
        if task is None:
            return False
        how, error = outcome.how, outcome.error
        if outcome.started or how not in ("released", "timeout", "cancelled"):
            self.pay(task, outcome.cost, by)
        else:
            self.give_back(task, now, by)
        if task.is_asked:  # whatever the attempt says: somebody was told that it ends so
            how = "cancelled"
        elif how == "crashed" and task.crashes + 1 >= MAX_CRASHES:
            how = "failed"
        elif how in ("retry", "crashed") and task.deadline is not None and now + outcome.delay > task.deadline:
            how, error = "timeout", "TaskTimeout"
        if how == "completed":
            how, error = self._complete(task, outcome, now)
        elif how in ("retry", "crashed"):
            task.error = error
            task.retries += how == "retry"
            task.crashes += how == "crashed"
            task.is_suspect = how == "crashed"
            self._wait_or_ready(task, now + outcome.delay, "retry", now)
        elif how == "released":
            self._release(task, outcome.is_counted, now)
        else:
            self._end(task, how, outcome.ended, "TaskCancelled" if how == "cancelled" else error)
            is_too_slow = how == outcome.how == "timeout" and outcome.started
            self._pass_on(task, now, outcome.work, is_of_work=how == "failed" or is_too_slow)
        if outcome.started or how not in ("released", "cancelled"):
            task.attempts += ((claim.attempt, how),)
        self.settle(now)
        return True

    def _release(self, task: Task, is_counted: bool, now: int) -> None:
        if is_counted and task.releases >= MAX_RELEASES:
            self._end(task, "failed", now, "InternalError")
            self._pass_on(task, now, is_of_work=True)
        else:
            task.releases += is_counted
            self._wait_or_ready(task, None, "", now)

    def _complete(self, task: Task, outcome: Outcome, now: int) -> tuple[str, str | None]:
        """Outcome, effects, children and the tasks the output stands for: all of it, or the attempt has failed."""
        try:
            with self.all_or_nothing():
                stand_ins = self._submit_children(outcome.children, now)
                self.effects += outcome.effects
                if outcome.refusal is not None:
                    raise _Refused(outcome.refusal)
                self._end(task, "completed", outcome.ended, None)
                task.output = _in_place(outcome.output, stand_ins)
                task.stands_for = _renamed(outcome.stands_for, stand_ins)
                came_with_more = outcome.children or outcome.effects or outcome.stands_for
                self._pass_on(task, now, None if came_with_more else outcome.work)
                self._hand_over(task)
        except (Conflict, InvalidInput, TaskNotFound, _Refused) as exc:
            error = exc.error if isinstance(exc, _Refused) else type(exc).__name__
            self._end(task, "failed", outcome.ended, error)
            self._pass_on(task, now, outcome.work, is_of_work=True)
            return "failed", error
        return "completed", None

    def _submit_children(self, children: Sequence[Task], now: int) -> dict[bytes, bytes]:
        """Return, for children whose key has a task already, that task: whatever refers to the child refers to it."""
        stand_ins: dict[bytes, bytes] = {}
        for child in children:
            parents = _renamed(child.parents, stand_ins)
            payload = tuple(stand_ins.get(one, one) for one in child.payload)  # an argument may be such a child
            id, _ = self._submit(replace(child, parents=parents, payload=payload), now, is_limited=False)
            if id != child.id:
                stand_ins[child.id] = id
        return stand_ins

    def _hand_over(self, task: Task) -> None:
        """Those that depend on a task depend on what its output stands for too; nobody may come to depend on itself."""
        more = self.and_what_they_stand_for([self.task(id).id for id in task.stands_for])
        if task.id in more or any(self._depends_on(id, task.id) for id in more):
            raise InvalidInput("stands for itself, or for what depends on it", field="output")
        for child in self.children(task.id):
            child.parents = tuple(dict.fromkeys(child.parents + more))

    def _depends_on(self, id: bytes, other: bytes) -> bool:
        parents = self.tasks[id].parents if id in self.tasks else ()
        return other in parents or any(self._depends_on(parent, other) for parent in parents)

    # Being asked for

    def cancel(self, id: bytes, now: int) -> str:
        task = self.task(id)
        if task.is_over:
            return f"already({task.status})"
        if task.holder is None:
            self._end(task, "cancelled", now, "TaskCancelled")
            self._pass_on(task, now)
            self.settle(now)
            return "cancelled"
        task.is_asked = True
        return "held" if task.reason == "claimed" else "requested"

    def withdraw(self, claim: Claim, now: int, by: str | None = None) -> bool:
        task = self.held(claim)
        if task is None:
            return False
        self.give_back(task, now, by)
        self._end(task, "cancelled", now, "TaskCancelled")
        self._pass_on(task, now)
        self.settle(now)
        return True

    def retry(self, id: bytes, now: int, id_for: Callable[[bytes], bytes]) -> bytes:
        """Make a task that ended without completing anew, with those below that ended for it; `id_for` names them."""
        task = self.task(id)
        if not task.is_broken:
            raise InvalidInput("has not failed", field="task_id")
        if id in self.retried:
            raise InvalidInput("was retried already", field="task_id")
        if any(parent not in self.tasks for parent in task.parents):
            raise InvalidInput("a parent's result is gone", field="task_id")
        renewed: dict[bytes, bytes] = {}
        for old in [task, *self._spoiled_by(task)]:
            self._renew(old, id_for(old.id), now, renewed)
        return renewed[id]

    def _spoiled_by(self, task: Task) -> list[Task]:
        """Those at any distance below that can be made anew, parents first."""
        below = [task]
        for other in below:
            below += [child for child in self.children(other.id) if child.is_spoiled and child not in below]
        left = {other.id: other for other in sorted(below[1:], key=lambda other: other.seq)}
        found, gone = list[Task](), set[bytes]()
        while left:
            other = next(other for other in left.values() if not any(parent in left for parent in other.parents))
            del left[other.id]
            if any(parent in gone or parent not in self.tasks for parent in other.parents):
                gone.add(other.id)
            elif other.id not in self.retried:
                found.append(other)
        return found

    def _renew(self, old: Task, id: bytes, now: int, renewed: dict[bytes, bytes]) -> None:
        renewed[old.id] = self.retried[old.id] = id
        parents = tuple(renewed.get(parent, parent) for parent in old.parents)
        for name, owner in self.keys.items():
            if owner == old.id:
                self.keys[name] = id
        self._enter(
            Task(id, old.kind, old.payload, old.priority, old.max_retries, None, old.not_before, None, parents,
                 old.policy, old.keep, cost=old.cost),
            now,
        )  # fmt: skip

    def pause(self, kind: Kind) -> None:
        self.pauses.add(kind)

    def resume(self, kind: Kind) -> int:
        found = kind in self.pauses
        self.pauses.discard(kind)
        return int(found)

    # Processes that come and go

    def sign_off(self, worker: str, now: int) -> None:
        """A process ends: what it held is ready again, uncharged. What has fallen due meanwhile is for others."""
        self._take_back(worker, now, frozenset())

    def rescue(self, worker: str, now: int, running: frozenset[tuple[bytes, int]]) -> None:
        """A process was killed: a handler that ran alone is charged with it, several are suspects, nothing else is."""
        self._take_back(worker, now, running, killed=True)

    def _take_back(self, worker: str, now: int, running: frozenset[tuple[bytes, int]], *, killed: bool = False) -> None:
        for task in [task for task in self.tasks.values() if task.holder == worker]:
            ran = (task.id, task.attempt) in running
            alone = ran and len(running) == 1
            if not killed and task.status != "running":  # what was killed may have come back, and counts as begun
                self.give_back(task, now)
            if killed and (ran or task.status == "running"):
                task.attempts += ((task.attempt, "crashed"),)
            if task.is_asked:
                self._end(task, "cancelled", now, "TaskCancelled")
                self._pass_on(task, now)
            elif alone and task.crashes + 1 >= MAX_CRASHES:
                self._end(task, "failed", now, "ProcessingFailed")
                self._pass_on(task, now, is_of_work=True)
            else:
                task.crashes += alone
                task.is_suspect = task.is_suspect or ran
                self._wait_or_ready(task, None, "", now)
            self.settle(now)
        self.settle_up(now)
        self.workers.pop(worker, None)

    # Growing old

    def prune(self, now: int) -> None:
        """Forget what ended long ago and nobody needs, the oldest submissions first."""
        rules = self.rules
        surplus = sum(task.status == "completed" for task in self.tasks.values()) - rules.max_completed
        for task in list(self.tasks.values()):
            if not task.is_over:
                continue
            keep = rules.keep_completed if task.status == "completed" else rules.keep_failed
            assert task.ended is not None
            if task.status == "completed" and surplus > 0 and task.ended <= now - FRESH:
                surplus -= 1
            elif task.ended > now - keep:
                continue
            stood_for = any(task.id in other.stands_for for other in self.tasks.values())
            if not stood_for and all(child.is_over for child in self.children(task.id)):
                self._forget(task)
        self.tombstones = {
            id: stone for id, stone in self.tombstones.items() if stone[1] >= now - rules.keep_tombstones
        }
        self.kept = {work: kept for work, kept in self.kept.items() if kept.expires > now}

    def _forget(self, task: Task) -> None:
        del self.tasks[task.id]
        assert task.ended is not None
        self.tombstones[task.id] = (task.status, task.ended)
        self.keys = {name: id for name, id in self.keys.items() if id != task.id}
        self.retried = {old: new for old, new in self.retried.items() if task.id not in (old, new)}

    # Looking

    def counts(self) -> Counter[tuple[str, str]]:
        """Tasks by type and status."""
        return Counter((task.kind[1], task.status) for task in self.tasks.values())

    def standing(self, id: bytes, now: int) -> tuple[str | None, int]:
        """Why a task does not run, and how many of its kind go first."""
        task = self.task(id)
        if task.reason != "ready":
            return task.reason, 0
        served = any(task.kind[1] in types for types in self.workers.values())
        if self.is_paused(task.kind):
            reason = "paused"
        else:
            reason = "no_worker" if not served else "limit" if self.is_full(task.kind, now) else "ready"
        first = [t for t in self.tasks.values() if t.reason == "ready" and t.kind == task.kind]
        return reason, sum(place(other) < place(task) for other in first)


class _Refused(Exception):
    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def _in_place(output: Any, stand_ins: Mapping[bytes, bytes]) -> Any:
    """An output that lists tasks lists those that stand in for children of theirs."""
    form, content = output if isinstance(output, tuple) else ("", None)
    return (form, [stand_ins.get(id, id) for id in content]) if form == "list" else output


def _renamed(ids: Sequence[bytes], stand_ins: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(stand_ins.get(id, id) for id in ids))
