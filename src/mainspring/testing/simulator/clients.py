"""What programs do with their engine in a simulated process: submit, wait, cancel, pause, retry, look."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mainspring.engine import Engine, TaskHandle
from mainspring.environment import Random
from mainspring.errors import (
    Conflict,
    InvalidInput,
    QueueFull,
    StoreUnavailable,
    SubmitIndeterminate,
    TaskError,
    TaskNotFound,
    TaskTimeout,
)
from mainspring.tasks import Task, TaskId, TaskPriority, TaskStatus
from mainspring.testing.events import Acknowledged, CancelAnswered, Refused, ResultSeen, Submitted
from mainspring.testing.simulator.handlers import KEEP_S, handlers
from mainspring.testing.simulator.plans import draw_plan
from mainspring.testing.simulator.reasons import ask
from mainspring.testing.simulator.world import Node, World

_DO: Final = {
    "submit_one": 40,
    "submit_family": 16,
    "submit_key": 8,
    "map_some": 4,
    "submit_equal": 24,
    "submit_calls": 8,
    "submit_burst": 16,
    "cancel": 16,
    "wait": 14,
    "pause": 3,
    "resume": 3,
    "retry": 8,
    "look": 5,
    "forget": 1,
    "rest": 25,
}
_KEYS = 4
_SHORT_S = 0.02
_CROWDED_S = 0.2
_FLOOD = 4
_PATIENCE_S = 1.0
_WATCHES = 4
_MOST = 16
_HANDLERS: Final = {"work": 45, "steady": 8, "timed": 16, "crunch": 20, "pack": 6, "press": 5}
_DEADLY: Final = {**_HANDLERS, "timed": 40}
"""Where processes are killed: handlers that are given up run beside others then."""
_TOGETHER: Final = ("pack", "press")
_EQUAL: Final = ("recall", "recall", "recall", "work", "timed", "crunch", *_TOGETHER)


class Known:
    """What is known of the tasks of a world, by all its clients."""

    def __init__(self, most: int, rng: Random, *, is_deadly: bool, rolls_out: bool) -> None:
        self.left = most
        self.numbers = 0
        self.ids: list[TaskId] = []  # those whose submit did not fail
        self.stored: set[bytes] = set()
        self.plans: dict[TaskId, dict[str, Any]] = {}
        self.by_key: dict[str, set[TaskId]] = {}
        self.keep_s: dict[TaskId, float] = {}  # how old the result of equal work may be
        self.equal: list[tuple[str, dict[str, Any]]] = []  # what is submitted again and again: handler and plan
        for n in range(2):
            shared = rolls_out and n == 0  # long enough for others to wait for it, and given to them
            name = "recall" if shared else rng.choice(_EQUAL)
            has_kids = 0.1 if shared else 0.4
            plan = draw_plan(rng, -1_000 - n, is_deadly=is_deadly, is_called=name in _TOGETHER, has_kids=has_kids)
            if shared and rng.random() < 0.6:
                plan["do"][:0] = [["sleep", round(0.1 + 0.4 * rng.random(), 3)]]
            self.equal.append((name, plan))

    def number(self) -> int:
        self.numbers += 1
        return self.numbers


class Client:
    def __init__(self, world: World, node: Node, known: Known, number: int, *, is_deadly: bool) -> None:
        assert node.engine is not None
        self._world = world
        self.node = node
        self._engine: Engine = node.engine
        self._handlers = {name: handler.function for name, handler in handlers(node.code).items()}
        self._known = known
        self._is_deadly = is_deadly
        self._rng = Random(f"{world.seed}:client:{node.name}:{number}")
        self.unanswered: list[TaskId] = []  # what it waits for

    @property
    def is_alive(self) -> bool:
        return not self.node.is_over

    async def live(self) -> None:
        """Do one thing after the other, as long as there is something to do.

        Where strikes are rare a group has much to do from the beginning: whoever leaves then leaves places behind.
        """
        acts: dict[str, Callable[[], Awaitable[None]]] = {name: getattr(self, f"_{name}") for name in _DO}
        if self._rng.random() < 0.6:
            self._wait_for_what_runs(8 if self._world.shape.strikes_rarely else 4)
        if self._world.shape.strikes_rarely and self._world.shape.limits:
            await self.flood(self._rng.choice(sorted(self._world.shape.limits)))
        first = [
            *(["submit_burst"] if self._world.shape.rates and self._rng.random() < 0.3 else ()),
            *(["look"] if self._world.shape.shares and self._rng.random() < 0.15 else ()),
        ]
        while self._known.left > 0 and self._world.is_troubled:
            name = first.pop() if first else self._rng.choices(list(_DO), list(_DO.values()))[0]
            try:
                await acts[name]()
            except TaskError as exc:
                self._say(name, error=exc)
                if not isinstance(exc, (StoreUnavailable, TaskNotFound)) and not _is_closed(exc):
                    raise
                if not self.node.is_up:
                    return

    async def watch(self) -> None:
        """Wait for what others do, and do nothing else."""
        for _ in range(_WATCHES):
            self._wait_for_what_runs(_MOST)
            await asyncio.sleep(_SHORT_S + _CROWDED_S * self._rng.random())

    def _say(self, what: str, **details: Any) -> None:
        self._world.note(self.node.name, what, **details)

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.choice((0.001, 0.1, 0.5)) * self._rng.random())

    # Submitting

    async def _submit_one(self) -> None:
        await self._submit([self._new_task()])

    async def _submit_family(self) -> None:
        """Parents and children in one call; some calls are wrong, and then nothing of them may be stored."""
        tasks: list[Task] = []
        for _ in range(self._rng.randint(2, 5)):
            tasks.append(self._new_task(parents=[task.id for task in tasks if self._rng.random() < 0.5]))
        if self._rng.random() < 0.25:
            tasks.append(self._new_task(parents=[TaskId()]))
        await self._submit(tasks)

    async def _map_some(self) -> None:
        await self._submit([self._new_task(parents=[]) for _ in range(self._rng.randint(2, 8))])

    async def _submit_equal(self) -> None:
        """What others submit too, to be computed once; some ask again when it has grown old."""
        which = self._rng.choice(self._known.equal)
        tasks = [self._equal_task(*which) for _ in range(self._rng.choice((1, 2, 2, 2, 4)))]
        await self._submit(tasks)
        if self._rng.random() < 0.25:  # others may wait for what comes of it
            await self._give_up(self._engine.handle(tasks[0].id))
        if self._rng.random() < 0.3:
            await asyncio.sleep(0.4 + self._rng.random())
            await self._submit([self._equal_task(*which)])

    async def _submit_calls(self) -> None:
        """Tasks of one handler that run together, some of them with the same inputs."""
        name = self._rng.choice(_TOGETHER)
        parents = self._some_parents((0, 1))
        await self._submit(
            [self._new_task(parents=parents[: n % 2], name=name) for n in range(self._rng.randint(3, 10))]
        )

    async def _submit_burst(self) -> None:
        """Short work of one length, so that lanes claim ahead; some is given up while it waits there, or is too late
        then, or its kind is paused. Where its group has a rate the first of it is given up once it has begun.
        """
        tasks: list[Task] = []
        group = self._rng.choice((None, "a", "b")) if self._world.shape.has_rations else None
        is_rated = group in self._world.shape.rates
        seconds = _CROWDED_S if is_rated else _SHORT_S
        for _ in range(self._rng.randint(4, 8)):
            options: dict[str, Any] = {"priority": TaskPriority.NORMAL}
            if group is not None:
                options["group"] = group
            if self._rng.random() < 0.4 and (tasks or not is_rated):
                options["deadline"] = _SHORT_S * (1 + 3 * self._rng.random())
            tasks.append(self._short_task(seconds, options))
        await self._submit(tasks)
        if is_rated:
            first = tasks[0]
            await self._world.until(lambda: self._world.witness.has_begun(str(first.id), 1), _PATIENCE_S)
            await self._give_up(self._engine.handle(first.id))
        await asyncio.sleep(_SHORT_S * (1 + 2 * self._rng.random()))
        pauses = self._rng.random() < 0.6
        if pauses:
            await self._pause_kind({"type": "custom:work"})
        for task in self._rng.sample(tasks, 3):
            self.node.process.spawn(self._give_up(self._engine.handle(task.id)), "give up")
        if pauses and self._rng.random() < 0.5:
            await asyncio.sleep(_SHORT_S * 4)
            await self._resume()

    async def flood(self, group: str) -> None:
        """More for a group than its limit may take at once; at times what goes first is given up when it has begun."""
        gives_up = self._rng.random() < 0.5
        tasks = [self._short_task(_CROWDED_S if gives_up else _SHORT_S, {"group": group}) for _ in range(_FLOOD)]
        await self._submit_beside(tasks)
        if gives_up:
            await asyncio.sleep(2 * _SHORT_S)
            await self._give_up(self._engine.handle(tasks[0].id))

    async def _crowd(self) -> None:
        """More of each share than slots may take at once, so that some of each waits for its turn."""
        shares = [*self._world.shape.shares, ("", "")]
        options = [{"namespace": namespace or "default", "group": group or None} for namespace, group in shares]
        await self._submit_beside([self._short_task(_CROWDED_S, one) for one in options for _ in range(_FLOOD)])

    async def _submit_beside(self, tasks: list[Task]) -> None:
        """What does not count as work that is to be submitted."""
        self._known.left += len(tasks)
        with contextlib.suppress(StoreUnavailable):
            await self._submit(tasks)

    def _short_task(self, seconds: float, options: dict[str, Any]) -> Task:
        plan = {"n": self._known.number(), "do": [["sleep", seconds]]}
        task = self._engine.build(self._handlers["work"], (plan, []), options)
        self._known.plans[task.id] = plan
        return task

    async def _give_up(self, handle: TaskHandle) -> None:
        try:
            await self._cancel_it(handle)
        except (StoreUnavailable, TaskNotFound) as exc:
            self._say("cancel fails", task=handle.id, error=exc)

    async def _submit_key(self) -> None:
        """The same key with the same payload, from whatever process, and again by who is not sure that it was heard; at
        times with another one."""
        key = self._rng.randrange(_KEYS)
        for n in range(self._rng.choice((1, 2, 3))):
            self._known.left += n > 0  # what is submitted again is no more work
            plan = {"n": -key - 1 if self._rng.random() < 0.8 else -100, "do": [["sleep", 0.1], ["quick"]]}
            options = {"idempotency_key": f"key {key}", "priority": self._priority()}
            await self._submit([self._engine.build(self._handlers["work"], (plan, []), options)], key=f"key {key}")

    def _new_task(self, parents: list[TaskId] | None = None, *, name: str | None = None) -> Task:
        rng = self._rng
        weights = _DEADLY if self._is_deadly else _HANDLERS
        name = name or rng.choices(list(weights), list(weights.values()))[0]
        plan = draw_plan(rng, self._known.number(), is_deadly=self._is_deadly, is_called=name in _TOGETHER)
        if name == "timed" and rng.random() < 0.6:  # it will be given up while it runs on
            plan["do"][:0] = [["stubborn", round(0.6 + 2.4 * rng.random(), 3)] for _ in range(rng.choice((1, 1, 2, 3)))]
        return self._task(name, plan, self._some_parents((0, 0, 0, 1, 2)) if parents is None else parents, {})

    def _equal_task(self, name: str, plan: dict[str, Any]) -> Task:
        keep_s = self._rng.choice((0.05, 0.05, 0.5, KEEP_S))
        options = {"cache": keep_s} if name != "recall" or keep_s != KEEP_S else {}
        task = self._task(name, {**plan}, self._some_parents((0, 0, 0, 0, 1)), options)
        self._known.keep_s[task.id] = keep_s
        self._world.witness.codes[str(task.id)] = {self.node.code}
        return task

    def _some_parents(self, how_many: tuple[int, ...]) -> list[TaskId]:
        return self._rng.sample(self._known.ids, min(len(self._known.ids), self._rng.choice(how_many)))

    def _task(self, name: str, plan: dict[str, Any], parents: list[TaskId], options: dict[str, Any]) -> Task:
        rng = self._rng
        options |= {"priority": self._priority(), "max_retries": rng.choice((0, 1, 3, 3))}
        inputs: list[TaskHandle] = []
        if parents and rng.random() < 0.5 and all(id in self._known.plans for id in parents):
            inputs = [self._engine.handle(id) for id in parents]
            plan["wants"] = [self._known.plans[id]["n"] for id in parents]
        elif parents:
            options["after"] = parents
        if parents:
            options["on_dependency_failure"] = rng.choice(("require", "require", "allow_failure", "skip"))
        if rng.random() < 0.16:
            options["delay"] = round(rng.choice((0.05, 1.0, 3.0)) * rng.random(), 3)
        elif rng.random() < 0.16:
            options["deadline"] = round(0.05 + rng.choice((0.2, 1.0, 5.0)) * rng.random(), 3)
        if rng.random() < (0.5 if self._world.shape.has_groups else 0.1):
            options["group"] = rng.choice(("a", "b"))
        if self._world.shape.shares and rng.random() < 0.3:
            options["namespace"] = "n"
        if rng.random() < 0.1:
            options["timeout"] = 0.3
        task = self._engine.build(self._handlers[name], (plan, inputs), options)
        self._known.plans[task.id] = plan
        return task

    def _priority(self) -> TaskPriority:
        return self._rng.choice(list(TaskPriority))

    async def _submit(self, tasks: list[Task], key: str | None = None) -> None:
        see = self._world.witness.see
        ids = [task.id for task in tasks]
        self._known.left -= len(tasks)
        for id in ids:
            see(Submitted, str(id))
        self._say("submits", tasks=ids)
        self.node.submitting += 1
        try:
            handles = await self._engine.submit_all(tasks)
        except SubmitIndeterminate as exc:
            self._say("submit in doubt", tasks=ids, error=exc)
            return
        except (StoreUnavailable, TaskNotFound, Conflict, QueueFull, InvalidInput) as exc:
            if not _is_closed(exc):
                self._say("submit refused", tasks=ids, error=exc)
                for id in ids:
                    see(Refused, str(id))
            return
        finally:
            self.node.submitting -= 1
        self._say("submitted", tasks=[handle.id for handle in handles])
        for handle in handles:
            see(Acknowledged, str(handle.id))
        self._known.ids += [handle.id for handle in handles]
        # A key may answer with a task that somebody has retried: no limit holds for those.
        self._known.stored.update(handle.id.bytes for handle in handles if handle.id in ids)
        self._world.witness.accepted(self._known.stored, self._world.shape.config.manager.queue_size)
        if key is not None:
            self._known.by_key.setdefault(key, set()).add(handles[0].id)
        for handle in handles:
            if self._rng.random() < 0.5:
                self._wait_for(handle)

    # What else one does with tasks

    def _some_handle(self) -> TaskHandle | None:
        if not self._known.ids:
            return None
        newest = self._known.ids[-8:] if self._rng.random() < 0.7 else self._known.ids
        return self._engine.handle(self._rng.choice(newest))

    async def _wait(self) -> None:
        if (handle := self._some_handle()) is None:
            return
        if self._rng.random() < 0.6:
            self._wait_for(handle)
        else:
            await self._await(handle, self._rng.random())

    def _wait_for_what_runs(self, most: int) -> None:
        """For what others do just now, who may not know of this process yet."""
        for id in self._world.first_unfinished(most):
            if id in self._known.ids:
                self._wait_for(self._engine.handle(id))

    def _wait_for(self, handle: TaskHandle) -> None:
        self.node.process.spawn(self._await(handle, None), "wait")

    async def _await(self, handle: TaskHandle, timeout: float | None) -> None:
        self._say("waits", task=handle.id)
        self.unanswered.append(handle.id)
        try:
            result = await self._engine.manager.get_task_result(handle.id, timeout=timeout)
        except TaskTimeout:
            return
        except TaskError as exc:
            self._say("wait ends", task=handle.id, error=exc)
            if not isinstance(exc, (StoreUnavailable, TaskNotFound)):
                raise
            return
        finally:
            self.unanswered.remove(handle.id)
        self._say("sees", task=handle.id, status=result.status.value)
        self._world.witness.see(ResultSeen, str(handle.id), result.status)

    async def _cancel(self) -> None:
        if (handle := self._some_handle()) is not None:
            await self._cancel_it(handle)

    async def _cancel_it(self, handle: TaskHandle) -> None:
        self._say("cancels", task=handle.id)
        answer = await handle.cancel()
        self._say("cancel answered", task=handle.id, answer=answer)
        self._world.witness.see(CancelAnswered, str(handle.id), answer)

    async def _pause(self) -> None:
        """Pause something, and look whether what waits is said to wait for that."""
        await self._pause_kind(self._rng.choice(({}, {"type": "custom:work"}, {"group": "a"})))
        await self._look()

    async def _pause_kind(self, what: dict[str, str]) -> None:
        self._say("pauses", kind=what)
        key = ("", what.get("type", ""), what.get("group", ""))
        with self._world.witness.pausing(self.node.process, key):
            await self._engine.manager.pause(**what)
        self._say("paused", kind=what)

    async def _resume(self) -> None:
        self._say("resumes")
        with self._world.witness.resuming():
            for what in ({}, {"type": "custom:work"}, {"group": "a"}):
                await self._engine.manager.resume(**what)

    async def _retry(self) -> None:
        if (handle := self._some_handle()) is None:
            return
        info = await handle.info()
        if info.status in (TaskStatus.FAILED, TaskStatus.TIMEOUT, TaskStatus.CANCELLED) and info.retried_as is None:
            try:
                again = await self._engine.manager.retry_task(handle.id)
            except TaskError as exc:
                self._say("retry refused", task=handle.id, error=exc)
                return
            self._say("retried", task=handle.id, again=again)
            self._world.witness.see(Acknowledged, str(again))

    async def _forget(self) -> None:
        self._say("forgets", results=await self._engine.cache.purge())

    async def _look(self) -> None:
        if self._world.shape.shares:
            await self._crowd()
        if (handle := self._some_handle()) is not None:
            await ask(self._engine, self._world.witness, handle.id)
            await self._engine.manager.stats()


def _is_closed(exc: TaskError) -> bool:
    """Whether the engine was stopped meanwhile: then nothing is said about what was asked."""
    return "closed" in str(exc) or "not open" in str(exc)
