"""What this process has seen of attempts: plain counters, cheap enough to be always on, for telemetry to read."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter

from mainspring.environment import Environment
from mainspring.store.base import Finish
from mainspring.store.counting import Histogram
from mainspring.tasks import TaskPriority

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
BYTES = tuple(float(1 << shift) for shift in range(24, 37))  # 16 MiB to 64 GiB
WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 14400.0, 86400.0)
LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CORES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class TypeCounts:
    """Attempts of one type. What a lane can't know is not observed."""

    __slots__ = ("cores", "ends", "memory", "seconds")

    def __init__(self) -> None:
        self.ends: dict[tuple[int, int], int] = {}  # by priority and outcome, as the store numbers them
        self.seconds = Histogram(SECONDS)
        self.memory = Histogram(BYTES)
        self.cores = Histogram(CORES)


class Counting:
    """Counts what is handed to the store, by task type: as many series as there are types that are served here."""

    def __init__(self) -> None:
        self.types: dict[str, TypeCounts] = {}
        self.waits = [Histogram(WAITS) for _ in TaskPriority]  # seconds from ready to started, by priority
        self.lags = Histogram(LAGS)  # seconds that the event loop was late
        self.lost: Counter[str] = Counter()  # outcomes that came too late, by type

    async def sleep(self, seconds: float, env: Environment) -> None:
        """Sleep, and count how late the event loop wakes us."""
        due = env.monotonic() + seconds
        await asyncio.sleep(seconds)
        self.lags.observe(max(0.0, env.monotonic() - due))

    def add(self, finish: Finish) -> None:
        """Count an attempt. It is on the way of every task, hence without calls of our own."""
        claim, usage = finish.claim, finish.usage
        counts = self.types.get(claim.task_type)
        if counts is None:
            counts = self.types[claim.task_type] = TypeCounts()
        key = (claim.priority, finish.outcome)
        counts.ends[key] = counts.ends.get(key, 0) + 1
        if finish.started_ms is None:
            return
        histogram, wait_ms = self.waits[claim.priority], finish.started_ms - claim.ready_ms
        if wait_ms > 0:
            histogram.counts[bisect_left(WAITS, wait_ms / 1000)] += 1
            histogram.sum += wait_ms / 1000
        else:
            histogram.counts[0] += 1
        seconds, cpu_s, memory = usage.duration, usage.cpu_time, usage.memory_bytes
        histogram = counts.seconds
        histogram.counts[bisect_left(SECONDS, seconds)] += 1
        histogram.sum += seconds
        if cpu_s is not None and seconds:
            histogram = counts.cores
            histogram.counts[bisect_left(CORES, cpu_s / seconds)] += 1
            histogram.sum += cpu_s / seconds
        if memory is not None:
            histogram = counts.memory
            histogram.counts[bisect_left(BYTES, memory)] += 1
            histogram.sum += memory
