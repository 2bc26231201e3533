"""What all benchmarks share: runs that are repeated, CPU time, a fair place on disk, and one way to report.

A benchmark makes a `Report`, adds a `Row` for each thing measured, and calls `finish`, which prints a table and leaves
JSON and a picture in `bench/out/`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil
from bench.machine import describe, filesystem_of, uvloop_of
from bench.plot import draw
from rich import box
from rich.console import Console
from rich.table import Table

from mainspring import Engine, EngineConfig, TaskManagerConfig

OUT = Path(__file__).resolve().parent / "out"
PEER_RATE = 2_600.0
"""Tasks a second of the best durable peers (dramatiq with 8 threads on Redis, pgqueuer on Postgres) when they were
measured on 2 cores. A figure from another day: `python -m bench.peers` measures them beside us, in one run."""
PAYLOAD = "x" * 100
SUBMITTERS = 64
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_SYNCS = 200
_WIDTH = 140
"""Columns of a table that goes to a file or a pipe."""

T = TypeVar("T")


# --- Figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One run of something that did `n` units of work."""

    n: int
    wall_s: float
    cpu_s: float  # of this process, all its threads
    others: float  # CPUs that other processes kept busy meanwhile

    @property
    def rate(self) -> float:
        return self.n / self.wall_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.n * 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a report. `ratio` is what a budget is set on; `floor` and `goal` are limits of the ratio."""

    what: str
    n: int
    values: list[float]  # one a run
    unit: str
    cpu_us: dict[str, float] = field(default_factory=dict)  # a unit of work, by process; medians
    ratio: float | None = None
    against: str = ""
    floor: float | None = None
    goal: float | None = None
    lower_is_better: bool = False
    others: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.ratio is None or (self.goal is None and self.floor is None):
            return ""
        sign = -1 if self.lower_is_better else 1
        if self.goal is not None and sign * self.ratio >= sign * self.goal:
            return "goal"
        if self.floor is not None and sign * self.ratio >= sign * self.floor:
            return "floor"
        return "below"


def row_of(what: str, samples: Sequence[Sample], peer_cpu_us: dict[str, list[float]] | None = None, **more: Any) -> Row:
    """Return the row of repeated runs: rates, and medians of the CPU time in this process and in others."""
    cpu = {"here": statistics.median(sample.cpu_us for sample in samples)}
    cpu |= {name: statistics.median(values) for name, values in (peer_cpu_us or {}).items()}
    return Row(
        what=what,
        n=samples[0].n,
        values=[sample.rate for sample in samples],
        unit="tasks/s",
        cpu_us=cpu,
        others=statistics.median(sample.others for sample in samples),
        **more,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0))


class Stopwatch:
    """Measures one run: `with Stopwatch() as watch: ...`, then `watch.sample(n)`."""

    def __enter__(self) -> Stopwatch:
        self._at, self._cpu, self._busy = time.perf_counter(), time.process_time(), _busy_s()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall_s = time.perf_counter() - self._at
        self.cpu_s = time.process_time() - self._cpu
        self.busy_s = _busy_s() - self._busy

    def sample(self, n: int, *, ours_elsewhere_s: float = 0.0) -> Sample:
        """Return the run as a sample; CPU time of our own child processes is not counted as strangers'."""
        strangers = max(0.0, self.busy_s - self.cpu_s - ours_elsewhere_s)
        return Sample(n=n, wall_s=self.wall_s, cpu_s=self.cpu_s, others=strangers / self.wall_s)


