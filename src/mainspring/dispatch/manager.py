"""The manager: takes claims from the store, gives them to slots, and brings their outcomes back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from mainspring.config import EngineConfig, TaskManagerConfig, check_given, seconds
from mainspring.dispatch.alone import Alone
from mainspring.dispatch.answers import Answers
from mainspring.dispatch.course import Course
from mainspring.dispatch.desk import Desk
from mainspring.dispatch.gate import Gate
from mainspring.dispatch.gathering import Gathering
from mainspring.dispatch.highwater import HighWater
from mainspring.dispatch.intake import Intake, check_kind, check_name, unordered
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.members import Marks
from mainspring.dispatch.model_limits import ModelLimits
from mainspring.dispatch.parts import Parts
from mainspring.dispatch.recording import Recorder
from mainspring.dispatch.registry import record_of
from mainspring.dispatch.reservations import Reservations
from mainspring.dispatch.room import Room, patience
from mainspring.dispatch.spans import Spans
from mainspring.environment import SYSTEM, Environment, Original
from mainspring.errors import InvalidInput, TaskError, TaskNotFound, invalid
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.base import Lane as LaneName
from mainspring.processors.calls import id_of, submitter
from mainspring.resources.monitor import ResourceMonitor
from mainspring.results.cache import ResultCache
from mainspring.results.values import Values
from mainspring.results.waiters import Waiters, within
from mainspring.store.base import CANCELLED, RELEASED, Accepted, Claimed, Finish
from mainspring.store.lane import Lane
from mainspring.tasks import CostRate, GroupLimit, Rate, Task, TaskId
from mainspring.tasks.lifecycle import CANCELLED as STATUS_CANCELLED
from mainspring.tasks.limits import concurrency_of, weight_of

logger = logging.getLogger("mainspring.dispatch")

_CANCEL_WAIT_S = 2.0
_MARKS_A_LANE = 20_000  # twice as many as slots: those that were lost keep theirs
_PACE_S = 0.25


class TaskManager(Answers):
    """Submits tasks, runs them as slots fall free, and knows how they end.

    Without a store it makes a private one that goes with it; with a path or an address it opens that one. Use it as the
    engine's part, or by itself:

        manager = await TaskManager.new(TaskManagerConfig())
        task_id = await manager.submit_task(task)
        result = await manager.get_task_result(task_id)
        await manager.stop()
    """

    def __init__(
        self,
        config: TaskManagerConfig | None = None,
        store: Parts | str | Path | None = None,
        *,
        monitor: ResourceMonitor | None = None,
        env: Environment = SYSTEM,
    ) -> None:
        check_given(config=(config, TaskManagerConfig), monitor=(monitor, ResourceMonitor))
        self.config = config or TaskManagerConfig()
        self._owned = not isinstance(store, Parts)
        self.parts = (
            store
            if isinstance(store, Parts)
            else Parts(":memory:" if store is None else store, EngineConfig(manager=self.config), env=env)
        )
        self.store = self.parts.store
        self.executor: TaskExecutor = self.parts.executor
        self.values = Values(self.parts.blobs, self.parts.config.store, env)
        self.waiters = Waiters(self.store)
        self.room = Room(self.store, env)
        self._env = env
        self.cache = ResultCache(self.executor, self.store)
        self.monitor = monitor or ResourceMonitor(self.parts.folder, env=env)
        limits, tracing = self.monitor.limits, self.parts.tracing
        self.intake = Intake(self.executor, self.store, self.values, self.cache, limits, env, tracing)
        self.spans = None if tracing is None else Spans(tracing, self.store.worker_id)
        recorder = Recorder(
            self.store, self.executor, self.cache, self.values, self.intake, env, self.spans, self.monitor
        )
        self.counting = recorder.counting
        self._desks: dict[str, Desk] = {}  # of lanes, and of types whose tasks run together
        self._gatherings: dict[str, Gathering] = {}  # the latter, by type
        self._marks = Marks(2 * _MARKS_A_LANE)  # no mark is made of what runs in child processes
        grace_s = seconds(self.config.grace_s, "grace_s")
        self._high_water = high_water = HighWater(self.monitor, self.store, env)
        self._alone = Alone(self._regulate)
        self.reservations = Reservations(
            self.executor, self.store, self.config, self.monitor, high_water, self._alone, env, self._hand_back
        )
        self.intake.impossible = None if self.parts.is_lasting else self.reservations.impossible
        self._course = Course(
            self._desks, self.store, self.executor, self.values, self.cache, recorder, self.reservations, self._alone,
            grace_s, env, self.spans,
        )  # fmt: skip
        self._gate = Gate(self._desks, high_water, self._alone, self._hand_back)
        self._model_limits = ModelLimits(self.parts.models, self.store)
        self._settling: set[asyncio.Task[Any]] = set()
        self._running = self._draining = self._stopped = False
        self._pacer: asyncio.Task[None] | None = None
        self.lanes: Mapping[str, Lane] = {}

    # Life

    @classmethod
    async def new(cls, config: TaskManagerConfig | None = None) -> Self:
        """Return a started manager with a private store."""
        manager = cls(config)
        await manager.start()
        return manager

    async def start(self, *, work: bool = True) -> None:
        """Open what is ours and, with `work`, begin to take tasks."""
        if self._running:
            return
        if self._stopped:
            raise InvalidInput("this manager was stopped and can't start again; make a new TaskManager", field="start")
        self._loop = asyncio.get_running_loop()
        if self._owned:
            await self.parts.open()
        self.executor.submit = submitter(Original(), self._store_now, self.intake.child)
        self.executor.store_now = self._store_child
        self._running = True
        self._draining = self.reservations.stops = False
        if work:
            try:
                await self._start_work()
            except BaseException:
                await self.stop(drain_s=0)
                raise

    async def _start_work(self) -> None:
        slots: dict[LaneName, int] = {
            "async": self.config.async_slots,
            "thread": self.config.thread_slots,
            "process": self.config.process_slots,
        }
        for number, (name, n) in enumerate(slots.items()):
            desk = self._desks[name] = LaneDesk(
                name, n, partial(self.executor.runner, name), self.store, self.config, self._env,
                self._course.serve, self._course.broken, self._loop_ends, number * _MARKS_A_LANE,
                self.reservations.spare, self.executor.config.child_prefetch if name == "process" else 0,
            )  # fmt: skip
            desk.open()
        await self._look_at_mark()  # before the first claim: what begins now would make it worse
        self._pacer = self._loop.create_task(self._keep_pace(), name="pacer")
        self.intake.limits = self._model_limits
        self.parts.models.limited = partial(self._loop.call_soon_threadsafe, self.refresh)
        await self._announce()

    async def _announce(self) -> None:
        """Tell the store, and through it the other processes, what is served here, and serve it."""
        if not self._draining:
            self._add_desks()
        slots = {name: desk.slots for name, desk in self._desks.items() if isinstance(desk, LaneDesk)}
        records = [record_of(handler) for handler in self.executor.handlers.values()]
        await self.store.register(list(self.executor.types), records, slots)
        await self._model_limits.store_new()
        if not self._draining:  # it may have begun meanwhile
            self.store.serve(self)

    def _add_desks(self) -> None:
        for lane, types in self.executor.types_by_lane().items():
            desk = self._desks[lane]
            assert isinstance(desk, LaneDesk)
            for kind in types:
                self._gather(kind, desk)
            desk.port.types = types - self._gatherings.keys()
        self.lanes = {name: desk.port for name, desk in self._desks.items()}
        self.reservations.serve()

    def _gather(self, kind: str, lane: LaneDesk) -> None:
        """Let tasks of this type join, if they may."""
        processor: Any = self.executor.types[kind]
        if kind in self._gatherings or getattr(processor, "batch", None) is None:
            return
        in_all = math.inf if self.config.queue_size is None else self.config.queue_size
        gathering = Gathering(
            kind, processor, lane, self._course.prepare, self._course.serve_call,
            self._course.recorder.refuse, self._marks, int(self.parts.config.store.ageing_s * 1000),
            self.config.prefetch_max, in_all,
        )  # fmt: skip
        if in_all < gathering.policy.max_size and gathering.policy.wait_s:
            fault = "%s: batch.max_size = %d can't be reached, queue_size = %d tasks are all that wait: raise that one"
            logger.warning(fault, kind, gathering.policy.max_size, in_all)
        gathering.port.types = frozenset((kind,))
        if self._gate.holds(gathering):
            gathering.shut()
        else:
            gathering.pace()
        lane.gather(gathering)
        self._gatherings[kind] = self._desks[gathering.port.name] = gathering

    def refresh(self) -> None:
        """A handler was registered: serve it too."""
        if self._running and self.lanes:
            self._later(self._announce())

    def hurry(self) -> None:
        """Wait no longer for running work: hand it back."""
        self._course.hurry()

    async def stop(self, *, drain_s: float | str | None = None) -> None:
        """Take nothing new, let running work end within `drain_s`, hand back the rest, close what is ours.

        The order matters: first no claim may come, then handlers end, then outcomes are written, then lanes close.
        """
        if not self._running:
            return
        self._draining = self.reservations.stops = True
        self.parts.models.limited = None
        limit = seconds(self.config.drain_s if drain_s is None else drain_s, "drain_s")
        for desk in self._desks.values():
            desk.shut()
        self._release_queued()
        await self._alone.quiet(limit)
        self._course.hurry()
        await self._alone.quiet(2 * seconds(self.config.grace_s, "grace_s") + 1.0)
        self.store.stop_serving()
        self._course.close()
        for desk in self._desks.values():
            await desk.close()
        self._running = False
        if self._pacer is not None:
            self._pacer.cancel()
        if self._settling:
            await asyncio.gather(*self._settling, return_exceptions=True)
        if self._owned:
            self._stopped = True
            await self.parts.close()
            self.waiters.close()
        else:
            await self.executor.close()
        self._desks.clear()
        self._gatherings.clear()
        self.lanes = {}

    def _release_queued(self) -> None:
        for desk in self._desks.values():
            self._release(desk.take(lambda claim: True))

    def _release(self, claims: list[Claimed], *, is_counted: bool = True) -> None:
        """Hand back what has not begun, uncharged."""
        now = self.store.now_ms()
        for claim in claims:
            self.store.finish(Finish(claim, RELEASED, now, is_counted=is_counted))

    def _hand_back(self, desk: Desk, claims: list[Claimed]) -> None:
        """Give claims to whoever may start them sooner; that says nothing about the tasks and is not counted."""
        if claims:
            desk.port.released += len(claims)
            self._release(claims, is_counted=False)

    async def _keep_pace(self) -> None:
        """Look at intervals whether more is claimed than starts soon, and whether there is anybody to ask for work."""
        try:
            while True:
                await self.counting.sleep(_PACE_S, self._env)
                await self._look_at_mark()
                self.reservations.look()
                self._alone.look()
                for desk in self._desks.values():
                    if desk.queued and not self._draining:
                        self._hand_back(desk, desk.take_surplus(self.reservations.waiting()))
                    if isinstance(desk, LaneDesk) and not self._draining:
                        desk.asking.look_up()
                        self.reservations.was_full |= not desk.has_idle()
        except asyncio.CancelledError:
            if self._running:
                self._abandoned()
            raise

    async def _look_at_mark(self) -> None:
        if not await self._high_water.look() or self._draining:
            return
        if self._high_water.why is None:
            logger.warning("there is room again: tasks start")
        else:
            logger.warning("nothing new starts: %s", self._high_water.why)
            self.executor.relieve()
        self._regulate()

    def _regulate(self) -> None:
        self.reservations.tell_soon()
        if not self._draining:
            self._gate.regulate()

    def _loop_ends(self) -> bool:
        """Whether whoever runs the loop cancels all that is on it: no handler can get at this task by itself."""
        return self._pacer is not None and self._pacer.cancelling() > 0

    def _abandoned(self) -> None:
        """The loop ends and nobody has stopped us. Claim nothing more; what is held falls back with this process."""
        logger.warning("the event loop ends before the engine was stopped: `await engine.stop()`, or `async with`")
        self.store.stop_serving()
        self.waiters.close()
        self.parts.models.limited = None

    def paused(self, is_paused: Callable[[tuple[str, str, str]], bool]) -> None:
        for desk in self._desks.values():
            self._hand_back(desk, desk.take(lambda claim: is_paused(claim.class_key)))
        for attempt in self._course.attempts():
            if attempt.started_at is None and is_paused(attempt.claim.class_key):
                self._course.watch.ask(attempt, "drain")

    def hastened(self, tasks: list[tuple[bytes, int]]) -> None:
        for desk in self._desks.values():
            desk.hasten(dict(tasks))

    def asked_to_share(self, is_wanted: Callable[[Claimed], bool], spare: Mapping[str, float]) -> None:
        if not self._draining:
            for desk in self._desks.values():
                self._hand_back(desk, desk.share(is_wanted))
            self.reservations.share(is_wanted, spare)

    # Submitting and asking

    async def submit_task(self, task: Task, *, wait_for_room: float | str | None = 0) -> TaskId:
        """Store a task; durable on return. Raises what `TaskScheduler.schedule_task` does; looks at no resources."""
        return (await self.submit_tasks([task], wait_for_room=wait_for_room))[0]

    async def submit_tasks(self, tasks: Sequence[Task], *, wait_for_room: float | str | None = 0) -> list[TaskId]:
        """Store all of them or none; durable on return. Parents may stand in the same call, before their children.

        Where there is no room for all, it waits for that as long as `wait_for_room` says; see `Engine.submit`.
        """
        return [TaskId(accepted.id) for accepted in await self.accept(tasks, wait_for_room)]

    def accept(
        self, tasks: Sequence[Task], wait_for_room: float | str | None = 0
    ) -> Coroutine[Any, Any, list[Accepted]]:
        work = self._accept(tasks, wait_for_room)
        return work if self.spans is None else self.spans.sent(work, tasks)

    async def _accept(self, tasks: Sequence[Task], wait_for_room: float | str | None) -> list[Accepted]:
        until = self._env.monotonic() + patience(wait_for_room)
        ready = await self.intake.new_tasks(tasks)
        try:
            return await self.room.enter(partial(self.store.submit, ready), len(ready), until)
        except TaskNotFound as exc:
            raise unordered(ready) or exc from None

    async def cancel_task(self, task_id: TaskId | str) -> str:
        """Answer `cancelled`: it never runs (again). `requested`: it runs and is asked to stop; nothing it still
        returns is recorded. `already(STATUS)`: it had ended.

        Raises: TaskNotFound.
        """
        key = id_of(task_id).bytes
        waiting = self.waiters.find(key)
        answer = await self.store.cancel(key)
        if answer != "held":
            return answer
        if any(attempt.claim.id == key and attempt.started_at is not None for attempt in self._course.attempts()):
            return "requested"
        try:  # some worker has claimed it; only that one knows whether it began
            async with within(_CANCEL_WAIT_S, waiting.key) as until:
                ended = await self.waiters.wait(waiting, until)
        except TaskError:
            return "requested"
        return "cancelled" if ended.status == STATUS_CANCELLED else "requested"

    async def retry_task(self, task_id: TaskId | str) -> TaskId:
        """Make a new task of one that failed, timed out or was cancelled, with the descendants that failed for it."""
        return TaskId(await self.store.retry(id_of(task_id).bytes))

    async def pause(self, *, type: str = "", namespace: str = "", group: str = "") -> None:
        """Start no more tasks of this kind, in any process; without arguments: of any kind. Raises InvalidInput."""
        check_kind(type, namespace, group)
        await self.store.pause(namespace=namespace, type=str(type), group=group)

    async def resume(self, *, type: str = "", namespace: str = "", group: str = "") -> bool:
        """Take back a pause with the same arguments; returns whether there was one. Raises InvalidInput."""
        check_kind(type, namespace, group)
        return bool(await self.store.resume(namespace=namespace, type=str(type), group=group))

    async def limit(
        self, group: str, *, namespace: str | None = None, concurrency: int | None = None, rate: str | None = None,
        cost_rate: str | None = None,
    ) -> None:  # fmt: skip
        """Set what the tasks of a group may do, in all processes together; what is not given is not limited.

        Args:
            group: as tasks name it.
            namespace: only its tasks there count, and are limited; None: those in all namespaces together.
            concurrency: how many may be claimed or run at once. Those that do already go on.
            rate: how many may begin in a time, as "60/m", "10/s", "5/30s": so many at once, then one after the other.
            cost_rate: what those that begin may cost in a time, as "90000/m".

        Raises: InvalidInput.
        """
        check_name("group", group)
        if namespace is not None:
            check_name("namespace", namespace)
        at_once = concurrency_of(concurrency, "concurrency")
        parsed = None if rate is None else Rate.parse(rate, "rate")
        of_cost = None if cost_rate is None else CostRate.parse(cost_rate, "cost_rate")
        where = namespace or ""
        await self.store.limit(group, namespace=where, concurrency=at_once, rate=parsed, cost_rate=of_cost)

    async def share(self, weight: float | None, *, group: str | None = None, namespace: str | None = None) -> None:
        """Give a group or a namespace a share of the lanes by weight; None takes it away. See `Engine.share`.

        Raises: InvalidInput.
        """
        if group is None and namespace is None:
            raise invalid("group", group, "and namespace are both missing", "name whose share it is")
        for field, name in (("group", group), ("namespace", namespace)):
            if name is not None:
                check_name(field, name)
        await self.store.share(group=group or "", namespace=namespace or "", weight=weight_of(weight))

    async def limits(self) -> list[GroupLimit]:
        """Return the limits that are set, with what they count now, by group."""
        return await self.store.limits()

    # The store's news (see WorkerPort)

    def claimed(self, claims: list[Claimed]) -> None:
        if self._draining:  # they were on their way when the drain began
            self._release(claims)
            return
        by_type: dict[str, list[Claimed]] = {}
        for claim in claims:
            by_type.setdefault(claim.task_type, []).append(claim)
        for kind, some in by_type.items():
            desk = self._gatherings.get(kind) or self._desks[self.executor.lane_of(kind)]
            if self._gate.holds(desk):  # they were on their way
                self._hand_back(desk, some)
            else:
                desk.receive(some, self._course.broken)

    def lost(self, finishes: list[Finish]) -> None:
        for finish in finishes:
            claim = finish.claim
            if finish.outcome == RELEASED:  # what was to be handed back is handed back
                continue
            self.counting.lost[claim.task_type] += 1
            logger.warning(
                "task %s attempt %d was not ours any more; its outcome is dropped", TaskId(claim.id), claim.attempt,
                extra=claim.labels(),
            )  # fmt: skip

    def revoked(self, held: frozenset[tuple[int, int]]) -> None:
        for desk in self._desks.values():
            desk.port.released += len(desk.take(lambda claim: (claim.seq, claim.attempt) not in held))
        for attempt in self._course.attempts():
            if (attempt.claim.seq, attempt.claim.attempt) not in held:
                self._course.watch.ask(attempt, "drain")

    def asked_to_stop(self, ids: list[bytes]) -> None:
        for id in ids:
            for desk in self._desks.values():
                if (attempt := desk.running.get(id)) is not None:
                    self._course.watch.ask(attempt, "cancel")
                elif (claim := desk.withdraw(id)) is not None:
                    desk.port.released += 1
                    self.store.finish(Finish(claim, CANCELLED, self.store.now_ms()))

    def _later(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    # Children that are stored at once

    def _store_now(self, task: Task) -> asyncio.Future[TaskId] | TaskId:
        """On the loop: something to await. In a thread: blocks until it is stored. See `_store_child`."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            return asyncio.ensure_future(self._store_child(task))
        return self._env.on_loop(self._loop, self._store_child(task))

    async def _store_child(self, task: Task) -> TaskId:
        """Return the id that it has in the store: another one where its idempotency key has a task already."""
        (accepted,) = await self.accept([task])
        return TaskId(accepted.id)
