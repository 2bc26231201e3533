"""Handlers for the process lane: importable, each good or bad in one way."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mainspring import Context, Permanent


def double(n: int) -> int:
    return 2 * n


def spend(cost_is: float, ctx: Context) -> float:
    ctx.usage(cost=cost_is)
    return cost_is


def where() -> int:
    return os.getpid()


def spin(mark: str) -> None:
    """CPU-bound Python that never looks up."""
    Path(mark).touch()
    while True:
        pass


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


def leave_once(mark: str) -> str:
    """Dies the first time."""
    if not os.path.exists(mark):
        Path(mark).touch()
        os._exit(3)
    return "second time"


def until_asked(ctx: Context, mark: str) -> str:
    Path(mark).touch()
    while not ctx.cancelled:
        time.sleep(0.002)
    return "heard it"


def fail(times: int, ctx: Context) -> int:
    if ctx.attempt <= times:
        raise ValueError(f"attempt {ctx.attempt}")
    return ctx.attempt


def refuse() -> None:
    raise Permanent("never works")


def leave_by(kind: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[kind](
        "out"
    )


def parent(ctx: Context, n: int) -> list[Any]:
    """Returns handles of its children, some of them stored at once."""
    return [ctx.submit(double, i, now=bool(i % 2)) for i in range(n)]


def sums(numbers: list[int]) -> list[int]:
    """For batches."""
    return [sum(numbers) for _ in numbers]


def submits_as_declared(ctx: Context, now: bool) -> str:
    return str(ctx.submit(sums, 1, now=now, group="some").id)


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def nap(seconds: float) -> None:
    time.sleep(seconds)


def allocate(megabytes: int) -> int:
    return len(bytearray(os.urandom(1)) * (megabytes << 20))


def same(value: Any) -> Any:
    return value


def open_file() -> Any:
    return open(os.devnull)


def progress(ctx: Context, mark: str) -> None:
    ctx.progress(3, 4)
    while not os.path.exists(mark):
        time.sleep(0.002)


def line(path: str) -> None:
    """Note that it had its turn; the one named "long" goes on until there is a file "go"."""
    folder, name = os.path.split(path)
    with open(os.path.join(folder, "order"), "a") as order:
        order.write(name + "\n")
    while name == "long" and not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.002)


def starve(folder: str, times: int, mebibytes: int = 0) -> int:
    """Is killed so many times, as by a system out of memory, and counts on; then goes on until there is a file "go"."""
    tries = len(os.listdir(folder))
    Path(folder, str(tries)).touch()
    held = b"x" * (mebibytes << 20)
    if tries < times and len(held) >= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(folder + ".go"):
        time.sleep(0.002)
    return tries


def hoard(mebibytes: int, limit: int) -> int:
    """Asks for memory under a limit of its own process."""
    resource.setrlimit(resource.RLIMIT_AS, (limit << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return len(bytearray(mebibytes << 20))


def shells_out(with_program: bool) -> None:
    """Fails, after a program of its own or not."""
    if with_program:
        subprocess.run([sys.executable, "-c", f"x = b'x' * {100 << 20}"], check=True)
    raise RuntimeError("the converter is gone")


def fill_in_program(path: str) -> None:
    """The same by a program of its own."""
    subprocess.run([sys.executable, "-c", f"from {__name__} import fill; fill({path!r})"], check=True)


def fill(path: str) -> int:
    """Hold 200 MiB until there is a file FOLDER.go; tell by a file in the folder that it does."""
    held = b"x" * (200 << 20)
    Path(path).touch()
    while not os.path.exists(os.path.dirname(path) + ".go"):
        time.sleep(0.002)
    return len(held)
