"""A flood of submits, and a machine that strangers keep busy: what is refused, what waits, and what it costs.

    python -m bench.overload                 1,000,000 submits against a slow handler, minutes
    python -m bench.overload --n 10000       a quick look

Flood: coroutines submit without end to a queue of 1,000 whose handler takes 10 ms. Each submit is stored or refused
with `QueueFull`, and none is lost: what was stored is what ends. Memory of the process is read on the way. The same
number of items goes through `map`, which takes them as room appears, with a handler that does nothing.

Strangers: processes that have nothing to do with the engine keep all cores busy, with `max_cpu_usage=0.9`. What is
queued then does not start and says why, `schedule_task` refuses, and both go on by themselves when they are gone. On a
machine that is busy without them, it cannot be told when that was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
from bench.harness import options, run, scratch
from bench.report import Report, Row

from mainspring import (
    Engine,
    EngineConfig,
    InsufficientResources,
    QueueFull,
    SchedulerConfig,
    Task,
    TaskHandle,
    TaskManagerConfig,
    TaskType,
)
from mainspring.config import cores
from mainspring.tasks import Custom

_MIB = 1 << 20
_QUEUE = 1_000
_SUBMITTERS = 64
_SLOW_S = 0.01
_MOST_MIB = 64.0
_LOOK_S = 0.05
_MARK = 0.9
_QUIET_S = 10.0
_START = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if (child := os.fork()) == 0:
        while True: pass
    os.kill(child, signal.SIGSTOP)
    print(child, end=" ")
print()
"""


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / _MIB


@contextlib.asynccontextmanager
async def _opened(path: Path, max_cpu_usage: float | None = None) -> AsyncIterator[Engine]:
    limits = SchedulerConfig(max_cpu_usage=max_cpu_usage)
    engine = Engine(path, EngineConfig(manager=TaskManagerConfig(queue_size=_QUEUE), scheduler=limits))

    @engine.task(name="slow")
    async def slow(n: int) -> int:
        await asyncio.sleep(_SLOW_S)  # it stands for a service that is slow, which is what is measured here
        return n

    @engine.task(name="quick")
    async def quick(n: int) -> int:
        return n

    async with engine:
        yield engine


