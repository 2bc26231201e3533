"""Skewed work over several processes: how far the end is from the ideal, with and without what moves claims.

    python -m bench.stealing                          on a file: 2 and 3 processes, minutes
    python -m bench.stealing --work cpu --processes 2    computing in child processes, one in each process
    python -m bench.stealing --server start           on a Postgres server started for the run, or on that of a URL

Every tenth task takes a hundred times as long as the others. All are stored, then worker processes are let loose; the
clock stops when the last result is known. The ideal is all work spread evenly over all slots, which no order of
indivisible tasks quite reaches. Two orders:

- late: the long ones come last. Whoever has just run short ones claims more of them than it can begin.
- mixed: three times as many tasks in an order by chance. Rates tell rightly how little to claim ahead, so claims lie
  badly only at the end.

In each turn the same tasks run three times:

- asked: as it is. A process with nothing to do asks, and the others give up half of what they can't begin.
- unasked: nobody asks. A lane still hands back by itself, four times a second, what will not begin soon.
- kept: it does not do that either: who claimed a task runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from bench.harness import options, run, scratch
from bench.postgres import server
from bench.report import Report, Row

from mainspring import Engine, EngineConfig, StoreConfig, TaskManagerConfig
from mainspring.config import cores, is_server
from mainspring.dispatch import manager
from mainspring.execution import processes
from mainspring.processors.custom import Handler
from mainspring.store.sql.store import SqlStore

_ROOT = Path(__file__).resolve().parent.parent
_WAYS = ("asked", "unasked", "kept")
_LONG_SHARE, _LONGER = 10, 100
_MORE = {"late": 1, "mixed": 3}
_GOAL = 1.15
_WARM_UP = 20
_NEVER_S = 1e6
_SLOTS = {"waits": 2, "cpu": 1}
"""Of each process. What computes has a core, where there is one."""


def waits(seconds: float) -> None:
    """Hold a thread as whoever waits for a disk or a server does."""
    time.sleep(seconds)


def cpu(seconds: float) -> None:
    """Use so much CPU time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


vars(cpu)["__mainspring__"] = Handler(cpu, lane="process")  # what the decorator does, also where a child imports it


def durations(n: int, short_s: float, order: str, seed: int) -> list[float]:
    """Return how long each task takes."""
    more = _MORE[order]
    some = [short_s] * (n * more - n * more // _LONG_SHARE) + [short_s * _LONGER] * (n * more // _LONG_SHARE)
    if order == "mixed":
        random.Random(seed).shuffle(some)
    return some


def ideal_s(some: Sequence[float], slots: int) -> float:
    """Return how long the work takes at the least on so many slots."""
    return max(sum(some) / slots, *some)


# --- A worker process ------------------------------------------------------------------------------------------------


def _engine(store: str, folder: Path, *, worker: bool) -> Engine:
    settings = TaskManagerConfig(queue_size=None, thread_slots=_SLOTS["waits"], process_slots=_SLOTS["cpu"])
    blobs = folder / "blobs" if is_server(store) else None
    engine = Engine(store, EngineConfig(manager=settings, store=StoreConfig(blobs=blobs)), worker=worker)
    engine.task(waits)
    engine.task(lane="process")(cpu)
    return engine


def _leave_out(way: str) -> None:
    """Take out of this process what moves claims."""
    if way != "asked":
        SqlStore.ask = lambda self, lane: False  # type: ignore[method-assign]
    if way == "kept":
        manager._PACE_S = processes._LONG_S = _NEVER_S


async def _work(store: str, folder: Path) -> None:
    async with _engine(store, folder, worker=True):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


@contextlib.asynccontextmanager
async def _workers(store: str, folder: Path, n: int, way: str, loop: str) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "bench.stealing", "--store", store, "--folder", str(folder), "--way", way]
    command += ["--loop", loop]
    pipe = asyncio.subprocess.PIPE
    children = [await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=_ROOT) for _ in range(n)]
    try:
        for child in children:
            assert child.stdout is not None
            said = await child.stdout.readline()
            if said.strip() != b"ready":
                raise RuntimeError(f"a worker process did not start: it said {said!r}")
        yield
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        for child in children:
            await child.wait()


# --- The measurement -------------------------------------------------------------------------------------------------


async def makespan_s(store: str, folder: Path, work: str, some: Sequence[float], n: int, way: str, loop: str) -> float:
    """Return seconds from the moment that all may run to the last known result."""
    function = {"waits": waits, "cpu": cpu}[work]
    async with _engine(store, folder, worker=False) as engine, _workers(store, folder, n, way, loop):
        await engine.gather(await engine.map(function, [0.0] * _WARM_UP * n))
        await engine.manager.pause(type=f"custom:{work}")
        handles = await engine.map(function, some)
        began = time.perf_counter()
        await engine.manager.resume(type=f"custom:{work}")
        await engine.gather(handles)
        return time.perf_counter() - began


def _place(folder: Path, url: str | None, name: str) -> str:
    """Return the store of one run."""
    if url is None:
        return str(folder / f"{name}.db")
    return f"{url}{'&' if '?' in url else '?'}schema=bench_stealing_{name.replace('-', '_')}"


def _measure(report: Report, given: argparse.Namespace, folder: Path, url: str | None, n: int, workers: int) -> None:
    slots = workers * _SLOTS[given.work]
    if given.work == "cpu":
        slots = min(slots, cores())
    for order in given.order:
        more = _MORE[order]
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
        for turn in range(given.runs):
            some = durations(n, given.short, order, turn)
            for way in _WAYS:  # in turns, so that a loaded minute hits all
                store = _place(folder, url, f"{order}-{n}-{workers}-{turn}-{way}")
                took = run(partial(makespan_s, store, folder, given.work, some, workers, way, given.loop), given.loop)
                found[way].append((took, took / ideal_s(some, slots)))
        for way, pairs in found.items():
            _add(report, f"{order}, {workers} processes, {way}", n * more, pairs, _GOAL if way == "asked" else None)


def _add(report: Report, what: str, n: int, pairs: Sequence[tuple[float, float]], goal: float | None) -> None:
    ratio = statistics.median(ratio for _, ratio in pairs)
    note = f"ratios {', '.join(f'{ratio:.2f}' for _, ratio in pairs)}"
    report.add(
        Row(
            what=what, n=n, values=[took for took, _ in pairs], unit="s", ratio=ratio, against="the ideal", goal=goal,
            lower_is_better=True, note=note,
        )
    )  # fmt: skip


def _parsed() -> argparse.Namespace:
    parser = options("Skewed work over several processes.", n="240")
    parser.add_argument("--work", default="waits", choices=sorted(_SLOTS), help="what the tasks do")
    parser.add_argument("--short", default=0.002, type=float, help="seconds of a short task; a long one has 100 times")
    parser.add_argument("--order", nargs="+", default=[*_MORE], choices=[*_MORE], help="where the long tasks are")
    parser.add_argument("--processes", default=[2, 3], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--server", default=None, help="address of a Postgres server, or `start`")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _parsed()
    if given.way:
        _leave_out(given.way)
        run(partial(_work, given.store, given.folder), given.loop)
        return
    with scratch(given.folder) as folder, contextlib.ExitStack() as stack:
        url = None
        if given.server:
            url, _ = stack.enter_context(server(None if given.server == "start" else given.server, folder))
        title = f"Skewed work ({given.work}): from may run to all known"
        report = Report("stealing", title, folder, given.loop, given.out)
        for n in given.n:
            for workers in given.processes:
                _measure(report, given, folder, url, n, workers)
        report.finish()


if __name__ == "__main__":
    main()
