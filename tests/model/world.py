"""A store and its model side by side: whatever is asked of one is asked of both, and then they must agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.conformance.kit import AGEING_MS, FACTORIES, OUTPUT, Factory, Note
from tests.model.process import LANES, Worker, key_of, new_task
from tests.model.rations import Bucket
from tests.model.specification import Model
from tests.model.words import Claim, Outcome, Rules, Task, Took, Work

from mainspring.errors import TaskError, TaskNotFound
from mainspring.store.base import (
    COMPLETED,
    CRASHED,
    HAS_REFS,
    LEADS,
    OUTCOMES,
    RELEASED,
    SUSPECT,
    WANTS_KEPT,
    Claimed,
    Ended,
    Finish,
    WorkName,
)
from mainspring.store.sql import flights
from mainspring.tasks import CostRate, ErrorInfo, Rate, Usage
from mainspring.tasks.lifecycle import STATUS_OF

KEEP = {"keep_completed_s": 100, "keep_failed_s": 200, "keep_tombstones_s": 400, "max_completed": 6}
FINISHES, STARTS, SUBMISSIONS, COMMANDS = range(4)
_REFUSALS = {"refuse": "InvalidInput", "break": "KeyError"}  # what a note of the kit ends with
_ERROR_OF = {"failed": "ValueError", "timeout": "TaskTimeout", "retry": "ValueError", "crashed": "ProcessingFailed"}


class Op(NamedTuple):
    """Something asked of a store, and what the model answers at a time."""

    name: str
    order: int  # within one commit
    give: Callable[[], Awaitable[Any] | None]
    expect: Callable[[int], Any]
    is_written: bool = True
    finish: Finish | None = None


class World:
    """Args: in_steps: ends may travel on after the commit that they began in."""

    def __init__(
        self, folder: Path, *, kind: str = "sqlite", queue_size: int | None = None, in_steps: bool = False
    ) -> None:
        self.factory: Factory = FACTORIES[kind](folder)
        self.queue_size = queue_size
        self.in_steps = in_steps
        self.seen: Counter[tuple[str, str]] = Counter()  # what was asked and answered
        self.mishaps: list[dict[str, Any]] = []  # what a callback of the loop raised
        self.model = Model(
            Rules(
                ageing=AGEING_MS,
                queue_size=queue_size,
                max_completed=KEEP["max_completed"],
                share=flights.SHARE,
                **{name: KEEP[f"{name}_s"] * 1000 for name in ("keep_completed", "keep_failed", "keep_tombstones")},
            )
        )
        self.workers: list[Worker] = []
        self.eager: Worker | None = None  # the one process that may have room for what comes
        self.dead: list[tuple[str, frozenset[tuple[bytes, int]]]] = []  # killed, and not rescued yet
        self.stale: list[Claimed] = []  # claims that somebody had once
        self.told: list[Ended] = []  # by processes that are gone
        self.untold: set[bytes] = set()  # what may have ended while nobody listened
        self.new_claims: list[tuple[Worker, Claimed]] = []  # of this commit
        self.holders: dict[tuple[bytes, int], str] = {}  # who got an attempt
        self.clocks: dict[str, float] = {}
        self.visited = 0  # when a process came or went last: no later clock is behind that
        self._ids = 0

    # Processes

    async def open(self, version: str = "1") -> Worker:
        asyncio.get_running_loop().set_exception_handler(lambda _, mishap: self.mishaps.append(mishap))
        newest = max((task.submitted for task in list(self.model.tasks.values())[-1:]), default=0)
        newest = max(newest, self.visited)
        store = self.factory.make(durability="relaxed", queue_size=self.queue_size, **KEEP)
        clock = self.factory.clock
        self.clocks[store.worker_id] = max(clock.wall_ms(), newest) - clock.monotonic() * 1000
        await store.open()
        await self.factory.hold_upkeep(store)
        worker = Worker(store, version)
        self.workers.append(worker)
        await self.rescue(worker, is_opening=True)
        await worker.serve()
        self.model.workers[worker.name] = frozenset(kind for types in LANES.values() for kind in types)
        await self.perform(worker)
        return worker

    async def rescue(self, worker: Worker, *, is_opening: bool = False) -> None:
        dead, self.dead = self.dead, []
        if dead or is_opening:
            self.visited = max(self.visited, self.now(worker))
        ended = len(self.model.ends)

        def expect(now: int) -> None:
            for name, running in dead:
                self.model.rescue(name, now, running)
            if is_opening:  # nobody could listen yet
                self.model.pass_time(now)
                self.untold.update(self.model.ends[ended:])

        await self.perform(worker, Op("rescue", COMMANDS, lambda: self.factory.rescue(worker.store), expect))

    async def close(self, worker: Worker) -> None:
        """A process signs off."""
        await worker.store.close()
        self.visited = max(self.visited, self.now(worker))
        self.model.sign_off(worker.name, self.now(worker))
        await self._gone(worker)

    async def kill(self, worker: Worker) -> None:
        running = worker.running()
        await self.factory.die(worker.store)
        self.dead.append((worker.name, running))
        await self._gone(worker)

    async def _gone(self, worker: Worker) -> None:
        self.stale += worker.held.values()
        self.told += worker.ends
        self.workers.remove(worker)
        if self.eager is worker:
            self.eager = None
        if self.workers:
            await self.perform(self.workers[0])
        elif not self.in_steps:
            await self.compare()

    def now(self, worker: Worker) -> int:
        """What a process's clock must say: its wall clock at opening and what has passed since."""
        return round(self.clocks[worker.name] + self.factory.clock.monotonic() * 1000)

    async def advance(self, ms: int) -> None:
        self.factory.clock.advance(ms / 1000)
        if self.workers:
            await self.perform(self.workers[0])

    async def leave(self) -> None:
        for worker in self.workers:
            await worker.store.close()

    # One commit, in the store and in the model

    async def perform(self, worker: Worker, *ops: Op) -> list[Any]:
        """Give these to a process in one commit, let all processes come to rest, and compare; return the answers."""
        n = sum(op.is_written for op in ops)
        async with self.factory.together(worker.store, n) if len(ops) > 1 else nullcontext():
            given = [op.give() for op in ops]
            room = {one.name: one.room_given() for one in self.workers}
            pending = [asyncio.ensure_future(nothing() if one is None else one) for one in given]
        worker.store.demand()
        answers = await asyncio.gather(*pending, return_exceptions=True)
        order = [worker, *(other for other in self.workers if other is not worker), worker]
        for _ in range(len(self.workers)):
            for one in order:
                await one.settle()
                if self.in_steps:
                    await self.factory.go_on(one.store)
        for one in self.workers:
            await one.settle()  # what the writer let travel by itself meanwhile has been told then

        self.model.pass_time(self.now(worker))
        waited = {task.id for types in LANES.values() for task in self.model.ready(types)}  # and are not paused
        turns = _turns(ops)
        for n in sorted(range(len(ops)), key=lambda n: (ops[n].order, turns[n])):  # as one commit does them
            self._compare_answers(worker, ops[n], answers[n])
        self.model.settle_up(self.now(worker))
        for one in order:
            self.model.pass_time(self.now(one))
            self._compare_claims(one, room[one.name], waited)
            waited = set(self.model.tasks)
        self._compare_rates()
        for one in self.workers:
            assert not one.fresh, f"claimed {self._names(one.fresh)} too, the model has no room or no task for it"
            assert len(one.missed) == one.must_miss, "outcomes lost"
            assert not one.overdrawn
            for lane in one.lanes.values():
                lane.limit -= 0 if one is self.eager else lane.room()
            one.note()
        assert not self.mishaps
        await self.compare()
        return answers

    def _compare_answers(self, worker: Worker, op: Op, answer: Any) -> None:
        try:
            wanted = op.expect(self.now(worker))
        except TaskError as exc:
            wanted = exc
        self.seen[op.name, type(wanted).__name__ if isinstance(wanted, (TaskError, bytes, list)) else str(wanted)] += 1
        if op.order == FINISHES:
            worker.must_miss += wanted is False
            assert len(worker.missed) >= worker.must_miss, "an outcome was taken that the model calls lost"
        elif op.order != STARTS:
            assert _shown(answer) == _shown(wanted), f"answered {answer!r}, the model says {wanted!r}"

    def _compare_claims(self, worker: Worker, room: dict[str, int], waited: set[bytes]) -> None:
        """Of what a process was handed over since, take what the model has ready now."""
        for name, types in LANES.items():
            n, now = min(room[name], len(self.model.ready(types))), self.now(worker)
            got = [claim for claim in worker.fresh if claim.class_key[1] in types][: max(0, n)]
            mine = {claim.id for claim in got}
            others = [claim.id for one in self.workers for claim in one.fresh if claim.id not in mine]
            best = self.model.best(self.model.ready(types), n, now, others)
            fair = self.model.claim(worker.name, types, room[name], [claim.id for claim in got], waited, now, others)
            assert fair, f"claimed {self._names(got)}, the model says {[f'{task.seq}.{task.attempt}' for task in best]}"
            room[name] -= len(got)
            for claim in got:
                worker.fresh.remove(claim)
                self.new_claims.append((worker, claim))
                self._compare_claim(worker, claim, self.model.tasks[claim.id])

    def _compare_claim(self, worker: Worker, claim: Claimed, task: Task) -> None:
        self.holders[claim.id, claim.attempt] = worker.name
        assert (claim.attempt, claim.class_key, claim.priority) == (task.attempt, task.kind, task.priority)
        assert (claim.retry_count, claim.crashes, claim.releases) == (task.retries, task.crashes, task.releases)
        assert (claim.deadline_ms, claim.max_retries) == (task.deadline, task.max_retries)
        assert bool(claim.flags & SUSPECT) == task.is_suspect
        assert (bool(claim.flags & WANTS_KEPT), bool(claim.flags & LEADS)) == (task.keep > 0, task.is_leader)
        if claim.flags & HAS_REFS:
            assert claim.parents is not None
            brought = {id: (STATUS_OF[one.status].value, one.output) for id, one in claim.parents.items()}
            assert brought == {id: (one.status, one.output) for id, one in self.model.results(task).items()}

    def _compare_rates(self) -> None:
        """What new claims took of rates; which of one commit was the first to take is the store's own affair."""
        wanted, stored = Counter[Any](), Counter[Any]()
        for worker, claim in self.new_claims:
            task, full_us = self.model.tasks[claim.id], worker.took(claim)
            wanted.update((name, took.full_us) for name, took in task.took.items())
            stored.update(full_us.items())
            task.took = {name: Took(took.rate, full_us.get(name, 0)) for name, took in task.took.items()}
        self.new_claims.clear()
        assert stored == wanted, f"claims took {stored} of rates, the model says {wanted}"

    async def compare(self) -> None:
        """All that is stored, kept as a count or was told is what the model says."""
        model, stored = self.model, self.factory.contents()
        assert list(stored.tasks) == list(model.tasks)
        for id, fields in stored.tasks.items():
            task = model.tasks[id]
            if self.in_steps and fields["error"] == "TaskTimeout" and task.was_late:  # before its parent's end came
                task.status, task.error, task.is_spoiled = "timeout", "TaskTimeout", False
            wanted = {name: getattr(task, name) for name in fields}
            wanted["parents"] = tuple(parent for parent in task.parents if parent in model.tasks)
            if task.is_over:  # it has no place in the order any more; what ends in one commit may end in any order
                wanted["rank"] = fields["rank"]
            differ = {name: (fields[name], wanted[name]) for name in fields if fields[name] != wanted[name]}
            assert not differ, f"task {task.seq}: stored and model differ in {differ}"
        assert (stored.keys, stored.retried) == (model.keys, model.retried)
        self._compare_limits(stored.limits)
        assert (stored.tombstones, stored.notes) == (model.tombstones, model.effects)
        assert stored.flights == {id: (key_of(one.work), one.leads, one.keep) for id, one in model.flights.items()}, (
            "who leads and who waits for equal work"
        )
        assert stored.kept == {
            key_of(work): (*work[:2], work[3], one.output, one.made, one.expires) for work, one in model.kept.items()
        }, "what is kept for equal work"
        assert not stored.violations, "; ".join(str(one) for one in stored.violations)
        told = Counter(ended.id for ended in self.told + [ended for one in self.workers for ended in one.ends])
        missing, surplus = Counter(model.ends) - told, told - Counter(model.ends)
        assert not surplus, "an end was told twice, or was none"
        assert missing.keys() <= self.untold, "an end was not told"
        for one in self.workers:
            assert one.store.now_ms() == self.now(one)
            self._compare_stats(await one.store.stats())

    def _compare_limits(self, stored: Mapping[tuple[str, str], tuple[int, float, int]]) -> None:
        """What is used of limits."""
        now = self.factory.clock.wall_ms()  # where there are rates no clock differs from it
        for name, limit in self.model.limits.items():
            full_us, used, at = stored[name]
            if limit.rate is not None:
                lag_us, wanted_us = max(0, full_us - now * 1_000), limit.lag_us(now)
                assert lag_us == wanted_us, f"the rate of {name} is full in {lag_us} us, the model says {wanted_us}"
            if limit.cost_rate is not None:
                assert (used, at) == (limit.used, limit.at), f"of {name} other costs are used"

    def _compare_stats(self, stats: Mapping[str, Any]) -> None:
        counts = self.model.counts()
        by_status = Counter[str]()
        kept = Counter[tuple[str, str]]()
        for (kind, status), n in counts.items():
            by_status[status] += n
            kept[kind, "unfinished" if status in ("pending", "running") else status] += n
        assert {status.value: stats.get(status.value, 0) for status in STATUS_OF} == {
            status.value: by_status[status.value] for status in STATUS_OF
        }
        assert {(kind, name): n for kind, names in stats["types"].items() for name, n in names.items() if n} == kept

    def _names(self, claims: list[Claimed]) -> list[str]:
        """Attempts by the numbers of their tasks, for messages."""
        return [f"{claim.seq}.{claim.attempt}" for claim in claims]

    async def look(self, worker: Worker, id: bytes) -> None:
        """Whatever shows a task shows the model's."""
        store, task = worker.store, self.model.tasks.get(id)
        if task is None:
            for look in (store.info, store.result, store.standing):
                with pytest.raises(TaskNotFound):
                    await look(id)
            return
        info, result, standing = await store.info(id), await store.result(id), await store.standing(id)
        assert (info.status.value, info.reason, info.attempt) == (task.status, task.reason, task.attempt)
        assert (info.worker, info.cancel_requested, info.task.retry_count) == (task.holder, task.is_asked, task.retries)
        assert tuple((one.number, one.outcome) for one in info.attempts) == task.attempts
        heir = self.model.retried.get(id)
        assert (info.retried_as and info.retried_as.bytes) == heir
        assert (result is not None) == task.is_over
        if result is not None:
            assert (result.status.value, result.output is not None) == (task.status, task.output is not None)
            assert (result.error and result.error.type) == task.error
        assert (standing.status.value, (standing.reason, standing.ahead)) == (
            task.status,
            self.model.standing(id, self.now(worker)),
        )
        page = await store.list_tasks(type=task.kind[1], namespace=task.kind[0], status=info.status)
        alike = [one for one in self.model.tasks.values() if one.kind[:2] == task.kind[:2]]
        assert [one.task.id.bytes for one in page] == [one.id for one in alike[::-1] if one.status == task.status]

    # Operations

    def fresh_id(self) -> bytes:
        self._ids += 1
        return self._ids.to_bytes(16, "big")

    def submit(self, worker: Worker, tasks: list[Task]) -> Op:
        stored = [new_task(task) for task in tasks]

        async def give() -> list[tuple[bytes, bool]]:
            return [(answer.id, answer.existed) for answer in await worker.store.submit(stored)]

        return Op("submit", SUBMISSIONS, give, lambda now: self.model.submit(tasks, now))

    def start(self, worker: Worker, claim: Claimed, *, mark: bool = True, tell: bool = True) -> Op:
        """Begin with a claim; what may be missing is the mark (it runs in a child) or the telling (too quick)."""

        def give() -> None:
            now = worker.store.now_ms()
            if worker.held.get(claim.id) is claim:
                worker.begun[claim.id] = now
                if mark and claim.id not in worker.marked:
                    slot = worker.marked[claim.id] = min(set(range(100)) - set(worker.marked.values()))
                    worker.store.mark(slot, claim.seq, claim.attempt)
            if tell:
                worker.store.started(claim, now)

        key = _key(claim, self._holder(claim))
        return Op("start", STARTS, give, lambda now: self.model.start(key) if tell else None, is_written=tell)

    def finish(self, worker: Worker, claim: Claimed, outcome: int, *, again: bool = False, **extra: Any) -> Op:
        """End a claim; when it's not held any more, see that it is lost. `again`: take another for it."""
        is_held = worker.held.get(claim.id) is claim
        work = self._note_work(worker, claim)
        lane = worker.lane_of(claim)
        started = worker.begun.get(claim.id) if is_held else None
        how = OUTCOMES[outcome]
        children: tuple[Task, ...] = extra.get("children", ())
        effects: tuple[Note, ...] = extra.get("effects", ())
        error = None if outcome in (COMPLETED, RELEASED) else _error(_ERROR_OF.get(how, "TaskCancelled"))
        refused = next((_REFUSALS[note.then] for note in effects if note.then != "keep"), None)
        finish = Finish(
            claim, outcome, worker.store.now_ms(), started_ms=started, lane=lane, error=error,
            output=OUTPUT if outcome == COMPLETED else None, delay_ms=extra.get("delay", 0),
            refs=extra.get("refs", ()), effects=effects,  # type: ignore[arg-type]  # one of the kit's own
            children=tuple(new_task(task) for task in children),
            is_counted=extra.get("is_counted", True), usage=Usage(cost=extra.get("cost")),
        )  # fmt: skip
        if is_held:
            worker.let_go(claim)
            self.stale.append(claim)

        def give() -> None:
            if is_held:
                worker.lanes[lane].limit -= not again
                worker.lanes[lane].released += 1
            worker.store.finish(finish)

        told = Outcome(
            how=how, ended=finish.ended_ms, started=started is not None, error=_ERROR_OF.get(how),
            delay=finish.delay_ms, is_counted=finish.is_counted, output=finish.output, children=children,
            stands_for=finish.refs, effects=tuple(note.text for note in effects), refusal=refused, work=work,
            cost=extra.get("cost"),
        )  # fmt: skip
        key = _key(claim, self._holder(claim))

        def expect(now: int) -> Any:
            if not self.model.finish(key, told, now, worker.name):
                return False
            task = self.model.tasks[claim.id]
            return f"{task.status} {task.reason or task.error}"

        return Op(f"finish as {how}", FINISHES, give, expect, finish=finish)

    def _note_work(self, worker: Worker, claim: Claimed) -> Work | None:
        """What the code of this process makes of a claim, where that is of interest."""
        task = self.model.tasks.get(claim.id)
        if task is None or not claim.flags & WANTS_KEPT:
            return None
        claim.work = WorkName(key_of(worker.work_of(task)), worker.version)
        return worker.work_of(task)

    def join(self, worker: Worker, claim: Claimed) -> Op:
        """Compare a claim that has not begun with equal work."""
        work = self._note_work(worker, claim)
        assert work is not None
        worker.joining.add(claim.id)
        key = _key(claim, self._holder(claim))

        def expect(now: int) -> str:
            answer = self.model.join(key, work, now)
            worker.joining.discard(claim.id)
            if answer == "leads":
                claim.flags |= LEADS
                return answer
            if worker.held.get(claim.id) is claim:
                worker.let_go(claim)
            self.stale.append(claim)
            worker.lanes[worker.lane_of(claim)].limit -= 1
            worker.lanes[worker.lane_of(claim)].released += 1
            return answer

        return Op("join", COMMANDS, lambda: worker.store.join(claim, self.model.tasks[claim.id].keep), expect)

    def withdraw(self, worker: Worker, claim: Claimed) -> Op:
        is_held = worker.held.get(claim.id) is claim
        if is_held:
            worker.let_go(claim)
            self.stale.append(claim)

        def give() -> Awaitable[bool]:
            if is_held:
                worker.lanes[worker.lane_of(claim)].limit -= 1
                worker.lanes[worker.lane_of(claim)].released += 1
            return worker.store.withdraw(claim)

        key = _key(claim, self._holder(claim))
        return Op("withdraw", COMMANDS, give, lambda now: self.model.withdraw(key, now, worker.name))

    def _holder(self, claim: Claimed) -> str:
        return self.holders[claim.id, claim.attempt]

    def cancel(self, worker: Worker, id: bytes) -> Op:
        def expect(now: int) -> str:
            answer = self.model.cancel(id, now)
            assert answer not in ("held", "requested") or id in worker.asked
            return answer

        return Op("cancel", COMMANDS, lambda: worker.store.cancel(id), expect)

    def retry(self, worker: Worker, id: bytes) -> Op:
        def expect(now: int) -> bytes:
            retried = self.factory.contents().retried
            return self.model.retry(id, now, lambda old: retried.get(old, b"not renewed"))

        return Op("retry", COMMANDS, lambda: worker.store.retry(id), expect)

    def pause(self, worker: Worker, kind: tuple[str, str, str]) -> Op:
        names = dict(zip(("namespace", "type", "group"), kind, strict=True))
        return Op("pause", COMMANDS, lambda: worker.store.pause(**names), lambda now: self.model.pause(kind))

    def resume(self, worker: Worker, kind: tuple[str, str, str]) -> Op:
        names = dict(zip(("namespace", "type", "group"), kind, strict=True))
        return Op("resume", COMMANDS, lambda: worker.store.resume(**names), lambda now: self.model.resume(kind))

    def limit(
        self, worker: Worker, namespace: str, group: str, concurrency: int | None, rate: Bucket | None = None,
        cost_rate: Bucket | None = None,
    ) -> Op:  # fmt: skip
        rates: dict[str, Any] = {"rate": rate and Rate(*rate), "cost_rate": cost_rate and CostRate(*cost_rate)}

        def give() -> Awaitable[None]:
            return worker.store.limit(group, namespace=namespace, concurrency=concurrency, **rates)

        def expect(now: int) -> None:
            self.model.limit((namespace, group), concurrency, rate, cost_rate, now)

        return Op("limit", COMMANDS, give, expect)

    def share(self, worker: Worker, name: tuple[str, str], weight: float | None) -> Op:
        def give() -> Awaitable[None]:
            return worker.store.share(namespace=name[0], group=name[1], weight=weight)

        return Op("share", COMMANDS, give, lambda now: self.model.share(name, weight))

    def purge(self, worker: Worker, namespace: str, type: str, version: str) -> Op:
        def give() -> Awaitable[int]:
            return worker.store.purge(namespace=namespace, type=type, version=version)

        return Op("purge", COMMANDS, give, lambda now: self.model.purge(namespace, type, version))

    def prune(self, worker: Worker) -> Op:
        return Op("prune", COMMANDS, lambda: self.factory.prune(worker.store), self.model.prune)


