"""The engine that a user's test gets: a real one over a real file, in a simulated process that may die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from weakref import ref

import apsw
import msgspec

from mainspring.config import EngineConfig, seconds
from mainspring.engine import Engine, SyncEngine, TaskHandle
from mainspring.errors import InvalidInput
from mainspring.results.waiters import Waiting
from mainspring.store.base import Line, NewTask
from mainspring.tasks import Task, TaskStatus
from mainspring.testing.simulator.run import empty_store
from mainspring.testing.simulator.world import Roomy, let_go
from mainspring.testing.stage.lanes import Crash, Plan, Plans, play_lanes, type_of
from mainspring.testing.stage.process import StageProcess
from mainspring.testing.stage.stage import Stage

T = TypeVar("T")
_NAMED: Final = 20
"""So many tasks that have not ended are named one by one."""


class StillPending(Exception):
    """Tasks have not ended, and nothing more happens; `pending` has a sentence for each of the first ones."""

    def __init__(self, message: str, pending: list[str]) -> None:
        super().__init__("\n  ".join([message, *pending]))
        self.pending = pending


class Fallen(Exception):
    """The process died meanwhile."""


class SimulatedEngine(Roomy):
    """An engine in virtual time.

    It is an `Engine` like any other, with a few methods for tests. In an `async def` test they are awaited; `sync` has
    them, as it has the engine's other methods, for plain tests.
    """

    back: asyncio.Future[None]
    """Done while a process is there: after a death, when another one has come."""

    def __init__(
        self,
        stage: Stage,
        path: Path,
        config: EngineConfig | None = None,
        *,
        like: Engine | None = None,
        traced: Callable[[apsw.Connection, str], bool] | None = None,
    ) -> None:
        config = config or (like.config if like is not None else EngineConfig())
        store = msgspec.structs.replace(config.store, durability="relaxed")  # no power is cut here
        self._settings = msgspec.structs.replace(config, store=store)
        self._file = path
        self.stage = stage
        self.plans = Plans()
        self.traced = traced  # sees each statement of each of its processes
        self.back = stage.loop.create_future()
        self.back.set_result(None)
        self.carried: frozenset[str] | None = None  # types whose handlers the next process knows; None: all
        if not path.exists():
            path.write_bytes(empty_store())
        self._assemble(like)
        stage.engines.append(self)

    def _assemble(self, like: Engine | None) -> None:
        """Become an engine in a new process, with the handlers and models that another one knows."""
        handlers = {} if like is None else like.executor.handlers
        models = None if like is None else like.models
        process = self.process = StageProcess(self.stage.machine, f"worker-{len(self.stage.machine.processes)}")
        process.died = self._fall
        process.traced = self.traced
        process.trace(self.traced is not None)
        self.death: asyncio.Future[None] = self.stage.loop.create_future()
        Engine.__init__(self, self._file, self._settings, env=process)
        self._parts.store.tell_usage(lambda: None)  # nobody looks at how full this machine is
        self._sync = self._face = SimulatedSync(self)
        play_lanes(self.executor, self.plans, process.died, self.stage.loop.given_up.add)
        if models is not None:
            self.models.learn(models)
        for kind, handler in handlers.items():
            if self.carried is None or kind in self.carried:
                self.executor.register(handler)

    # Life

    async def start(self) -> Self:
        if not self._open:
            try:
                await self.in_process(Engine.start(self))
            except Fallen:
                await self.back
        return self

    async def in_process(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the engine's process. Raises Fallen: the process died before it came to its end."""
        __tracebackhide__ = True
        task, death = self.process.spawn(work), self.death
        await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Fallen
        return task.result()  # type: ignore[no-any-return]

    async def _ready(self, tasks: Sequence[Task | NewTask]) -> list[NewTask]:
        await self.back
        return await super()._ready(tasks)

    async def _hand_over(self, ready: list[NewTask], line: Line | None = None) -> list[TaskHandle]:
        """Where the process dies meanwhile the next one is asked: by their ids tasks are stored once."""
        while True:
            handing = asyncio.ensure_future(super()._hand_over(ready, line))
            either: set[asyncio.Future[Any]] = {handing, self.death}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if handing.done():
                return handing.result()
            handing.cancel()
            await self.back

    def _fall(self) -> None:
        """The process dies on the spot, and another one comes."""
        if self.death.done():
            return
        self.end()
        self.back = self.stage.loop.create_future()
        self.death.set_result(None)
        self.stage.loop.call_soon(self._come_again, context=Context())  # not in that of the dead

    def end(self) -> None:
        """Nothing of its process runs any more; the store's file stays as it is."""
        if self.process not in self.stage.dead:
            self.stage.bury(self.process)
            let_go(self)

    def _come_again(self) -> None:
        waiting = [held for known in self.manager.waiters._waiting.values() if (held := known()) is not None]
        self._assemble(self)
        starting = self.process.spawn(self._start_again(waiting), "start")
        starting.add_done_callback(self._is_back)

    async def _start_again(self, waiting: list[Waiting]) -> None:
        await Engine.start(self)
        waiters = self.manager.waiters
        for held in waiting:  # the test's handles outlive the worker: what they wait for is told by the next one
            held.known = False
            waiters._waiting[held.key] = ref(held)
            if held.is_awaited:
                self.process.spawn(waiters._look(held), "look")

    def _is_back(self, starting: asyncio.Task[None]) -> None:
        if (exc := starting.exception()) is not None:
            self.back.set_exception(exc)
        else:
            self.back.set_result(None)

    # What tests ask for

    @property
    def sync(self) -> SimulatedSync:
        """The same engine for plain tests; see `SyncEngine`."""
        return self._face

    async def run_until_idle(self, *, pending_ok: bool = False, within: float | str = "30d") -> list[str]:
        """Let time pass until nothing can happen any more, at most for `within`.

        Returns: a sentence for each task that has not ended, and why; none, unless `pending_ok`.
        Raises: StillPending: tasks have not ended: they are paused, run and wait for what never comes, have no handler,
        or go on for longer.
        """
        __tracebackhide__ = True
        limit_s = seconds(within, "within")
        at_rest = await self.stage.until_rest(limit_s)
        pending = await self.pending()
        if pending and not pending_ok:
            why = "nothing can happen any more" if at_rest else f"it goes on after {within!r} of virtual time"
            raise StillPending(f"{why}, and tasks have not ended:", pending)
        return pending

    async def advance(self, duration: float | str) -> None:
        """Let so much virtual time pass, with all that happens in it: seconds, or text such as "1h"."""
        await asyncio.sleep(seconds(duration, "duration"))

    def fail_next(self, handler: Any, error: Exception | Crash | type[Exception | Crash], times: int = 1) -> None:
        """Let the next attempts of a handler fail with this error, before the handler is called.

        `handler` is a decorated function, its name, or the name of a built-in type; `error` whatever a handler may
        raise, `Permanent` and `RetryAfter` among them, or `Crash`. A test in which they do not come fails.

        Raises: UnsupportedTaskType, InvalidInput.
        """
        self.plans.add(Plan(type_of(handler, self.executor), error, times))

    async def pending(self) -> list[str]:
        """Return a sentence for each task that has not ended, and why; the first twenty, and how many more."""
        found: list[str] = []
        for status in (TaskStatus.RUNNING, TaskStatus.PENDING):
            for info in await self._parts.store.list_tasks(status=status, limit=_NAMED + 1):
                name = str(info.task.task_type).removeprefix("custom:")
                found.append(f"{name} {info.task.id}: {await self.scheduler.explain(info.task.id)}")
        more = [] if len(found) <= _NAMED else ["... and more"]
        return found[:_NAMED] + more


