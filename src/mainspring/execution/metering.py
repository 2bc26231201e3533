"""What asyncio tasks cost that handlers make: their steps are the loop's, not the handler's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from mainspring.environment import Environment
from mainspring.execution.steps import StepClock
from mainspring.processors.context import Context, current


class Metering:
    """The task factory of a loop. What is made in a handler's context has its steps charged to that context, and so has
    what is made there in turn; all else is made as it was before.

    One for all engines on a loop, above the factory that was there; it goes with the last of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, env: Environment) -> None:
        self._loop = loop
        self._below = loop.get_task_factory()
        self._clock = StepClock(env)
        self._users = 0

    @staticmethod
    def begin(env: Environment) -> Metering:
        """Return that of the running loop, which is put in force where there is none. Whoever calls this ends it."""
        loop = asyncio.get_running_loop()
        metering = loop.get_task_factory()
        if not isinstance(metering, Metering):
            metering = Metering(loop, env)
            loop.set_task_factory(metering)
        metering._users += 1
        return metering

    def end(self) -> None:
        self._users -= 1
        if self._users == 0 and self.is_in_force:
            self._loop.set_task_factory(self._below)

    @property
    def is_in_force(self) -> bool:
        """Whether it sees what is made: a program may have put a factory of its own in its place."""
        return self._loop.get_task_factory() is self

    def __call__(self, loop: asyncio.AbstractEventLoop, steps: Any, **options: Any) -> Any:
        context = current.get()
        if context is None or isinstance(steps, _Metered) or not asyncio.iscoroutine(steps):
            # Somebody may have put a factory between two of these; what is no coroutine is refused by whoever makes it.
            return self._make(loop, steps, options)
        metered = _Metered(steps, context, self._clock)
        task = self._make(loop, metered, options)
        metered.is_made = True
        return task

    def _make(self, loop: asyncio.AbstractEventLoop, steps: Any, options: dict[str, Any]) -> Any:
        if self._below is None:
            return asyncio.Task(steps, loop=loop, **options)
        return self._below(loop, steps, **options)


class _Metered(Coroutine[Any, Any, Any]):
    """A coroutine that charges a handler for its steps; in all else it is the one that it stands for."""

    __slots__ = ("_clock", "_context", "_steps", "is_made")

    def __init__(self, steps: Any, context: Context, clock: StepClock) -> None:
        self._steps = steps
        self._context = context
        self._clock = clock
        self.is_made = False  # an eager factory takes the first step at once, within the step that makes the task

    def send(self, value: Any) -> Any:
        return self._step(self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._steps.throw, *error)

    def _step(self, go_on: Any, *args: Any) -> Any:
        if not self.is_made:
            return go_on(*args)
        clock = self._clock
        began = clock.monotonic()
        base_ns = clock.begin(began)
        try:
            return go_on(*args)
        finally:
            self._context.made_cpu_s += clock.spent(base_ns, clock.monotonic() - began)

    def close(self) -> None:
        self._steps.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps.__await__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:  # what debuggers and other libraries look at: its frame, state and name
        return getattr(self._steps, name)
