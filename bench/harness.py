"""What all benchmarks share: runs that are timed, with CPU time, on a real disk, on the wanted loop.

A benchmark makes a `Report`, adds a `Row` for each thing measured, and calls `finish`; see `bench.report`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from bench.machine import filesystem_of, uvloop_of

OUT = Path(__file__).resolve().parent / "out"
PEER_RATE = 2_600.0
"""Tasks a second of the best durable peers (dramatiq with 8 threads on Redis, pgqueuer on Postgres) when they were
measured on 2 cores. A figure from another day: `python -m bench.peers` measures them beside us, in one run."""
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_SYNCS = 200

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
                yield Path(folder).resolve()
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
