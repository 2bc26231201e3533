"""What telling costs: spans for OpenTelemetry and scrapes of Prometheus, as a share of the rate of no-op tasks.

    python -m bench.telemetry

Counting itself is always on, and in every figure. Spans are made by OpenTelemetry's SDK and thrown away: what an
exporter takes comes on top. Scrapes come every 0.1 s, a hundred times as often as usual.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
from bench.harness import Sample, Stopwatch, options, run, scratch
from bench.report import Report, row_of
from bench.subject import by_map, noop
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from mainspring import Engine, EngineConfig, TaskManagerConfig

Way = Callable[[Engine, int], Awaitable[None]]
_CONFIG = EngineConfig(manager=TaskManagerConfig(queue_size=None))
_TRACED = msgspec.structs.replace(_CONFIG, tracing=True)
_WARM_UP = 200
_SCRAPE_S = 0.1
_SHARE = 0.01
_sampled = False


class _Some(ParentBased):
    """All traces, or one in a hundred, as it is asked for: there is one provider in a process."""

    def __init__(self) -> None:
        super().__init__(TraceIdRatioBased(1.0))
        self._few = ParentBased(TraceIdRatioBased(_SHARE))

    def should_sample(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # whatever the SDK of the day passes
        return self._few.should_sample(*args, **kwargs) if _sampled else super().should_sample(*args, **kwargs)


async def scraped(engine: Engine, n: int) -> None:
    """The same, with scrapes beside it."""

    async def scrape() -> None:
        while True:
            await engine.metrics()
            await asyncio.sleep(_SCRAPE_S)

    scraping = asyncio.create_task(scrape())
    await by_map(engine, n)
    scraping.cancel()


async def _timed(path: Path, config: EngineConfig, way: Way, n: int) -> Sample:
    engine = Engine(path, config)
    engine.task(timeout=30)(noop)
    async with engine:
        await by_map(engine, min(n, _WARM_UP))
        with Stopwatch() as watch:
            await way(engine, n)
    return watch.sample(n)


def _measure(report: Report, folder: Path, n: int, runs: int, loop: str) -> None:
    global _sampled
    ways: dict[str, tuple[EngineConfig, Way, bool]] = {
        "scraped every 0.1 s": (_CONFIG, scraped, False),
        "traced, one trace in 100": (_TRACED, by_map, True),
        "traced, all": (_TRACED, by_map, False),
    }
    plain: list[Sample] = []
    timed: dict[str, list[Sample]] = {name: [] for name in ways}
    for turn in range(runs):  # in turns, so that a loaded minute hits all
        plain.append(run(partial(_timed, folder / f"plain-{turn}.db", _CONFIG, by_map, n), loop))
        for number, (name, (config, way, _sampled)) in enumerate(ways.items()):
            timed[name].append(run(partial(_timed, folder / f"{turn}-{number}.db", config, way, n), loop))
    report.add(row_of("no-ops, map", plain))
    for name in ways:
        ratio = statistics.median(one.rate / other.rate for one, other in zip(timed[name], plain, strict=True))
        report.add(row_of(name, timed[name], ratio=ratio, against="as many no-ops by map"))


def main() -> None:
    given = options("What metrics and traces cost, against no-op tasks.", n="10000").parse_args()
    trace.set_tracer_provider(TracerProvider(sampler=_Some()))
    with scratch(given.folder) as folder:
        report = Report("telemetry", "Telemetry: submit to known result", folder, given.loop, given.out)
        for n in given.n:
            _measure(report, folder, n, given.runs, given.loop)
        report.finish()


if __name__ == "__main__":
    main()
