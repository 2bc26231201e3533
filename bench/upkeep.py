"""What an engine costs that has nothing to do, and what retention and people who look cost one that is busy.

    python -m bench.upkeep

Idle: a process with an open engine on a file, after it has run one task: how long it took to open, and what CPU time
and memory it takes while nothing happens. Its modules are compiled before, as they are in an installation. Busy: no-op
tasks while those that have ended are pruned in every sweep and a second engine asks once a second for all counts and
the newest tasks, against as many without either.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, Row, row_of
from bench.subject import by_map, noop

from mainspring import Engine, EngineConfig, StoreConfig, TaskManagerConfig

_MIB = 1 << 20
_IDLE_S = 20.0
_MOST_PERCENT, _MOST_MIB, _MOST_START_MS = 1.0, 60.0, 300.0
_GOAL = 0.8
_LOOK_S = 1.0
_LISTED = 50
_PART = 10_000
_PLAIN = StoreConfig()
_PRUNED = StoreConfig(keep_completed_s=1.0, max_completed=_PART)
_IDLE = """
import asyncio, sys, time
began = time.perf_counter()
from mainspring import Engine
engine = Engine(sys.argv[1])
@engine.task
async def noop() -> None: ...
async def main():
    async with engine:
        opened = time.perf_counter() - began
        await (await engine.submit(noop)).result()
        print(opened, time.process_time(), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def idle(path: Path, seconds: float) -> tuple[float, float, float, float]:
    """Return milliseconds from the first import to the open engine, percent of a core, MiB resident, and milliseconds
    of CPU time from the start of the process to the end of a first task.
    """
    process = _started(path)
    try:
        assert process.stdout is not None
        start_ms, cpu_ms = (float(figure) * 1e3 for figure in process.stdout.readline().split())
        watched = psutil.Process(process.pid)
        before, at = sum(watched.cpu_times()[:2]), time.perf_counter()
        time.sleep(seconds)
        used, passed = sum(watched.cpu_times()[:2]) - before, time.perf_counter() - at
        return start_ms, used / passed * 100, watched.memory_info().rss / _MIB, cpu_ms
    finally:
        process.kill()
        process.wait()


def _started(path: Path) -> subprocess.Popen[str]:
    """Start a process with an open engine; its modules are compiled once for all in a folder, as in an installation."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(path.parent / "compiled")
    return subprocess.Popen([sys.executable, "-c", _IDLE, str(path)], stdout=subprocess.PIPE, text=True, env=env)


async def _busy(path: Path, store: StoreConfig, n: int, *, is_watched: bool) -> Sample:
    config = EngineConfig(manager=TaskManagerConfig(queue_size=None), store=store)
    engine, looker = Engine(path, config), Engine(path, config, worker=False)
    engine.task(timeout=30)(noop)

    async def look() -> None:
        async with looker:
            while True:
                await looker.manager.stats()
                await looker.manager.store.list_tasks(limit=_LISTED)
                await asyncio.sleep(_LOOK_S)

    async with engine:
        await by_map(engine, _PART)
        looking = asyncio.create_task(look()) if is_watched else None
        with Stopwatch() as watch:
            for at in range(0, n, _PART):
                await by_map(engine, min(_PART, n - at))
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    return watch.sample(n)


def main() -> None:
    parser = options("What idle engines, retention and looks cost.", n="1000000")
    parser.add_argument("--seconds", default=_IDLE_S, type=float, help="how long an idle engine is watched")
    given = parser.parse_args()
    with scratch(given.folder) as folder:
        report = Report("upkeep", "Idle engines, retention and looks", folder, given.loop, given.out)
        idle(folder / "first.db", 0.0)  # it compiles the modules
        found = [idle(folder / f"{n}.db", given.seconds) for n in range(given.runs)]
        starts, shares, sizes, cpu_ms = zip(*found, strict=True)
        note = f"{statistics.median(cpu_ms):.0f} ms of CPU until a first task has ended"
        for what, values, unit, most, more in (
            ("start of an engine", starts, "ms", _MOST_START_MS, note),
            ("CPU of an idle engine", shares, "% of a core", _MOST_PERCENT, ""),
            ("memory of an idle engine", sizes, "MiB", _MOST_MIB, ""),
        ):
            ratio = statistics.median(values) / most
            report.add(
                Row(
                    what=what, n=1, values=list(values), unit=unit, ratio=ratio, against=f"{most:g} {unit}", goal=1.0,
                    lower_is_better=True, note=more,
                )
            )  # fmt: skip
        for n in given.n:
            plain, kept = [], []
            for turn in range(given.runs):  # in turns, so that a loaded minute hits both
                plain.append(run(partial(_busy, folder / f"p{n}-{turn}.db", _PLAIN, n, is_watched=False), given.loop))
                kept.append(run(partial(_busy, folder / f"k{n}-{turn}.db", _PRUNED, n, is_watched=True), given.loop))
            ratio = statistics.median(one.rate / other.rate for one, other in zip(kept, plain, strict=True))
            report.add(row_of("no-ops, map", plain))
            report.add(row_of("beside retention and looks", kept, ratio=ratio, against="as many without", goal=_GOAL))
        report.finish()


if __name__ == "__main__":
    main()
