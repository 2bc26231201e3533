"""What dependencies cost: chains and joins as a share of the rate of no-op tasks in the same run.

    python -m bench.dependencies

`--n` scales all shapes: 1,000 tasks mean 100 chains of 10, 1,000 parents of one child, and 10,000 parents of one child.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of
from bench.subject import by_map, opened

from mainspring import Engine, Task
from mainspring.tasks import Ref

Shape = Callable[[Engine, int], Awaitable[None]]
_LENGTH = 10
_GOAL = 0.5
_WARM_UP = 200


async def one_more(number: int) -> int:
    """Pass a result on."""
    return number + 1


async def total(numbers: list[int]) -> int:
    """Take the results of all parents."""
    return sum(numbers)


async def chains(engine: Engine, n: int) -> None:
    """Store n / 10 chains of 10 in one call; each link gets its parent's result."""
    tasks: list[Task] = []
    ends: list[int] = []
    for _ in range(n // _LENGTH):
        parent: int | Ref = 0
        for _ in range(_LENGTH):
            task = engine.build(one_more, (parent,), {})
            tasks.append(task)
            parent = Ref(task.id)
        ends.append(len(tasks) - 1)
    handles = await engine.submit_all(tasks)
    found = await engine.gather([handles[end] for end in ends])
    assert found == [_LENGTH] * len(ends)


async def grown_chains(engine: Engine, n: int) -> None:
    """The same with a submit for each link, as code that doesn't know the whole chain would do it."""

    async def one() -> None:
        parent = await engine.submit(one_more, 0)
        for _ in range(_LENGTH - 1):
            parent = await engine.submit(one_more, parent)
        assert await parent.result() == _LENGTH

    await asyncio.gather(*(one() for _ in range(n // _LENGTH)))


async def join(engine: Engine, n: int) -> None:
    """n tasks by `map`, and one that takes all their results."""
    parents = await engine.map(one_more, range(n))
    child = await engine.submit(total, parents)
    assert await child.result() == n * (n + 1) // 2


async def _timed(path: Path, shape: Shape, n: int) -> Sample:
    async with opened(path) as engine:
        engine.task(timeout=30)(one_more)
        engine.task(timeout=30)(total)
        await by_map(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await shape(engine, n)
    return watch.sample(n)


def _measure(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    shapes: dict[str, tuple[Shape, int, bool]] = {
        f"{n // _LENGTH:,} chains of {_LENGTH}, one call": (chains, n, True),
        f"{n // _LENGTH:,} chains of {_LENGTH}, grown": (grown_chains, n, False),
        f"{n:,} into 1": (join, n, True),
        f"{10 * n:,} into 1": (join, 10 * n, True),
    }
    timed: dict[tuple[str, int], list[Sample]] = {}
    for turn in range(runs):  # shapes and no-ops take turns, so that a loaded minute hits both
        for count in (n, 10 * n):
            path = folder / f"plain-{turn}-{count}.db"
            timed.setdefault(("", count), []).append(run(partial(_timed, path, by_map, count), loop))
        for number, (name, (shape, count, _)) in enumerate(shapes.items()):
            path = folder / f"{turn}-{number}.db"
            sample = run(partial(_timed, path, shape, count), loop)
            timed.setdefault((name, count), []).append(sample)
    for count in (n, 10 * n):
        report.add(row_of("no dependencies, map", timed["", count]))
    for name, (_, count, judged) in shapes.items():
        samples, plain = timed[name, count], timed["", count]
        ratio = statistics.median(one.rate / other.rate for one, other in zip(samples, plain, strict=True))
        report.add(row_of(name, samples, ratio=ratio, against="as many no-ops by map", goal=_GOAL if judged else None))


def main() -> None:
    given = options("Dependencies against no-op tasks.", n="1000").parse_args()
    with scratch(given.folder) as folder:
        report = Report("dependencies", "Tasks with dependencies: submit to last result", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, max(n, _LENGTH), given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
