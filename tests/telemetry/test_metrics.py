"""Metrics, scraped as Prometheus does it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine import process_work
from tests.engine.support import LIMIT_S, engine_on, until, value
from tests.telemetry.dashboard import queries, selected

from mainspring import (
    Batch,
    Engine,
    EngineConfig,
    InvalidInput,
    Permanent,
    ProcessingFailed,
    Resources,
    TaskManagerConfig,
    TaskPriority,
)
from mainspring.store.base import COMPLETED, RELEASED, Claimed, Finish
from mainspring.telemetry.metrics import Metrics, Server, _queued

pytestmark = pytest.mark.anyio
PART = r"_(bucket|count|sum)$"
HOLDS = """
import asyncio, sys
from mainspring import Engine
engine = Engine(sys.argv[1])
@engine.task(name="hold")
async def hold(): print("holds", flush=True); await asyncio.sleep(3600)
async def main():
    async with engine:
        await (await engine.submit(hold)).result()
asyncio.run(main())
"""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    engine = engine_on(process_slots=1)

    @engine.task
    async def work(n: int) -> int:
        if n < 0:
            raise Permanent("below zero")
        return n

    @engine.task(batch=Batch(max_size=8), cache="1h")
    async def together(items: list[int]) -> list[int]:
        return items

    engine.task(lane="process")(process_work.double)
    async with engine:
        for given in (work, [1, 2, 3]), (together, [1, 1, 2]), (process_work.double, [4]):
            await engine.gather(await engine.map(*given))
        with pytest.raises(ProcessingFailed):
            await (await engine.submit(work, -1, priority="HIGH")).result()
        yield engine


def read(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def scraped(server: Server) -> str:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{server.port}/metrics")
    assert answer.status_code == 200
    return answer.text


async def test_the_eight_of_the_design(engine: Engine) -> None:
    """Each is there by its name, and tells what was done."""
    samples = read((await engine.metrics()).decode())
    assert one(samples, "mainspring_tasks_processed_total") == 4 + 2 + 1  # of equal work one runs
    assert one(samples, "mainspring_tasks_by_type_total", type="custom:work") == 4
    assert one(samples, "mainspring_tasks_by_priority_total", priority="high") == 1
    assert one(samples, "mainspring_task_duration_seconds_count", type="custom:work") == 4
    assert one(samples, "mainspring_task_duration_seconds_bucket", type="custom:work", le="+Inf") == 4
    assert one(samples, "mainspring_task_memory_bytes_count", type="custom:work") == 0  # a coroutine's can't be told
    assert one(samples, "mainspring_task_memory_bytes_count", type="custom:double") == 1
    assert 1 << 20 < one(samples, "mainspring_task_memory_bytes_sum", type="custom:double") < 1 << 30
    assert one(samples, "mainspring_task_cpu_usage_count", type="custom:work") == 4
    assert one(samples, "mainspring_task_duration_seconds_sum", type="custom:work") > 0
    assert one(samples, "mainspring_task_cpu_usage_sum", type="custom:double") > 0
    used = one(samples, "mainspring_task_memory_bytes_sum", type="custom:double")
    buckets = {
        float(dict(labels)["le"]): n
        for (name, labels), n in samples.items()
        if name == "mainspring_task_memory_bytes_bucket" and ("type", "custom:double") in labels
    }
    assert tuple(buckets) == (*engine.manager.counting.types["custom:double"].memory.bounds, float("inf")), "exact"
    assert buckets == {bound: float(bound >= used) for bound in buckets}, "of one attempt: in its own bucket"
    assert set(buckets.values()) == {0.0, 1.0}
    assert one(samples, "mainspring_task_queue_size") == 0
    assert one(samples, "mainspring_task_running_count") == 0


async def test_what_else_one_expects(engine: Engine) -> None:
    """Outcomes, what is in the store, lanes, calls and kept results."""
    samples = read((await engine.metrics()).decode())
    assert one(samples, "mainspring_attempts_total", type="custom:work", outcome="failed") == 1
    assert one(samples, "mainspring_attempts_total", type="custom:work", outcome="completed") == 3
    assert one(samples, "mainspring_tasks", type="custom:together", status="completed") == 3
    assert one(samples, "mainspring_lane_slots", lane="process") == 1
    assert one(samples, "mainspring_batch_items_total", type="custom:together") == 2
    assert one(samples, "mainspring_cache_results", type="custom:together") == 2
    assert one(samples, "mainspring_batch_fill_ratio", type="custom:together") > 0
    looked = {
        outcome: one(samples, "mainspring_cache_lookups_total", type="custom:together", outcome=outcome)
        for outcome in ("joined", "miss")
    }
    assert looked == {"joined": 1, "miss": 2}
    assert one(samples, "mainspring_task_queue_wait_seconds_count", priority="high") == 1
    assert one(samples, "mainspring_task_queue_wait_seconds_bucket", priority="normal", le="+Inf") == 3 + 2 + 1
    assert one(samples, "mainspring_store_commit_seconds_count") > 3
    assert one(samples, "mainspring_store_commit_seconds_sum") > 0
    assert one(samples, "mainspring_models_loaded") == 0
    assert one(samples, "mainspring_memory_own_bytes") == 0
    assert one(samples, "mainspring_memory_machine_bytes") >= 0
    assert one(samples, "mainspring_memory_budget_bytes") == 4 << 30
    assert one(samples, "mainspring_queue_ready", priority="low") == 0
    assert one(samples, "mainspring_claims_rescued_total") == 0
    assert one(samples, "mainspring_lane_given_total", lane="async") == 0
    assert 0 < one(samples, "mainspring_host_memory_bytes") < one(samples, "mainspring_host_memory_limit_bytes") / 0.9
    assert one(samples, "mainspring_host_cpu_cores") > 0
    assert one(samples, "mainspring_store_up") == 1


async def test_kept_results_are_told_from_what_runs(engine: Engine) -> None:
    """A result that was there already is a hit, at the submit and where parents' results come first."""
    together = engine.executor.handlers["custom:together"].function
    before = read((await engine.metrics()).decode())
    await value(await engine.submit(together, 1))
    await value(await engine.submit(together, await engine.submit(engine.executor.handlers["custom:work"].function, 1)))
    samples = read((await engine.metrics()).decode())
    looked, kind = "mainspring_cache_lookups_total", "custom:together"
    assert one(samples, looked, type=kind, outcome="hit") == 2
    assert one(samples, looked, type=kind, outcome="miss") == one(before, looked, type=kind, outcome="miss")


