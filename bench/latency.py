"""How long one task takes on an idle system: submit, durable; run; durable; result known.

    python -m bench.latency

One at a time, judged by what the disk itself takes: two commits can't be faster than two syncs. Syncs are measured
right before and after each run, in the same folder.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from bench.harness import Stopwatch, options, percentile, run, scratch
from bench.report import Report, Row
from bench.subject import latencies_ms, opened

_WARM_UP = 50
_ENGINE_MS = 0.6
"""What the engine may add to two syncs."""
_BEST_PEER_MS = 1.3
"""Median of the quickest peer when they were measured (huey on Redis, which syncs nothing), on another day."""
_QUICK_DISK_MS = 0.3
"""Only where a sync is quicker than this is a comparison with a peer that syncs nothing fair."""


async def measured(path: Path, n: int) -> tuple[list[float], list[float], float]:
    """Return milliseconds until durable and until known, of n tasks, and CPU microseconds a task."""
    async with opened(path) as engine:
        await latencies_ms(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            durable, known = await latencies_ms(engine, n)
    return durable, known, watch.sample(n).cpu_us


def _measure(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    p50, p99, durable50, cpu, budgets = [], [], [], [], []
    before = report.sync_ms
    for turn in range(runs):
        durable, known, cpu_us = run(partial(measured, folder / f"{turn}.db", n), loop)
        after = report.resync()
        budgets.append(2 * (before + after) / 2 + _ENGINE_MS)
        before = after
        p50.append(percentile(known, 0.5))
        p99.append(percentile(known, 0.99))
        durable50.append(percentile(durable, 0.5))
        cpu.append(cpu_us)
    spent = {"here": statistics.median(cpu)}
    report.add(Row(what="submit to durable, p50", n=n, values=durable50, unit="ms", cpu_us=spent))
    report.add(
        Row(
            what="submit to result, p50", n=n, values=p50, unit="ms", lower_is_better=True, goal=1.0,
            ratio=statistics.median(a / b for a, b in zip(p50, budgets, strict=True)),
            against=f"2 x this run's fdatasync p50 + {_ENGINE_MS} ms (p50)",
        )
    )  # fmt: skip
    report.add(
        Row(
            what="submit to result, p99", n=n, values=p99, unit="ms", lower_is_better=True, goal=4.0,
            ratio=statistics.median(a / b for a, b in zip(p99, p50, strict=True)), against="p50 (p99)",
        )
    )  # fmt: skip
    if report.sync_ms < _QUICK_DISK_MS:
        ratio = statistics.median(p50) / _BEST_PEER_MS
        report.add(
            Row(
                what="submit to result, p50, beside a peer", n=n, values=p50, unit="ms", lower_is_better=True,
                ratio=ratio, goal=0.75, against=f"the best peer's recorded {_BEST_PEER_MS} ms, from another day (peer)",
            )
        )  # fmt: skip
    else:
        report.remarks.append(
            f"A sync takes more than {_QUICK_DISK_MS} ms here: not compared with a peer that makes none."
        )


def main() -> None:
    given = options("Latency of one task on an idle system.", n="300").parse_args()
    with scratch(given.folder) as folder:
        report = Report("latency", "One task at a time on an idle system", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
