"""Metrics for Prometheus: what this process counts and what its store holds, put together when they are asked for.

The label sets are closed: types are those served by this process, `other` stands for all others; no ids, no namespaces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.dispatch.manager import TaskManager
from mainspring.errors import InvalidInput, StoreUnavailable, invalid
from mainspring.resources.monitor import ResourceUsage
from mainspring.store.base import CANCELLED, COMPLETED, FAILED, OUTCOMES, TIMEOUT, Kept, Queued
from mainspring.store.counting import Histogram
from mainspring.tasks import TaskPriority

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_FINAL = frozenset({COMPLETED, FAILED, TIMEOUT, CANCELLED})
_OTHER = "other"
_LOOKUPS = ("hit", "joined", "miss")
_MAX_PORT = 65_535


class Ours(msgspec.Struct, frozen=True):
    """What has to be asked on the engine's loop, which changes it, or may take a moment."""

    running: int
    resources: Mapping[str, Mapping[str, float]]
    usage: ResourceUsage
    lanes: Mapping[str, Any]


class Seen(msgspec.Struct, frozen=True):
    """What has to be asked of the store."""

    stats: Mapping[str, Any]
    kept: tuple[Kept, ...]
    queued: Queued
    vectors: int


async def look_around(manager: TaskManager) -> Ours:
    usage = await asyncio.to_thread(manager.monitor.sample)
    return Ours(len(manager.running_tasks()), manager.reservations.stats(), usage, manager.lane_stats())


async def look(manager: TaskManager) -> Seen:
    """Raises: StoreUnavailable."""
    collections = await asyncio.to_thread(manager.parts.vectors.collections)
    return Seen(
        await manager.stats(),
        tuple(await manager.cache.stats()),
        await manager.store.queued(),
        sum(collection.count for collection in collections),
    )


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
        """Return all metrics in the text format that Prometheus scrapes.

        While the store can't be read they are those of the process alone, and `mainspring_store_up` 0.
        """
        ours, seen = await self._look()
        registry = self._registry(_Collector(lambda: families(self._manager, ours, seen)))
        return await asyncio.to_thread(self._client.generate_latest, registry)

    def serve(self, port: int, host: str = "127.0.0.1") -> Server:
        """Answer scrapes at http://HOST:PORT/metrics from a thread, with `text`, until `Server.close`. Call it on the
        engine's loop.

        Raises: InvalidInput: no such port, or it is taken.
        """
        if type(port) is not int or not 0 <= port <= _MAX_PORT:
            raise invalid("metrics_port", port, "is no port", f"use 0 (any free one) to {_MAX_PORT}")
        loop = asyncio.get_running_loop()

        def collect() -> Iterator[Metric]:
            ours, seen = asyncio.run_coroutine_threadsafe(self._look(), loop).result()
            return families(self._manager, ours, seen)

        try:
            server, thread = self._client.start_http_server(port, host, self._registry(_Collector(collect)))
        except OSError as exc:
            raise invalid(
                "metrics_port", f"{host}:{port}", f"can't be listened on ({exc.strerror})", "use another"
            ) from exc
        return Server(server, thread)

    async def _look(self) -> tuple[Ours, Seen | None]:
        ours = await look_around(self._manager)
        try:
            return ours, await look(self._manager)
        except StoreUnavailable:
            return ours, None

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


def families(manager: TaskManager, ours: Ours, seen: Seen | None) -> Iterator[Metric]:
    """Return what there is to tell; without `seen` what this process alone knows."""
    known = {str(kind) for kind in manager.executor.types}
    yield from _attempts(manager)
    yield from _process(manager, known)
    yield _gauge("mainspring_task_running_count", "Attempts that run in this process now.", ours.running)
    yield from _resources(ours)
    yield from _lanes(ours.lanes)
    yield _gauge("mainspring_store_up", "Whether the store could be read for this scrape.", float(seen is not None))
    if seen is not None:
        yield from _tasks(seen.stats, known)
        yield from _queued(seen.queued, manager.store.now_ms())
        yield _gauge("mainspring_vector_records", "Records of all collections of vectors.", seen.vectors)
        yield from _kept(seen.kept, known)


def _attempts(manager: TaskManager) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

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
    yield _histogram(
        "mainspring_task_queue_wait_seconds",
        "From the moment that a task was ready to its start; pauses, limits and resources are in it.",
        {priority.name.lower(): manager.counting.waits[priority] for priority in TaskPriority},
        label="priority",
    )


