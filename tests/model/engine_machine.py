"""The engine against the store's specification: real handlers, of which each does what the machine tells it next.

Whatever is ready runs at once, in its own slot, and waits there to be told: so the model of the store says what runs,
who waits, and with which values. Time stands still; the engine comes to rest when its loop has nothing to do.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.conformance.kit import AGEING_MS, NOBODY, Clock
from tests.model.drawing import NUMBERS, acts, rarely, shown, tuples
from tests.model.machine import MEMORY, telling, within_limit
from tests.model.specification import Model
from tests.model.words import Claim, Outcome, Rules, Task

from mainspring import (
    Context,
    Engine,
    EngineConfig,
    Permanent,
    Retry,
    RetryAfter,
    StoreConfig,
    TaskHandle,
    TaskId,
    TaskManagerConfig,
)
from mainspring.errors import TaskError, TaskNotFound
from mainspring.tasks import OnDependencyFailure

TYPE = "custom:told"
RETRY = Retry(max_retries=2, delay=1.0, factor=2.0)
HOUR = 3_600_000
RULES = Rules(
    ageing=AGEING_MS, queue_size=None, keep_completed=HOUR, keep_failed=HOUR, keep_tombstones=HOUR, max_completed=1_000
)


POLICIES: tuple[OnDependencyFailure, ...] = ("require", "allow_failure", "skip")
LIMIT_S = 120.0


@dataclass(frozen=True)
class Draft:
    """A task, with numbers where ids and times will stand."""

    arguments: tuple[int, ...] = ()
    priority: int = 1
    max_retries: int = 2
    deadline: int | None = None
    delay: int | None = None
    key: str | None = None
    policy: int = 0
    group: str = ""

    def __repr__(self) -> str:
        return shown(self)


class FullJitter(Clock):
    """Chance always gives the upper bound."""

    def uniform(self, low: float, high: float) -> float:
        return high


class Handler:
    """A running handler, as the machine holds it."""

    def __init__(self, ctx: Context, values: list[Any]) -> None:
        self.ctx = ctx
        self.values = values  # what it was called with
        self.told: asyncio.Future[Callable[[], Any]] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self.is_stubborn = False

    async def run(self) -> Any:
        try:
            return (await self.told)()
        except asyncio.CancelledError:
            if not self.is_stubborn:
                raise
            return "in spite of it"
        finally:
            self.over.set()


class EngineWorld:
    """An engine and the model side by side."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "work.db"
        self.clock = FullJitter()
        self.model = Model(RULES)
        self.running: dict[bytes, Handler] = {}
        self.names = 0

    async def open(self) -> None:
        config = EngineConfig(
            manager=TaskManagerConfig(async_slots=100, thread_slots=1, grace_s=0.1, drain_s=0),
            store=StoreConfig(durability="relaxed"),
        )
        self.engine = Engine(self.path, config, env=self.clock)

        async def told(values: list[Any], ctx: Context) -> Any:
            return await self._handle(values, ctx)

        self.told = self.engine.task(name="told", retry=RETRY)(told)
        await self.engine.start()
        self.store = self.engine.manager.store
        self.model.workers[self.store.worker_id] = frozenset([TYPE])
        await self.rest()

    async def _handle(self, values: list[Any], ctx: Context) -> Any:
        handler = self.running[ctx.id.bytes] = Handler(ctx, values)
        try:
            return await handler.run()
        finally:
            del self.running[ctx.id.bytes]

    async def close(self) -> None:
        """Drain without patience: what runs is handed back, but for what will not stop."""
        stubborn = [id for id, handler in self.running.items() if handler.is_stubborn]
        await self.engine.stop()
        for task in [task for task in self.model.tasks.values() if task.holder is not None]:
            how = "completed" if task.id in stubborn else "released"
            self.finish(task.id, how, output=("plain", "in spite of it") if how == "completed" else None)
        self.model.sign_off(self.store.worker_id, self.store.now_ms())

    def finish(self, id: bytes, how: str, **told: Any) -> None:
        task = self.model.tasks[id]
        now = self.store.now_ms()
        claim = Claim(id, task.attempt, self.store.worker_id)
        assert self.model.finish(claim, Outcome(how=how, ended=now, started=True, **told), now)

    # Agreement

    async def rest(self) -> None:
        """Let the engine go on until it shows what the model says; it has to come there without time passing."""
        now = self.store.now_ms()
        self.model.pass_time(now)
        for task in self.model.ready([TYPE]):
            self.model.claim(self.store.worker_id, [TYPE], 1, [task.id], {task.id}, now)
            self.model.start(Claim(task.id, task.attempt, self.store.worker_id))
        wanted = {task.id: _wanted(self.model, task, now) for task in self.model.tasks.values()}
        for _ in range(20):
            await self.store.withdraw(NOBODY)  # whatever was given to the store before is committed
            for _ in range(10):
                await asyncio.sleep(0)
            shown = {id: await self._shown(id) for id in wanted}
            if shown == wanted and self.running.keys() == self._held():
                break
        assert shown == wanted, {id.hex()[-4:]: (shown[id], wanted[id]) for id in wanted if shown[id] != wanted[id]}
        assert self.running.keys() == self._held()
        for id, handler in self.running.items():
            task = self.model.tasks[id]
            assert (handler.ctx.attempt, handler.ctx.retry_count) == (task.attempt, task.retries)
            assert handler.values == [self.value(one, task) for one in task.payload]
        stats = await self.engine.manager.stats()
        counts = self.model.counts()
        for status in ("completed", "failed", "cancelled", "timeout"):
            assert stats.get(status, 0) == counts[TYPE, status]

    def _held(self) -> set[bytes]:
        return {task.id for task in self.model.tasks.values() if task.holder is not None}

    async def _shown(self, id: bytes) -> dict[str, Any]:
        try:
            info = await self.engine.manager.get_task(TaskId(id))
        except TaskNotFound:  # a child, whose parent's outcome is on its way to the store
            return {"status": "unknown"}
        is_held = info.worker is not None
        return {
            "status": "held" if is_held else info.status.value, "reason": None if is_held else info.reason,
            "attempt": info.attempt, "retries": info.task.retry_count, "is_asked": info.cancel_requested,
            "due": None if info.due is None else round(info.due.timestamp() * 1000),
            "error": None if info.error is None else info.error.type,
            "parents": tuple(parent.bytes for parent in info.task.dependencies),
            "attempts": tuple((one.number, one.outcome) for one in info.attempts),
        }  # fmt: skip

    def value(self, id: bytes, child: Task) -> Any:
        """What a child gets for a task: None for one that was allowed to fail, and the heir's of one made anew."""
        heir: bytes | None = id
        while heir is not None and heir not in child.parents:
            heir = self.model.retried.get(heir)
        if heir not in (None, id):
            return self.value(heir, child)
        task = self.model.tasks[id]
        if task.status != "completed":
            return None
        form, content = task.output
        if form == "plain":
            return content
        return [self.value(ref, child) for ref in content]

    # What the machine does

    def options(self, draft: Draft, namespace: str = "default") -> dict[str, Any]:
        now = self.store.now_ms()
        moments = {"deadline": draft.deadline, "not_before": draft.delay}
        return {
            "priority": draft.priority, "max_retries": draft.max_retries, "group": draft.group or None,
            "idempotency_key": draft.key, "on_dependency_failure": POLICIES[draft.policy],
            **{name: datetime.fromtimestamp((now + ms) / 1000, UTC) for name, ms in moments.items() if ms is not None},
        }  # fmt: skip

    def task(self, id: bytes, draft: Draft, arguments: list[bytes]) -> Task:
        now = self.store.now_ms()
        return Task(
            id, ("default", TYPE, draft.group), tuple(arguments), draft.priority, draft.max_retries,
            None if draft.deadline is None else now + draft.deadline,
            None if draft.delay is None else now + draft.delay,
            draft.key, tuple(dict.fromkeys(arguments)), draft.policy,
        )  # fmt: skip

    async def submit(self, drafts: tuple[Draft, ...]) -> None:
        """All at once, each in a call of its own."""
        ids = list(self.model.tasks)
        calls, tasks = [], []
        for draft in drafts:
            arguments = [ids[-1 - n % len(ids)] for n in draft.arguments] if ids else []
            id = TaskId()
            handles = [self.engine.handle(TaskId(id)) for id in arguments]
            calls.append(self.engine.submit(self.told, handles, task_id=id, **self.options(draft)))
            tasks.append(self.task(id.bytes, draft, arguments))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        self.model.pass_time(self.store.now_ms())
        for task, answer in zip(tasks, answers, strict=True):
            try:
                wanted: Any = self.model.submit([task], self.store.now_ms())[0][0]
            except TaskError as exc:
                wanted = type(exc)
            assert (answer.id.bytes if isinstance(answer, TaskHandle) else type(answer)) == wanted
        await self.rest()

    async def succeed(self, id: bytes, children: tuple[Draft, ...], now: bool, refs: tuple[int, ...] | None) -> None:
        """Let a handler return: a value, or handles; before that it may submit children."""
        handler = self.running[id]
        stored, made = list[Task](), list[Task]()
        self.names += 1

        def act() -> Any:
            if now:
                child = handler.ctx.submit(self.told, [], now=True, **self.options(Draft()))
                stored.append(self.task(child.id.bytes, Draft(), []))
            ids = list(self.model.tasks)
            for draft in children:
                there = [*ids, *(task.id for task in made)]
                arguments = [there[-1 - n % len(there)] for n in draft.arguments]
                handles = [self.engine.handle(TaskId(id)) for id in arguments]
                child = handler.ctx.submit(self.told, handles, **self.options(draft))
                made.append(self.task(child.id.bytes, draft, arguments))
            there = [*ids, *(task.id for task in made)]
            chosen[:] = [there[-1 - n % len(there)] for n in refs or ()]
            if refs is None:
                return f"value {self.names}"
            return [self.engine.handle(TaskId(id)) for id in chosen]

        chosen: list[bytes] = []
        await self._tell(handler, act)
        self.model.submit(stored, self.store.now_ms())
        output = ("plain", f"value {self.names}") if refs is None else ("list", list(chosen))
        self.finish(id, "completed", output=output, children=tuple(made), stands_for=tuple(dict.fromkeys(chosen)))
        await self.rest()

    async def fail(self, id: bytes, error: Exception) -> None:
        task = self.model.tasks[id]
        self.running[id].is_stubborn = False
        await self._tell(self.running[id], raiser(error))
        is_last = isinstance(error, Permanent) or task.retries >= task.max_retries
        delay = error.seconds if isinstance(error, RetryAfter) else RETRY.factor**task.retries
        self.finish(
            id, "failed" if is_last else "retry", error=type(error).__name__, delay=0 if is_last else int(delay * 1000)
        )
        await self.rest()

    async def _tell(self, handler: Handler, act: Callable[[], Any]) -> None:
        handler.told.set_result(act)
        async with asyncio.timeout(LIMIT_S):
            await handler.over.wait()

    async def cancel(self, id: bytes, *, is_stubborn: bool) -> None:
        if (handler := self.running.get(id)) is not None:
            handler.is_stubborn = is_stubborn
        answer = await self.engine.handle(TaskId(id)).cancel()
        now = self.store.now_ms()
        self.model.pass_time(now)
        wanted = self.model.cancel(id, now)
        assert answer == wanted.replace("held", "requested")
        if handler is not None:
            self.finish(id, "completed" if is_stubborn else "cancelled", output=("plain", None))
        await self.rest()

    async def pause(self, is_paused: bool, group: str) -> None:
        if is_paused:
            await self.engine.manager.pause(group=group)
            self.model.pause(("", "", group))
        else:
            assert await self.engine.manager.resume(group=group) == bool(self.model.resume(("", "", group)))
        await self.rest()

    async def retry(self, id: bytes) -> None:
        now = self.store.now_ms()
        self.model.pass_time(now)
        try:
            answer: Any = (await self.engine.manager.retry_task(TaskId(id))).bytes
        except TaskError as exc:
            answer = type(exc)
        infos = {old: await self.engine.manager.get_task(TaskId(old)) for old in list(self.model.tasks)}
        heirs = {old: info.retried_as.bytes for old, info in infos.items() if info.retried_as is not None}
        try:
            wanted: Any = self.model.retry(id, now, lambda old: heirs.get(old, b"not renewed"))
        except TaskError as exc:
            wanted = type(exc)
        assert answer == wanted
        await self.rest()


