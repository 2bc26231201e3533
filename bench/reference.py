"""Ceilings: the same steps without an engine, in one run with the engine.

    python -m bench.reference

Nothing here is a task system. `asyncio` only calls coroutines and forgets them; `sqlite` writes the three steps of a
task (stored, claimed, finished) to a table with one index, by one thread, in batches, with no checks, attempts or
waiters. `sqlite by hand` does the same as one would write it with Python's own module: states are words, the index is
of all states, and each step goes through all rows before the next one begins.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import apsw
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, Row, row_of
from bench.subject import PAYLOAD, by_map, noop, opened

_BATCHES = (1, 64, 256, 1024)
_SINGLE_AT_MOST = 2_000
"""Three syncs a task: more of them would take minutes on a slow disk and tell nothing new."""
_THREADS = 2
_WARM_UP = 200

_SCHEMA = """
CREATE TABLE job (n INTEGER PRIMARY KEY, state INTEGER NOT NULL, input BLOB, output BLOB, stored_ms INTEGER) STRICT;
CREATE INDEX job_ready ON job (n) WHERE state = 0;
"""
_STORE = "INSERT INTO job (state, input, stored_ms) VALUES (0, ?, ?)"
_CLAIM = "UPDATE job SET state = 1 WHERE n IN (SELECT n FROM job WHERE state = 0 ORDER BY n LIMIT ?) RETURNING n, input"
_FINISH = "UPDATE job SET state = 2, output = ? WHERE n = ? AND state = 1"

_HAND_SCHEMA = """
CREATE TABLE job (n INTEGER PRIMARY KEY, state TEXT NOT NULL, input TEXT, output TEXT, worker TEXT, stored REAL);
CREATE INDEX job_ready ON job (state, n);
"""
_HAND_STORE = "INSERT INTO job (state, input, stored) VALUES ('ready', ?, ?)"
_HAND_CLAIM = """
UPDATE job SET state = 'run', worker = 'w1'
WHERE n IN (SELECT n FROM job WHERE state = 'ready' ORDER BY n LIMIT ?) RETURNING n, input
"""
_HAND_FINISH = "UPDATE job SET state = 'done', output = ? WHERE n = ?"


def sqlite_steps(path: Path, synchronous: str, n: int, batch: int) -> Sample:
    """Store, claim and finish n rows, each step of each batch in a commit of its own."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.execute(_SCHEMA)
    payload = PAYLOAD.encode()
    with Stopwatch() as watch:
        for at in range(0, n, batch):
            size = min(batch, n - at)
            with connection:
                connection.executemany(_STORE, [(payload, time.time_ns() // 1_000_000)] * size)
            with connection:
                claimed = connection.execute(_CLAIM, (size,)).fetchall()
            with connection:
                connection.executemany(_FINISH, [(output, number) for number, output in claimed])
    assert connection.execute("SELECT count(*) FROM job WHERE state = 2").get == n
    connection.close()
    return watch.sample(n)


def sqlite_by_hand(path: Path, synchronous: str, n: int, batch: int) -> Sample:
    """Do the same in the way of a first draft."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.executescript(_HAND_SCHEMA)
    sizes = [min(batch, n - at) for at in range(0, n, batch)]
    claimed: list[list[tuple[int, str]]] = []
    with Stopwatch() as watch:
        for size in sizes:
            with _committed(connection):
                connection.executemany(_HAND_STORE, [(PAYLOAD, time.time())] * size)
        for size in sizes:
            with _committed(connection):
                claimed.append(connection.execute(_HAND_CLAIM, (size,)).fetchall())
        for rows in claimed:
            with _committed(connection):
                connection.executemany(_HAND_FINISH, [(output, number) for number, output in rows])
    assert connection.execute("SELECT count(*) FROM job WHERE state = 'done'").fetchone() == (n,)
    connection.close()
    return watch.sample(n)


@contextmanager
def _committed(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


async def _gathered(n: int) -> Sample:
    with Stopwatch() as watch:
        tasks = [asyncio.create_task(noop(PAYLOAD)) for _ in range(n)]
        await asyncio.gather(*tasks)
    return watch.sample(n)


def _threads(n: int) -> Sample:
    with ThreadPoolExecutor(_THREADS) as pool, Stopwatch() as watch:
        for future in [pool.submit(len, PAYLOAD) for _ in range(n)]:
            future.result()
    return watch.sample(n)


async def _engine(path: Path, n: int) -> Sample:
    async with opened(path) as engine:
        await by_map(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await by_map(engine, n)
    return watch.sample(n)


def _measure(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    engine: list[Sample] = []
    ceilings: dict[str, list[Sample]] = {}

    def ceiling(name: str, timed: Callable[[], Sample]) -> None:
        ceilings.setdefault(name, []).append(timed())

    for turn in range(runs):
        engine.append(run(partial(_engine, folder / f"engine-{turn}.db", n), loop))
        ceiling("asyncio: tasks gathered, memory only", partial(run, partial(_gathered, n), loop))
        ceiling(f"thread pool of {_THREADS}, memory only", partial(_threads, n))
        for synchronous in ("full", "normal"):
            for batch in _BATCHES:
                count = min(n, _SINGLE_AT_MOST) if batch == 1 else n
                path = folder / f"{synchronous}-{batch}-{turn}.db"
                name = f"sqlite {synchronous}, {batch} a commit"
                ceiling(name, partial(sqlite_steps, path, synchronous, count, batch))
        path = folder / f"by-hand-{turn}.db"
        ceiling("sqlite full by hand, 256 a commit", partial(sqlite_by_hand, path, "full", n, 256))
    report.add(row_of("engine, map", engine))
    ours = statistics.median(sample.rate for sample in engine)
    for name, samples in ceilings.items():
        ratio = ours / statistics.median(sample.rate for sample in samples)
        report.add(row_of(name, samples, ratio=ratio, against="engine over ceiling"))
    report.add(Row(what="fdatasync of 4 KiB, p50", n=len(report.syncs), values=[report.sync_ms], unit="ms"))


def main() -> None:
    given = options("Ceilings without an engine.", n="10000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("reference", "Ceilings: the steps of a task without an engine", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
