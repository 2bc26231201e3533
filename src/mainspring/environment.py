"""The only door to time, chance, identity and threads.

Engine code asks an `Environment`; tests and the simulator hand in another one. Nothing else in the package imports
`time`, `random`, `uuid` or `threading` (the linter keeps it so; `children/` may, because it deals with processes).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import uuid_utils

Lock = threading.Lock


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


Semaphore = threading.Semaphore
ThreadEvent = threading.Event
ThreadLocal = threading.local


class Environment:
    """The real machine. Wall clock for what is stored, monotonic for differences."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970, UTC. May jump."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""
        return time.monotonic()

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
        time.sleep(seconds)

    def pid(self) -> int:
        return os.getpid()

    def start_thread(self, name: str, run: Callable[..., None], *args: Any) -> threading.Thread:
        """Start a daemon thread: whoever starts it also joins it in its own stop."""
        thread = threading.Thread(target=run, args=args, name=name, daemon=True)
        thread.start()
        return thread

    def thread_ident(self) -> int:
        return threading.get_ident()


SYSTEM = Environment()
"""What is used where nobody hands in another one."""
