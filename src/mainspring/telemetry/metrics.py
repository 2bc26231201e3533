"""Metrics for Prometheus: what this process counts and what its store holds, put together when they are asked for.

The label sets are closed: types are those served by this process, `other` stands for all others; no ids, no namespaces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.dispatch.counting import Histogram
from mainspring.dispatch.manager import TaskManager
from mainspring.errors import InvalidInput, StoreUnavailable, invalid
from mainspring.store.base import CANCELLED, COMPLETED, FAILED, OUTCOMES, TIMEOUT, Kept
from mainspring.tasks import TaskPriority

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_FINAL = frozenset({COMPLETED, FAILED, TIMEOUT, CANCELLED})
_OTHER = "other"
_MAX_PORT = 65_535


class Seen(msgspec.Struct, frozen=True):
    """What has to be asked of the store."""

    stats: Mapping[str, Any]
    kept: tuple[Kept, ...]


async def look(manager: TaskManager) -> Seen:
    """Raises: StoreUnavailable."""
    return Seen(await manager.stats(), tuple(await manager.cache.stats()))


class Metrics:
    """The metrics of one manager. Needs the extra `metrics`.

    Raises: InvalidInput: prometheus-client is missing.
    """

    def __init__(self, manager: TaskManager) -> None:
        try:
            import prometheus_client
        except ImportError as exc:
            raise InvalidInput(
                "metrics need prometheus-client: pip install 'mainspring[metrics]'", field="metrics"
            ) from exc
        self._client = prometheus_client
        self._manager = manager

    async def text(self) -> bytes:
        """Return all metrics in the text format that Prometheus scrapes. Raises: StoreUnavailable."""
        seen = await look(self._manager)
        return self._client.generate_latest(self._registry(_Collector(lambda: families(self._manager, seen))))

    def serve(self, port: int, host: str = "127.0.0.1") -> Server:
        """Answer scrapes at http://HOST:PORT/metrics from a thread, until `Server.close`. Call it on the engine's loop.

        While the store can't be read a scrape has the metrics of the process alone, and `mainspring_store_up` 0.

        Raises: InvalidInput: no such port, or it is taken.
        """
        if type(port) is not int or not 0 <= port <= _MAX_PORT:
            raise invalid("metrics_port", port, "is no port", f"use 0 (any free one) to {_MAX_PORT}")
        loop = asyncio.get_running_loop()

        def collect() -> Iterator[Metric]:
            try:
                seen = asyncio.run_coroutine_threadsafe(look(self._manager), loop).result()
            except StoreUnavailable:
                seen = None
            return families(self._manager, seen)

        try:
            server, thread = self._client.start_http_server(port, host, self._registry(_Collector(collect)))
        except OSError as exc:
            raise invalid(
                "metrics_port", f"{host}:{port}", f"can't be listened on ({exc.strerror})", "use another"
            ) from exc
        return Server(server, thread)

    def _registry(self, collector: Any) -> Any:
        registry = self._client.CollectorRegistry()
        registry.register(collector)
        self._client.ProcessCollector(registry=registry)
        return registry


class Server:
    """An endpoint that answers scrapes."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    async def close(self) -> None:
        """Answer the scrape that is under way, then no more."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


class _Collector:
    def __init__(self, collect: Any) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()  # type: ignore[no-any-return]

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the store when this is registered."""
        return []


def families(manager: TaskManager, seen: Seen | None) -> Iterator[Metric]:
    """Return what there is to tell; without `seen` what this process alone knows."""
    from prometheus_client.core import GaugeMetricFamily

    yield from _attempts(manager)
    up = GaugeMetricFamily("mainspring_store_up", "Whether the store could be read for this scrape.")
    up.add_metric([], float(seen is not None))
    yield up
    if seen is not None:
        known = {str(kind) for kind in manager.executor.types}
        yield from _tasks(seen.stats, known)
        yield from _lanes(seen.stats)
        yield from _kept(seen.kept, known)


