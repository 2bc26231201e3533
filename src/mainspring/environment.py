"""The only door to time, chance, identity, threads and other processes.

Engine code asks an `Environment`; tests and the simulator hand in another one. Nothing else in the package imports
`time`, `random`, `uuid` or `threading` (the linter keeps it so; `children/` may, because it deals with processes).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

import uuid_utils

if TYPE_CHECKING:
    import asyncio
    import socket
    from pathlib import Path

Lock = threading.Lock
Random = random.Random
"""Numbers that come again with the same seed."""
T = TypeVar("T")


class Original:
    """Something that notices when it is only a copy, in a process that was forked while it was there.

    A copy has one thread, no locks, and the original's descriptors. What is made after the fork is no copy.
    """

    is_copy = False

    def __init__(self) -> None:
        _ORIGINALS.add(self)


_ORIGINALS: Final[WeakSet[Original]] = WeakSet()


def _forked() -> None:
    for original in list(_ORIGINALS):
        original.is_copy = True


os.register_at_fork(after_in_child=_forked)


class Signal:
    """Wakes one thread; raised by one other. Raised many times before it looks, it wakes it once."""

    __slots__ = ("_lock", "_raised")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._raised = False

    def raise_(self) -> None:
        if not self._raised:
            self._raised = True
            self._lock.release()

    def wait(self) -> None:
        self._lock.acquire()
        self._raised = False


class Turns:
    """Wakes one of several threads for each time it is raised."""

    __slots__ = ("raise_", "wait")

    def __init__(self) -> None:
        semaphore = threading.Semaphore(0)
        self.raise_: Callable[[], None] = semaphore.release
        self.wait: Callable[[], object] = semaphore.acquire


class Ticker:
    """Calls a function every so often, in a thread of its own, until it is stopped."""

    def __init__(self, period_s: float, tick: Callable[[], None], name: str) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(period_s, tick), name=name, daemon=True)
        self._thread.start()

    def _run(self, period_s: float, tick: Callable[[], None]) -> None:
        while not self._stopped.wait(period_s):
            tick()

    def stop(self) -> None:
        """Return when it is called no more; from within its own call it is the last one."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


class Strand(Protocol):
    """Work beside the event loop: it goes on from each `yield` when its signal is raised."""

    async def ended(self) -> None:
        """Return when it has come to its end."""


class _ThreadStrand:
    def __init__(self, name: str, steps: Iterator[None], signal: Signal | Turns) -> None:
        self._steps = steps
        self._signal = signal
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait = self._signal.wait
        for _ in self._steps:
            wait()

    async def ended(self) -> None:
        await SYSTEM.to_thread(self._thread.join)


_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS counts sleep by the latter
ThreadEvent = threading.Event
ThreadLocal = threading.local
_sleep = time.sleep
"""Taken now: a test may put something in its place."""


class Environment:
    """The real machine. Wall clock for what is stored, monotonic for differences."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970, UTC. May jump."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""
        return time.monotonic()

    def since_boot(self) -> float:
        """Like `monotonic`, and goes on while the machine sleeps, where the system has such a clock."""
        return time.clock_gettime(_BOOTTIME)

    def thread_cpu_ns(self) -> int:
        """CPU time of the calling thread."""
        return time.thread_time_ns()

    def new_id(self) -> bytes:
        """16 bytes of a UUIDv7: ordered by time, unguessable in its random part."""
        return uuid_utils.uuid7().bytes

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # jitter, no secret

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        _sleep(seconds)

    def random_bytes(self, n: int) -> bytes:
        """Bytes that nobody can guess."""
        return os.urandom(n)

    def pid(self) -> int:
        return os.getpid()

    def host(self) -> str:
        import socket

        return socket.gethostname()

    def open_locked(self, path: Path, flags: int) -> int | None:
        """Open a file and take its lock; None when it is taken. The lock falls with `close`, or with the process."""
        import fcntl

        fd = os.open(path, flags | os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def reserve(self, fd: int, size: int) -> None:
        """Give an empty file its size, and where the system can the room on the disk for it."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)

    def datagram_socket(self) -> socket.socket:
        """A socket that takes messages of other processes on this machine at a path."""
        import socket

        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def start_thread(self, name: str, run: Callable[..., None], *args: Any) -> threading.Thread:
        """Start a daemon thread: whoever starts it also joins it in its own stop."""
        thread = threading.Thread(target=run, args=args, name=name, daemon=True)
        thread.start()
        return thread

    def every(self, period_s: float, tick: Callable[[], None], name: str) -> Ticker:
        """Call a function again and again, whatever blocks the calling thread meanwhile. Whoever starts it stops it."""
        return Ticker(period_s, tick, name)

    def thread_ident(self) -> int:
        return threading.get_ident()

    def signal(self) -> Signal:
        return Signal()

    def turns(self) -> Turns:
        return Turns()

    def start_strand(self, name: str, steps: Iterator[None], signal: Signal | Turns) -> Strand:
        """Run these steps in a thread of their own; at each `yield` it waits for the signal."""
        return _ThreadStrand(name, steps, signal)

    async def to_thread(self, run: Callable[..., T], *args: Any) -> T:
        """Return what a function that blocks returns; the loop goes on meanwhile."""
        import asyncio  # child processes do without

        return await asyncio.to_thread(run, *args)

    def on_loop(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns that runs on a loop in another thread. Blocks."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(work, loop).result()


SYSTEM: Final = Environment()
"""The environment of this process."""
HERE: Final[ContextVar[Environment]] = ContextVar("mainspring_environment", default=SYSTEM)
"""What is used where nobody hands one in. A simulation that plays several processes sets one for each."""