@contextlib.contextmanager
def lent(engine: Engine | None, simulated: SimulatedEngine) -> Iterator[None]:
    """Let an application's engine be the simulated one: whoever holds it, under whatever name, reaches that.

    Raises: InvalidInput: it is open.
    """
    if engine is None:
        yield
        return
    own = engine.__dict__
    if own["_open"]:
        raise InvalidInput("this engine is open; lend one that was not started", field="engine")
    for name, value in own.items():  # of a subclass
        simulated.__dict__.setdefault(name, value)
    engine.__dict__ = simulated.__dict__
    try:
        yield
    finally:
        engine.__dict__ = own


class SimulatedSync(SyncEngine):
    """The blocking face of an engine in virtual time: a call runs until it is done; between calls time stands still."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(engine)
        self._simulated = engine

    def __enter__(self) -> Self:
        self.run(self._simulated.start())
        return self

    def close(self) -> None:
        self.run(self._simulated.stop())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        __tracebackhide__ = True
        return self._simulated.stage.run(work)

    def run_until_idle(self, *, pending_ok: bool = False, within: float | str = "30d") -> list[str]:
        __tracebackhide__ = True
        return self.run(self._simulated.run_until_idle(pending_ok=pending_ok, within=within))

    def advance(self, duration: float | str) -> None:
        self.run(self._simulated.advance(duration))
