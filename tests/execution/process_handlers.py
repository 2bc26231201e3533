"""Handlers that behave and misbehave in a child process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import Permanent
from mainspring.processors.context import Context
from mainspring.processors.custom import Handler


class Point(msgspec.Struct):
    x: int


def double(n: int) -> int:
    return 2 * n


vars(double)["__mainspring__"] = Handler(double, lane="process")


async def double_soon(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


def spin() -> None:
    while True:
        pass


def until_cancelled(ctx: Context) -> str:
    while not ctx.cancelled:
        time.sleep(0.001)
    return "stopped"


def describe(ctx: Context, point: Point) -> dict[str, Any]:
    return {"x": point.x, "attempt": ctx.attempt, "retry_count": ctx.retry_count, "id": str(ctx.id), "pid": os.getpid()}


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    print("last words", flush=True)
    os._exit(code)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_base(kind: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[kind](
        "out"
    )


def refuse() -> None:
    raise Permanent("never")


def unstorable() -> object:
    return object()


def talk(size: int) -> int:
    sys.stdout.write("o" * size)
    sys.stderr.write("e" * size)
    return size


def allocate(size: int) -> int:
    return len(bytearray(os.urandom(1)) * size)


def burn(seconds: float) -> float:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return time.process_time() - start


def leave_grandchild(file: str) -> int:
    """Start a process that outlives the handler and holds our stdout."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(file).write_text(str(child.pid))
    return child.pid


def leave_grandchild_and_spin(file: str) -> None:
    leave_grandchild(file)
    spin()


def fork_and_return() -> bool:
    original = os.getpid()
    if forked := os.fork():
        os.waitpid(forked, 0)
    return os.getpid() == original


def report(ctx: Context, steps: int) -> None:
    ctx.log.info("starting %d", steps)
    for step in range(1, steps + 1):
        ctx.progress(step, steps)


def stdin_and_main() -> tuple[str, str]:
    return sys.stdin.read(), os.getcwd()


def interrupt_self() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def close_everything() -> None:
    os.closerange(3, 256)


def submit_nonsense(ctx: Context, wrong_type: bool) -> Any:
    if wrong_type:
        return ctx.submit(double, 1, metadata={"a": [1]})
    return ctx.submit(double, object())


def submit(ctx: Context, n: int, now: bool) -> Any:
    return ctx.submit(double, n=n, now=now)


def large(size: int) -> bytes:
    return bytes(size)


def measure(data: bytes) -> int:
    return len(data)


def reads_pid() -> int:
    return os.getpid()


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.001)
    return "went"


def hog_until(path: str) -> str:
    """Leave no other thread of the process its turn for long."""
    while not Path(path).exists():
        sum(range(5_000_000))
    return "went"


def touch(path: str) -> None:
    Path(path).touch()
