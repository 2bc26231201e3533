"""What a long queue costs: submit, claim and memory with 1,000 and with 1,000,000 tasks queued or paused ahead.

    python -m bench.backlog                    minutes, a GiB of disk
    python -m bench.backlog --n 1000,100000    a tenth of that

Each length is measured in fresh processes (memory is a process's), over the public API alone:

- submit: 64 coroutines store more tasks behind the queue; nothing runs.
- flow: a worker takes the queue's head while a feeder stores one task at the end for each that ends, so that the length
  stays the same. A task's share is one submit, one claim out of the long queue, one run and one finish.
- paused ahead: the whole queue is paused, tasks of another type flow past it by `map`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from bench.harness import Stopwatch, options, run, scratch
from bench.report import Report, Row
from bench.subject import PAYLOAD, SUBMITTERS, latencies_ms, noop, opened

from mainspring import Engine

_PIECE = 50_000
"""Tasks stored by one `map` while filling: their handles are dropped after each, so that memory is the engine's own."""
_SMALL, _LARGE = 1_000, 1_000_000
_SUBMITTED = 3_000
_FLOWED = 10_000
_FED_AT_ONCE = 250
_LATENCIES = 100
_MEMORY_MIB = 64.0
_CPU = ("CPU time a task at the first length (submit, flow)", 1.5)
_P50 = ("p50 at the first length (latency)", 1.5)
_MEMORY = (f"growth over the {_MEMORY_MIB:.0f} MiB allowed (memory)", 1.0)
Figures = dict[str, list[dict[str, float]]]


async def queued(text: str) -> str:
    """The type that the long queue is made of."""
    _Flow.ended += 1
    if _Flow.ended % _FED_AT_ONCE == 0:
        _Flow.due.set()
    return text


class _Flow:
    """How many queued tasks have run in this process, and the feeder's wake-up."""

    ended = 0
    due = asyncio.Event()


def _register(engine: Engine) -> None:
    engine.task(timeout=30)(queued)


# --- What runs in a process of its own; each returns figures for the report ------------------------------------------


async def fill(path: Path, n: int) -> dict[str, float]:
    """Store n tasks that nobody runs."""
    async with opened(path, worker=False) as engine:
        _register(engine)
        with Stopwatch() as watch:
            for at in range(0, n, _PIECE):
                await engine.map(queued, [PAYLOAD] * min(_PIECE, n - at))
    sample = watch.sample(n)
    return {"rate": sample.rate, "cpu_us": sample.cpu_us, "bytes": _bytes_of(path)}


