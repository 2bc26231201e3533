"""What the samples of a run say: figures with their limits, and the lines behind them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from proof.figures import Figures
from proof.soak.fit import Fit, fit
from proof.soak.load import WAL_LIMIT_BYTES
from proof.soak.program import Sample

WARM_UP = 0.3
"""Share of a run that is not judged: caches fill, and retention comes into balance."""
MIB = 1 << 20
_PER = 100_000


class Limits(NamedTuple):
    rss_mib: float  # a 100,000 operations, above its error
    latency: float  # p99 of the last quarter in those of the first
    file: float  # size of the last quarter in those of the first


def limits_for(seconds: float) -> Limits:
    """The shorter a run, the more of what it sees is warm-up and chance."""
    if seconds >= 600:
        return Limits(1.0, 1.5, 1.1)
    return Limits(12.0, 3.0, 1.5) if seconds >= 60 else Limits(150.0, 20.0, 10.0)


class Course(NamedTuple):
    """One process's samples under load after its warm-up, with its operations as they were counted elsewhere."""

    name: str
    samples: list[Sample]
    judged: list[Sample]
    rate: float  # operations a second

    def line(self, what: str) -> Fit:
        return fit([s.at for s in self.judged], [float(getattr(s, what)) for s in self.judged])


def course(name: str, samples: Sequence[Sample], counted: Sequence[Sample]) -> Course:
    loaded = [sample for sample in counted if sample.loaded and sample.done]
    rate = (loaded[-1].done - loaded[0].done) / (loaded[-1].at - loaded[0].at)
    begin, end = loaded[0].at, loaded[-1].at
    judged = [s for s in samples if begin + WARM_UP * (end - begin) <= s.at <= end]
    return Course(name, list(samples), judged, rate)


def judge(figures: Figures, one: Course, limits: Limits) -> None:
    """Add what is wanted of one process."""
    name, line = one.name, one.line("rss")
    mib = _PER / one.rate / MIB
    figures.note(f"{name}: operations a second", one.rate)
    figures.at_most(f"{name}: memory, MiB a 100,000 operations, at least", line.at_least * mib, limits.rss_mib)
    figures.note(f"{name}: memory, MiB a 100,000 operations, fitted", line.slope * mib)
    rest = [sample for sample in one.samples if sample.at > one.judged[-1].at]
    after = rest[-1] if rest else one.samples[-1]
    for what in ("descriptors", "threads", "tasks"):
        values = [getattr(sample, what) for sample in one.judged]
        minutes = (one.judged[-1].at - one.judged[0].at) / 60
        figures.at_most(f"{name}: {what}, gained while it ran", one.line(what).at_least * 60 * minutes, 2.0)
        figures.at_most(f"{name}: {what}, left when it rests", getattr(after, what) - min(values), _SPARE[what])


_SPARE = {"descriptors": 8.0, "threads": 2.0, "tasks": 2.0}
"""What may be there at rest beyond the least under load: a child more, with its pipes."""


def judge_store(figures: Figures, one: Course, limits: Limits) -> None:
    """Add what is wanted of the file and of the time that a claim takes; `one` is whoever submits."""
    quarter = max(1, len(one.judged) // 4)
    first, last = one.judged[:quarter], one.judged[-quarter:]
    figures.at_most(f"{one.name}: log, MiB at most", max(s.log for s in one.judged) / MIB, 8 * WAL_LIMIT_BYTES / MIB)
    figures.at_most(
        f"{one.name}: file, last quarter in the first", _mean(last, "file") / _mean(first, "file"), limits.file
    )
    before, after = (_p99([t for s in some for t in s.latencies]) for some in (first, last))
    figures.note(f"{one.name}: urgent task, p99 of the first quarter, ms", before * 1000)
    figures.at_most(f"{one.name}: urgent task, p99 of the last quarter in the first", after / before, limits.latency)


def _mean(samples: Sequence[Sample], what: str) -> float:
    return statistics.fmean(getattr(sample, what) for sample in samples)


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
