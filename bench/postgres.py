"""Durable no-op tasks a second on a Postgres server with its defaults, every commit synced.

    python -m bench.postgres                        10,000 tasks, three runs each, and by hand
    python -m bench.postgres --n 2000 --runs 1      a quick look
    python -m bench.postgres --server URL           on a server that is there already
    python -m bench.postgres --beside               the same beside a transaction of somebody else that stays open
    python -m bench.postgres --engines 2            what two worker processes do that one submits to, against one, and
                                                    what two plain clients gain over one on this machine

Without a URL a server is started for the run; it needs postgresql, as Debian calls the package. The peers on the same
kind of server are in `bench.peers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from bench.harness import Sample, Stopwatch, cpu_of, options, percentile, run, scratch
from bench.plain import TABLE
from bench.report import Report, Row, row_of
from bench.servers import postgres
from bench.subject import PAYLOAD, SUBMITTERS, by_map, by_submitters, latencies_ms, noop, opened, waits
from bench.throughput import Way
from bench.worker import worker_beside

from mainspring import Engine

_WAYS: dict[str, Way] = {"map": by_map, f"{SUBMITTERS} submitters": by_submitters}
_WARM_UP = 200
_LATENCIES = 300
_ROOT = Path(__file__).resolve().parent.parent
_MORE_ENGINES = 1.5
"""Two engines are to do at least so much more than one where the machine has room."""


class _Load(NamedTuple):
    """What engines are given to do."""

    name: str
    handler: Callable[[str], Awaitable[str]]
    share: int  # of the tasks of others: what waits takes its time


_SLOTS = 8
"""Of each worker: so few that two cores do for two of them with handlers that wait."""
_LOADS = (_Load("no-op", noop, 1), _Load(f"5 ms of waiting, {_SLOTS} slots", waits, 4))
_Timed = tuple[Sample, dict[str, float]]
"""With the CPU microseconds a task by who else spent them."""


@contextlib.contextmanager
def server(url: str | None, folder: Path) -> Iterator[tuple[str, int | None]]:
    """Give address and process id of a server; of one that was there already no id."""
    if url is not None:
        yield url, None
        return
    with postgres(folder) as started:
        yield started


def store_in(url: str, schema: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


async def timed(url: str, schema: str, blobs: Path, way: Way, n: int, beside: bool = False) -> Sample:
    """Time n tasks through a fresh schema; `beside` a transaction that sees rows as they were before the first one."""
    async with opened(store_in(url, schema), blobs=blobs) as engine, _transaction(url, begins=beside):
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
    async with opened(store_in(url, "bench_latency"), blobs=blobs) as engine:
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


async def with_engines(store: str, count: int, n: int, loop: str, server: int | None) -> list[_Timed]:
    """Time each load: one process submits and `count` others run it."""
    async with contextlib.AsyncExitStack() as stack:
        beside = [worker_beside(store, loop, _SLOTS) for _ in range(count)]
        workers = await asyncio.gather(*(stack.enter_async_context(one) for one in beside))
        engine = await stack.enter_async_context(opened(store, worker=False, slots=_SLOTS))
        others = {"workers": workers} | ({"server": [server]} if server else {})
        return [await _with_load(engine, load, max(1, n // load.share), others) for load in _LOADS]


async def _with_load(engine: Engine, load: _Load, n: int, others: dict[str, list[int]]) -> _Timed:
    await engine.gather(await engine.map(load.handler, [PAYLOAD] * min(n, _WARM_UP)))
    before = {name: cpu_of(pids) for name, pids in others.items()}
    with Stopwatch() as watch:
        await engine.gather(await engine.map(load.handler, [PAYLOAD] * n))
    spent = {name: cpu_of(pids) - before[name] for name, pids in others.items()}
    sample = watch.sample(n, ours_elsewhere_s=sum(spent.values()))
    return sample, {name: seconds / n * 1e6 for name, seconds in spent.items()}


def _engines(report: Report, url: str, pid: int | None, given: Any, n: int) -> None:
    """Set several engines against one, and plain clients likewise; they take turns."""
    counts = (1, given.engines)
    engines: dict[int, list[list[_Timed]]] = {count: [] for count in counts}
    clients: dict[int, list[_Timed]] = {count: [] for count in counts}
    for turn in range(given.runs):
        for count in counts:
            schema = f"bench_{n}_{turn}_{count}"
            store = store_in(url, f"{schema}_engines")
            engines[count].append(run(partial(with_engines, store, count, n, given.loop, pid), given.loop))
            clients[count].append(run(partial(plain_clients, url, f"{schema}_plain", count, n, pid), given.loop))
    for at, load in enumerate(_LOADS):
        _rows(report, load.name, "engine", {count: [turn[at] for turn in turns] for count, turns in engines.items()})
    _rows(report, "insert, claim, finish", "plain client", clients)


async def plain_clients(url: str, schema: str, count: int, n: int, server: int | None) -> _Timed:
    """Time clients without an engine that do n rows together."""
    connection = await asyncpg.connect(url)
    await connection.execute(TABLE.format(schema=schema))
    await connection.close()
    clients = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.plain", url, schema, str(number), str(n // count),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=_ROOT,
        )
        for number in range(count)
    ]  # fmt: skip
    others = {"clients": [client.pid for client in clients]} | ({"server": [server]} if server else {})
    try:
        await _heard(clients, b"ready")
        before = {name: cpu_of(pids) for name, pids in others.items()}
        with Stopwatch() as watch:
            for client in clients:
                assert client.stdin is not None
                client.stdin.write(b"go\n")
            await _heard(clients, b"done")
        done = n // count * count
        spent = {name: cpu_of(pids) - before[name] for name, pids in others.items()}
        sample = watch.sample(done, ours_elsewhere_s=sum(spent.values()))
        return sample, {name: seconds / done * 1e6 for name, seconds in spent.items()}
    finally:
        for client in clients:
            assert client.stdin is not None
            client.stdin.close()
            await client.wait()


async def _heard(clients: list[asyncio.subprocess.Process], word: bytes) -> None:
    for client in clients:
        assert client.stdout is not None
        said = await client.stdout.readline()
        if said.strip() != word:
            raise RuntimeError(f"a plain client said {said!r}, not {word!r}")


def _rows(report: Report, what: str, who: str, found: dict[int, list[_Timed]]) -> None:
    one = [sample.rate for sample, _ in found[1]]
    for count, turns in found.items():
        elsewhere = {name: [spent[name] for _, spent in turns] for name in turns[0][1]}
        samples = [sample for sample, _ in turns]
        more: dict[str, Any] = {}
        if count > 1:
            ratio = statistics.median(sample.rate / alone for sample, alone in zip(samples, one, strict=True))
            more = {"ratio": ratio, "against": "one of them", "goal": _MORE_ENGINES if who == "engine" else None}
        report.add(row_of(f"{what}, {count} {who}{'s' if count > 1 else ''}", samples, elsewhere, **more))


def main() -> None:
    parser = options("Durable no-op tasks a second on Postgres.", n="10000")
    parser.add_argument("--beside", action="store_true", help="also beside a transaction that stays open all the time")
    parser.add_argument("--server", default=None, help="address of a server; schemas bench_... are made in it")
    parser.add_argument("--engines", type=int, default=0, help="set so many worker processes against one, and no more")
    given = parser.parse_args()
    with scratch(given.folder) as folder, server(given.server, folder) as (url, pid):
        report = Report(
            "postgres", "Durable no-op tasks on Postgres: submit to known result", folder, given.loop, given.out
        )
        if given.engines > 1:
            for n in given.n:
                _engines(report, url, pid, given, n)
            report.finish()
            return
        for n in given.n:
            by_hand = [
                run(partial(plain_clients, url, f"bench_{n}_plain_{turn}", 1, n, pid), given.loop)
                for turn in range(given.runs)
            ]
            elsewhere = {name: [spent[name] for _, spent in by_hand] for name in by_hand[0][1]}
            plain = row_of("insert, claim, finish by hand", [sample for sample, _ in by_hand], elsewhere)
            report.add(plain)
            for name, way in _WAYS.items():
                schemas = [f"bench_{n}_{way.__name__}_{turn}" for turn in range(given.runs)]
                samples = [run(partial(timed, url, schema, folder / "blobs", way, n), given.loop) for schema in schemas]
                ratio = statistics.median(sample.rate for sample in samples) / plain.median
                alone = row_of(f"{name}, one process", samples, {}, ratio=ratio, against="by hand")
                report.add(alone)
                if given.beside:
                    report.add(_beside(url, folder, given, name, way, alone))
        times = run(partial(latency, url, folder / "blobs", min(_LATENCIES, *given.n)), given.loop)
        p99 = f"p99 {percentile(times, 0.99):.2f} ms"
        report.add(Row(what="latency p50", n=len(times), values=[percentile(times, 0.5)], unit="ms", note=p99))
        report.finish()


if __name__ == "__main__":
    main()
