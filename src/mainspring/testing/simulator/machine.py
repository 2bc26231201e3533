"""A machine on which several processes run: one clock, one network of sockets, and for each process what it asks of
its environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar

import apsw

from mainspring.environment import HERE, Environment, Random
from mainspring.testing.simulator.loop import SimLoop, SimTask
from mainspring.testing.simulator.sockets import SimSocket
from mainspring.testing.simulator.strands import NEVER, Died, SimSignal, SimStrand

T = TypeVar("T")
EPOCH_S = 1_800_000_000
"""What the wall clock shows when a simulation begins."""


class Machine:
    """What all processes share."""

    def __init__(self, loop: SimLoop, rng: Random, *, is_calm: bool = False) -> None:
        self.loop = loop
        self.rng = rng
        self.wall_offset_ms = 0  # how far the wall clock was moved
        self.slept_s = 0.0
        self.sockets: dict[str, SimSocket] = {}  # by path
        self.processes: list[Process] = []
        self.loses_messages = 0.0  # how many of all
        self.delays_messages = 0.0
        slowness = 1.0 if is_calm else rng.choice((1.0, 1.0, 1.0, 20.0))
        self.longest_lag_s = 0.05 * slowness
        self._is_calm = is_calm

    def lag(self) -> float:
        """How long it takes until a thread goes on, or a message arrives."""
        if self._is_calm:
            return 1e-5
        chance, long = self.rng.random(), self.rng.random()
        return long * self.longest_lag_s * (0.004 if chance < 0.7 else 0.1 if chance < 0.95 else 1.0)

    def message_lag(self) -> float | None:
        """None: it never arrives."""
        if self.loses_messages and self.rng.random() < self.loses_messages:
            return None
        if self.delays_messages and self.rng.random() < self.delays_messages:
            return self.rng.random() * 3.0
        return self.lag() if self._is_calm or self.rng.random() < 0.6 else self.rng.random() * 4 * self.longest_lag_s

    def greeting_lag(self) -> float | None:
        """A newcomer is often known late: what it was not told until then shows."""
        lag = self.message_lag()
        return lag if lag is None or self.rng.random() < 0.5 else lag + self.rng.random() * 0.3

    def adopt(self, connection: apsw.Connection) -> None:
        """Call it for each new connection: it belongs to the process that opened it."""
        process = HERE.get()
        if isinstance(process, Process):
            process.opened(connection)


class Process(Environment):
    """One simulated process: the environment of everything in it."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.is_alive = True
        self.is_draining = False
        self.stalled_until = 0.0
        self.has_stood_still = False  # so that what it checked may have grown old before it went on
        self.connections: list[apsw.Connection] = []
        self.traced: Callable[[apsw.Connection, str], bool] | None = None  # sees each statement before it runs,
        self._is_tracing = False  # while this holds: to show them takes time
        self._tracer = self._trace
        self.witness: Any = None  # of what its handlers do; see `handlers.Witness`
        self.died: Callable[[], None] = lambda: None  # called when it died by itself, inside a strand
        self._loop = machine.loop
        self._rng = Random(f"{machine.rng.random()} {name}")
        self._locked: set[int] = set()  # file descriptors
        self.context = Context()
        self.context.run(HERE.set, self)
        machine.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> SimTask:
        """Start a task in this process."""
        return self.context.run(self._loop.create_task, work, name=name)

    # The environment

    def wall_ms(self) -> int:
        return int((EPOCH_S + self.since_boot()) * 1000) + self.machine.wall_offset_ms

    def monotonic(self) -> float:
        return self._loop.now

    def since_boot(self) -> float:
        return self._loop.now + self.machine.slept_s

    def thread_cpu_ns(self) -> int:
        return int(self._loop.now * 1e9)

    def new_id(self) -> bytes:
        raw = bytearray(self.wall_ms().to_bytes(6, "big") + self._rng.randbytes(10))
        raw[6] = raw[6] & 0x0F | 0x70
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)

    def random_bytes(self, n: int) -> bytes:
        return self._rng.randbytes(n)

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing may block the one thread of a simulation")

    def pid(self) -> int:
        return 1_000 + self.machine.processes.index(self)

    def host(self) -> str:
        return "simulated"

    def open_locked(self, path: Path, flags: int) -> int | None:
        fd = super().open_locked(path, flags)
        if fd is not None:
            self._locked.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if fd in self._locked:  # else it fell when the process died, and the number is somebody else's by now
            self._locked.discard(fd)
            super().close(fd)

    def reserve(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)  # the room is there, and zeroing it would take longer than all that is ever written

    def datagram_socket(self) -> Any:
        return SimSocket(self)

    def signal(self) -> Any:
        return SimSignal(self, adds_up=False)

    def turns(self) -> Any:
        return SimSignal(self, adds_up=True)

    def every(self, period_s: float, tick: Callable[[], None], name: str) -> Any:
        return NEVER  # callbacks take no time here: nothing could block the loop

    def start_strand(self, name: str, steps: Iterator[None], signal: Any) -> SimStrand:
        return SimStrand(self, name, steps, signal)

    async def to_thread(self, run: Callable[..., T], *args: Any) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()
        self.later(self._call, answer, run, args)
        return await answer

    def _call(self, answer: asyncio.Future[Any], run: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            found = run(*args)
        except BaseException as exc:  # noqa: BLE001 - whoever asked gets it
            self.later(_settle, answer, None, exc)
        else:
            self.later(_settle, answer, found, None)

    def later(self, run: Callable[..., object], *args: Any) -> None:
        """Call it as another thread of this process would: a little later."""
        self._loop.call_later(self.machine.lag(), run, *args, context=self.context)

    # Life and death

    def opened(self, connection: apsw.Connection) -> None:
        if not self.is_alive:
            connection.close()
            raise Died
        self.connections.append(connection)
        if self._is_tracing:
            connection.set_exec_trace(self._tracer)

    def trace(self, is_on: bool) -> None:
        """Show each statement to `traced` before it runs, or none."""
        if is_on is self._is_tracing:
            return
        self._is_tracing = is_on
        for connection in self.connections:
            with contextlib.suppress(apsw.ConnectionClosedError):
                connection.set_exec_trace(self._tracer if is_on else None)

    def _trace(self, runs: apsw.Cursor | apsw.Connection, sql: str, bindings: Any) -> bool:
        if not self.is_alive:
            if sql.startswith("ROLLBACK"):
                return True
            raise Died
        assert self.traced is not None
        return self.traced(runs.connection if isinstance(runs, apsw.Cursor) else runs, sql)

    def halt(self) -> None:
        """Be dead within a call: whatever of it still asks its store for something goes no further."""
        self.is_alive = False
        self.trace(True)

    def die(self) -> None:
        """Be dead from now on: whatever runs never goes on, transactions are rolled back, locks fall, nothing is tidied
        up. What belongs to the store's files is the caller's to let go of."""
        self.is_alive = False
        self._loop.freeze(self)
        for connection in self.connections:
            with contextlib.suppress(apsw.ConnectionClosedError):
                connection.set_exec_trace(None)
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                connection.close(True)
        self.connections.clear()
        for fd in list(self._locked):
            self.close(fd)


def _settle(answer: asyncio.Future[Any], found: Any, exc: BaseException | None) -> None:
    if answer.done():
        return
    if exc is None:
        answer.set_result(found)
    else:
        answer.set_exception(exc)
