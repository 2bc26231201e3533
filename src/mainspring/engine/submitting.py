"""The ways into the engine: one task, several, or as many as a stream yields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence, Sized
from functools import partial
from itertools import islice
from typing import Any

from mainspring.dispatch.intake import unordered
from mainspring.dispatch.manager import TaskManager
from mainspring.dispatch.parts import Parts
from mainspring.dispatch.room import patience
from mainspring.engine.bulk import Bulk
from mainspring.engine.handle import TaskHandle
from mainspring.environment import Environment
from mainspring.errors import (
    InsufficientResources,
    InvalidInput,
    PartlySubmitted,
    StoreUnavailable,
    SubmitIndeterminate,
    TaskError,
    TaskNotFound,
    invalid,
)
from mainspring.processors.calls import split_options
from mainspring.scheduling.scheduler import TaskScheduler
from mainspring.store.base import Line, NewTask
from mainspring.tasks import Task, TaskId

_MAP_CHUNK = 1_000


class Submitting:
    """What of an engine takes tasks."""

    manager: TaskManager
    scheduler: TaskScheduler
    _parts: Parts
    _env: Environment
    _open: bool
    _closed: bool

    def build(self, function: Callable[..., Any] | Task, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Return the task that a call of `submit` stores."""
        if not isinstance(function, Task):
            return self.manager.executor.task_of(function, args, kwargs)
        if args or kwargs:
            raise invalid("submit", (args, kwargs), "can't be given beside a ready Task", "set its fields instead")
        return function

    async def submit(
        self,
        function: Callable[..., Any] | Task,
        /,
        *args: Any,
        connection: Any = None,
        wait_for_room: float | str | None = 0,
        **kwargs: Any,
    ) -> TaskHandle:
        """Store one task; durable on return.

        Args:
            function: a registered handler, a ready `Task`, or one of the engine's own operations, as `engine.embed`.
            args, kwargs: its arguments; a handle among them, at any depth, is a dependency and becomes its result.
                Options stand beside them: priority, deadline, delay, not_before, timeout, max_retries, idempotency_key,
                metadata, group, namespace, cost, after, on_dependency_failure, task_id.
            connection: yours to the database of the store, of asyncpg, psycopg 3 or SQLAlchemy: the task exists if and
                only if its transaction commits (`docs/postgres.md`). Don't wait for the result inside of that.
            wait_for_room: seconds or text: where `queue_size` or the disk has no room, wait for it so long at most
                before that is raised; None: as long as it takes. Not inside a handler, nor with a connection.

        Raises: InvalidInput, UnsupportedTaskType, TaskNotFound (an unknown parent), Conflict, QueueFull,
            InsufficientResources (storage), StoreUnavailable, SubmitIndeterminate.
        """
        return (await self._store((self._new(function, args, kwargs),), connection, wait_for_room))[0]

    async def submit_all(
        self, tasks: Sequence[Task], *, connection: Any = None, wait_for_room: float | str | None = 0
    ) -> list[TaskHandle]:
        """Store all of them or none; parents may stand in the same list, before their children. See `submit`."""
        return await self._store(tasks, connection, wait_for_room)

    def _new(
        self, function: Callable[..., Any] | Task, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Task | NewTask:
        """A call of a handler that is ours goes straight into its stored form; anything else is a task first."""
        handler = self.manager.executor.handler_of(function)  # type: ignore[arg-type]  # a Task is none
        if handler is None:
            return self.build(function, args, kwargs)
        options = split_options(kwargs) if kwargs else {}
        id = options.pop("task_id", None)
        return self.manager.intake.call_maker(handler, options)(args, kwargs, None if id is None else TaskId(id).bytes)

    def _store(
        self, tasks: Sequence[Task | NewTask], connection: Any, wait_for_room: float | str | None
    ) -> Coroutine[Any, Any, list[TaskHandle]]:
        work = self._stored(tasks, connection, wait_for_room)
        return work if self.manager.spans is None else self.manager.spans.sent(work, tasks)

    async def _stored(
        self, tasks: Sequence[Task | NewTask], connection: Any, wait_for_room: float | str | None
    ) -> list[TaskHandle]:
        if connection is not None:
            borrowed = self._parts.store.borrow(connection)
            return await self._pledge(await self._ready(tasks), borrowed)
        if wait_for_room == 0:
            return await self._hand_over(await self._ready(tasks))
        until = self._until(wait_for_room)
        ready = await self._ready(tasks)

        async def look_and_hand_over() -> list[TaskHandle]:
            await self.scheduler.look_at_limits()
            return await self._hand_over(ready)

        return await self.manager.room.enter(look_and_hand_over, len(ready), until)

    def _until(self, wait_for_room: float | str | None) -> float:
        return self._env.monotonic() + patience(wait_for_room)

    async def _pledge(self, ready: list[NewTask], borrowed: Any) -> list[TaskHandle]:
        """Hand tasks to a user's transaction."""
        self.scheduler.refuse_without_storage()
        promise = self.manager.waiters.promise
        try:
            pledged = await self._parts.store.submit_within(ready, borrowed)
        except TaskNotFound as exc:
            raise unordered(ready) or exc from None
        return [promise(task.id, task.origin) for task in pledged]  # type: ignore[misc]  # `make` of our waiters

    async def _ready(self, tasks: Sequence[Task | NewTask]) -> list[NewTask]:
        if not self._open:
            raise self._not_open()
        await self.scheduler.look_at_limits()
        return await self.manager.intake.new_tasks(tasks)

    def _not_open(self) -> TaskError:
        if self._closed:
            return StoreUnavailable(
                "the engine is closed; open the store again with a new one: `async with Engine(...)`"
            )
        why = "the engine is not open yet; use `async with engine:` or `await engine.start()`"
        return InvalidInput(why, field="start")

    async def _hand_over(self, ready: list[NewTask], line: Line | None = None) -> list[TaskHandle]:
        """Store all of them; in a line as many of the first ones as there is room for."""
        try:
            self.scheduler.refuse_without_storage()
        except InsufficientResources:
            if line is not None:
                line.is_broken = True
            raise
        expect = self.manager.waiters.expect
        handles = [expect(task.id) for task in ready]
        try:
            stored = await self._parts.store.submit(ready, line)
        except TaskNotFound as exc:
            raise unordered(ready) or exc from None
        for n, accepted in enumerate(stored):
            if accepted.existed:
                handles[n].known = False  # it may have ended before
                handles[n] = self.handle(TaskId(accepted.id))
        del handles[len(stored) :]
        return handles  # type: ignore[return-value]  # `make` of our waiters

    async def map(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        /,
        *,
        connection: Any = None,
        wait_for_room: float | str | None = None,
        **options: Any,
    ) -> list[TaskHandle]:
        """Store one task for each item, which becomes the function's first argument; returns their handles in order.

        Stored in parts of up to 1,000, in order. Where queue or disk has no room it takes the items as room appears: by
        default as long as that takes, else `wait_for_room` is how long it waits at most each time. With a connection
        (see `submit`) they go in together when the last one is made, come with its commit, and nothing is waited for.

        Where it is cancelled, `accepted` of the CancelledError are the handles of what was stored by then; after
        `asyncio.timeout` that is the `__cause__` of the TimeoutError. With a connection there are none.

        Raises: PartlySubmitted: it stopped after some were stored, and tells which; before that the error itself, as
            QueueFull or InsufficientResources where there was no room for a single one in time.
        """
        work = self._mapped(function, items, connection, wait_for_room, options)
        if self.manager.spans is None:
            return await work
        handler = self.manager.executor.handler_of(function)
        kind = None if handler is None else str(handler.task_type)
        return await self.manager.spans.sent(work, kind=kind, n=len(items) if isinstance(items, Sized) else None)

    async def _mapped(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        connection: Any,
        wait_for_room: float | str | None,
        options: dict[str, Any],
    ) -> list[TaskHandle]:
        until = partial(self._until, wait_for_room)
        until()  # what can't be a duration is refused at once
        borrowed = None if connection is None else self._parts.store.borrow(connection)
        together: list[NewTask] = []  # what goes into a user's transaction, or nothing of it
        bulk = Bulk(self._hand_over, self.manager.room, until, self.scheduler.look_at_limits)
        try:
            new = self._maker(function, options)
            if not isinstance(items, Iterable):
                raise invalid("items", items, "can't be iterated", "pass a list, or whatever yields the items")
            rest = iter(items)
            while chunk := [new(item) for item in islice(rest, _MAP_CHUNK)]:
                ready = await self._ready(chunk)
                if borrowed is None:
                    await bulk.add(ready)
                else:
                    together += ready
                    await asyncio.sleep(0)
            return await (self._pledge(together, borrowed) if together else bulk.all_in())
        except asyncio.CancelledError as exc:  # it stays one: whoever cancels waits for that
            stored = await bulk.stop()
            exc.accepted = stored  # type: ignore[attr-defined]
            exc.add_note(f"map had stored {len(stored)} tasks by then; `accepted` are their handles")
            raise
        except Exception as exc:
            stored = await bulk.stop()
            if not stored:
                raise
            raise _stopped(stored, exc) from exc

    def _maker(self, function: Callable[..., Any], options: dict[str, Any]) -> Callable[[Any], Task | NewTask]:
        """Return what makes a task of an item. Options are checked once, arguments beside the item each time."""
        handler = self.manager.executor.handler_of(function)
        if handler is None or "task_id" in options:
            return lambda item: self.build(function, (item,), dict(options))
        arguments = dict(options)
        call = self.manager.intake.call_maker(handler, split_options(arguments))
        return lambda item: call((item,), arguments)

    def handle(self, task_id: TaskId | str) -> TaskHandle:
        """Return a handle of any stored task. Whether it exists shows when the handle is used."""
        return self.manager.waiters.find(TaskId(task_id).bytes)  # type: ignore[return-value]  # `make` of our waiters


def _stopped(stored: Sequence[TaskHandle], exc: Exception) -> PartlySubmitted:
    """Say what of a bulk call is stored and what is not, and how to go on."""
    n, retry_after = len(stored), getattr(exc, "retry_after", None)
    if isinstance(exc, SubmitIndeterminate):
        rest = "whether items behind them are too is not known: look for these before you hand in any of them again"
    else:
        when = "" if retry_after is None else f" in {retry_after:.2g} s"
        rest = f"none behind them is: go on with items[{n}:]{when}"
    why = f"map stopped after {n} tasks were stored; of the next part: {exc}"
    message = f"{why}. Of all items the first {n} are stored, {rest}"
    return PartlySubmitted(message, accepted=stored, retry_after=retry_after)