async def test_what_waits_by_priority(tmp_path: Path) -> None:
    """How many, and for how long the oldest; what runs or waits for its parents is not among them."""
    async with engine_on(tmp_path / "work.db", worker=False) as engine:
        wait = engine.task(name="wait")(lambda: None)
        await engine.map(engine.task(name="each")(lambda n: n), range(5), priority="LOW")
        first = await engine.submit(wait, priority="HIGH")
        await engine.submit(wait, after=[first], priority="CRITICAL")
        samples = read((await engine.metrics()).decode())
        names = ("low", "normal", "high", "critical")
        assert [one(samples, "mainspring_queue_ready", priority=name) for name in names] == [5, 0, 1, 0]
        store = engine.manager.store
        some = await store.queued(4)  # two of each of two classes
        assert ({priority: n for priority, (n, _) in some.by_priority.items()}, some.is_whole) == ({0: 2, 2: 1}, False)
        since_ms = some.by_priority[TaskPriority.HIGH][1]
        assert 0 <= store.now_ms() - since_ms < 1000 * LIMIT_S
        told = {
            (sample.name, sample.labels["priority"]): sample.value
            for family in _queued(some, since_ms + 7_000)
            for sample in family.samples
        }
        assert told["mainspring_queue_oldest_seconds", "high"] == 7
        assert ("mainspring_queue_ready", "normal") not in told  # there may be some


