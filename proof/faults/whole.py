"""A whole engine at work, and its caller, who hands in anew what was refused and asks for every result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring import Context, Engine, Retry, TaskHandle, TaskId
from mainspring.errors import StoreUnavailable, SubmitIndeterminate
from mainspring.tasks.lifecycle import COMPLETED
from proof.faults.world import PATIENCE_S, Final, Refused, Stored, Told, Trying, Wrong


class Caller:
    """Submits until it is told that the task is stored; remembers what it expects of each."""

    def __init__(self, engine: Engine, tell: Callable[[Told], None]) -> None:
        self._engine = engine
        self._tell = tell
        self._expected: dict[TaskId, Any] = {}
        self._unsent: list[tuple[Callable[..., Any], tuple[Any, ...], TaskId]] = []
        self.refusals = 0
        self.doubts = 0

    async def submit(self, value: Any, function: Callable[..., Any], *args: Any) -> TaskId:
        """Submit a task that is to return `value`; its id is known, stored or not."""
        id = TaskId()
        self._expected[id] = value
        await self._send(function, args, id)
        return id

    async def _send(self, function: Callable[..., Any], args: tuple[Any, ...], id: TaskId) -> None:
        self._tell(Trying((id.bytes,)))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._engine.submit(function, *args, task_id=id, max_retries=5)
        except SubmitIndeterminate:
            self.doubts += 1
        except StoreUnavailable:
            self.refusals += 1
            self._tell(Refused((id.bytes,)))
        except TimeoutError:
            self._tell(Wrong(f"a submit of {function.__name__} never returned"))
        else:
            self._tell(Stored((id.bytes,)))
            return
        self._unsent.append((function, args, id))

    def stored(self, id: TaskId) -> TaskHandle | None:
        """A handle, unless it is not known whether the task is stored."""
        return None if any(id == unsent for *_, unsent in self._unsent) else self._engine.handle(id)

    async def settle(self) -> None:
        """Hand in what is missing and look whether everything comes out as it should, without being helped."""
        unsent, self._unsent = self._unsent, []
        for task in unsent:
            await self._send(*task)
        await asyncio.gather(*(self._look(id, value) for id, value in self._expected.items()))

    async def _look(self, id: TaskId, expected: Any) -> None:
        try:
            value = await self._engine.handle(id).result(timeout=PATIENCE_S)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is not the result
            self._tell(Wrong(f"task {id} gave {exc!r}"))
            return
        self._tell(Final(id.bytes, COMPLETED))
        if value != expected:
            self._tell(Wrong(f"task {id} gave {value!r}, not {expected!r}"))


def declare(engine: Engine) -> dict[str, Callable[..., Any]]:
    """Register a handler of each sort: one that works, one to be tried again, one with children, one that blocks."""

    @engine.task
    async def double(n: int) -> int:
        return 2 * n

    @engine.task(retry=Retry(max_retries=5, delay="2ms"))
    async def shaky(n: int, ctx: Context) -> int:
        if ctx.retry_count == 0:
            raise ValueError("the first time it fails")
        return n

    @engine.task
    async def family(n: int, ctx: Context) -> list[Any]:
        return [ctx.submit(double, k) for k in range(n)]

    @engine.task
    def total(values: list[int]) -> int:
        return sum(values)

    return {function.__name__: function for function in (double, shaky, family, total)}


async def play(
    path: Path, tell: Callable[[Told], None], begun: Callable[[], None], ending: Callable[[], None]
) -> Caller:
    """Run an engine from opening to closing; tells by `begun` that it is open, by `ending` that all was submitted."""
    engine = Engine(path)
    does = declare(engine)
    async with engine:
        begun()
        caller = Caller(engine, tell)
        await asyncio.gather(*(caller.submit(2 * n, does["double"], n) for n in range(6)))
        await caller.submit(7, does["shaky"], 7)
        await caller.submit([0, 2, 4], does["family"], 3)
        await asyncio.gather(*(_chain(caller, does, n) for n in range(2)))
        ending()
        await caller.settle()
    return caller


async def recover(path: Path, tell: Callable[[Told], None]) -> None:
    """Open a file with the same handlers, and let them do what the last process left."""
    async with Engine(path) as engine:
        declare(engine)
        waiting = [engine.handle(info.task.id) for info in await engine.manager.store.list_tasks(limit=1000)]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(handle.result() for handle in waiting), return_exceptions=True)
        except TimeoutError:
            tell(Wrong("there are tasks that never end"))


async def _chain(caller: Caller, does: dict[str, Callable[..., Any]], n: int) -> None:
    """A family, and the sum of what its children return, if its head could be stored."""
    head = await caller.submit([2 * k for k in range(n + 1)], does["family"], n + 1)
    if (handle := caller.stored(head)) is not None:
        await caller.submit(n * (n + 1), does["total"], handle)
