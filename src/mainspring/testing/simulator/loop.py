"""An event loop in virtual time: it plays several processes in one thread, in an order that a seed gives.

A callback belongs to the process whose environment stands in its context. Time passes only here: a little with each
callback, and up to the next timer when nothing else is left to do. When there is no timer either, somebody waits for
what will never come: that is a `Deadlock`.

Rests on two private names of asyncio, `BaseEventLoop._run_once` and `Handle._run`, and on the context of a handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import Any

from mainspring.environment import HERE
from mainspring.testing.simulator.order import Order

CALLBACK_S = 30e-6
"""The longest time that a callback takes."""


_NEVER_S = float("inf")
_MOST_WAITS = 20
"""More than a frame that is closed waits for."""


class Deadlock(Exception):
    """Nothing is ready and no timer is left, and somebody still waits."""


class Livelock(Exception):
    """It went on and on, and came to no end."""


class SimTask(asyncio.Task[Any]):
    """Its hash is its number, not its address: sets of tasks have the same order in every run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number
        self.owner = HERE.get()
        super().__init__(coro, **options)
        asyncio._unregister_task(
            self
        )  # nobody asks for all tasks; those of earlier runs with this number are there too

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.BaseEventLoop):
    def __init__(self, order: Order, most_steps: int = 1_000_000) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.told: Callable[[Any, asyncio.Handle], None] | None = None  # what runs, for a trace
        self._order = order
        self._most_steps = most_steps
        self._queues: dict[Any, deque[asyncio.Handle]] = {None: deque()}  # by process; None is the world around them
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_numbers = count()
        self.tasks: list[SimTask] = []
        self._frozen: list[Any] = []
        self._readers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    # What asyncio asks of a loop

    def get_debug(self) -> bool:
        return False

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any) -> SimTask:  # type: ignore[override]
        number = len(self.tasks)
        task = SimTask(coro, number, loop=self, name=name or f"{coro.__qualname__}-{number}", context=context)
        self.tasks.append(task)
        return task

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        self._readers[fd] = (callback, args)

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """There is something to read from a simulated socket."""
        if (reader := self._readers.get(fd)) is not None:
            reader[0](*reader[1])

    # Running

    def _put(self, handle: asyncio.Handle) -> None:
        owner = handle._context.get(HERE)  # type: ignore[attr-defined]
        queue = self._queues.get(owner)
        if queue is None:
            if not owner.is_alive:
                self._frozen.append(handle)
                return
            queue = self._queues[owner] = deque()
        queue.append(handle)

    def _run_once(self) -> None:
        if (timers := self._timers) and timers[0][0] <= self.now:
            self._bring_due()
        while not (ready := self._ready_owners()):
            self._pass_time()
            self._bring_due()
        owner = ready[0] if len(ready) == 1 else self._order.process(ready)
        queue = self._queues[owner]
        handle = queue.popleft() if len(queue) == 1 else self._order.callback(queue)
        if handle._cancelled:
            return
        self.steps += 1
        if self.steps > self._most_steps:
            raise Livelock(f"{self.steps} callbacks have run, and the world has not come to rest")
        if self.told is not None:
            self.told(owner, handle)
        self.now += self._order.random() * CALLBACK_S
        handle._run()

    def _ready_owners(self) -> list[Any]:
        ready, now = [], self.now
        for owner, queue in self._queues.items():
            if queue and (owner is None or owner.stalled_until <= now):
                ready.append(owner)
        return ready

    def _bring_due(self) -> None:
        timers = self._timers
        while timers and (timers[0][0] <= self.now or timers[0][2]._cancelled):
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                self._put(timer)

    def _pass_time(self) -> None:
        """Go on to the next moment at which anything can run."""
        next_s = self._timers[0][0] if self._timers else _NEVER_S
        for owner, queue in self._queues.items():
            if queue and owner.stalled_until < next_s:
                next_s = owner.stalled_until
        if next_s == _NEVER_S:
            raise Deadlock("nothing is ready and no timer is left: somebody waits for what will never come")
        if next_s > self.now:
            self.now = next_s

    def freeze(self, owner: Any) -> None:
        """Never run anything of this process again; its frames stay as they are, as those of a killed one do."""
        self._frozen.append(self._queues.pop(owner, None))  # kept: what is dropped would be closed, and tidy up

    def end_frames(self) -> None:
        """When all is over and judged: let frozen frames tidy up now, not whenever they would be collected."""
        asyncio._set_running_loop(self)  # without one some would make a loop of their own
        for task in self.tasks:
            coroutine: Any = task.get_coro()
            for _ in range(_MOST_WAITS):
                with contextlib.suppress(BaseException):  # what they say to that is of no interest to anybody
                    coroutine.close()
                if inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED:
                    break
        asyncio._set_running_loop(None)