async def test_claims_that_change_hands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a dead process held is counted by who takes it back; what came too late by who brings it."""
    path = tmp_path / "work.db"
    async with engine_on(path) as engine:
        engine.task(name="wait")(lambda: None)
        command = [sys.executable, "-c", HOLDS, str(path)]
        dead = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert dead.stdout is not None
        await dead.stdout.readline()
        dead.kill()
        await dead.wait()
        counts = engine.manager.store.counts
        await until(lambda: counts.buried == 1)
        claim = Claimed(bytes(16), 1, "custom:wait", b"", seq=1, class_key=("default", "custom:wait", ""))
        engine.manager.lost([Finish(claim, COMPLETED, 0), Finish(claim, RELEASED, 0)])
        samples = read((await engine.metrics()).decode())
        assert one(samples, "mainspring_claims_rescued_total") == 1
        assert one(samples, "mainspring_workers_rescued_total") == 1
        assert one(samples, "mainspring_claims_lost_total", type="custom:wait") == 1


async def test_what_may_be_counted_begins_at_nothing(tmp_path: Path) -> None:
    """A rate sees the first event of a worker only where the series was there before."""
    async with engine_on(tmp_path / "work.db") as engine:
        engine.task(name="keeps", cache="1h")(lambda: None)
        engine.task(name="plain")(lambda: None)
        samples = read((await engine.metrics()).decode())
    looked = {labels: n for (name, labels), n in samples.items() if name == "mainspring_cache_lookups_total"}
    assert {dict(labels)["type"] for labels in looked} == {"custom:keeps"}
    assert {dict(labels)["outcome"]: n for labels, n in looked.items()} == {"hit": 0, "joined": 0, "miss": 0}
    for kind in map(str, engine.executor.types):
        assert one(samples, "mainspring_claims_lost_total", type=kind) == 0


async def test_a_loop_that_is_late(engine: Engine) -> None:
    """Whatever keeps the loop from turning shows, with how long it did."""
    lags = engine.manager.counting.lags
    before = sum(lags.counts)
    await until(lambda: sum(lags.counts) > before)
    late = sum(lags.counts[bisect_left(lags.bounds, 0.5) + 1 :])
    time.sleep(1.5)  # noqa: ASYNC251 - that is it
    await until(lambda: sum(lags.counts[bisect_left(lags.bounds, 0.5) + 1 :]) > late)


async def test_what_is_reserved(tmp_path: Path) -> None:
    """Of each kind that there is, while attempts run."""
    config = EngineConfig(manager=TaskManagerConfig(cpu_capacity=4, custom_capacity={"seat": 2}))
    engine, go = Engine(tmp_path / "work.db", config), asyncio.Event()

    @engine.task(resources=Resources(cpu=1.5, custom={"seat": 1}))
    async def sit() -> None:
        await go.wait()

    async with engine:
        handle = await engine.submit(sit)
        await until(lambda: bool(engine.manager.running_tasks()))
        samples = read((await engine.metrics()).decode())
        go.set()
        await value(handle)
        after = read((await engine.metrics()).decode())
    told = {kind: one(samples, "mainspring_resources_reserved", kind=kind) for kind in ("cpu", "memory", "seat")}
    assert told == {"cpu": 1.5, "memory": 0, "seat": 1}
    assert one(samples, "mainspring_resources_capacity", kind="seat") == 2
    assert one(samples, "mainspring_task_running_count") == 1
    assert one(after, "mainspring_resources_reserved", kind="cpu") == 0
    assert not [
        labels for name, labels in samples if name == "mainspring_resources_capacity" and ("kind", "gpu") in labels
    ]


async def test_what_the_loop_changes_is_asked_on_the_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape goes on in a thread: what it went through there could change under its hands."""
    asked: list[int] = []

    def running() -> list[Any]:
        asked.append(threading.get_ident())
        return []

    monkeypatch.setattr(engine.manager, "running_tasks", running)
    server = Metrics(engine.manager).serve(0)
    try:
        await scraped(server)
    finally:
        await server.close()
    await engine.metrics()
    assert asked == [threading.get_ident()] * 2


async def test_the_endpoint(engine: Engine) -> None:
    """It says the same over HTTP, on the loopback alone, and nothing any more when it is closed."""
    server = Metrics(engine.manager).serve(0)
    try:
        over_http = read(await scraped(server))
        for name in ("mainspring_tasks_processed_total", "mainspring_task_queue_size", "mainspring_store_up"):
            assert one(over_http, name) == one(read((await engine.metrics()).decode()), name)
        with pytest.raises(InvalidInput, match="can't be listened on"):
            Metrics(engine.manager).serve(server.port)
    finally:
        await server.close()
    with pytest.raises(httpx.ConnectError):
        await scraped(server)
    with pytest.raises(InvalidInput, match="is no port"):
        Metrics(engine.manager).serve(70_000)


