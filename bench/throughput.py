"""Durable no-op tasks a second, from submit to the known result, with `synchronous=FULL` and every default.

    python -m bench.throughput                        10,000 and 100,000 tasks, three runs each
    python -m bench.throughput --n 2000 --runs 1      a quick look

Three ways in: `map`; 64 coroutines that each await a result before the next submit; and both again with the worker in a
second process on the same file. `map` takes turns with raw SQLite, which stores, claims and finishes as many rows, 256
in a commit, as one writes it by hand and as lean as it gets (`bench.reference`). How to read it: bench/README.md.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bench.harness import PEER_RATE, Sample, Stopwatch, cpu_of, options, percentile, run, scratch
from bench.reference import sqlite_by_hand, sqlite_steps
from bench.report import Report, Row, row_of
from bench.subject import SUBMITTERS, by_map, by_submitters, latencies_ms, opened
from bench.worker import worker_beside

from mainspring import Engine

Way = Callable[[Engine, int], Awaitable[None]]
_WAYS: dict[str, Way] = {"map": by_map, f"{SUBMITTERS} submitters": by_submitters}
_LIMITS = {"map": (8.0, 15.0), f"{SUBMITTERS} submitters": (5.0, 10.0)}
_TWO_PROCESSES = (3.0, 5.0)
_BY_HAND = "raw SQLite by hand"
_SQLITE = {_BY_HAND: sqlite_by_hand, "the leanest raw SQLite": sqlite_steps}
_BATCH = 256
_OF_SQLITE = 0.4
_WARM_UP = 200
_LATENCIES = 300
_AGAINST = f"the recorded {PEER_RATE:,.0f} tasks/s of the best durable peers, measured on another day"


async def one_process(path: Path, way: Way, n: int) -> Sample:
    """Time n tasks through a fresh store."""
    async with opened(path) as engine:
        await way(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await way(engine, n)
    return watch.sample(n)


async def two_processes(path: Path, way: Way, n: int, loop: str) -> tuple[Sample, float]:
    """Time n tasks with the worker in another process; also return that one's CPU microseconds a task."""
    async with worker_beside(path, loop) as pid, opened(path, worker=False) as engine:
        await way(engine, min(n, _WARM_UP))
        before = cpu_of([pid])
        with Stopwatch() as watch:
            await way(engine, n)
        spent = cpu_of([pid]) - before
    return watch.sample(n, ours_elsewhere_s=spent), spent / n * 1e6


async def latency(path: Path, loop: str | None, n: int) -> list[float]:
    """Return milliseconds from submit to known result on an idle system; with a loop, the worker is another process."""
    if loop is None:
        async with opened(path) as engine:
            await latencies_ms(engine, min(n, 20))
            return (await latencies_ms(engine, n))[1]
    async with worker_beside(path, loop), opened(path, worker=False) as engine:
        await latencies_ms(engine, min(n, 20))
        return (await latencies_ms(engine, n))[1]


def _throughput(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    sqlite: dict[str, list[Sample]] = {name: [] for name in _SQLITE}
    for name, way in _WAYS.items():
        samples = []
        for turn in range(runs):
            samples.append(run(partial(one_process, folder / f"one-{turn}.db", way, n), loop))
            _clear(folder)
            for raw, steps in _SQLITE.items() if way is by_map else ():
                sqlite[raw].append(steps(folder / f"raw-{turn}.db", "full", n, _BATCH))
                _clear(folder)
        report.add(_row(f"{name}, one process", samples, {}, _LIMITS[name]))
        if way is by_map:
            _beside_sqlite(report, samples, sqlite)
    for name, way in _WAYS.items():
        pairs = []
        for turn in range(runs):
            pairs.append(run(partial(two_processes, folder / f"two-{turn}.db", way, n, loop), loop))
            _clear(folder)
        worker = {"worker": [spent for _, spent in pairs]}
        report.add(_row(f"{name}, two processes", [sample for sample, _ in pairs], worker, _TWO_PROCESSES))


def _beside_sqlite(report: Report, ours: list[Sample], sqlite: dict[str, list[Sample]]) -> None:
    for name, samples in sqlite.items():
        report.add(row_of(f"{name}, {_BATCH} a commit", samples))
        ratio = statistics.median(one.rate / raw.rate for one, raw in zip(ours, samples, strict=True))
        goal = _OF_SQLITE if name == _BY_HAND else None
        report.add(row_of(f"map, beside {name}", ours, ratio=ratio, against=f"{name} in the same turn", goal=goal))


def _row(what: str, samples: list[Sample], elsewhere: dict[str, list[float]], limits: tuple[float, float]) -> Row:
    ratio = statistics.median(sample.rate for sample in samples) / PEER_RATE
    return row_of(what, samples, elsewhere, ratio=ratio, against=_AGAINST, floor=limits[0], goal=limits[1])


def _clear(folder: Path) -> None:
    """Throw the stores of the last run away, so that their pages are not written back during the next one."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _latency(report: Report, folder: Path, n: int, loop: str) -> None:
    here = run(partial(latency, folder / "here.db", None, n), loop)
    there = run(partial(latency, folder / "there.db", loop, n), loop)
    report.add(Row(what="latency p50, one process", n=n, values=[percentile(here, 0.5)], unit="ms"))
    ratio = percentile(there, 0.5) / percentile(here, 0.5)
    report.add(
        Row(
            what="latency p50, two processes", n=n, values=[percentile(there, 0.5)], unit="ms", ratio=ratio,
            against="one process (latency)", goal=2.0, lower_is_better=True,
            note=f"p99 {percentile(there, 0.99):.2f} ms; one process {percentile(here, 0.99):.2f} ms",
        )
    )  # fmt: skip


def main() -> None:
    given = options("Durable no-op tasks a second.", n="10000,100000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("throughput", "Durable no-op tasks: submit to known result", folder, given.loop, given.out)
        report.remarks.append(
            "The ratio is against a recorded figure, good for orientation only; `python -m bench.peers` measures peers "
            "and us in one run."
        )
        for n in given.n:
            _throughput(report, folder, n, given.runs, given.loop)
        _latency(report, folder, min(_LATENCIES, *given.n), given.loop)
        report.finish()


if __name__ == "__main__":
    main()
