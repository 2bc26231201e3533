"""The blocking face: the same engine for scripts, notebooks and web frameworks without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import wait
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mainspring.engine.handle import TaskHandle, checked
from mainspring.environment import SYSTEM, ThreadEvent
from mainspring.errors import InvalidInput, PartlySubmitted, invalid
from mainspring.tasks import GroupLimit, Ledger, LedgerKey, Ref, Task, TaskId, TaskInfo

if TYPE_CHECKING:
    from mainspring.engine.engine import Engine
    from mainspring.results.cache import ResultCache
    from mainspring.store.base import Kept

T = TypeVar("T")
_ELSEWHERE = (
    "the engine was opened by `async with` or `start()`, on another event loop; a handler submits by ctx.submit, any "
    "other thread by asyncio.run_coroutine_threadsafe(engine.submit(...), loop)"
)


class SyncHandle(Ref):
    """Like `TaskHandle`; its methods block."""

    __slots__ = ("_face", "_handle")

    def __init__(self, handle: TaskHandle, face: SyncEngine) -> None:
        super().__init__(handle.id)
        self._handle = handle
        self._face = face

    def result(self, timeout: float | str | None = None) -> Any:
        return self._face.run(self._handle.result(timeout))

    def info(self) -> TaskInfo:
        return self._face.run(self._handle.info())

    def cancel(self) -> str:
        return self._face.run(self._handle.cancel())

    def explain(self) -> str:
        return self._face.run(self._handle.explain())


class SyncCache:
    """Like `ResultCache`; its methods block."""

    def __init__(self, cache: ResultCache, face: SyncEngine) -> None:
        self._cache = cache
        self._face = face

    def stats(self) -> list[Kept]:
        """See `ResultCache.stats`."""
        return self._face.run(self._cache.stats())

    def purge(self, *, type: str | Callable[..., Any] = "", version: str = "", namespace: str = "") -> int:
        """See `ResultCache.purge`."""
        return self._face.run(self._cache.purge(type=type, version=version, namespace=namespace))


class _Call(Generic[T]):
    """A coroutine that can be cancelled by the thread that waits for it."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.accepted: Sequence[TaskHandle] = ()  # see `Engine.map`
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    async def go(self) -> T:
        self._task = asyncio.current_task()
        if self._is_cancelled:
            self._work.close()
            raise asyncio.CancelledError
        try:
            return await self._work
        except asyncio.CancelledError as exc:
            self.accepted = getattr(exc, "accepted", ())
            raise

    def cancel(self) -> None:
        """On the loop, where it may not have begun."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()


class SyncEngine:
    """Runs the engine on an event loop in a thread of its own.

        with engine.sync as sync:
            print(sync.submit(fetch, url).result())

    Entered again inside, it is the same open engine, which the outermost `with` closes. Not for code that runs on an
    event loop already: use the engine itself there.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._depth = 0

    def __enter__(self) -> Self:
        self._engine.refuse_in_a_copy()
        if self._loop is None:
            if self._engine.is_open:
                raise InvalidInput(_ELSEWHERE, field="engine.sync")
            ready = ThreadEvent()
            self._thread = SYSTEM.start_thread("mainspring-loop", self._run_loop, ready)
            ready.wait()
            try:
                self.run(self._engine.start())
            except BaseException:
                self._end_loop()
                raise
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.close()

    def close(self) -> None:
        """Drain and close, as leaving the outermost `with` does."""
        if self._loop is not None:
            self.run(self._engine.stop())
            self._end_loop()

    def _end_loop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = None

    def _run_loop(self, ready: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(ready.set)
            self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Block until a coroutine of the engine is done. Raises InvalidInput: here is no way to wait for that."""
        try:
            loop = self._loop_for_a_call()
        except InvalidInput:
            work.close()
            raise
        return self._end_of(_Call(work), loop)

    def _loop_for_a_call(self) -> asyncio.AbstractEventLoop:
        """Return where a call of this thread may wait for what runs. Raises InvalidInput: nowhere."""
        self._engine.refuse_in_a_copy()
        if self._loop is None:
            why = _ELSEWHERE if self._engine.is_open else "the engine is not open; use `with engine.sync as sync:`"
            raise InvalidInput(why, field="engine.sync")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop
        raise InvalidInput(
            "engine.sync would block this event loop; use the engine itself with await", field="engine.sync"
        )

    def _end_of(self, call: _Call[T], loop: asyncio.AbstractEventLoop) -> T:
        future = asyncio.run_coroutine_threadsafe(call.go(), loop)
        try:
            return future.result()
        except BaseException as exc:
            if not future.done():  # the caller was interrupted, as by Ctrl-C: nothing goes on behind its back
                loop.call_soon_threadsafe(call.cancel)
                wait((future,))
                exc.accepted = call.accepted  # type: ignore[attr-defined]
            raise

    def submit(self, function: Callable[..., Any], /, *args: Any, connection: Any = None, **kwargs: Any) -> SyncHandle:
        """See `Engine.submit`, with `wait_for_room`; `connection` is one that blocks too."""
        lent = self._borrow(connection)
        return SyncHandle(self.run(self._engine.submit(function, *args, connection=lent, **kwargs)), self)

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], /, *, connection: Any = None, **options: Any
    ) -> list[SyncHandle]:
        """See `Engine.map`, with `wait_for_room`.

        Ctrl-C ends it too; `accepted` of the KeyboardInterrupt are the handles of what was stored by then.
        """
        lent = self._borrow(connection)
        try:
            handles = self.run(self._engine.map(function, items, connection=lent, **options))
        except (PartlySubmitted, KeyboardInterrupt) as exc:
            accepted = getattr(exc, "accepted", ())  # an interrupt may come when the call is over
            exc.accepted = [SyncHandle(handle, self) for handle in accepted]  # type: ignore[union-attr]
            raise
        return [SyncHandle(handle, self) for handle in handles]

    def submit_all(
        self, tasks: Sequence[Task], *, connection: Any = None, wait_for_room: float | str | None = 0
    ) -> list[SyncHandle]:
        """See `Engine.submit_all`."""
        lent = self._borrow(connection)
        handles = self.run(self._engine.submit_all(tasks, connection=lent, wait_for_room=wait_for_room))
        return [SyncHandle(handle, self) for handle in handles]

    def _borrow(self, connection: Any) -> Any:
        """In the caller's thread, as a proxy may stand for another connection in each. Raises InvalidInput."""
        if connection is None:
            return None
        borrowed = self._engine.manager.store.borrow(connection)
        if borrowed.is_async:
            raise invalid(
                "connection",
                type(connection).__qualname__,
                "belongs to an event loop, and engine.sync blocks",
                "pass one that blocks too, or use the engine itself with await",
            )
        return borrowed

    def handle(self, task_id: TaskId | str) -> SyncHandle:
        """Return a handle of any stored task. Whether it exists shows when the handle is used."""
        return SyncHandle(self._engine.handle(task_id), self)

    def gather(self, handles: Iterable[SyncHandle]) -> list[Any]:
        """Return the results in the handles' order; raises the first error met in that order."""
        return self.run(self._engine.gather([handle._handle for handle in checked(handles, SyncHandle)]))

    def retry(self, task_id: TaskId | str) -> SyncHandle:
        """See `TaskManager.retry_task`."""
        return self.handle(self.run(self._engine.manager.retry_task(task_id)))

    def pause(self, *, type: str = "", namespace: str = "", group: str = "") -> None:
        """See `TaskManager.pause`."""
        self.run(self._engine.manager.pause(type=type, namespace=namespace, group=group))

    def resume(self, *, type: str = "", namespace: str = "", group: str = "") -> bool:
        """See `TaskManager.resume`."""
        return self.run(self._engine.manager.resume(type=type, namespace=namespace, group=group))

    def limit(
        self, group: str, *, namespace: str | None = None, concurrency: int | None = None, rate: str | None = None,
        cost_rate: str | None = None,
    ) -> None:  # fmt: skip
        """See `Engine.limit`."""
        given = {"concurrency": concurrency, "rate": rate, "cost_rate": cost_rate}
        self.run(self._engine.limit(group, namespace=namespace, **given))  # type: ignore[arg-type]

    def share(self, weight: float | None, *, group: str | None = None, namespace: str | None = None) -> None:
        """See `Engine.share`."""
        self.run(self._engine.share(weight, group=group, namespace=namespace))

    def limits(self) -> list[GroupLimit]:
        """See `Engine.limits`."""
        return self.run(self._engine.limits())

    def stats(self) -> dict[str, Any]:
        """See `TaskManager.stats`."""
        return self.run(self._engine.manager.stats())

    def ledger(
        self, by: LedgerKey | Sequence[LedgerKey] = (), *, since: datetime | float | str | None = None
    ) -> Ledger:
        """See `Engine.ledger`."""
        return self.run(self._engine.ledger(by, since=since))

    @property
    def cache(self) -> SyncCache:
        """See `Engine.cache`."""
        return SyncCache(self._engine.cache, self)

    def metrics(self) -> bytes:
        """See `Engine.metrics`."""
        return self.run(self._engine.metrics())

    def as_completed(self, handles: Iterable[SyncHandle]) -> Iterator[SyncHandle]:
        """Yield the handles as their tasks end."""
        by_id = {handle.id: handle for handle in checked(handles, SyncHandle)}
        ended = self._engine.as_completed([handle._handle for handle in by_id.values()])
        for _ in by_id:
            yield by_id[self.run(_next(ended)).id]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """text, embed, infer, search, store, upsert, delete, retrieve: as on the engine, blocking."""
        if name not in ("text", "embed", "infer", "search", "store", "upsert", "delete", "retrieve"):
            raise AttributeError(name)
        operation = getattr(self._engine, name)
        return lambda *args, **kwargs: self.run(operation(*args, **kwargs))


async def _next(items: Any) -> Any:
    return await anext(items)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop, uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