def _wanted(model: Model, task: Task, now: int) -> dict[str, Any]:
    is_held = task.holder is not None
    return {
        "status": "held" if is_held else task.status,
        "reason": None if is_held else model.standing(task.id, now)[0],
        "attempt": task.attempt, "retries": task.retries, "is_asked": task.is_asked, "due": task.due,
        "error": task.error, "parents": task.parents, "attempts": task.attempts,
    }  # fmt: skip


def raiser(error: Exception) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


DRAFTS = st.builds(
    Draft,
    arguments=st.just(()) | tuples(NUMBERS, 3),
    priority=st.sampled_from([1, 0, 2, 3]),
    max_retries=st.sampled_from([2, 1, 0]),
    deadline=rarely(st.sampled_from([125, 1_000, 60_000])),
    delay=rarely(st.sampled_from([125, 1_000, 60_000])),
    key=st.sampled_from([None] * 5 + ["k"]),
    policy=st.integers(0, 2),
    group=st.sampled_from(["", "", "g"]),
).filter(lambda draft: draft.deadline is None or draft.delay is None or draft.delay < draft.deadline)
ERRORS = st.sampled_from([ValueError("no"), Permanent("never"), RetryAfter(5), KeyError("k")])
ACTS = acts(
    {
        12: [("succeed", NUMBERS, st.just(()) | tuples(DRAFTS, 3), st.booleans(), st.none() | tuples(NUMBERS, 2))],
        8: [("submit", tuples(DRAFTS, 4, least=1))],
        6: [("fail", NUMBERS, ERRORS)],
        4: [("advance", st.sampled_from([125, 1_000, 4_000, 60_000]))],
        3: [("cancel", NUMBERS, st.booleans()), ("retry", NUMBERS)],
        2: [("restart", st.none() | NUMBERS)],
        1: [("pause", st.booleans(), st.sampled_from(["", "g"]))],
    }
)