def _process(manager: TaskManager, known: set[str]) -> Iterator[Metric]:
    """What keeps a process from its work, and what it shares with others."""
    from prometheus_client.core import CounterMetricFamily

    counting, counts, models = manager.counting, manager.store.counts, manager.parts.models
    yield _histogram(
        "mainspring_loop_lag_seconds",
        "How late the event loop was: a look each 0.25 s.",
        {"": counting.lags},
        label="",
    )
    yield _histogram(
        "mainspring_store_commit_seconds", "Transactions of this process, from begin to durable.", {"": counts.commits},
        label="",
    )  # fmt: skip
    lookups = CounterMetricFamily(
        "mainspring_cache_lookups", "What came of looking for equal work.", labels=["type", "outcome"]
    )
    lost = CounterMetricFamily(
        "mainspring_claims_lost", "Outcomes that came after others had taken the task.", labels=["type"]
    )
    # What may be counted is there from the start, with 0: a rate sees the first event only as a rise from something.
    kept = [str(handler.task_type) for handler in manager.executor.handlers.values() if handler.cache]
    looked = {(kind, outcome): 0 for kind in kept for outcome in _LOOKUPS}
    for (kind, outcome), n in (looked | _by_known(list(counts.lookups.items()), known)).items():
        lookups.add_metric([kind, outcome], n)
    none_lost = {(kind, ""): 0 for kind in sorted(known)}
    for (kind, _), n in (none_lost | _by_known([((kind, ""), n) for kind, n in counting.lost.items()], known)).items():
        lost.add_metric([kind], n)
    yield lookups
    yield lost
    texts = {
        "mainspring_claims_rescued": (
            "Claims of dead or silent processes that it took back.",
            counts.rescued,
        ),
        "mainspring_workers_rescued": ("Processes whose claims it has taken back.", counts.buried),
    }
    for name, (text, n) in texts.items():
        counter = CounterMetricFamily(name, text)
        counter.add_metric([], n)
        yield counter
    yield _gauge("mainspring_models_loaded", "Models in the memory of this process.", models.loaded_count)
    yield _gauge("mainspring_models_loaded_bytes", "What those take, as far as it can be told.", models.loaded_bytes)
    memory = models.memory
    held = {
        "own_bytes": ("Memory of models and search matrices in this process.", memory.own_bytes),
        "machine_bytes": ("The same in all processes of this user on this machine.", memory.machine_bytes),
        "budget_bytes": ("How much that may be.", memory.budget_bytes),
    }
    for name, (text, n) in held.items():
        yield _gauge(f"mainspring_memory_{name}", text, n)


def _resources(ours: Ours) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in {"reserved": "What running attempts have reserved.", "capacity": "What there is of it."}.items():
        family = GaugeMetricFamily(f"mainspring_resources_{name}", text, labels=["kind"])
        for kind, of in ours.resources.items():
            family.add_metric([kind], of[name])
        yield family
    usage = ours.usage
    gauges = {
        "cpu_usage": ("Share of the cores that is in use on this host or in its container.", usage.cpu_usage),
        "cpu_cores": ("Cores that this process may use.", usage.cpu_limit),
        "memory_bytes": ("Memory in use there.", usage.memory_bytes),
        "memory_limit_bytes": ("How much of it may be in use.", usage.max_memory_bytes),
        "storage_bytes": ("In use on the disk of the store.", usage.storage_bytes),
        "storage_limit_bytes": ("How much of that may be in use.", usage.max_storage_bytes),
    }
    for name, (text, value) in gauges.items():
        if value is not None:
            yield _gauge(f"mainspring_host_{name}", text, value)
    if usage.network_bytes is not None:
        network = CounterMetricFamily("mainspring_host_network_bytes", "Both ways, all interfaces but loopback.")
        network.add_metric([], usage.network_bytes)
        yield network


def _by_known(counted: Iterable[tuple[tuple[str, str], int]], known: set[str]) -> dict[tuple[str, str], int]:
    """Sum up what types that are not served here have, as `other`."""
    found: dict[tuple[str, str], int] = {}
    for (kind, what), n in counted:
        key = (kind if kind in known else _OTHER, what)
        found[key] = found.get(key, 0) + n
    return found


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge


def _histogram(name: str, text: str, series: Mapping[str, Histogram], *, label: str = "type") -> Metric:
    """Return a histogram for each value of a label, or without labels one."""
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    family = HistogramMetricFamily(name, text, labels=[label] if label else None)
    for value, histogram in series.items():
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric([value] if label else [], buckets, histogram.sum)
    return family


def _tasks(stats: Mapping[str, Any], known: set[str]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    yield _gauge("mainspring_task_queue_size", "Tasks in the store that wait, whatever for.", stats["pending"])
    counts = GaugeMetricFamily(
        "mainspring_tasks", "Tasks in the store, by what became of them; ended ones until they are pruned.",
        labels=["type", "status"],
    )  # fmt: skip
    counted = [((kind, status.lower()), n) for kind, of in stats["types"].items() for status, n in of.items()]
    for key, n in _by_known(counted, known).items():
        counts.add_metric(list(key), n)
    yield counts


def _queued(queued: Queued, now_ms: int) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    ready = GaugeMetricFamily(
        "mainspring_queue_ready",
        "Tasks in the store that are ready, whatever keeps them still: of up to 10,000 of those that go first.",
        labels=["priority"],
    )
    oldest = GaugeMetricFamily(
        "mainspring_queue_oldest_seconds", "For how long the oldest of those has been ready.", labels=["priority"]
    )
    for priority in TaskPriority:
        n, since_ms = queued.by_priority.get(priority, (0, now_ms))
        if n or queued.is_whole:  # else there may be some behind those that were looked at
            ready.add_metric([priority.name.lower()], n)
            oldest.add_metric([priority.name.lower()], max(0, now_ms - since_ms) / 1000)
    yield ready
    yield oldest


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
    given = CounterMetricFamily("mainspring_lane_given", "Claims given to idle processes.", labels=["lane"])
    for lane, counts in stats["lanes"].items():
        given.add_metric([lane], counts["given"])
    yield given
    for name, text in {
        "calls": "Calls of handlers, also with halves of calls that raised.",
        "items": "Tasks in those, each once.",
    }.items():
        counter = CounterMetricFamily(f"mainspring_batch_{name}", text, labels=["type"])
        for kind, batches in stats["batches"].items():
            counter.add_metric([str(kind)], batches[name])
        yield counter
    fill = GaugeMetricFamily(
        "mainspring_batch_fill_ratio", "Share of the largest call that was used so far.", labels=["type"]
    )
    for kind, batches in stats["batches"].items():
        if batches["fill"] is not None:
            fill.add_metric([str(kind)], batches["fill"])
    yield fill
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
