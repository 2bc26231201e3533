"""A flood of submits against a slow handler: what is refused, what waits, and what it costs.

    python -m bench.overload                 1,000,000 submits against a slow handler, minutes
    python -m bench.overload --n 10000       a quick look

Flood: coroutines submit without end to a queue of 1,000 whose handler takes 10 ms. Each submit is stored or refused
with `QueueFull`, and none is lost: what was stored is what ends. Memory of the process is read on the way. The same
number of items goes through `map`, which takes them as room appears, with a handler that does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psutil
from bench.harness import options, run, scratch
from bench.report import Report, Row

from mainspring import (
    Engine,
    EngineConfig,
    QueueFull,
    TaskManagerConfig,
)

_MIB = 1 << 20
_QUEUE = 1_000
_SUBMITTERS = 64
_SLOW_S = 0.01
_MOST_MIB = 64.0
_LOOK_S = 0.05


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / _MIB


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Engine]:
    engine = Engine(path, EngineConfig(manager=TaskManagerConfig(queue_size=_QUEUE)))

    @engine.task(name="slow")
    async def slow(n: int) -> int:
        await asyncio.sleep(_SLOW_S)  # it stands for a service that is slow, which is what is measured here
        return n

    @engine.task(name="quick")
    async def quick(n: int) -> int:
        return n

    async with engine:
        yield engine


async def flood(path: Path, n: int) -> dict[str, float]:
    """Return seconds, what was stored, refused and completed, and by how many MiB the process grew."""
    counts = {"stored": 0, "refused": 0}
    async with _opened(path) as engine:
        slow = engine.executor.handlers["custom:slow"].function

        async def submit(n: int) -> None:
            for number in range(n):
                try:
                    await engine.submit(slow, number)
                except QueueFull:
                    counts["refused"] += 1
                else:
                    counts["stored"] += 1

        await submit(_SUBMITTERS)
        before, began = _resident_mib(), time.perf_counter()
        shares = [n // _SUBMITTERS + (i < n % _SUBMITTERS) for i in range(_SUBMITTERS)]
        await asyncio.gather(*(submit(share) for share in shares))
        took, grown = time.perf_counter() - began, _resident_mib() - before
        while (ended := await _completed(engine)) < counts["stored"]:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
    return {"seconds": took, "grown": grown, "completed": ended, **counts}


async def _completed(engine: Engine) -> int:
    return int((await engine.manager.stats()).get("completed", 0))


async def squeezed(path: Path, n: int) -> tuple[float, float]:
    """Return seconds until `map` had all items in the store, and by how many MiB the process grew."""
    async with _opened(path) as engine:
        quick = engine.executor.handlers["custom:quick"].function
        await engine.gather(await engine.map(quick, range(_QUEUE)))
        before, began = _resident_mib(), time.perf_counter()
        for at in range(0, n, 10 * _QUEUE):  # its handles are not kept
            await engine.map(quick, range(at, min(n, at + 10 * _QUEUE)))
        return time.perf_counter() - began, _resident_mib() - before


def main() -> None:
    given = options("A flood of submits against a slow handler.", n="1000000", runs=1).parse_args()
    with scratch(given.folder) as folder:
        report = Report("overload", "A flood of submits", folder, given.loop, given.out)
        for n in given.n:
            for turn in range(given.runs):
                found = run(partial(flood, folder / f"flood-{n}-{turn}.db", n), given.loop)
                note = f"{found['stored']:,.0f} stored and completed, {found['refused']:,.0f} refused with QueueFull"
                assert found["completed"] == found["stored"]
                report.add(
                    Row(what="flood of submits", n=n, values=[n / found["seconds"]], unit="submits/s", note=note)
                )
                report.add(_memory("flood of submits", n, found["grown"]))
                took, grown = run(partial(squeezed, folder / f"map-{n}-{turn}.db", n), given.loop)
                report.add(Row(what="map through a queue of 1,000", n=n, values=[n / took], unit="tasks/s"))
                report.add(_memory("map through a queue of 1,000", n, grown))
        report.finish()


def _memory(what: str, n: int, grown: float) -> Row:
    return Row(
        what=f"{what}: growth of memory", n=n, values=[grown], unit="MiB", ratio=grown / _MOST_MIB,
        against=f"{_MOST_MIB:g} MiB", goal=1.0, lower_is_better=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