async def submit(path: Path, n: int) -> dict[str, float]:
    """Store a few more behind the queue, without a worker."""
    async with opened(path, worker=False) as engine:
        _register(engine)

        async def one(count: int) -> None:
            for _ in range(count):
                await engine.submit(queued, PAYLOAD)

        await one(10)
        with Stopwatch() as watch:
            await asyncio.gather(*(one(n // SUBMITTERS) for _ in range(SUBMITTERS)))
    sample = watch.sample(n // SUBMITTERS * SUBMITTERS)
    return {"rate": sample.rate, "cpu_us": sample.cpu_us, "others": sample.others}


async def flow(path: Path, n: int) -> dict[str, float]:
    """Let n tasks flow through a queue that stays as long as it is."""
    _Flow.due = asyncio.Event()
    started = time.perf_counter()
    async with opened(path) as engine:
        opening_ms = (time.perf_counter() - started) * 1e3
        _register(engine)
        fed = 0
        with Stopwatch() as watch:
            while fed < n:
                await _Flow.due.wait()
                _Flow.due.clear()
                more = _Flow.ended // _FED_AT_ONCE * _FED_AT_ONCE - fed
                fed += more
                await engine.map(queued, [PAYLOAD] * more)
    sample = watch.sample(fed)
    return {
        "rate": sample.rate,
        "cpu_us": sample.cpu_us,
        "others": sample.others,
        "opening_ms": opening_ms,
        "rss": _rss(),
    }


async def paused(path: Path, n: int) -> dict[str, float]:
    """With the whole queue paused, run tasks of another type past it."""
    async with opened(path, worker=False) as engine:
        await engine.manager.pause(type="custom:queued")
    async with opened(path) as engine:
        _register(engine)
        await latencies_ms(engine, min(n, 20))
        with Stopwatch() as watch:
            await engine.gather(await engine.map(noop, [PAYLOAD] * n))
        sample = watch.sample(n)
        known = (await latencies_ms(engine, min(n, _LATENCIES)))[1]
    assert _Flow.ended == 0, "a paused task ran"
    return {
        "rate": sample.rate, "cpu_us": sample.cpu_us, "others": sample.others,
        "p50_ms": statistics.median(known), "rss": _rss(),
    }  # fmt: skip


def _bytes_of(path: Path) -> float:
    """The store's file and its log."""
    return float(sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file()))


def _rss() -> float:
    return float(psutil.Process().memory_info().rss)


_STEPS = {"fill": fill, "submit": submit, "flow": flow, "paused": paused}


# --- The report ------------------------------------------------------------------------------------------------------


def _in_child(step: str, path: Path, n: int, loop: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "bench.backlog",
        "--step",
        step,
        "--file",
        str(path),
        "--n",
        str(n),
        "--loop",
        loop,
    ]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _measured(folder: Path, length: int, runs: int, loop: str, share: int) -> Figures:
    path = folder / f"{length}.db"
    print(f"  storing {length:,} tasks ...", file=sys.stderr, flush=True)
    found = {"fill": [_in_child("fill", path, length, loop)]}
    for step, count in (("submit", _SUBMITTED), ("flow", _FLOWED), ("paused", _FLOWED)):
        found[step] = [_in_child(step, path, count // share, loop) for _ in range(runs)]
    return found


def _rows(report: Report, length: int, found: Figures, base: Figures) -> None:
    """Add the rows of one length; all but the base itself are judged against it."""
    filled = found["fill"][0]
    report.add(
        Row(
            what="fill", n=length, values=[filled["rate"]], unit="tasks/s", cpu_us={"here": filled["cpu_us"]},
            note=f"{filled['bytes'] / 2**20:,.0f} MiB; opening it takes {_median(found['flow'], 'opening_ms'):,.0f} ms",
        )
    )  # fmt: skip
    for step, name in (("submit", "submit"), ("flow", "flow"), ("paused", "flow past paused ones")):
        report.add(
            Row(
                what=name, n=length, values=[one["rate"] for one in found[step]], unit="tasks/s",
                cpu_us={"here": _median(found[step], "cpu_us")}, others=_median(found[step], "others"),
                **_limit(found, base, _median(found[step], "cpu_us") / _median(base[step], "cpu_us"), _CPU),
            )
        )  # fmt: skip
    p50 = [one["p50_ms"] for one in found["paused"]]
    slower = statistics.median(p50) / _median(base["paused"], "p50_ms")
    report.add(
        Row(what="latency p50 past paused ones", n=length, values=p50, unit="ms", **_limit(found, base, slower, _P50))
    )
    more = (_rss_of(found) - _rss_of(base)) / (_MEMORY_MIB * 2**20)
    report.add(
        Row(
            what="memory of the worker", n=length, values=[_rss_of(found) / 2**20], unit="MiB",
            **_limit(found, base, more, _MEMORY),
        )
    )  # fmt: skip


def _limit(found: Figures, base: Figures, ratio: float, limit: tuple[str, float]) -> dict[str, Any]:
    if found is base:
        return {}
    return {"ratio": ratio, "against": limit[0], "goal": limit[1], "lower_is_better": True}


def _rss_of(figures: Figures) -> float:
    return max(one["rss"] for step in ("flow", "paused") for one in figures[step])


def _median(figures: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in figures)


def _parsed() -> argparse.Namespace:
    parser = options("What a long queue costs.", n=f"{_SMALL},{_LARGE}", runs=1)
    parser.add_argument("--share", default=1, type=int, help="measure with a share of the usual tasks: 10 is a tenth")
    parser.add_argument("--step", choices=sorted(_STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _parsed()
    if given.step:
        print(json.dumps(run(lambda: _STEPS[given.step](given.file, given.n[0]), given.loop)))
        return
    with scratch(given.folder) as folder:
        report = Report("backlog", "A long queue: submit, claim, memory", folder, given.loop, given.out)
        found = {length: _measured(folder, length, given.runs, given.loop, given.share) for length in given.n}
        for length in given.n:
            _rows(report, length, found[length], found[given.n[0]])
        report.finish()


if __name__ == "__main__":
    main()
