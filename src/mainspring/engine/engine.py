"""The engine: one object that puts the parts together and gives them the face that users type. It owns no logic."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from mainspring.blobs.base import BlobStore
from mainspring.config import EngineConfig, check_given
from mainspring.dispatch.manager import TaskManager
from mainspring.dispatch.parts import Parts
from mainspring.engine.handle import TaskHandle, checked
from mainspring.engine.operations import Operations
from mainspring.engine.submitting import Submitting
from mainspring.environment import SYSTEM, Environment, Original
from mainspring.errors import InvalidInput, invalid
from mainspring.execution.executor import TaskExecutor
from mainspring.models.manager import ModelManager
from mainspring.processors.base import Lane
from mainspring.processors.batch import Batch
from mainspring.processors.calls import in_a_copy
from mainspring.processors.context import current, waiting_inside
from mainspring.processors.custom import Handler
from mainspring.resources.monitor import ResourceMonitor
from mainspring.results.cache import ResultCache
from mainspring.scheduling.scheduler import TaskScheduler
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import (
    GroupLimit,
    Ledger,
    LedgerKey,
    Resources,
    Retry,
    TaskPriority,
)
from mainspring.vectors.base import VectorStore

if TYPE_CHECKING:
    from mainspring.engine.sync import SyncEngine

F = TypeVar("F", bound=Callable[..., Any])
_DECLARED = inspect.signature(Handler).parameters.keys() - {"function"}


class Engine(Submitting, Operations):
    """A durable task engine over one file, or over a schema of a Postgres database.

        engine = Engine("work.db")

        @engine.task
        async def fetch(url: str) -> str: ...

        async with engine:
            handle = await engine.submit(fetch, "https://example.org")
            print(await handle.result())

    Args:
        store: path of the file, made when missing; ":memory:" keeps nothing; or "postgresql://USER@HOST/DATABASE".
        config: all settings; each has a default.
        worker: False only submits and looks; tasks run in other processes on the same store.

    Raises (on entering): StoreNewer, StoreForeign, StoreReadOnly, StoreDamaged, StoreUnavailable.
    """

    def __init__(
        self,
        store: str | Path = ":memory:",
        config: EngineConfig | None = None,
        *,
        worker: bool = True,
        env: Environment = SYSTEM,
    ) -> None:
        check_given(config=(config, EngineConfig))
        self.config = config or EngineConfig()
        self._worker = worker
        self._env = env
        self._parts = Parts(store, self.config, env=env)
        self.monitor = self._watch_resources(env)
        self.manager = TaskManager(self.config.manager, self._parts, monitor=self.monitor, env=env)
        self.scheduler = TaskScheduler(self.manager, self.monitor, self.config.scheduler)
        self.manager.waiters.make = partial(TaskHandle, self)
        self._open = False
        self._closed = False
        self._opened: Original | None = None

    def _watch_resources(self, env: Environment) -> ResourceMonitor:
        return ResourceMonitor(self._parts.folder, limits=self.config.scheduler, env=env)

    # The parts, by the names of the design

    @property
    def executor(self) -> TaskExecutor:
        return self._parts.executor

    @property
    def models(self) -> ModelManager:
        return self._parts.models

    @property
    def vectors(self) -> VectorStore:
        return self._parts.vectors

    @property
    def blobs(self) -> BlobStore:
        return self._parts.blobs

    @property
    def cache(self) -> ResultCache:
        """What is kept of results, and how to forget it; see `docs/caching.md`."""
        return self.manager.cache

    async def ledger(
        self, by: LedgerKey | Sequence[LedgerKey] = (), *, since: datetime | float | str | None = None
    ) -> Ledger:
        """Return what attempts have cost by type, group and day; see `TaskManager.ledger` and `docs/metrics.md`."""
        return await self.manager.ledger(by, since=since)

    async def metrics(self) -> bytes:
        """Return what Prometheus scrapes, as text; `mainspring worker --metrics-port` serves it. See `docs/metrics.md`.

        While the store can't be read it is what this process knows, and `mainspring_store_up` 0.

        Raises: InvalidInput: prometheus-client is missing.
        """
        from mainspring.telemetry.metrics import Metrics

        return await Metrics(self.manager).text()

    @property
    def path(self) -> Path:
        """Where the store's file is. Raises InvalidInput: it is on a server."""
        if not isinstance(self._parts.store, SqliteStore):
            raise invalid("path", self.address, "is a server's address, no file", "use engine.address")
        return self._parts.store.path

    @property
    def address(self) -> str:
        """Where the store is, to open it again: the path of its file, or the server's address with the schema, where
        that is not the usual one, and without the password."""
        return self._parts.address

    @property
    def sync(self) -> SyncEngine:
        """The same engine for code without asyncio; see `SyncEngine`."""
        from mainspring.engine.sync import SyncEngine

        if not hasattr(self, "_sync"):
            self._sync = SyncEngine(self)
        return self._sync

    # Life

    async def start(self) -> Self:
        """Open the store, take back what dead workers held, and begin to work."""
        if "__mainspring_main__" in sys.modules:
            raise InvalidInput(
                "this script starts an engine while a child process imports it to find a handler; "
                'put what starts it under `if __name__ == "__main__":`, or the handlers into a module of their own',
                field="lane",
            )
        self.refuse_in_a_copy()
        if self._closed:
            raise InvalidInput("this engine was closed and can't be opened again; make a new Engine", field="engine")
        if not self._open:
            self._opened = Original()
            await self._parts.open()
            try:
                await self.manager.start(work=self._worker)
            except BaseException:  # the store may be gone again: nothing of this engine stays behind
                self._closed = True
                await self._parts.close()
                self.manager.waiters.close()
                raise
            self._open = True
        return self

    async def stop(self, *, drain_s: float | str | None = None) -> None:
        """Let running tasks end (at most `drain_s`, default from the config), hand back the rest, close the store."""
        self.refuse_in_a_copy()
        if self._open and not self._closed:
            self._closed = True
            await self.manager.stop(drain_s=drain_s)
            self._open = False  # until here handlers that still run may submit
            await self._parts.close()
            self.manager.waiters.close()

    @property
    def is_open(self) -> bool:
        """Whether it was started and has not been stopped."""
        return self._open

    def refuse_in_a_copy(self) -> None:
        """Raises InvalidInput in a process that was forked while this engine was open."""
        if self._opened is not None and self._opened.is_copy:
            raise in_a_copy()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then drain; a second signal hands everything back at once."""
        loop = asyncio.get_running_loop()
        asked: asyncio.Queue[int] = asyncio.Queue()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, asked.put_nowait, number)
        try:
            await self.start()
            await asked.get()
            draining = asyncio.ensure_future(self.manager.stop())
            again = asyncio.ensure_future(asked.get())
            await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            if not draining.done():
                self.manager.hurry()
            await draining
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            await self.stop(drain_s=0)

    # Handlers

    @overload
    def task(self, function: F) -> F: ...

    @overload
    def task(
        self,
        *,
        name: str | None = None,
        version: str = "1",
        lane: Lane | None = None,
        retry: Retry | int | None = None,
        timeout: float | str | None = None,
        priority: TaskPriority = TaskPriority.NORMAL,
        resources: Resources | None = None,
        batch: Batch | None = None,
        cache: float | str | None = None,
        cost: float | Callable[..., float] | None = None,
    ) -> Callable[[F], F]: ...

    def task(self, function: F | None = None, **options: Any) -> F | Callable[[F], F]:
        """Register a function as a handler; it stays an ordinary function.

        Args:
            name: in the store; default the function's own.
            version: change it with the meaning of the code.
            lane: "async" (default of `async def`), "thread" (of `def`) or "process": a child that can be killed.
            retry: how often and how soon a failed attempt is repeated; an int is `Retry(max_retries=...)`.
            timeout: seconds or text, for one attempt.
            priority: of its tasks, unless the call says another.
            batch: its tasks join: the first parameter is a list and gets one item of each task, the function returns a
                list with one result for each, in the same order (an exception in it fails that task alone). Where it
                raises, halves are tried, so that only what can't be done fails. Callers submit single items. Tasks join
                only where all other arguments are equal.
            cache: seconds or text for which a result is kept. An equal call takes it instead of running, and waits
                for one that is under way; see `docs/caching.md`. Only for functions whose value depends on nothing but
                their arguments.
            cost: what a call is to cost its group where that has a `cost_rate`: a number, or a function that gets the
                arguments in their order, called at submit, so it must be quick.

        Raises: InvalidInput: options contradict each other or the function. Conflict: the name is taken.
        """
        if function is None:
            return lambda decorated: self._register(decorated, options)
        return self._register(function, options)

    def _register(self, function: F, options: dict[str, Any]) -> F:
        for name in options.keys() - _DECLARED:
            remedy = "retry=N or retry=Retry(...)" if name == "max_retries" else ", ".join(sorted(_DECLARED))
            raise invalid(name, options[name], "is no option of a declaration", f"use {remedy}")
        handler = Handler(function, **options)
        self.executor.register(handler)
        function.__mainspring__ = handler  # type: ignore[attr-defined]
        self.manager.refresh()
        return function

    # Limits

    async def limit(
        self, group: str, *, namespace: str | None = None, concurrency: int | None = None, rate: str | None = None,
        cost_rate: str | None = None,
    ) -> None:  # fmt: skip
        """Set what the tasks of a group may do, at once and in a time, in all processes on this store together.

        The call says all: what is not given is not limited, so `engine.limit("tenant-a")` takes all limits off. It is
        stored, holds from the next claim on, and lets what runs already go on. What is used of a cost rate is forgotten
        when that is taken off, a debt as well, and of a rate too where no cost rate stays.

        Args:
            group: as tasks name it (`submit(..., group="tenant-a")`).
            namespace: only its tasks there count, and are limited; None: those in all namespaces together. Where both
                are set both hold.
            concurrency: how many may be claimed or run at once.
            rate: how many attempts may begin in a time, as "60/m", "10/s", "5000/h" or "5/30s": so many at once after
                a rest, then one after the other, evenly. What is handed back before it began does not count.
            cost_rate: what attempts that begin may cost in a time, in any unit, such as tokens: "90000/m". An attempt
                reserves what its task is to cost (`submit(..., cost=1200)` or `@engine.task(cost=...)`, else 1) when it
                is claimed, and settles by `ctx.usage(cost=...)` when it ends; see `docs/limits.md`.

        Raises: InvalidInput, StoreUnavailable.
        """
        await self.manager.limit(group, namespace=namespace, concurrency=concurrency, rate=rate, cost_rate=cost_rate)

    async def share(self, weight: float | None, *, group: str | None = None, namespace: str | None = None) -> None:
        """Give a group or a namespace its own share of the lanes; all that have none are one share of weight 1.

        Where several shares have ready tasks they take turns by weight, in each lane of each process: a flood of one
        keeps nobody else waiting for more than its turns. Within a share the one order holds. It is stored.

        Args:
            weight: how many turns it has for each one of weight 1; None takes its share away.
            group, namespace: whose share it is: a group, in one namespace or in all together, or a whole namespace. A
                task belongs to its group's share, where that has one, else to its namespace's.

        Raises: InvalidInput, StoreUnavailable.
        """
        await self.manager.share(weight, group=group, namespace=namespace)

    async def limits(self) -> list[GroupLimit]:
        """Return the limits that are set, with what they count now, by group."""
        return await self.manager.limits()

    # Results

    async def as_completed(self, handles: Iterable[TaskHandle]) -> AsyncIterator[TaskHandle]:
        """Yield the handles as their tasks end, however they end. Raises InvalidInput inside a handler."""
        if current.get() is not None:
            raise waiting_inside()
        handles = checked(handles, TaskHandle)
        ready: asyncio.Queue[TaskHandle] = asyncio.Queue()
        await asyncio.gather(*(self.manager.waiters.come(handle) for handle in handles if handle.origin is not None))
        unknown = [handle for handle in handles if not handle.known and handle.ended is None]
        if unknown:
            by_id = {handle.key: handle for handle in unknown}
            await self._parts.store.require(list(by_id))
            for ended in await self._parts.store.ended(list(by_id)):
                by_id[ended.id].settle(ended)
        waits: list[tuple[TaskHandle, asyncio.Future[None]]] = []
        for handle in handles:
            if handle.ended is not None:
                ready.put_nowait(handle)
            else:
                future = handle.future()
                future.add_done_callback(partial(_pass_on, ready, handle))
                waits.append((handle, future))
        try:
            for _ in handles:
                yield await ready.get()
        finally:
            for handle, future in waits:
                handle.forget(future)

    async def gather(self, handles: Iterable[TaskHandle]) -> list[Any]:
        """Return the results in the handles' order; raises the first error met in that order."""
        return [await handle.result() for handle in checked(handles, TaskHandle)]


def _pass_on(ready: asyncio.Queue[TaskHandle], handle: TaskHandle, future: asyncio.Future[None]) -> None:
    """A handle's task has ended, or the engine has: who asks the handle for its result is told which."""
    if not future.cancelled():
        future.exception()
    ready.put_nowait(handle)
