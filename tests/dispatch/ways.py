"""Handlers that misbehave, each in one way and in every lane, and their neighbours. Marks are left beside a path."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring.processors.base import Lane
from mainspring.processors.context import current

LEAK_BYTES = 96 << 20
FLOOD_BYTES = 4 << 20
SLOTS = {"async": 4, "thread": 2, "process": 2}
_leaked: list[bytearray] = []


class Odd(BaseException):
    """Neither an Exception nor one that Python knows."""


def began(mark: str) -> None:
    Path(f"{mark}.began").write_text(str(os.getpid()))


def ended(mark: str) -> None:
    Path(f"{mark}.ended").touch()


def may_end(mark: str) -> bool:
    return os.path.exists(f"{mark}.go")


# Those that kill


def segfault(mark: str) -> None:
    began(mark)
    ctypes.string_at(0)


def leave(mark: str) -> None:
    began(mark)
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


def killed(mark: str) -> None:
    """As the system does when memory runs out.

    A peak below that of the process which started this one is not told apart from it, so this goes above it.
    """
    began(mark)
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    large = bytearray(os.urandom(1)) * (inherited + LEAK_BYTES)
    os.kill(os.getpid(), signal.SIGKILL if large else 0)


def closes_all(mark: str) -> None:
    """Closes what is not its own: every descriptor of the process that it runs in."""
    began(mark)
    os.closerange(3, 256)


# Those that harm


def deaf(mark: str) -> None:
    began(mark)
    while not may_end(mark):
        time.sleep(0.005)
    ended(mark)


async def deaf_async(mark: str) -> None:
    began(mark)
    while not may_end(mark):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.005)
    ended(mark)


def blocks(mark: str) -> tuple[int, int]:
    """Returns how far a neighbour was when this began and when it ended."""
    began(mark)
    before = os.path.getsize(f"{mark}.neighbour.ticks")
    time.sleep(0.3)
    return before, os.path.getsize(f"{mark}.neighbour.ticks")


def leaks(mark: str) -> int:
    began(mark)
    _leaked.append(bytearray(os.urandom(1)) * LEAK_BYTES)
    return os.getpid()


def forks(mark: str) -> int:
    """Leaves a process behind, and returns which."""
    began(mark)
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid


def hides(mark: str) -> int:
    """Leaves a daemon behind: a process in a session of its own, without a parent that lives. Returns which."""
    began(mark)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(write, b"%d" % os.getpid())
        os.closerange(0, 256)
        time.sleep(60)
        os._exit(0)
    os.waitpid(pid, 0)
    found = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    return found


def escapes(mark: str) -> int:
    """Forks, and lets the copy return as well."""
    began(mark)
    return os.fork()


def escapes_late(mark: str) -> int:
    return escapes(mark)


async def escapes_late_async(mark: str) -> int:
    """The same between two waits: the copy would go on with the loop."""
    await asyncio.sleep(0)
    pid = escapes(mark)
    await asyncio.sleep(0)
    return pid


def asks(mark: str) -> str:
    """Forks, and lets the copy ask its engine for something; returns what became of that."""
    began(mark)
    context = current.get()
    assert context is not None
    pid = os.fork()
    if not pid:
        told = []
        for now in (True, False):
            try:
                context.submit(echo_in_process, 1, now=now)
            except BaseException as exc:  # noqa: BLE001 - a copy that goes on would do so with the loop
                told.append(f"{type(exc).__name__}: {exc}")
        context.progress(1, 2)
        context.log.warning("the copy of %s", mark)
        Path(f"{mark}.told").write_text("\n".join(told))
        os._exit(0)
    os.waitpid(pid, 0)
    return Path(f"{mark}.told").read_text()


def garbage(mark: str) -> Any:
    began(mark)
    return open(os.devnull)


def raises(mark: str) -> None:
    began(mark)
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "odd": Odd}[mark.rpartition("-")[2]]("out")


async def exits_within_async(mark: str) -> None:
    """Ends the program from an asyncio task of its own, as whoever awaits several things at once may do."""
    began(mark)

    await asyncio.gather(_leaves(), asyncio.sleep(60))


async def exits_alone_async(mark: str) -> None:
    """The same, awaiting nothing else: asyncio, which cancels all there is then, leaves nothing of the reason."""
    began(mark)
    await asyncio.gather(_leaves())


async def _leaves() -> None:
    sys.exit("out")


def exits_within(mark: str) -> None:
    asyncio.run(exits_within_async(mark))


class Trap:
    """Raises, whatever it is asked."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        sys.exit("out")

    __repr__ = __str__ = __class__.fget  # type: ignore[attr-defined]


class Snare(Exception):
    """Raises while it is told."""

    __cause__ = property(lambda self: sys.exit("out"))


def traps(mark: str) -> Any:
    """Returns or raises what ends the program when it is looked at."""
    began(mark)
    if mark.endswith("raised"):
        raise Snare("in a snare")
    return [Trap()]


def floods(mark: str) -> None:
    """Prints and logs megabytes."""
    began(mark)
    context = current.get()
    assert context is not None
    for _ in range(FLOOD_BYTES // 1_000):
        print("x" * 999)
        context.log.info("%s", "y" * 999)


def says(mark: str) -> None:
    began(mark)
    with contextlib.suppress(OSError):
        print(f"said {mark}", file=sys.stderr, flush=True)


def closes_output(mark: str) -> None:
    began(mark)
    os.close(1)
    os.close(2)


def _take_all(mark: str) -> list[int]:
    opened: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    os.close(opened.pop())
    Path(f"{mark}.full").touch()
    opened.append(os.open(os.devnull, os.O_RDONLY))
    return opened


def exhausts(mark: str) -> int:
    """Opens files until no more can be, and holds them until it may end."""
    began(mark)
    opened = _take_all(mark)
    while not may_end(mark):
        time.sleep(0.005)
    for fd in opened:
        os.close(fd)
    return len(opened)


async def exhausts_async(mark: str) -> int:
    began(mark)
    opened = _take_all(mark)
    while not may_end(mark):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    for fd in opened:
        os.close(fd)
    return len(opened)


WAYS: dict[str, Callable[[str], Any]] = {
    way.__name__: way
    for way in (
        segfault, leave, killed, closes_all, deaf, blocks, leaks, forks, hides, escapes, escapes_late, asks, garbage,
        raises, exits_within, traps, floods, closes_output, exhausts, says,
    )
}  # fmt: skip
_ASYNC = {
    "deaf": deaf_async,
    "escapes_late": escapes_late_async,
    "exits_within": exits_within_async,
    "exits_alone": exits_alone_async,
    "exhausts": exhausts_async,
}


async def in_loop(way: str, mark: str) -> Any:
    if way in _ASYNC:
        return await _ASYNC[way](mark)
    return WAYS[way](mark)


def in_thread(way: str, mark: str) -> Any:
    return WAYS[way](mark)


def in_process(way: str, mark: str) -> Any:
    return WAYS[way](mark)


# Neighbours


async def echo_in_loop(n: int) -> int:
    return n


def echo_in_thread(n: int) -> int:
    return n


def echo_in_process(n: int) -> int:
    return n


async def holds(mark: str) -> int:
    """Runs, and makes a mark grow, until it may end."""
    began(mark)
    ticks = os.open(f"{mark}.ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while not may_end(mark):
        os.write(ticks, b".")
        await asyncio.sleep(0.01)
    os.close(ticks)
    return os.getpid()


LANES: dict[Lane, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "async": (in_loop, echo_in_loop),
    "thread": (in_thread, echo_in_thread),
    "process": (in_process, echo_in_process),
}
