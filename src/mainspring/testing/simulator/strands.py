"""What stands for the threads of a simulated process and for their signals."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mainspring.testing.simulator.machine import Process


class Died(BaseException):
    """The simulated process is dead: nothing of it may go on."""


class SimSignal:
    """Stands for `Signal` and `Turns`."""

    def __init__(self, process: Process, *, adds_up: bool) -> None:
        self._process = process
        self._adds_up = adds_up
        self._raised = 0
        self._waiting: deque[SimStrand] = deque()

    def raise_(self) -> None:
        if self._process.is_alive:
            self._raised = self._raised + 1 if self._adds_up else 1
            self._wake()

    def wait_for(self, strand: SimStrand) -> None:
        self._waiting.append(strand)
        self._wake()

    def _wake(self) -> None:
        while self._raised and self._waiting:
            if self._adds_up:
                self._raised -= 1
            self._process.later(self._waiting.popleft().go_on)
            if not self._adds_up:
                return

    def taken(self) -> None:
        """Whoever waited goes on: what was raised so far has been heard."""
        if not self._adds_up:
            self._raised = 0


class SimStrand:
    """Work of another thread, a step at a time."""

    def __init__(self, process: Process, name: str, steps: Iterator[None], signal: SimSignal) -> None:
        self.name = name
        self._process = process
        self._steps = steps
        self._signal = signal
        self._over = asyncio.Event()
        process.later(self._step)

    def go_on(self) -> None:
        self._signal.taken()
        self._step()

    def _step(self) -> None:
        try:
            next(self._steps)
        except StopIteration:
            self._over.set()
        except Died:
            pass
        else:
            self._signal.wait_for(self)
        if not self._process.is_alive:
            self._process.died()

    async def ended(self) -> None:
        await self._over.wait()


class _Never:
    """Stands for what calls a function every so often."""

    def stop(self) -> None:
        """It has not begun."""


NEVER: Final = _Never()