async def test_types_of_others_are_one(tmp_path: Path) -> None:
    """Whatever other processes serve makes no series of its own here."""
    async with engine_on(tmp_path / "work.db", worker=False) as other:
        for name in ("one", "two"):
            other.task(name=name)(lambda: None)
            await other.submit(other.executor.handlers[f"custom:{name}"].function)
        samples = read((await other.metrics()).decode())
        assert one(samples, "mainspring_tasks", type="custom:one", status="unfinished") == 1
    async with engine_on(tmp_path / "work.db", worker=False) as stranger:
        samples = read((await stranger.metrics()).decode())
        assert one(samples, "mainspring_tasks", type="other", status="unfinished") == 2
        assert "custom:" not in (await stranger.metrics()).decode()


async def test_a_scrape_of_a_store_that_is_gone_has_the_rest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph must not stop when the store does."""
    from mainspring.errors import StoreUnavailable

    async def gone() -> dict[str, Any]:
        raise StoreUnavailable("the server is gone")

    server = Metrics(engine.manager).serve(0)
    try:
        monkeypatch.setattr(engine.manager, "stats", gone)
        samples = read(await scraped(server))
        told = read((await engine.metrics()).decode())
    finally:
        await server.close()
    assert one(samples, "mainspring_store_up") == one(told, "mainspring_store_up") == 0
    assert {name for name, _ in told} == {name for name, _ in samples}
    assert one(samples, "mainspring_tasks_by_type_total", type="custom:work") == 4
    assert one(samples, "mainspring_lane_slots", lane="process") == 1
    assert one(samples, "mainspring_batch_items_total", type="custom:together") == 2


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InvalidInput, match=re.escape("mainspring[metrics]")):
        Metrics(engine_on().manager)


async def test_every_query_of_the_dashboard_finds_something(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics, labels and values are those of a real scrape, and each metric of ours is somewhere in it.

    What goes up and down is shown as it is; counters and the parts of histograms, which only grow, as rates.
    """
    engine.manager.counting.lost["custom:work"] += 1
    usage = msgspec.structs.replace(engine.monitor.sample(), cpu_usage=0.5, network_bytes=1)  # known after a while
    monkeypatch.setattr(engine.monitor, "sample", lambda: usage)
    await engine.submit(process_work.double, 5, delay=3600)
    text = (await engine.metrics()).decode()
    grow = {
        sample.name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }
    labels: dict[str, set[str]] = {}
    values: dict[str, set[tuple[str, str]]] = {}
    for name, given in read(text):
        labels.setdefault(name, set()).update(label for label, _ in given)
        values.setdefault(name, set()).update(given)
    used = [one for query in queries() for one in selected(query)]
    assert len(queries()) > 10
    assert {one.name for one in used if one.name not in labels} == set()
    shown = {re.sub(PART, "", one.name) for one in used if one.name.startswith("mainspring_")}
    assert {re.sub(PART, "", name) for name in labels if name.startswith("mainspring_")} == shown
    assert [(one.name, one.labels - labels[one.name]) for one in used if one.labels - labels[one.name]] == []
    assert [one for one in used if not values[one.name].issuperset(one.chosen)] == []
    assert [one for one in used if one.is_rated != (one.name in grow)] == []


async def test_a_worker_serves_them(tmp_path: Path) -> None:
    """`mainspring worker --metrics-port 0 --json` says where, and stops serving when it stops."""
    command = [sys.executable, "-m", "mainspring", "worker", "--builtin", "--store", str(tmp_path / "work.db")]
    worker = await asyncio.create_subprocess_exec(
        *command, "--metrics-port", "0", "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert worker.stdout is not None
        said = json.loads(await worker.stdout.readline())
        assert said["event"] == "metrics"
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{said['port']}/metrics")
        assert one(read(answer.text), "mainspring_store_up") == 1
        assert json.loads(await worker.stdout.readline())["event"] == "ready"
        worker.terminate()
        assert await worker.wait() == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
