"""What limits of groups cost: half of the tasks in limited groups, and 10,000 groups at their limit ahead.

    python -m bench.limits                             10,000 tasks, 10,000 groups: minutes
    python -m bench.limits --n 1000 --groups 100       a quick look

- half in groups: of the tasks of `map` every second one belongs to one of 10 groups that may have 32 at once, so that
  most of these wait for a place. Against the same without groups, turn by turn. Once more where these tasks have a cost
  that is reserved and settled; the rate of what they may cost is never reached.
- past full groups: another process holds one task of each group, whose next one waits; tasks without a group flow past
  them by `map`, and one at a time. Against the same past 10 such groups.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, Row, row_of
from bench.subject import PAYLOAD, by_map, latencies_ms, noop, opened

from mainspring import Engine, EngineConfig, TaskManagerConfig

_GROUPS, _AT_ONCE, _FEW = 10, 32, 10
_WARM_UP = 200
_LATENCIES = 200
_COST, _COST_RATE = 10, "1000000000/s"
_HALF = 0.7
_PAST = 1.5


async def held(text: str) -> str:
    """The type of the groups' tasks: whoever runs one never comes back."""
    await asyncio.Event().wait()
    return text


async def without_groups(path: Path, n: int) -> Sample:
    async with opened(path) as engine:
        await by_map(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await by_map(engine, n)
    return watch.sample(n)


async def half_in_groups(path: Path, n: int, *, costs: bool) -> Sample:
    async with opened(path) as engine:
        for number in range(_GROUPS):
            cost_rate = _COST_RATE if costs else None
            await engine.limit(f"group {number}", concurrency=_AT_ONCE, cost_rate=cost_rate)
        more = {"cost": _COST} if costs else {}
        await by_map(engine, min(n, _WARM_UP))
        each = n // 2 // _GROUPS
        with Stopwatch() as watch:
            stored = await asyncio.gather(
                engine.map(noop, [PAYLOAD] * (n - each * _GROUPS)),
                *(engine.map(noop, [PAYLOAD] * each, group=f"group {number}", **more) for number in range(_GROUPS)),
            )
            for handles in stored:
                await engine.gather(handles)
    return watch.sample(n)


async def past_full_groups(path: Path, groups: int, n: int, runs: int) -> tuple[list[Sample], list[float]]:
    """Return runs of `map`, and milliseconds of single tasks, past groups that are full."""
    async with opened(path, worker=False) as engine:
        engine.task(held)
        await asyncio.gather(*(engine.limit(f"group {number}", concurrency=1) for number in range(groups)))
        for _ in range(2):
            stored = (engine.submit(held, PAYLOAD, group=f"group {number}") for number in range(groups))
            await asyncio.gather(*stored)
        async with _holder(path, groups):
            return await _flow_past(path, groups, n, runs)


async def _flow_past(path: Path, groups: int, n: int, runs: int) -> tuple[list[Sample], list[float]]:
    samples = []
    async with opened(path) as engine:
        engine.task(held)
        await latencies_ms(engine, 20)
        for _ in range(runs):
            with Stopwatch() as watch:
                await by_map(engine, n)
            samples.append(watch.sample(n))
        known = (await latencies_ms(engine, _LATENCIES))[1]
        full = sum(limit.held == 1 for limit in await engine.limits())
        if full != groups:
            raise RuntimeError(f"{full} of {groups} groups were at their limit all the time")
    return samples, known


@asynccontextmanager
async def _holder(path: Path, groups: int) -> AsyncIterator[None]:
    """Let another process hold a task of each group meanwhile."""
    command = [sys.executable, "-m", "bench.limits", "--hold", str(path), "--groups", str(groups)]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert child.stdout is not None
    try:
        said = await child.stdout.readline()
        if said.strip() != b"ready":
            raise RuntimeError(f"the process that holds the groups' tasks did not start: it said {said!r}")
        yield
    finally:
        child.kill()
        await child.wait()


async def _hold(path: Path, groups: int) -> None:
    engine = Engine(path, EngineConfig(manager=TaskManagerConfig(async_slots=groups, queue_size=None)))
    engine.task(held)
    async with engine:
        while len(engine.manager.running_tasks()) < groups:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.1)
        print("ready", flush=True)
        await asyncio.Event().wait()


# --- The report ------------------------------------------------------------------------------------------------------


def _half(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    plain: list[Sample] = []
    grouped: dict[str, list[Sample]] = {"half in limited groups": [], "half in limited groups, with costs": []}
    for turn in range(runs):  # in turns, so that a loaded minute hits all
        plain.append(run(partial(without_groups, folder / f"plain-{turn}.db", n), loop))
        for costs, samples in enumerate(grouped.values()):
            path = folder / f"half-{turn}-{costs}.db"
            samples.append(run(partial(half_in_groups, path, n, costs=bool(costs)), loop))
    report.add(row_of("no groups, by map", plain))
    for what, samples in grouped.items():
        ratio = statistics.median(one.rate / other.rate for one, other in zip(samples, plain, strict=True))
        report.add(row_of(what, samples, ratio=ratio, against="no groups (half)", goal=_HALF))


def _past(report: Report, folder: Path, groups: Sequence[int], n: int, runs: int, loop: str) -> None:
    base: tuple[float, float] | None = None
    for many in groups:
        samples, known = run(partial(past_full_groups, folder / f"past-{many}.db", many, n, runs), loop)
        cpu, p50 = statistics.median(sample.cpu_us for sample in samples), statistics.median(known)
        base = base or (cpu, p50)
        limit: dict[str, Any] = {"goal": _PAST, "lower_is_better": True}
        against = f"CPU time and p50 past {groups[0]} (past full groups)"
        report.add(row_of(f"past {many:,} full groups", samples, ratio=cpu / base[0], against=against, **limit))
        report.add(
            Row(
                what=f"latency p50 past {many:,} full groups", n=len(known), values=[p50], unit="ms",
                ratio=p50 / base[1], against=against, **limit,
            )
        )  # fmt: skip


def _parsed() -> argparse.Namespace:
    parser = options("What limits of groups cost.", n="10000")
    parser.add_argument("--groups", default=10_000, type=int, help="how many groups are at their limit")
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _parsed()
    if given.hold:
        run(lambda: _hold(given.hold, given.groups), given.loop)
        return
    with scratch(given.folder) as folder:
        report = Report("limits", "Limits of groups", folder, given.loop, given.out)
        for n in given.n:
            _half(report, folder, n, given.runs, given.loop)
            _past(report, folder, (min(_FEW, given.groups), given.groups), n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
