"""The process lane: its rate as a share of the async lane's in the same run, and how soon a killed child is replaced.

python -m bench.processes
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from functools import partial
from pathlib import Path

from bench.harness import Sample, Stopwatch, cpu_of, options, run, scratch
from bench.report import Report, Row, row_of
from bench.subject import PAYLOAD, by_map, opened

from mainspring import Engine, EngineConfig, Retry, TaskManagerConfig

_GOAL = 0.5
_WARM_UP = 500
_KILL_MS = 150.0
_PAUSE_S = 0.5
"""Between kills: what is killed more often than that waits for children to start."""


def noop_in_child(text: str) -> str:
    """Do nothing, in a process that can be killed."""
    return text


def begun_in_child() -> float:
    """Return when it began, on the clock that all processes of a machine share."""
    return time.monotonic()


async def by_children(engine: Engine, n: int) -> None:
    """Store n tasks of the process lane in bulk; back when all results are known."""
    await engine.gather(await engine.map(noop_in_child, [PAYLOAD] * n))


async def _timed(path: Path, n: int, in_children: bool) -> tuple[Sample, float]:
    """Return the run, and CPU seconds of the children."""
    async with opened(path) as engine:
        engine.task(lane="process", timeout=30)(noop_in_child)
        way = by_children if in_children else by_map
        await way(engine, min(n, _WARM_UP))
        before = cpu_of([os.getpid()]) - time.process_time()
        with Stopwatch() as watch:
            await way(engine, n)
        children_s = cpu_of([os.getpid()]) - time.process_time() - before
    return watch.sample(n, ours_elsewhere_s=children_s), children_s


def hold(mark: str) -> None:
    """Tell which process this is, and keep it."""
    Path(mark).write_text(str(os.getpid()))
    time.sleep(600)


async def _kills_ms(path: Path, kills: int) -> list[float]:
    """Kill the child of the only slot: how long until the task that waits for the slot begins."""
    config = EngineConfig(manager=TaskManagerConfig(process_slots=1))
    engine = Engine(path, config)
    engine.task(lane="process", retry=Retry(delay=600))(hold)
    engine.task(lane="process")(begun_in_child)
    found = []
    async with engine:
        await (await engine.submit(begun_in_child)).result()
        for number in range(kills):
            mark = path.with_name(f"{path.name}-{number}")
            held = await engine.submit(hold, str(mark))
            while not (mark.exists() and mark.read_text()):  # noqa: ASYNC110 - the child sets no event
                await asyncio.sleep(0.002)
            waits = await engine.submit(begun_in_child)
            at = time.monotonic()
            os.kill(int(mark.read_text()), signal.SIGKILL)
            found.append((await waits.result() - at) * 1e3)
            await held.cancel()
            await asyncio.sleep(_PAUSE_S)
    return found


def main() -> None:
    parser = options("The process lane against the async lane.", n="10000")
    parser.add_argument("--kills", default=20, type=int, help="how many children are killed")
    given = parser.parse_args()
    with scratch(given.folder) as folder:
        report = Report("processes", "Process lane: submit to known result", folder, given.loop, given.out)
        for n in given.n:
            here, children = [], []
            for turn in range(given.runs):  # in turns, so that a loaded minute hits both
                here.append(run(partial(_timed, folder / f"{n}-{turn}-async.db", n, False), given.loop)[0])
                children.append(run(partial(_timed, folder / f"{n}-{turn}-process.db", n, True), given.loop))
            ratio = statistics.median(one.rate / other.rate for (one, _), other in zip(children, here, strict=True))
            report.add(row_of("async lane, map", here))
            report.add(
                row_of("process lane, map", [sample for sample, _ in children], ratio=ratio,
                       against="the async lane in the same turns", goal=_GOAL)
            )  # fmt: skip
        found = run(partial(_kills_ms, folder / "kills.db", given.kills), given.loop)
        report.add(
            Row(
                what="kill of a child to the next task's start, p50", n=given.kills, values=found, unit="ms",
                lower_is_better=True, ratio=statistics.median(found) / _KILL_MS, goal=1.0, against=f"{_KILL_MS:.0f} ms",
            )
        )  # fmt: skip
        report.add(
            Row(
                what="the same, the longest", n=given.kills, values=[max(found)], unit="ms",
                lower_is_better=True, ratio=max(found) / _KILL_MS, goal=1.0, against=f"{_KILL_MS:.0f} ms",
            )
        )  # fmt: skip
        report.finish()


if __name__ == "__main__":
    main()
