"""Where a user's test plays: virtual time, a machine for the engines of the test, and the test itself beside them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import warnings
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from mainspring.environment import HERE, SYSTEM, Random
from mainspring.errors import InvalidInput
from mainspring.testing.simulator.loop import Deadlock, Livelock
from mainspring.testing.simulator.machine import EPOCH_S, Machine
from mainspring.testing.simulator.order import Order
from mainspring.testing.stage.loop import StageLoop
from mainspring.testing.stage.process import StageProcess, current_thread

if TYPE_CHECKING:
    from mainspring.testing.stage.engine import SimulatedEngine

T = TypeVar("T")


class NothingHappens(Exception):
    """The test waits, and nothing can happen any more."""


class Stage:
    """All is repeated by its seed: the order of callbacks, ids, backoff."""

    def __init__(self, seed: int = 0, began_ms: int | None = None) -> None:
        self.loop = StageLoop(Order(Random(f"{seed}:order")))
        self.loop.at_rest = self._at_rest
        self.machine = Machine(self.loop, Random(f"{seed}:machine"), is_calm=True)
        # The wall clock begins with the real one, so that times that the application asks the real one for are not far
        # off; at a whole second, so that all that is counted from there is the same in each run.
        began_s = (SYSTEM.wall_ms() if began_ms is None else began_ms) // 1_000
        self.machine.wall_offset_ms = (began_s - EPOCH_S) * 1_000
        self.engines: list[SimulatedEngine] = []
        self.dead: list[StageProcess] = []
        self._test = StageProcess(self.machine, "test")
        self._playing: asyncio.Task[Any] | None = None
        self._resting: asyncio.Future[bool] | None = None
        self._stuck: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Be there: what the test itself asks for time and ids gets them from here."""
        token = HERE.set(self._test)
        apsw.connection_hooks.append(self.machine.adopt)
        try:
            yield
        finally:
            try:
                self._close()
            finally:
                apsw.connection_hooks.remove(self.machine.adopt)
            with contextlib.suppress(ValueError):  # of a runner that has given this a context of its own, which ends
                HERE.reset(token)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the test to its end.

        Raises: NothingHappens: it waits for what never comes. InvalidInput: a coroutine is running already.
        """
        __tracebackhide__ = True
        thread = current_thread()
        if thread is not None:
            return thread.process.on_loop(self.loop, work)
        if self.loop.is_running():
            work.close()
            raise InvalidInput("engine.sync would block the test's event loop; await the engine's own methods")
        self.loop.steps, self._stuck = 0, None
        context = contextvars.copy_context()
        context.run(HERE.set, self._test)
        self._playing = self.loop.create_task(self._play(work), context=context)
        try:
            value, exc = self.loop.run_until_complete(self._playing)
        except Livelock as busy:
            busy.add_note(
                "something goes on and lets no time pass, or too much happens at once: advance in smaller steps"
            )
            raise
        finally:
            self._playing = None
        if exc is not None:
            raise exc
        return value  # type: ignore[no-any-return]

    async def _play(self, work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
        """Return what became of it. It is raised outside of the loop, whose frames tell a test's reader nothing."""
        __tracebackhide__ = True
        try:
            return await work, None
        except asyncio.CancelledError as exc:
            if self._stuck is None:
                return None, exc
            stuck, self._stuck = NothingHappens(self._stuck), None
            return None, stuck.with_traceback(exc.__traceback__)
        except BaseException as exc:  # noqa: BLE001 - raised by whoever runs it
            return None, exc

    # Rest

    async def until_rest(self, limit_s: float) -> bool:
        """Wait until nothing can happen any more, and return true; false where it still does after so long."""
        self.loop.limit, self._resting = self.loop.now + limit_s, self.loop.create_future()
        try:
            return await self._resting
        finally:
            self.loop.limit, self._resting = float("inf"), None

    def _at_rest(self, goes_on: bool) -> None:
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(not goes_on)
        elif self._stuck is None:
            self._stuck = "the test waits, and nothing can happen any more"
            self.loop.create_task(self._break_off(), context=self._test.context.copy())
        else:
            raise Deadlock(self._stuck)

    async def _break_off(self) -> None:
        """End the test's wait, and say what did not come."""
        for engine in self.engines:
            if engine.is_open:
                pending = await engine.pending()
                self._stuck = "\n  ".join([f"{self._stuck}; tasks that have not ended:", *(pending or ["none"])])
        assert self._playing is not None
        self._playing.cancel()

    # The end

    def bury(self, process: StageProcess) -> None:
        """A process has died. What ran in it stays as it is to the end: the loop keeps it."""
        process.die()
        self.dead.append(process)

    def _close(self) -> None:
        try:
            self.run(self._cancel_rest())
            for engine in self.engines:
                if engine.is_open:
                    self.run(engine.stop(drain_s=0))
        finally:
            for engine in self.engines:
                engine.end()
            for process in (self._test, *self.dead):
                process.release()
            self._forget()

    async def _cancel_rest(self) -> None:
        """End what the test has begun and not awaited."""
        left = [task for task in self.loop.tasks if task.owner is self._test and not task.done()]
        left = [task for task in left if task is not self._playing]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _forget(self) -> None:
        """End what is left of dead processes. It tidies up, and may fail at that: nobody is to hear of it."""
        for task in self.loop.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.set_exception_handler(lambda *_: None)
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.loop.end_frames()
                self.loop.close()
                self.loop.forget()
        finally:
            sys.unraisablehook = hook
