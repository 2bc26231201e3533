"""Lines through samples, and whether they rise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Fit(NamedTuple):
    """A least-squares line; `error` is the standard error of its slope, for samples that depend on their neighbours."""

    slope: float  # a unit of x
    error: float
    start: float  # value at x = 0

    @property
    def at_least(self) -> float:
        """What the slope is but for one chance in forty."""
        return self.slope - 2 * self.error


def fit(xs: Sequence[float], ys: Sequence[float]) -> Fit:
    """Fit a line. A series that wanders has fewer independent samples than it has samples: its error is the larger."""
    n = len(xs)
    if n < 3:
        return Fit(0.0, math.inf, ys[0] if ys else 0.0)
    line = statistics.linear_regression(xs, ys)
    rest = [y - line.intercept - line.slope * x for x, y in zip(xs, ys, strict=True)]
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    error = math.sqrt(sum(r * r for r in rest) / max(1, n - 2) / spread) if spread else math.inf
    return Fit(line.slope, error * math.sqrt(_inflation(rest)), line.intercept)


def fit_apart(xs: Sequence[float], ys: Sequence[float], others: Sequence[float]) -> Fit:
    """Fit a line through what is left of both when it is taken out how each goes along with something else.

    What hardly changes explains nothing.
    """
    if len(xs) < 3 or statistics.pstdev(others) < 0.05 * statistics.fmean(others):
        return fit(xs, ys)
    return fit(_without(others, xs), _without(others, ys))


def _without(others: Sequence[float], ys: Sequence[float]) -> list[float]:
    line, mean = statistics.linear_regression(others, ys), statistics.fmean(others)
    return [y - line.slope * (other - mean) for other, y in zip(others, ys, strict=True)]


def _inflation(rest: Sequence[float]) -> float:
    """How many samples count as one, by what each has in common with the one before."""
    power = sum(r * r for r in rest)
    if not power:
        return 1.0
    common = max(0.0, min(0.95, sum(a * b for a, b in pairwise(rest)) / power))
    return (1 + common) / (1 - common)