def _attempts(manager: TaskManager) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    counted = list(manager.counting.types.items())
    processed, types, priorities = 0, {}, dict.fromkeys(TaskPriority, 0)
    attempts = CounterMetricFamily(
        "mainspring_attempts", "Attempts of this process, by how they ended.", labels=["type", "outcome"]
    )
    for kind, counts in counted:
        ends = list(counts.ends.items())
        types[kind] = sum(n for (_, outcome), n in ends if outcome in _FINAL)
        processed += types[kind]
        for (priority, outcome), n in ends:
            if outcome in _FINAL:
                priorities[TaskPriority(priority)] += n
        for code, name in enumerate(OUTCOMES):
            attempts.add_metric([kind, name], sum(n for (_, outcome), n in ends if outcome == code))
    total = CounterMetricFamily("mainspring_tasks_processed", "Tasks that this process has brought to their end.")
    total.add_metric([], processed)
    yield total
    by_type = CounterMetricFamily("mainspring_tasks_by_type", "The same, by type.", labels=["type"])
    for kind, n in types.items():
        by_type.add_metric([kind], n)
    yield by_type
    by_priority = CounterMetricFamily("mainspring_tasks_by_priority", "The same, by priority.", labels=["priority"])
    for priority, n in priorities.items():
        by_priority.add_metric([priority.name.lower()], n)
    yield by_priority
    yield attempts
    yield _histogram(
        "mainspring_task_duration_seconds", "Wall time of handlers.", {kind: of.seconds for kind, of in counted}
    )
    yield _histogram(
        "mainspring_task_memory_bytes",
        "Peak resident memory of attempts in child processes; other lanes can't tell.",
        {kind: of.memory for kind, of in counted},
    )
    yield _histogram(
        "mainspring_task_cpu_usage", "Cores that an attempt kept busy: CPU time by wall time.",
        {kind: of.cores for kind, of in counted},
    )  # fmt: skip
    running = GaugeMetricFamily("mainspring_task_running_count", "Attempts that run in this process now.")
    running.add_metric([], len(manager.running_tasks()))
    yield running


def _histogram(name: str, text: str, series: Mapping[str, Histogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=["type"])
    for kind, histogram in series.items():
        bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
        family.add_metric([kind], list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
    return family


def _tasks(stats: Mapping[str, Any], known: set[str]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    queue = GaugeMetricFamily("mainspring_task_queue_size", "Tasks in the store that wait, whatever for.")
    queue.add_metric([], stats["pending"])
    yield queue
    counts = GaugeMetricFamily(
        "mainspring_tasks", "Tasks in the store, by what became of them; ended ones until they are pruned.",
        labels=["type", "status"],
    )  # fmt: skip
    found: dict[tuple[str, str], int] = {}
    for kind, by_status in stats["types"].items():
        for status, n in by_status.items():
            key = (kind if kind in known else _OTHER, status.lower())
            found[key] = found.get(key, 0) + n
    for key, n in found.items():
        counts.add_metric(list(key), n)
    yield counts


def _lanes(stats: Mapping[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    texts = {
        "slots": "Handlers that a lane of this process runs at once.",
        "running": "Attempts of a lane that have begun.",
        "claimed": "Tasks that this process has claimed and not begun.",
    }
    for name, text in texts.items():
        family = GaugeMetricFamily(f"mainspring_lane_{name}", text, labels=["lane"])
        for lane, counts in stats["lanes"].items():
            family.add_metric([lane], counts[name])
        yield family
    for name, text in {"calls": "Calls for several tasks.", "items": "Tasks in those."}.items():
        counter = CounterMetricFamily(f"mainspring_batch_{name}", text, labels=["type"])
        for kind, batches in stats["batches"].items():
            counter.add_metric([str(kind)], batches[name])
        yield counter
    closed = CounterMetricFamily("mainspring_batch_closed", "Why calls began.", labels=["type", "reason"])
    for kind, batches in stats["batches"].items():
        for reason, n in batches["closed"].items():
            closed.add_metric([str(kind), reason], n)
    yield closed


def _kept(kept: Iterable[Kept], known: set[str]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    sums: dict[str, tuple[int, int]] = {}
    for row in kept:
        kind = row.type if row.type in known else _OTHER
        n, size = sums.get(kind, (0, 0))
        sums[kind] = (n + row.entries, size + row.bytes)
    for index, (name, text) in enumerate({"results": "Results that are kept.", "bytes": "Bytes of those."}.items()):
        family = GaugeMetricFamily(f"mainspring_cache_{name}", text, labels=["type"])
        for kind, pair in sums.items():
            family.add_metric([kind], pair[index])
        yield family


__all__ = ["Metrics", "Server", "families"]