def cpu_of(pids: Sequence[int]) -> float:
    """Return the CPU seconds so far of these processes and all that descend from them."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    total += times.user + times.system
    return total


# --- The place and the loop ------------------------------------------------------------------------------------------


def options(about: str, *, n: str, runs: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has. `n` is one count or several with commas between."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--n", default=n, type=_counts, help="how many tasks; several with commas between")
    parser.add_argument("--runs", default=runs, type=int, help="how often each is repeated")
    parser.add_argument("--loop", default="auto", choices=("auto", "uvloop", "asyncio"), help="event loop")
    parser.add_argument("--folder", default=None, type=Path, help="where the store's file lies; must be a real disk")
    parser.add_argument("--out", default=OUT, type=Path, help="where JSON and pictures go")
    return parser


def _counts(text: str) -> list[int]:
    counts = [int(part.replace("_", "")) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("counts are 1 or more")
    return counts


@contextlib.contextmanager
def scratch(wanted: Path | None) -> Iterator[Path]:
    """Give a fresh folder on a real disk, gone afterwards. In memory there would be no sync to pay for.

    Without a wish the first of the system's temporary folder, /var/tmp, the home and the current folder that is on a
    disk. Exits with a message when there is none.
    """
    places = [wanted] if wanted else [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.home(), Path.cwd()]
    for place in places:
        if place.is_dir() and filesystem_of(place)[0] not in _IN_MEMORY:
            with tempfile.TemporaryDirectory(prefix="mainspring-bench-", dir=place) as folder:
                yield Path(folder)
            return
    sys.exit(f"no folder on a real disk among {', '.join(map(str, places))}: name one with --folder")


def run(main: Callable[[], Coroutine[Any, Any, T]], loop: str) -> T:
    """Run a coroutine function on the wanted loop; `auto` is uvloop where it can be imported."""
    if loop == "asyncio" or (loop == "auto" and uvloop_of() is None):
        return asyncio.run(main())
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def syncs_ms(folder: Path, n: int = _SYNCS) -> list[float]:
    """Return how long each append of 4 KiB with fdatasync took: what no durable commit here can be below."""
    path = folder / "sync.bin"
    block = b"y" * 4096
    taken = []
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        for _ in range(n):
            at = time.perf_counter()
            os.write(handle, block)
            getattr(os, "fdatasync", os.fsync)(handle)
            taken.append((time.perf_counter() - at) * 1e3)
    finally:
        os.close(handle)
        path.unlink()
    return taken


# --- The engine under test -------------------------------------------------------------------------------------------


async def noop(text: str) -> str:
    """Do nothing, durably."""
    return text


@contextlib.asynccontextmanager
async def opened(path: Path, *, worker: bool = True) -> AsyncIterator[Engine]:
    """Give an open engine as users have it: full durability, every default, but no limit to the queue.

    `noop` is registered with a timeout, so that the watch over running tasks is part of what is measured.
    """
    engine = Engine(path, EngineConfig(manager=TaskManagerConfig(queue_size=None)), worker=worker)
    engine.task(timeout=30)(noop)
    async with engine:
        yield engine


async def by_map(engine: Engine, n: int) -> None:
    """Store n tasks in bulk; back when all results are known."""
    await engine.gather(await engine.map(noop, [PAYLOAD] * n))


async def by_submitters(engine: Engine, n: int) -> None:
    """64 coroutines, each storing one task and awaiting its result before the next."""

    async def one(count: int) -> None:
        for _ in range(count):
            await (await engine.submit(noop, PAYLOAD)).result()

    shares = [n // SUBMITTERS + (i < n % SUBMITTERS) for i in range(SUBMITTERS)]
    await asyncio.gather(*(one(share) for share in shares))


async def latencies_ms(engine: Engine, n: int) -> tuple[list[float], list[float]]:
    """Store and await n tasks one at a time: how long until each was durable, and until its result was known."""
    durable, known = [], []
    for _ in range(n):
        at = time.perf_counter()
        handle = await engine.submit(noop, PAYLOAD)
        durable.append((time.perf_counter() - at) * 1e3)
        await handle.result()
        known.append((time.perf_counter() - at) * 1e3)
    return durable, known


# --- The report ------------------------------------------------------------------------------------------------------


class Report:
    """Collects rows; `finish` prints and writes them."""

    def __init__(self, name: str, title: str, folder: Path, loop: str, out: Path) -> None:
        self.name = name
        self.title = title
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self._folder = folder
        self._out = out
        self.machine = describe(folder, loop)
        self.syncs = syncs_ms(folder)
        self._started = time.time()

    @property
    def sync_ms(self) -> float:
        """Median of the run's own fdatasync, so far."""
        return statistics.median(self.syncs)

    def resync(self) -> float:
        """Measure fdatasync again, right beside what is compared with it, and return the median of just that."""
        fresh = syncs_ms(self._folder)
        self.syncs += fresh
        return statistics.median(fresh)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        print(f"  {row.what}, n = {row.n:,}: {row.median:,.3g} {row.unit}", file=sys.stderr, flush=True)
        return row

    def finish(self) -> None:
        self.syncs += syncs_ms(self._folder)
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=_WIDTH)
        console.print(self._table())
        for remark in self.remarks:
            console.print(remark, highlight=False)
        console.print(
            " | ".join(f"{name} {value}" for name, value in self.machine.items()), style="dim", highlight=False
        )
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / f"{self.name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.as_json())) + b"\n")
        picture = draw(path)
        console.print(f"{path}{'' if picture is None else f' and {picture}'}", style="dim", soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "machine": self.machine,
            "fdatasync_ms": {"p50": self.sync_ms, "p99": percentile(self.syncs, 0.99), "n": len(self.syncs)},
            "rows": [asdict(row) | {"median": row.median, "verdict": row.verdict} for row in self.rows],
            "remarks": self.remarks,
        }

    def _table(self) -> Table:
        table = Table(
            title=self.title, title_justify="left", caption=self._caption(), caption_justify="left", box=box.SIMPLE_HEAD
        )
        table.add_column("what", min_width=24)
        for name in ("n", "median", "spread", "CPU µs/task", "ratio", "wanted", "", "others"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table

    def _caption(self) -> str:
        against = sorted({row.against for row in self.rows if row.against})
        ratios = f"ratio: against {'; '.join(against)}. " if against else ""
        return (
            f"{ratios}others: CPUs kept busy by other processes.\n"
            f"fdatasync of 4 KiB here: p50 {self.sync_ms:.2f}, p99 {percentile(self.syncs, 0.99):.2f} ms"
        )


def _cells(row: Row) -> list[str]:
    style = {"goal": "green", "floor": "yellow", "below": "red"}.get(row.verdict, "")
    return [
        row.what + (f"\n  [dim]{row.note}[/dim]" if row.note else ""),
        f"{row.n:,}",
        f"{_figure(row.median)} {row.unit}",
        f"{_figure(min(row.values))}-{_figure(max(row.values))}",
        "\n".join(
            f"{name} {value:.1f}" if len(row.cpu_us) > 1 else f"{value:.1f}" for name, value in row.cpu_us.items()
        ),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        _wanted(row),
        f"[{style}]{row.verdict}[/{style}]" if style else "",
        "" if row.others is None else f"{row.others:.2f}",
    ]


def _wanted(row: Row) -> str:
    sign = "≤" if row.lower_is_better else "≥"
    limits = [
        f"{name} {sign} {limit:g}" for name, limit in (("floor", row.floor), ("goal", row.goal)) if limit is not None
    ]
    return ", ".join(limits)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