class EngineMachine(RuleBasedStateMachine):
    """Acts pick by number among what there is; where nothing runs that could be told something, there is a submit."""

    seen: Counter[tuple[str, str]] = Counter()
    """How tasks ended, over all examples."""
    steps: Counter[str] = Counter()
    """Acts, over all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="mainspring-model-", dir=MEMORY if MEMORY.is_dir() else None)
        self.runner = asyncio.Runner()
        self.world = EngineWorld(Path(self.folder))
        self.acts: list[tuple[Any, ...]] = []  # of this example

    def run(self, work: Any) -> None:
        self.runner.run(within_limit(work))

    @initialize()
    def begin(self) -> None:
        self.run(self.world.open())

    def teardown(self) -> None:
        self.seen.update((task.status, str(task.error)) for task in self.world.model.tasks.values())
        try:
            self.run(self.world.engine.stop())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def running(self, n: int) -> bytes:
        ids = [id for id in self.world.model.tasks if id in self.world.running]
        return ids[n % len(ids)]

    @rule(act=ACTS)
    def do(self, act: tuple[Any, ...]) -> None:
        name, *values = act
        self.steps[name] += 1
        self.acts.append(act)
        if name in ("succeed", "fail") and not self.world.running:
            name, values = "submit", [(Draft(), Draft(arguments=(0,)))]
        with telling(self.acts):
            getattr(self, name)(*values)

    def submit(self, drafts: tuple[Draft, ...]) -> None:
        self.run(self.world.submit(drafts))

    def succeed(self, n: int, children: tuple[Draft, ...], now: bool, refs: tuple[int, ...] | None) -> None:
        self.run(self.world.succeed(self.running(n), children, now, refs))

    def fail(self, n: int, error: Exception) -> None:
        self.run(self.world.fail(self.running(n), error))

    def cancel(self, n: int, is_stubborn: bool) -> None:
        if ids := list(self.world.model.tasks):
            self.run(self.world.cancel(ids[-1 - n % len(ids)], is_stubborn=is_stubborn))

    def retry(self, n: int) -> None:
        if broken := [task.id for task in self.world.model.tasks.values() if task.is_broken]:
            self.run(self.world.retry(broken[-1 - n % len(broken)]))

    def pause(self, is_paused: bool, group: str) -> None:
        self.run(self.world.pause(is_paused, group))

    def advance(self, ms: int) -> None:
        self.world.clock.advance(ms / 1000)
        self.run(self.world.rest())

    def restart(self, stubborn: int | None) -> None:
        """The process drains without patience and another one comes."""
        if stubborn is not None and self.world.running:
            self.world.running[self.running(stubborn)].is_stubborn = True
        self.run(self.world.close())
        self.run(self.world.open())
