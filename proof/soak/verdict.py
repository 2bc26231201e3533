"""What the samples of a run say: figures with their limits, and the lines behind them.

The machine may have other work, and more or less of it as time goes on: times are judged in operations that ended
meanwhile, work in CPU, and what lies in the file beside how much went through it.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from proof.figures import Figures
from proof.soak.fit import Fit, fit, fit_apart
from proof.soak.load import WAL_LIMIT_BYTES
from proof.soak.program import Sample

WARM_UP = 0.3
"""Share of a run that is not judged: caches fill, and retention comes into balance."""
MIB = 1 << 20
_PER = 100_000
_AROUND_S = 5.0
_SWEEPS_S = 20.0
"""In so long retention has been through the file once at least."""


class Limits(NamedTuple):
    rss_mib: float  # a 100,000 operations, above its error
    slower: float  # p99 of the last quarter in that of the first, and CPU likewise
    file: float  # gained while it ran, in what it was, above its error


def limits_for(seconds: float) -> Limits:
    """The shorter a run, the more of what it sees is warm-up and chance."""
    if seconds >= 600:
        return Limits(1.0, 1.5, 0.1)
    return Limits(12.0, 3.0, 0.5) if seconds >= 60 else Limits(150.0, 20.0, 9.0)


class Course(NamedTuple):
    """One process's samples under load after its warm-up, with its operations as they were counted elsewhere."""

    name: str
    samples: list[Sample]
    judged: list[Sample]
    counted: list[Sample]
    rate: float  # operations a second

    def line(self, what: str) -> Fit:
        return fit([s.at for s in self.judged], [float(getattr(s, what)) for s in self.judged])

    def quarters(self) -> tuple[list[Sample], list[Sample]]:
        """The first of what is judged, and the last."""
        n = max(2, len(self.judged) // 4)
        return self.judged[:n], self.judged[-n:]

    def rate_at(self, at: float) -> float:
        """Operations a second in the ten seconds around a moment, of the machine as it was then."""
        begin, end = max(at - _AROUND_S, self.counted[0].at), min(at + _AROUND_S, self.counted[-1].at)
        return self.operations(begin, end) / (end - begin)

    def operations(self, begin: float, end: float) -> float:
        return self._done(end) - self._done(begin)

    def _done(self, at: float) -> float:
        """How many had been done then, as if each sample's had come evenly."""
        n = min(max(1, bisect_left(self.counted, at, key=lambda sample: sample.at)), len(self.counted) - 1)
        before, after = self.counted[n - 1], self.counted[n]
        return before.done + (after.done - before.done) * (at - before.at) / (after.at - before.at)


def course(name: str, samples: Sequence[Sample], counted: Sequence[Sample]) -> Course:
    loaded = [sample for sample in counted if sample.loaded and sample.done]
    rate = (loaded[-1].done - loaded[0].done) / (loaded[-1].at - loaded[0].at)
    begin, end = loaded[0].at, loaded[-1].at
    judged = [s for s in samples if begin + WARM_UP * (end - begin) <= s.at <= end]
    return Course(name, list(samples), judged, loaded, rate)


def judge(figures: Figures, one: Course, limits: Limits) -> None:
    """Add what is wanted of one process."""
    name, line = one.name, one.line("rss")
    mib = _PER / one.rate / MIB
    figures.note(f"{name}: operations a second", one.rate)
    figures.at_most(f"{name}: memory, MiB a 100,000 operations, at least", line.at_least * mib, limits.rss_mib)
    figures.note(f"{name}: memory, MiB a 100,000 operations, fitted", line.slope * mib)
    first, last = one.quarters()
    figures.at_most(
        f"{name}: CPU an operation, last quarter in the first", _cpu(one, last) / _cpu(one, first), limits.slower
    )
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
    first, last = one.quarters()
    figures.at_most(f"{one.name}: log, MiB at most", max(s.log for s in one.judged) / MIB, 8 * WAL_LIMIT_BYTES / MIB)
    figures.at_most(f"{one.name}: file in use, gained while it ran, at least", _gained(one), limits.file)
    figures.note(
        f"{one.name}: urgent task, p99 of the first quarter, ms", _p99([t for s in first for t in s.latencies]) * 1000
    )
    before, after = (_p99([t * one.rate_at(s.at) for s in some for t in s.latencies]) for some in (first, last))
    figures.note(f"{one.name}: urgent task, operations meanwhile, p99 of the first quarter", before)
    figures.at_most(
        f"{one.name}: urgent task, operations meanwhile, p99 of the last quarter in the first",
        after / before,
        limits.slower,
    )


def _gained(one: Course) -> float:
    """What of the file is still in use after retention has been through it, at the end beyond what was at first.

    It fills between two sweeps and with what goes through it, several times over: that is no rise.
    """
    begin, seconds = one.judged[0].at, one.judged[-1].at - one.judged[0].at
    each_s = min(_SWEEPS_S, seconds / 12)
    blocks = [list(block) for _, block in groupby(one.judged, key=lambda sample: int((sample.at - begin) / each_s))]
    least = [float(min(sample.file for sample in block)) for block in blocks]
    times = [statistics.fmean(sample.at for sample in block) for block in blocks]
    rise = fit_apart(times, least, [one.rate_at(at) for at in times])
    return rise.at_least * seconds / statistics.fmean(least[: max(1, len(least) // 4)])


def _cpu(one: Course, quarter: Sequence[Sample]) -> float:
    """Seconds of work an operation: other work on the machine hardly changes them."""
    begin, end = quarter[0], quarter[-1]
    return (end.cpu - begin.cpu) / one.operations(begin.at, end.at)


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
