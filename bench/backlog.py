"""What a long queue costs: submit, claim and memory with 1,000 and with 1,000,000 tasks queued or paused ahead.

    python -m bench.backlog                    minutes, a GiB of disk
    python -m bench.backlog --n 1000,100000    a tenth of that
    python -m bench.backlog --store postgres   the same on a Postgres server, which is started for it; or --server URL

Each length is measured in fresh processes (memory is a process's), over the public API alone:

- submit: 64 coroutines store more tasks behind the queue; nothing runs.
- flow: a worker takes the queue's head while a feeder stores one task at the end for each that ends, so that the length
  stays the same. A task's share is one submit, one claim out of the long queue, one run and one finish.
- paused ahead: the whole queue is paused, tasks of another type flow past it by `map`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psutil
from bench.harness import Sample, Stopwatch, cpu_of, options, run, scratch
from bench.postgres import server, store_in
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


class Place(NamedTuple):
    """Where the queue is."""

    store: str
    server: int | None  # the process that serves it, where that is one of ours: its CPU time counts too

    @contextlib.contextmanager
    def timed(self) -> Iterator[Watch]:
        """Measure a block: its time, and what it costs here and on the server."""
        pids = [self.server] if self.server else []
        before = cpu_of(pids)
        with Stopwatch() as watch:
            found = Watch(watch)
            yield found
        found.server_s = cpu_of(pids) - before


class Watch:
    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self.server_s = 0.0

    def figures(self, n: int) -> dict[str, float]:
        sample: Sample = self._stopwatch.sample(n, ours_elsewhere_s=self.server_s)
        return {
            "rate": sample.rate, "cpu_us": sample.cpu_us, "server_us": self.server_s / n * 1e6, "others": sample.others
        }  # fmt: skip


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


async def fill(place: Place, n: int) -> dict[str, float]:
    """Store n tasks that nobody runs."""
    async with opened(place.store, worker=False) as engine:
        _register(engine)
        with place.timed() as watch:
            for at in range(0, n, _PIECE):
                await engine.map(queued, [PAYLOAD] * min(_PIECE, n - at))
    return watch.figures(n) | {"bytes": await _bytes_of(place.store)}


async def _bytes_of(store: str) -> float:
    """The store's file and its log, or the tables of its schema with their indexes.

    A server looks after so many new rows first: that is over when the queue has been there for a while.
    """
    if "://" not in store:
        path = Path(store)
        return float(sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file()))
    url, _, schema = store.rpartition("schema=")
    connection = await asyncpg.connect(url.rstrip("?&"))
    try:
        await connection.execute(f"VACUUM (ANALYZE) {schema}.task")
        found = await connection.fetchval(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
            "(SELECT oid FROM pg_namespace WHERE nspname = $1)", schema
        )  # fmt: skip
    finally:
        await connection.close()
    return float(found)


async def submit(place: Place, n: int) -> dict[str, float]:
    """Store a few more behind the queue, without a worker."""
    async with opened(place.store, worker=False) as engine:
        _register(engine)

        async def one(count: int) -> None:
            for _ in range(count):
                await engine.submit(queued, PAYLOAD)

        await one(10)
        with place.timed() as watch:
            await asyncio.gather(*(one(n // SUBMITTERS) for _ in range(SUBMITTERS)))
    return watch.figures(n // SUBMITTERS * SUBMITTERS)


async def flow(place: Place, n: int) -> dict[str, float]:
    """Let n tasks flow through a queue that stays as long as it is."""
    _Flow.due = asyncio.Event()
    started = time.perf_counter()
    async with opened(place.store) as engine:
        opening_ms = (time.perf_counter() - started) * 1e3
        _register(engine)
        fed = 0
        with place.timed() as watch:
            while fed < n:
                await _Flow.due.wait()
                _Flow.due.clear()
                more = _Flow.ended // _FED_AT_ONCE * _FED_AT_ONCE - fed
                fed += more
                await engine.map(queued, [PAYLOAD] * more)
    return watch.figures(fed) | {"opening_ms": opening_ms, "rss": _rss()}


async def paused(place: Place, n: int) -> dict[str, float]:
    """With the whole queue paused, run tasks of another type past it."""
    async with opened(place.store, worker=False) as engine:
        await engine.manager.pause(type="custom:queued")
    async with opened(place.store) as engine:
        _register(engine)
        await latencies_ms(engine, min(n, 20))
        with place.timed() as watch:
            await engine.gather(await engine.map(noop, [PAYLOAD] * n))
        known = (await latencies_ms(engine, min(n, _LATENCIES)))[1]
    assert _Flow.ended == 0, "a paused task ran"
    return watch.figures(n) | {"p50_ms": statistics.median(known), "rss": _rss()}


def _rss() -> float:
    return float(psutil.Process().memory_info().rss)


_STEPS = {"fill": fill, "submit": submit, "flow": flow, "paused": paused}


# --- The report ------------------------------------------------------------------------------------------------------


def _in_child(step: str, place: Place, n: int, loop: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "bench.backlog",
        "--step",
        step,
        "--place",
        place.store,
        "--n",
        str(n),
        "--loop",
        loop,
    ]
    if place.server:
        command += ["--server-pid", str(place.server)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _measured(place: Place, length: int, runs: int, loop: str, share: int) -> Figures:
    print(f"  storing {length:,} tasks ...", file=sys.stderr, flush=True)
    found = {"fill": [_in_child("fill", place, length, loop)]}
    for step, count in (("submit", _SUBMITTED), ("flow", _FLOWED), ("paused", _FLOWED)):
        found[step] = [_in_child(step, place, count // share, loop) for _ in range(runs)]
    return found


def _rows(report: Report, length: int, found: Figures, base: Figures) -> None:
    """Add the rows of one length; all but the base itself are judged against it."""
    filled = found["fill"][0]
    report.add(
        Row(
            what="fill", n=length, values=[filled["rate"]], unit="tasks/s", cpu_us=_cpu(found["fill"]),
            note=f"{filled['bytes'] / 2**20:,.0f} MiB; opening it takes {_median(found['flow'], 'opening_ms'):,.0f} ms",
        )
    )  # fmt: skip
    for step, name in (("submit", "submit"), ("flow", "flow"), ("paused", "flow past paused ones")):
        report.add(
            Row(
                what=name, n=length, values=[one["rate"] for one in found[step]], unit="tasks/s",
                cpu_us=_cpu(found[step]), others=_median(found[step], "others"),
                **_limit(found, base, sum(_cpu(found[step]).values()) / sum(_cpu(base[step]).values()), _CPU),
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


def _cpu(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    here, there = _median(figures, "cpu_us"), _median(figures, "server_us")
    return {"here": here} | ({"server": there} if there else {})


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
    parser.add_argument("--store", choices=("file", "postgres"), default="file", help="where the queue is")
    parser.add_argument("--server", default=None, help="address of a server; schemas bench_backlog_... are made in it")
    parser.add_argument("--step", choices=sorted(_STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--server-pid", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _parsed()
    if given.step:
        place = Place(given.place, given.server_pid)
        print(json.dumps(run(lambda: _STEPS[given.step](place, given.n[0]), given.loop)))
        return
    with scratch(given.folder) as folder, contextlib.ExitStack() as stack:
        report = Report("backlog", "A long queue: submit, claim, memory", folder, given.loop, given.out)
        if given.server or given.store == "postgres":
            url, pid = stack.enter_context(server(given.server, folder))
            places = {length: Place(store_in(url, f"bench_backlog_{length}"), pid) for length in given.n}
        else:
            places = {length: Place(str(folder / f"{length}.db"), None) for length in given.n}
        found = {length: _measured(places[length], length, given.runs, given.loop, given.share) for length in given.n}
        for length in given.n:
            _rows(report, length, found[length], found[given.n[0]])
        report.finish()


if __name__ == "__main__":
    main()
