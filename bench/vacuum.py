"""What died in a server's tables while tasks flow through a short queue: it stays bounded, however long that goes on.

    python -m bench.vacuum                    200,000 tasks, 1,000 a second: three and a half minutes
    python -m bench.vacuum --n 20000 --rate 4000

A server with its defaults, but that autovacuum comes by every ten seconds instead of once a minute: so the run is as
long as one of twenty minutes. Each task is a row that is written two or three times, as it is submitted, claimed and
completed; 20,000 ended ones are kept, so that retention deletes rows all the time too.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
from bench.harness import Stopwatch, options, run, scratch
from bench.postgres import store_in
from bench.report import Report, Row
from bench.servers import postgres
from bench.subject import PAYLOAD, noop

from mainspring import Engine, EngineConfig, StoreConfig, TaskManagerConfig

_TURN_S = 0.25
_KEPT = 20_000
_PARTS = 4
_LOOK = """SELECT relname, n_dead_tup, n_tup_upd, n_tup_hot_upd, vacuum_count + autovacuum_count AS vacuums,
    pg_relation_size(relid) AS rows, pg_indexes_size(relid) AS indexes
    FROM pg_stat_user_tables WHERE schemaname = $1"""
_TABLES = ("task", "attempt", "tally", "worker")
"""But for what is to be kept for months, a row a task: tombstones."""


class Look(NamedTuple):
    done: int  # tasks so far
    tables: dict[str, asyncpg.Record]


async def flow(url: str, schema: str, blobs: Path, n: int, rate: int) -> tuple[list[Look], float]:
    """Let n tasks flow through, so many a second; returns what was seen once a second, and the rate that came of it."""
    config = EngineConfig(
        manager=TaskManagerConfig(queue_size=None), store=StoreConfig(blobs=blobs, max_completed=_KEPT)
    )
    engine = Engine(store_in(url, schema), config)
    engine.task(timeout=30)(noop)
    looks: list[Look] = []
    connection = await asyncpg.connect(url)
    try:
        async with engine:
            with Stopwatch() as watch:
                done, loop = 0, asyncio.get_running_loop()
                began = loop.time()
                while done < n:
                    some = min(n - done, round(rate * _TURN_S))
                    await engine.gather(await engine.map(noop, [PAYLOAD] * some))
                    done += some
                    if len(looks) < loop.time() - began:
                        looks.append(Look(done, {row["relname"]: row for row in await connection.fetch(_LOOK, schema)}))
                    await asyncio.sleep(max(0.0, began + done / rate - loop.time()))
        looks.append(Look(done, {row["relname"]: row for row in await connection.fetch(_LOOK, schema)}))
    finally:
        await connection.close()
    return looks, n / watch.wall_s


def report_on(report: Report, looks: list[Look], rate: float) -> None:
    """Add the most dead rows and the size in each part of the run; the last part against the one before."""
    n = looks[-1].done
    report.add(Row(what="flow", n=n, values=[rate], unit="tasks/s"))
    for name in _TABLES:
        parts: list[list[asyncpg.Record]] = [[] for _ in range(_PARTS)]
        for look in looks:
            parts[min(_PARTS - 1, look.done * _PARTS // n)].append(look.tables[name])
        dead = [float(max(row["n_dead_tup"] for row in part)) for part in parts if part]
        sizes = [max(row["rows"] + row["indexes"] for row in part) / 2**20 for part in parts if part]
        end = looks[-1].tables[name]
        note = f"vacuumed {end['vacuums']} times"
        if end["n_tup_upd"]:
            note += f"; {end['n_tup_hot_upd'] / end['n_tup_upd']:.0%} of {end['n_tup_upd']:,} updates within their page"
        report.add(Row(what=f"{name}: dead rows, most of each part", n=n, values=dead, unit="rows", note=note))
        report.add(
            Row(
                what=f"{name}: size, most of each part", n=n, values=sizes, unit="MiB",
                ratio=sizes[-1] / sizes[-2] if len(sizes) > 1 and sizes[-2] else None, against="the part before it",
                goal=1.2, lower_is_better=True, note="then ".join(f"{size:.1f} MiB " for size in sizes),
            )
        )  # fmt: skip


def main() -> None:
    parser = options("What died in a server's tables.", n="200000", runs=1)
    parser.add_argument("--rate", default=1_000, type=int, help="tasks a second")
    given = parser.parse_args()
    with scratch(given.folder) as folder, postgres(folder, "autovacuum_naptime=10s") as (url, _):
        report = Report("vacuum", "Dead rows while tasks flow through a short queue", folder, given.loop, given.out)
        for n in given.n:
            looks, rate = run(partial(flow, url, f"bench_{n}", folder / "blobs", n, given.rate), given.loop)
            report_on(report, looks, rate)
        report.finish()


if __name__ == "__main__":
    main()
