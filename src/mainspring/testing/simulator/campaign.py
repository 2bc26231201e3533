"""Many seeds at once, over child processes."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import msgspec

from mainspring.children.child import Child, Exit, Spawner
from mainspring.children.frames import BlockingPipe
from mainspring.children.parent import die_with_parent, take_pipe
from mainspring.environment import SYSTEM
from mainspring.errors import InternalError
from mainspring.testing.simulator.run import simulate

_CHUNK = 20
"""Seeds that a child is given at once."""
_LIFE = 1_000
"""Seeds after which a child is replaced: what dies in a simulation is never tidied up, and some of it stays."""
_GRACE_S = 5.0
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from mainspring.testing.simulator.campaign import serve; serve()"


class Ran(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a run when it is over."""

    seed: int
    violations: list[str]
    tasks: int
    steps: int
    virtual_s: float
    cpu_s: float


class _Order(msgspec.Struct, frozen=True, array_like=True):
    parent_pid: int
    seeds: list[int]


def run_one(seed: int) -> Ran:
    began = SYSTEM.thread_cpu_ns()
    outcome = simulate(seed)
    cpu_s = (SYSTEM.thread_cpu_ns() - began) / 1e9
    found = [str(violation) for violation in outcome.violations]
    return Ran(seed, found, outcome.tasks, outcome.steps, outcome.seconds, cpu_s)


async def run_many(seeds: range, jobs: int, ran: Callable[[Ran], None]) -> None:
    """Run all seeds in `jobs` child processes; `ran` is told of each, in no order.

    Raises: InternalError: a child died; its message names a seed that it was at.
    """
    chunks = iter([list(seeds[at : at + _CHUNK]) for at in range(0, len(seeds), _CHUNK)])
    spawner = Spawner()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(jobs, len(seeds))):
                group.create_task(_work(spawner, chunks, ran))
    finally:
        spawner.close()


async def _work(spawner: Spawner, chunks: Iterator[list[int]], ran: Callable[[Ran], None]) -> None:
    """Keep one child after the other at work until there are no chunks left."""
    left = True
    while left:
        news: asyncio.Queue[bytes | Exit] = asyncio.Queue()
        child = await spawner.spawn(
            # Without ranges no traceback marks its columns, for which each line would be parsed.
            (sys.executable, "-P", "-X", "no_debug_ranges", "-c", _PROGRAM, *sys.path),
            on_frame=news.put_nowait,
            on_exit=news.put_nowait,
            keep_output=4_096,
        )
        try:
            left = await _feed(child, news, chunks, ran)
        finally:
            await child.end(_GRACE_S)


async def _feed(
    child: Child, news: asyncio.Queue[bytes | Exit], chunks: Iterator[list[int]], ran: Callable[[Ran], None]
) -> bool:
    """Give a child chunks until it has lived long enough; returns whether there are more."""
    for _ in range(_LIFE // _CHUNK):
        seeds = next(chunks, None)
        if seeds is None:
            return False
        child.send(msgspec.msgpack.encode(_Order(os.getpid(), seeds)))
        for seed in seeds:
            came = await news.get()
            if isinstance(came, Exit):
                raise InternalError(f"the child process that ran seed {seed} {came}; {came.output}")
            ran(msgspec.msgpack.decode(came, type=Ran))
    return True


def serve() -> None:
    """What a child does: run what it is given until its pipe is closed."""
    pipe = BlockingPipe(take_pipe())
    warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that died before they began
    gc.disable()  # each run collects its own
    while (frames := pipe.receive()) is not None:
        for frame in frames:
            order = msgspec.msgpack.decode(frame, type=_Order)
            die_with_parent(order.parent_pid)
            for seed in order.seeds:
                pipe.send(msgspec.msgpack.encode(run_one(seed)))
                gc.freeze()  # what is left need not be looked at again
    os._exit(0)  # nothing of the dead is to be tidied up


__all__ = ["Ran", "run_many", "run_one", "serve"]
