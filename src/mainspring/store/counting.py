"""What a process has seen of its store: plain counters, cheap enough to be always on."""

from __future__ import annotations

from bisect import bisect_left

COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """How many observations were at most as large as each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class StoreCounts:
    """Each figure has one thread that writes it."""

    def __init__(self) -> None:
        self.commits = Histogram(COMMIT_S)  # seconds from the begin of a transaction until it is durable
        self.lookups: dict[tuple[str, str], int] = {}  # by type and what came of it: hit, joined, miss
        self.rescued = 0  # claims of other processes that were taken back
        self.buried = 0  # processes whose claims those were


__all__ = ["Histogram", "StoreCounts"]
