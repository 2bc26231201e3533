"""The event loop of a user's test: time goes straight on to what happens next, and it is seen when nothing does.

The engine's own upkeep looks around several times a second for ever. It does not hold time back here: a day without
anything but upkeep is one step, and when nothing else is left to come, the loop is at rest. So it is with an attempt
that was given up and goes on: nobody hears of it, and it may go on for ever.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, NoReturn

from mainspring.environment import HERE
from mainspring.errors import InvalidInput
from mainspring.processors.context import current
from mainspring.testing.simulator.loop import Deadlock, SimLoop

_UPKEEP: Final = frozenset({"caretaker", "heartbeat", "offers", "pacer"})
"""The tasks of an engine that look around at intervals."""
_SHORT_S = 0.01
"""What is due so soon is a thread or a message on its way."""
_QUIET_S = 2.0
"""Each duty of the upkeep had its turn within this time: what it did not bring about will never come."""


class StageLoop(SimLoop):
    """`at_rest` is called when nothing can happen any more; it makes something happen, or it raises.

    It is told whether something would happen behind the limit.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.at_rest: Callable[[bool], None] = _nobody
        self.limit = float("inf")  # a moment behind which nothing is waited for
        self.given_up: set[tuple[bytes, int]] = set()  # attempts that may go on, unheard: id and number
        self._upkeep: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._quiet_s = 0.0

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._is_given_up():
            when = max(when, self.now + _SHORT_S)  # one that waits for no time at all would let none pass
        elif when - self.now < _SHORT_S or not self._is_upkeep():
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._upkeep, (when, next(self._timer_numbers), timer))
        return timer

    def _is_upkeep(self) -> bool:
        task = asyncio.current_task(self)
        return task is not None and task.get_name() in _UPKEEP

    def _is_given_up(self) -> bool:
        """Whether a handler calls that the engine does not wait for any more, on the loop or in a thread of its own."""
        context = current.get() if self.given_up else None
        return context is not None and (context.id.bytes, context.attempt) in self.given_up

    def _bring_due(self) -> None:
        super()._bring_due()
        self._timers, self._upkeep = self._upkeep, self._timers
        super()._bring_due()
        self._timers, self._upkeep = self._upkeep, self._timers

    def _pass_time(self) -> None:
        next_s, upkeep_s = _first(self._timers), _first(self._upkeep)
        if next_s is not None and next_s <= self.limit:
            if next_s - self.now > _SHORT_S:
                self._quiet_s = 0.0
            self.now = max(self.now, next_s)
        elif upkeep_s is not None and self._quiet_s < _QUIET_S:
            self._quiet_s += upkeep_s - self.now
            self.now = max(self.now, upkeep_s)
        else:
            self._quiet_s = 0.0
            self.at_rest(next_s is not None)

    def forget(self) -> None:
        """Let go of everything, also of what is frozen. Nothing runs any more."""
        for left in (self._queues, self._timers, self._upkeep, self._frozen, self.tasks):
            left.clear()

    # What a simulated process has not got

    def create_future(self) -> asyncio.Future[Any]:
        """Whatever asks an engine for something gets one of these first."""
        if (running := asyncio._get_running_loop()) is not None and running is not self:
            raise InvalidInput(
                "this engine is in virtual time, and another event loop asks for it; let the test be async def, or run "
                "the coroutine with engine.sync.run(...), not with asyncio.run(...)",
                field="engine",
            )
        return super().create_future()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run it beside the loop, as a thread of this process. Executors are not asked."""
        return self.create_task(HERE.get().to_thread(func, *args))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NoOutside(
            "there is no network and no child process in virtual time: a reply would take real time, and no two runs "
            "would be the same; let the test put something in its place, such as httpx.MockTransport"
        )

    create_server = create_datagram_endpoint = getaddrinfo = sock_connect = _refuse
    create_unix_connection = create_unix_server = subprocess_exec = subprocess_shell = _refuse


class NoOutside(RuntimeError):
    """Something in virtual time asked for the network or for a child process."""


def _nobody(goes_on: bool) -> None:
    raise Deadlock("nothing is ready and no timer is left: somebody waits for what will never come")


def _first(timers: list[tuple[float, int, asyncio.TimerHandle]]) -> float | None:
    """Return when the next timer is due that was not cancelled."""
    while timers and timers[0][2]._cancelled:
        heapq.heappop(timers)
    return timers[0][0] if timers else None
