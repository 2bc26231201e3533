"""What kept results save, and what keeping costs: as a share of the rate of no-op tasks in the same run.

    python -m bench.caching

Hits on different results and on one and the same, misses whose results are kept, and equal tasks of which one runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of
from bench.subject import by_map, opened

from mainspring import Engine

Way = Callable[[Engine, int], Awaitable[None]]
_PAYLOAD = "x" * 100
_GOAL = 1.5
_WARM_UP = 200


async def kept(text: str) -> str:
    """Do nothing, once."""
    return text


async def _submit(engine: Engine, n: int, first: int = 0) -> None:
    await engine.gather(await engine.map(kept, [f"{first + number}{_PAYLOAD}" for number in range(n)]))


async def misses(engine: Engine, n: int) -> None:
    """n different tasks that were never done before."""
    await _submit(engine, n, first=n)


async def hits(engine: Engine, n: int) -> None:
    """n different tasks whose results are kept."""
    await _submit(engine, n)


async def one_hit(engine: Engine, n: int) -> None:
    """One result, n times."""
    await engine.gather(await engine.map(kept, [f"0{_PAYLOAD}"] * n))


async def equal(engine: Engine, n: int) -> None:
    """n equal tasks that were never done before: one runs, the others wait for it."""
    await engine.gather(await engine.map(kept, [_PAYLOAD] * n))


async def _timed(path: Path, way: Way, n: int) -> Sample:
    async with opened(path) as engine:
        engine.task(timeout=30, cache="1h")(kept)
        await by_map(engine, min(n, _WARM_UP))
        if way is hits or way is one_hit:
            await _submit(engine, n if way is hits else 1)
        with Stopwatch() as watch:
            await way(engine, n)
    return watch.sample(n)


def _measure(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    ways: dict[str, tuple[Way, float | None]] = {
        "hits, each another result": (hits, _GOAL),
        "hits, one result": (one_hit, _GOAL),
        "misses that are kept": (misses, None),
        "equal tasks, one runs": (equal, None),
    }
    plain: list[Sample] = []
    timed: dict[str, list[Sample]] = {name: [] for name in ways}
    for turn in range(runs):  # in turns, so that a loaded minute hits all
        plain.append(run(partial(_timed, folder / f"plain-{turn}.db", by_map, n), loop))
        for number, (name, (way, _)) in enumerate(ways.items()):
            timed[name].append(run(partial(_timed, folder / f"{turn}-{number}.db", way, n), loop))
    report.add(row_of("no-ops, map", plain))
    for name, (_, goal) in ways.items():
        ratio = statistics.median(one.rate / other.rate for one, other in zip(timed[name], plain, strict=True))
        report.add(row_of(name, timed[name], ratio=ratio, against="as many no-ops by map", goal=goal))


def main() -> None:
    given = options("Kept results against no-op tasks.", n="10000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("caching", "Kept results: submit to known result", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