async def nothing() -> None:
    """What is asked of a store without an answer."""


def _shown(answer: Any) -> Any:
    """What of an answer must be the same."""
    if isinstance(answer, TaskError):
        return type(answer), isinstance(answer, TaskNotFound) and "pruned" in str(answer)
    return answer


def _key(claim: Claimed, holder: str) -> Claim:
    return Claim(claim.id, claim.attempt, holder)


def _turns(ops: Sequence[Op]) -> list[int]:
    """Of several ends for one claim the first counts."""
    turns, known = [], set()
    for op in ops:
        key = None if op.finish is None else (op.finish.claim.id, op.finish.claim.attempt)
        turns.append(0 if op.finish is None else 4 if key in known else _turn(op.finish))
        known.add(key)
    return turns


def _turn(finish: Finish) -> int:
    """What is looked at one by one goes first, then what fails, then what is handed back, and plain results last."""
    if finish.outcome == COMPLETED:
        has_more = finish.refs or finish.effects or any(child.key is not None for child in finish.children)
        return 0 if has_more else 3
    if finish.outcome == RELEASED and finish.started_ms is None and not finish.is_counted:
        return 2
    return 0 if finish.outcome in (RELEASED, CRASHED) else 1


def _error(type: str) -> bytes:
    return msgspec.msgpack.encode(ErrorInfo(type=type, message="as the test wants it"))
