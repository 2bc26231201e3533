"""Metrics, scraped as Prometheus does it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine import process_work
from tests.engine.support import engine_on

from mainspring import Batch, Engine, InvalidInput, Permanent, ProcessingFailed
from mainspring.telemetry.metrics import Metrics, Server

pytestmark = pytest.mark.anyio
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
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
    assert one(samples, "mainspring_store_up") == 1


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
    finally:
        await server.close()
    assert one(samples, "mainspring_store_up") == 0
    assert one(samples, "mainspring_tasks_by_type_total", type="custom:work") == 4


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InvalidInput, match=re.escape("mainspring[metrics]")):
        Metrics(engine_on().manager)


def names(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each metric of a query with the labels that the query uses of it."""
    grouped = {label.strip() for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(",")}
    for name, selected in re.findall(r"\b((?:mainspring|process)_\w+)(?:\{([^}]*)\})?", expression):
        yield name, grouped | set(re.findall(r"(\w+)\s*(?:=|!=)", selected))


async def test_every_query_of_the_dashboard_finds_something(engine: Engine) -> None:
    """Metrics and labels are those of a real scrape."""
    samples = read((await engine.metrics()).decode())
    labels: dict[str, set[str]] = {}
    for name, given in samples:
        labels.setdefault(name, set()).update(label for label, _ in given)
    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    used = [found for query in queries for found in names(query)]
    assert len(queries) > 10
    assert {name for name, _ in used if name not in labels} == set()
    assert [(name, wanted - labels[name]) for name, wanted in used if wanted - labels[name]] == []


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