async def flood(path: Path, n: int) -> dict[str, float]:
    """Return seconds, what was stored, refused and completed, and by how many MiB the process grew."""
    counts = {"stored": 0, "refused": 0}
    async with _opened(path) as engine:
        slow = engine.executor.handlers["custom:slow"].function

        async def submit(n: int) -> None:
            for number in range(n):
                try:
                    await engine.submit(slow, number)
                except QueueFull:
                    counts["refused"] += 1
                else:
                    counts["stored"] += 1

        await submit(_SUBMITTERS)
        before, began = _resident_mib(), time.perf_counter()
        shares = [n // _SUBMITTERS + (i < n % _SUBMITTERS) for i in range(_SUBMITTERS)]
        await asyncio.gather(*(submit(share) for share in shares))
        took, grown = time.perf_counter() - began, _resident_mib() - before
        while (ended := await _completed(engine)) < counts["stored"]:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
    return {"seconds": took, "grown": grown, "completed": ended, **counts}


async def _completed(engine: Engine) -> int:
    return int((await engine.manager.stats()).get("completed", 0))


async def squeezed(path: Path, n: int) -> tuple[float, float]:
    """Return seconds until `map` had all items in the store, and by how many MiB the process grew."""
    async with _opened(path) as engine:
        quick = engine.executor.handlers["custom:quick"].function
        await engine.gather(await engine.map(quick, range(_QUEUE)))
        before, began = _resident_mib(), time.perf_counter()
        for at in range(0, n, 10 * _QUEUE):  # its handles are not kept
            await engine.map(quick, range(at, min(n, at + 10 * _QUEUE)))
        return time.perf_counter() - began, _resident_mib() - before


@contextlib.contextmanager
def _strangers() -> Iterator[list[int]]:
    """Start processes that can keep all cores busy, stopped; children of this one would count as load of its own."""
    with subprocess.Popen([sys.executable, "-c", _START, str(2 * cores())], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        strangers = [int(number) for number in parent.stdout.readline().split()]
    try:
        yield strangers
    finally:
        _tell(strangers, signal.SIGKILL)


def _tell(processes: list[int], what: signal.Signals) -> None:
    for number in processes:
        os.kill(number, what)


async def beside_strangers(path: Path) -> dict[str, float]:
    """Return after how many seconds what is queued is held back, and after how many it goes on."""
    with _strangers() as strangers:
        async with _opened(path, _MARK) as engine:
            quick = engine.executor.handlers["custom:quick"].function
            held: list[TaskHandle] = []

            async def is_refused() -> bool:
                try:
                    await engine.scheduler.schedule_task(
                        Task(task_type=TaskType.custom("quick"), input=Custom({"n": 1}))
                    )
                except InsufficientResources:
                    return True
                return False

            async def is_held_back() -> bool:
                handle = await engine.submit(quick, 1)
                while not (info := await handle.info()).status.is_final and info.reason != "resources":  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
                held.append(handle)
                return not info.status.is_final

            async def has_gone_on() -> bool:
                return bool((await held[-1].info()).status.is_final)

            _tell(strangers, signal.SIGCONT)
            took = await _until(is_held_back, _QUIET_S)
            assert await _until(is_refused, _QUIET_S) < _QUIET_S
            explained = await held[-1].explain()
            assert "max_cpu_usage = 90%" in explained, explained
            await asyncio.sleep(1.0)  # for so long at least nothing starts
            assert (await held[-1].info()).started is None
            _tell(strangers, signal.SIGSTOP)
            return {"held back": took, "went on": await _until(has_gone_on, _QUIET_S)}


async def _until(is_so: Callable[[], Awaitable[bool]], at_most_s: float) -> float:
    began = time.perf_counter()
    while not await is_so():
        if time.perf_counter() - began > at_most_s:
            break
        await asyncio.sleep(_LOOK_S)
    return time.perf_counter() - began


def main() -> None:
    about = "A flood of submits, and a machine that strangers keep busy."
    given = options(about, n="1000000", runs=1).parse_args()
    with scratch(given.folder) as folder:
        report = Report("overload", "A flood of submits, and strangers", folder, given.loop, given.out)
        for n in given.n:
            for turn in range(given.runs):
                found = run(partial(flood, folder / f"flood-{n}-{turn}.db", n), given.loop)
                note = f"{found['stored']:,.0f} stored and completed, {found['refused']:,.0f} refused with QueueFull"
                assert found["completed"] == found["stored"]
                report.add(
                    Row(what="flood of submits", n=n, values=[n / found["seconds"]], unit="submits/s", note=note)
                )
                report.add(_memory("flood of submits", n, found["grown"]))
                took, grown = run(partial(squeezed, folder / f"map-{n}-{turn}.db", n), given.loop)
                report.add(Row(what="map through a queue of 1,000", n=n, values=[n / took], unit="tasks/s"))
                report.add(_memory("map through a queue of 1,000", n, grown))
        found = run(partial(beside_strangers, folder / "strangers.db"), given.loop)
        for what, seconds in found.items():
            note = f"the machine was still busy after {_QUIET_S:g} s" if seconds > _QUIET_S else ""
            report.add(Row(what=f"strangers on all cores: {what} after", n=1, values=[seconds], unit="s", note=note))
        report.finish()


def _memory(what: str, n: int, grown: float) -> Row:
    return Row(
        what=f"{what}: growth of memory", n=n, values=[grown], unit="MiB", ratio=grown / _MOST_MIB,
        against=f"{_MOST_MIB:g} MiB", goal=1.0, lower_is_better=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
