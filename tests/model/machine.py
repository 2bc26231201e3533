"""Everything that can be asked of a store, in any order: Hypothesis looks for one that store and model differ after."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.conformance.kit import OTHER, WORK, Note
from tests.model.drawing import ACTS, Draft, Ending
from tests.model.process import LANES, UNSERVED, Worker
from tests.model.words import Kind, Task
from tests.model.world import Op, World

from mainspring.store.base import COMPLETED, CRASHED, FAILED, LEADS, RELEASED, RETRY, WANTS_KEPT, Claimed
from mainspring.store.sql import flights, graph

LIMIT_S = 60
MEMORY = Path("/dev/shm")  # no power will fail, and there are many commits
# Hypothesis would spend five of six examples on variations of the one before, each as dear as a new one.
AVAILABLE_PROVIDERS["fresh"] = HypothesisProvider
PROFILE = settings(
    backend="fresh", stateful_step_count=40, deadline=None, database=None, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def examine(machine: type[RuleBasedStateMachine], examples: int, seed: int, *, shrink: bool = False) -> None:
    """Try that many examples, always the same for a seed. Raises what the first one that fails raises.

    `shrink` looks for the shortest example that fails, which takes up to five minutes.
    """
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    seeded = hypothesis.seed(seed)(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(seeded, settings=settings(PROFILE, max_examples=examples, phases=phases))


async def within_limit(work: Awaitable[Any]) -> Any:
    """What hangs fails."""
    async with asyncio.timeout(LIMIT_S):
        return await work


@contextmanager
def telling(acts: list[tuple[Any, ...]]) -> Iterator[None]:
    """What fails inside says after which acts: what does so once in thousands of runs can't be shortened by Hypothesis,
    which then shows none of them."""
    try:
        yield
    except Exception as exc:
        exc.add_note(f"after these acts: {acts}")
        raise


def _allowed(claim: Claimed, outcome: int) -> int:
    """Who judges an attempt asks for no more tries than there are."""
    return FAILED if outcome == RETRY and claim.retry_count >= claim.max_retries else outcome


class StoreMachine(RuleBasedStateMachine):
    """Rules pick by number among what there is; where there is nothing to pick from they do nothing."""

    seen: Counter[tuple[str, str]] = Counter()
    """What was asked and answered, over all examples."""
    steps: Counter[str] = Counter()
    """Acts, over all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mainspring-model-", dir=MEMORY if MEMORY.is_dir() else None)
        self.runner = asyncio.Runner()
        self.notes = 0
        self.acts: list[tuple[Any, ...]] = []  # of this example

    def run(self, work: Any) -> Any:
        return self.runner.run(within_limit(work))

    in_steps = False
    kind = "sqlite"

    @initialize(
        queue_size=st.sampled_from([None, 8]),
        keep=st.sampled_from([0, 0, 200_000]),
        rations=st.sampled_from(["limits", "limits", "rates", "costs", "shares"]),
        weight=st.sampled_from([1, 1, 2, 4]),
    )
    def begin(self, queue_size: int | None, keep: int = 0, rations: str = "limits", weight: int = 1) -> None:
        """`keep` is for tasks that don't say it themselves: where it is given, most of what is drawn is equal work.

        `rations` is what groups have beside each other: with rates and costs all processes have one clock, and what
        costs is in one lane, as who saves up for what depends on the lane that looks first.
        """
        self.acts.append(("begin", queue_size, keep, rations, weight))
        self.keep = keep
        self.rations = rations
        self.world = World(Path(self.folder), kind=self.kind, queue_size=queue_size, in_steps=self.in_steps)
        worker = self.run(self.world.open())
        if rations == "shares":
            self.run(self.world.perform(worker, self.world.share(worker, ("", "g"), weight)))

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.seen.update(self.world.seen)
                self.seen.update({("equal work", what): n for what, n in self.world.model.met.items()})
                self.run(self.world.leave())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # Picking

    def worker(self, n: int) -> Worker:
        return self.world.workers[n % len(self.world.workers)]

    def busy(self, n: int) -> Worker:
        """One that holds something, if there is one."""
        busy = [worker for worker in self.world.workers if worker.held]
        return busy[n % len(busy)] if busy else self.worker(n)

    def id(self, n: int, more: Any = ()) -> bytes:
        ids = [*self.world.model.tasks, *more]
        return ids[-1 - n % len(ids)] if ids else bytes(16)

    def tasks(self, worker: Worker, drafts: tuple[Draft, ...]) -> list[Task]:
        """Drafts become tasks; a parent may be any task that is there, or stands earlier in the same call."""
        made: list[Task] = []
        now = worker.store.now_ms()
        for draft in drafts:
            there = [task.id for task in made]
            parents = [self.id(n, there) for n in draft.parents] if there or self.world.model.tasks else []
            if draft.is_stray:
                parents.append(next(iter(self.world.model.tombstones), bytes(16)))
            id = self.world.fresh_id()
            is_counted = self.rations == "costs" and draft.group and draft.type == OTHER
            kind = (draft.namespace, WORK if is_counted else draft.type, draft.group)
            made.append(
                Task(
                    id if draft.twin is None else self.id(draft.twin, [*there, id, *self.world.model.tombstones]),
                    kind, draft.payload, draft.priority, draft.max_retries,
                    None if draft.deadline is None else now + draft.deadline,
                    None if draft.not_before is None else now + draft.not_before,
                    draft.key, tuple(dict.fromkeys(parents)), draft.policy,
                    self.keep if draft.keep is None else draft.keep, None,
                    draft.cost if self.rations == "costs" else 1.0,
                )
            )  # fmt: skip
            if made[-1].keep and draft.is_named and draft.type != UNSERVED:
                made[-1].work = worker.work_of(made[-1])
        return made

    def claim(self, worker: Worker, n: int) -> Claimed | None:
        held = [claim for claim in worker.held.values() if claim.id not in worker.joining]
        return held[n % len(held)] if held else None

    def is_to_be_compared(self, claim: Claimed) -> bool:
        """Whether it must be looked for equal work before this one begins."""
        return bool(claim.flags & WANTS_KEPT) and not claim.flags & LEADS

    # What can be asked of a process, alone or several in one commit

    def ask_submit(self, worker: Worker, tasks: tuple[Draft, ...]) -> Op | None:
        return self.world.submit(worker, self.tasks(worker, tasks))

    def ask_start(self, worker: Worker, n: int, mark: bool, tell: bool) -> Op | None:
        claim = self.claim(worker, n)
        if claim is None or claim.id in worker.begun:
            return None
        if claim.deadline_ms is not None and claim.deadline_ms <= worker.store.now_ms():
            return None  # whoever holds it looks at the deadline before it begins
        if self.is_to_be_compared(claim):
            return self.world.join(worker, claim)
        return self.world.start(worker, claim, mark=mark, tell=tell)

    def ask_finish(self, worker: Worker, n: int, ending: Ending) -> Op | None:
        claim = self.claim(worker, n)
        if claim is None:
            return None
        outcome, extra = ending.outcome, dict[str, Any]()
        if outcome == COMPLETED and self.is_to_be_compared(claim):
            return self.world.join(worker, claim)
        outcome = _allowed(claim, outcome)
        if outcome == COMPLETED:
            children = self.tasks(worker, ending.children)
            refs = [self.id(n, [task.id for task in children]) for n in ending.refs]
            notes = tuple(Note(f"{self.count()}", then) for then in ending.notes)
            extra = {"children": tuple(children), "refs": tuple(dict.fromkeys(refs)), "effects": notes}
        elif outcome in (RETRY, CRASHED):
            extra = {"delay": ending.delay}
        elif outcome == RELEASED:
            extra = {"is_counted": ending.is_counted}
        if self.rations == "costs":
            extra["cost"] = ending.cost
        return self.world.finish(worker, claim, outcome, again=ending.again, **extra)

    def count(self) -> int:
        self.notes += 1
        return self.notes

    def ask_finish_stale(self, worker: Worker, n: int, outcome: int) -> Op | None:
        if not self.world.stale:
            return None
        claim = self.world.stale[-1 - n % len(self.world.stale)]
        return self.world.finish(
            worker, claim, _allowed(claim, outcome)
        )  # it counts where its owner is dead, but not found

    def ask_start_stale(self, worker: Worker, n: int) -> Op | None:
        stale = self.world.stale
        return self.world.start(worker, stale[-1 - n % len(stale)], mark=False) if stale else None

    def ask_withdraw(self, worker: Worker, n: int) -> Op | None:
        claim = self.claim(worker, n)
        if claim is None or claim.id in worker.begun:
            return None
        return self.world.withdraw(worker, claim)

    def ask_withdraw_stale(self, worker: Worker, n: int) -> Op | None:
        stale = self.world.stale
        return self.world.withdraw(worker, stale[-1 - n % len(stale)]) if stale else None

    def ask_cancel(self, worker: Worker, n: int) -> Op | None:
        held = [task.id for task in self.world.model.tasks.values() if task.holder is not None]
        return self.world.cancel(worker, held[n % len(held)] if held and n % 2 else self.id(n, [bytes(16)]))

    def ask_retry(self, worker: Worker, n: int) -> Op | None:
        broken = [task.id for task in self.world.model.tasks.values() if task.is_broken]
        return self.world.retry(worker, broken[-1 - n % len(broken)] if broken else self.id(n))

    def ask_resume(self, worker: Worker, n: int) -> Op | None:
        pauses = sorted(self.world.model.pauses)
        return self.world.resume(worker, pauses[n % len(pauses)] if pauses else ("", "", "g"))

    # What can happen

    @rule(act=ACTS)
    def do(self, act: tuple[Any, ...]) -> None:
        name, *values = act
        self.steps[name] += 1
        self.acts.append(act)
        if not self.world.workers and name not in ("open", "advance", "jump"):
            self.open()
        with telling(self.acts):
            getattr(self, name)(*values)

    def ask(self, n: int, what: tuple[Any, ...]) -> None:
        """One thing; where it needs something that is held and nothing is, see to that instead."""
        if what[0] not in ("start", "finish", "withdraw") or any(worker.held for worker in self.world.workers):
            self.together(n, (what,))
        elif any(self.world.model.ready(types) for types in LANES.values()):
            for lane in LANES:
                self.take(n, lane, 3)
        else:
            self.together(n, (("submit", (Draft(), Draft())),))

    def together(self, n: int, whats: tuple[tuple[Any, ...], ...]) -> None:
        """Several in one commit."""
        worker = self.busy(n)
        ops = [getattr(self, f"ask_{name}")(worker, *values) for name, *values in whats]
        self.run(self.world.perform(worker, *(op for op in ops if op is not None)))

    def pause(self, n: int, kind: Kind) -> None:
        """Alone: what is submitted with it in one commit may be handed over before it."""
        self.run(self.world.perform(self.worker(n), self.world.pause(self.worker(n), kind)))

    def limit(self, n: int, limit: tuple[Any, ...], rations: tuple[Any, ...], share: tuple[Any, ...]) -> None:
        """Alone, for the same reason."""
        worker = self.worker(n)
        if self.rations == "shares":
            op = self.world.share(worker, *share)
        elif self.rations == "limits":
            op = self.world.limit(worker, *limit)
        else:
            op = self.world.limit(worker, *(rations if self.rations == "costs" else rations[:4]))
        self.run(self.world.perform(worker, op))

    def limit_again(self, n: int, is_of_cost: bool) -> None:
        """Take off what a group may have in a time, or only what it may cost, and set it again."""
        for name, limit in [*self.world.model.limits.items()] if self.rations in ("rates", "costs") else ():
            worker = self.worker(n)
            for rates in ((limit.rate if is_of_cost else None, None), (limit.rate, limit.cost_rate)):
                self.run(self.world.perform(worker, self.world.limit(worker, *name, limit.most, *rates)))

    def purge(self, n: int, what: tuple[str, str, str]) -> None:
        self.run(self.world.perform(self.worker(n), self.world.purge(self.worker(n), *what)))

    def take(self, n: int, lane: str, room: int) -> None:
        """Have room for some more, once."""
        worker = self.worker(n)
        worker.lanes[lane].limit += room
        self.run(self.world.perform(worker))

    def wait_for_work(self, n: int, rooms: tuple[int, ...]) -> None:
        """Have room for what comes from now on."""
        worker = self.world.eager = self.worker(n)
        for lane, room in zip(worker.lanes.values(), rooms, strict=True):
            lane.limit += max(0, room - lane.room())
        self.run(self.world.perform(worker))

    def hand_back_again_and_again(self, n: int, times: int, is_counted: bool) -> None:
        worker = self.busy(n)
        claim = self.claim(worker, n)
        for _ in range(times):
            if claim is not None:
                self.end(worker, claim, RELEASED, is_counted=is_counted)
                claim = worker.held.get(claim.id)

    def crash_again_and_again(self, n: int) -> None:
        worker = self.busy(n)
        claim = self.claim(worker, n)
        for _ in range(3):
            if claim is not None:
                self.end(worker, claim, CRASHED)
                claim = worker.held.get(claim.id)

    def end(self, worker: Worker, claim: Claimed, outcome: int, **extra: Any) -> None:
        op = self.world.finish(worker, claim, outcome, again=not self.in_steps, **extra)
        self.run(self.world.perform(worker, op))

    def advance(self, ms: int) -> None:
        self.run(self.world.advance(ms))

    def jump(self, seconds: int) -> None:
        """Set the wall clock, forwards or back."""
        if self.rations not in ("rates", "costs"):
            self.world.factory.clock.jump(seconds)

    def prune(self, n: int) -> None:
        self.run(self.world.perform(self.worker(n), self.world.prune(self.worker(n))))

    def open(self, version: str = "1") -> None:
        if len(self.world.workers) < 2:
            self.run(self.world.open(version))

    def close(self, n: int) -> None:
        self.run(self.world.close(self.worker(n)))

    def kill(self, n: int) -> None:
        self.run(self.world.kill(self.busy(n)))

    def rescue(self, n: int) -> None:
        self.run(self.world.rescue(self.worker(n)))

    def look(self, n: int, task: int) -> None:
        self.run(self.world.look(self.worker(n), self.id(task, [bytes(16)])))


class StepsMachine(StoreMachine):
    """The same where ends travel two at a time, and what is left is a list that somebody goes on with.

    A commit may find ends still on their way then: it is asked for one thing at a time, and takes nothing by itself.
    """

    in_steps = True

    def __init__(self) -> None:
        super().__init__()
        self.steps_of_two = ExitStack()
        self.steps_of_two.enter_context(mock.patch.multiple(graph, TRAVEL_LIMIT=2, _PAGE=2))
        if self.kind == "sqlite":  # which of those that wait are the first a server does not say
            self.steps_of_two.enter_context(mock.patch.object(flights, "SHARE", 2))

    def teardown(self) -> None:
        super().teardown()
        self.steps_of_two.close()

    def together(self, n: int, whats: tuple[tuple[Any, ...], ...]) -> None:
        for what in whats:
            super().together(n, (what,))

    def ask_finish(self, worker: Worker, n: int, ending: Ending) -> Op | None:
        return super().ask_finish(worker, n, replace(ending, again=False))

    def wait_for_work(self, n: int, rooms: tuple[int, ...]) -> None:
        for lane, room in zip(LANES, rooms, strict=True):
            self.take(n, lane, room)
