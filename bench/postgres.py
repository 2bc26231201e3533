"""Durable no-op tasks a second on a Postgres server with its defaults, every commit synced.

    python -m bench.postgres                        10,000 tasks, three runs each
    python -m bench.postgres --n 2000 --runs 1      a quick look
    python -m bench.postgres --server URL           on a server that is there already
    python -m bench.postgres --beside               the same beside a transaction of somebody else that stays open

Without a URL a server is started for the run; it needs postgresql, as Debian calls the package. The peers on the same
kind of server are in `bench.peers`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from bench.harness import Sample, Stopwatch, options, percentile, run, scratch
from bench.report import Report, Row, row_of
from bench.servers import postgres
from bench.subject import SUBMITTERS, by_map, by_submitters, latencies_ms, opened
from bench.throughput import Way

_WAYS: dict[str, Way] = {"map": by_map, f"{SUBMITTERS} submitters": by_submitters}
_WARM_UP = 200
_LATENCIES = 300


@contextlib.contextmanager
def server(url: str | None, folder: Path) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with postgres(folder) as (started, _):
        yield started


async def timed(url: str, schema: str, blobs: Path, way: Way, n: int, beside: bool = False) -> Sample:
    """Time n tasks through a fresh schema; `beside` a transaction that sees rows as they were before the first one."""
    sign = "&" if "?" in url else "?"
    async with opened(f"{url}{sign}schema={schema}", blobs=blobs) as engine, _transaction(url, begins=beside):
        await way(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await way(engine, n)
    return watch.sample(n)


@contextlib.asynccontextmanager
async def _transaction(url: str, *, begins: bool) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    try:
        if begins:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await connection.fetch("SELECT 1 FROM pg_class LIMIT 1")
        yield
    finally:
        await connection.close()


async def latency(url: str, blobs: Path, n: int) -> list[float]:
    """Return milliseconds from submit to known result on an idle system."""
    async with opened(url, blobs=blobs) as engine:
        await latencies_ms(engine, min(n, 20))
        return (await latencies_ms(engine, n))[1]


def _beside(url: str, folder: Path, given: Any, name: str, way: Way, alone: Row) -> Row:
    """Return what it comes to while vacuum can remove nothing."""
    schemas = [f"bench_{alone.n}_{way.__name__}_{turn}_beside" for turn in range(given.runs)]
    samples = [
        run(partial(timed, url, schema, folder / "blobs", way, alone.n, beside=True), given.loop) for schema in schemas
    ]
    ratio = statistics.median(sample.rate for sample in samples) / alone.median
    return row_of(f"{name}, beside an open transaction", samples, {}, ratio=ratio, against="without it")


def main() -> None:
    parser = options("Durable no-op tasks a second on Postgres.", n="10000")
    parser.add_argument("--beside", action="store_true", help="also beside a transaction that stays open all the time")
    parser.add_argument("--server", default=None, help="address of a server; schemas bench_... are made in it")
    given = parser.parse_args()
    with scratch(given.folder) as folder, server(given.server, folder) as url:
        report = Report(
            "postgres", "Durable no-op tasks on Postgres: submit to known result", folder, given.loop, given.out
        )
        for n in given.n:
            for name, way in _WAYS.items():
                schemas = [f"bench_{n}_{way.__name__}_{turn}" for turn in range(given.runs)]
                samples = [run(partial(timed, url, schema, folder / "blobs", way, n), given.loop) for schema in schemas]
                alone = row_of(f"{name}, one process", samples, {})
                report.add(alone)
                if given.beside:
                    report.add(_beside(url, folder, given, name, way, alone))
        times = run(partial(latency, url, folder / "blobs", min(_LATENCIES, *given.n)), given.loop)
        p99 = f"p99 {percentile(times, 0.99):.2f} ms"
        report.add(Row(what="latency p50", n=len(times), values=[percentile(times, 0.5)], unit="ms", note=p99))
        report.finish()


if __name__ == "__main__":
    main()
