"""Spans, as the SDK's exporters get them."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests import postgres
from tests.engine.support import LIMIT_S, SOON, quick, value
from tests.telemetry import traced

from mainspring import Batch, Context, Engine, InvalidInput, RetryAfter, StoreConfig, TaskCancelled
from mainspring.store.base import Spec

pytestmark = pytest.mark.anyio
tracer = trace.get_tracer("tests")
Spans = Callable[[], list[ReadableSpan]]


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """There is one provider in a process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """All that have ended in this test."""
    exporter.clear()
    return lambda: list(exporter.get_finished_spans())


def engine_of(path: Path | str = ":memory:", *, tracing: bool = True, **manager: Any) -> Engine:
    return Engine(path, msgspec.structs.replace(quick(process_slots=1, **manager), tracing=tracing))


@pytest.fixture
async def engine(anyio_backend: str, spans: Spans) -> AsyncIterator[Engine]:
    async with engine_of() as engine:
        yield engine


def named(spans: Spans, name: str) -> list[ReadableSpan]:
    return [span for span in spans() if span.name == name]


def only(spans: Spans, name: str) -> ReadableSpan:
    (span,) = named(spans, name)
    return span


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == context_of(parent).span_id


def links_of(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


async def in_async(ctx: Context) -> str:
    return traced.inner(ctx)


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_from_the_submit_to_what_the_handler_does(engine: Engine, spans: Spans, lane: Any) -> None:
    """Caller, submit, attempt and the handler's own span are one line of one trace, and the log names it."""
    handler = engine.task(name="inner", lane=lane)(in_async if lane == "async" else traced.inner)
    with tracer.start_as_current_span("request"):
        handle = await engine.submit(handler, group="tenant")
    trace_id = await value(handle)
    line = [only(spans, name) for name in ("request", "send custom:inner", "process custom:inner", "inner")]
    assert all(is_below(span, parent) for parent, span in pairwise(line))
    assert {context_of(span).trace_id for span in line} == {int(trace_id, 16)}
    _, sent, processed, _ = line
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    said = dict(processed.attributes or {})
    assert said.pop("messaging.client.id") == engine.manager.store.worker_id
    assert said.pop("mainspring.queue_wait_ms") >= 0  # type: ignore[operator]
    assert said.pop("messaging.message.body.size") > 0  # type: ignore[operator]
    assert said == {
        "messaging.system": "mainspring",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "custom:inner",
        "messaging.message.id": str(handle.id),
        "mainspring.attempt": 1,
        "mainspring.group": "tenant",
        "mainspring.lane": lane,
        "mainspring.namespace": "default",
        "mainspring.outcome": "completed",
        "mainspring.priority": "normal",
    }
    assert (sent.attributes or {})["messaging.message.id"] == str(handle.id)


async def test_the_handlers_span_is_at_hand(engine: Engine, spans: Spans) -> None:
    """A handler adds to the span of its attempt; what it leaves current reaches no other."""

    @engine.task
    async def add(n: int) -> None:
        trace.get_current_span().set_attribute("shop.n", n)
        from opentelemetry import context

        context.attach(trace.set_span_in_context(trace.INVALID_SPAN))
        await asyncio.sleep(0)

    await engine.gather(await engine.map(add, range(3)))
    assert sorted(span.attributes["shop.n"] for span in named(spans, "process custom:add")) == [0, 1, 2]  # type: ignore[index, type-var]
    sent = only(spans, "send custom:add")
    assert (sent.attributes or {})["messaging.batch.message_count"] == 3
    assert all(is_below(span, sent) for span in named(spans, "process custom:add"))


class Broken(SpanProcessor):
    """Somebody's own, with a bug."""

    def __init__(self, place: str) -> None:
        setattr(self, place, self.fail)

    def fail(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("a bug in a processor")


@pytest.mark.parametrize("place", ["on_start", "on_end"])
async def test_a_processor_that_raises_costs_spans_alone(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks are submitted, run and end as they would without, by themselves and together, and it's told once."""
    async with engine_of() as engine:
        provider = TracerProvider()
        provider.add_span_processor(Broken(place))
        tracing: Any = engine.manager.parts.tracing
        tracing._tracer = provider.get_tracer("mainspring")

        @engine.task
        async def parent(n: int, ctx: Context) -> Any:
            return await ctx.submit(child, n)

        @engine.task(batch=Batch(max_size=3))
        async def child(items: list[int]) -> list[int]:
            return items

        assert await engine.gather(await engine.map(parent, range(5))) == list(range(5))
        with pytest.raises(InvalidInput):
            await engine.submit_all([5])  # type: ignore[list-item]
        info = await (await engine.submit(child, 7)).info()
        assert info.error is None
    assert [record.name for record in caplog.records] == ["mainspring.tracing"]
    assert "a bug in a processor" in caplog.text


async def test_attempts_that_come_again_are_linked(engine: Engine, spans: Spans) -> None:
    """All are below the submit; each names the one before. Errors show their type, and nothing of the work."""

    @engine.task(retry=SOON)
    async def flaky(secret: str, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ValueError(f"no {secret}")

    await value(await engine.submit(flaky, "hush-hush", metadata={"token": "hush-hush"}))
    first, second, third = named(spans, "process custom:flaky")
    assert [span.attributes["mainspring.outcome"] for span in (first, second, third)] == ["retry", "retry", "completed"]  # type: ignore[index]
    assert (links_of(first), links_of(second)) == (set(), {context_of(first).span_id})
    assert links_of(third) == {context_of(second).span_id}
    assert all(is_below(span, only(spans, "send custom:flaky")) for span in (first, second, third))
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, None)
    assert (first.attributes or {})["error.type"] == "ValueError"
    assert third.status.status_code is StatusCode.UNSET
    assert not first.events
    assert "hush" not in "".join(span.to_json() for span in spans())


async def test_attempts_of_other_workers_are_linked(tmp_path: Path, spans: Spans) -> None:
    """The next attempt finds the one before in the store, beside all else that is stored with the task."""

    async def flaky(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RetryAfter(1.0)

    async with engine_of(tmp_path / "w.db") as worker:
        handle = await worker.submit(worker.task(flaky), metadata={"team": "search"})
        while not (await handle.info()).attempts:  # noqa: ASYNC110 - nobody tells of a retry
            await asyncio.sleep(0.005)
    async with engine_of(tmp_path / "w.db") as worker:
        worker.task(flaky)
        await value(worker.handle(handle.id))
        info = await worker.handle(handle.id).info()
    assert len({attempt.worker for attempt in info.attempts}) == 2
    assert info.task.metadata == {"team": "search"}
    first, second = named(spans, "process custom:flaky")
    assert links_of(second) == {context_of(first).span_id}
    assert context_of(first).trace_id == context_of(second).trace_id


async def test_a_refused_submit_is_an_error(engine: Engine, spans: Spans) -> None:
    """It is seen in its span, by the error's type."""
    engine.task(name="one")(traced.count)
    for wrong in (5, "one", [5]):
        with pytest.raises(InvalidInput):
            await engine.submit_all(wrong)  # type: ignore[arg-type]
    assert [(span.attributes or {})["error.type"] for span in named(spans, "send None")] == ["InvalidInput"]
    assert len(named(spans, "send")) == 2


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_a_call_for_several_tasks(engine: Engine, spans: Spans, lane: Any) -> None:
    """It has a span of its own, linked with those of its attempts, each of which is in its own task's trace."""
    function = traced.together_async if lane == "async" else traced.together
    together = engine.task(name="together", lane=lane, batch=Batch(max_size=3, max_wait="10s"))(function)
    handles = []
    for n in range(3):
        with tracer.start_as_current_span(f"request {n}"):
            handles.append(await engine.submit(together, n))
    said = {await value(handle) for handle in handles}
    call, attempts = only(spans, "process custom:together together"), named(spans, "process custom:together")
    assert call.parent is None
    assert (call.attributes or {})["messaging.batch.message_count"] == 3
    assert said == {f"{context_of(call).trace_id:032x}"}
    assert lane == "process" or is_below(only(spans, "inner"), call)
    assert links_of(call) == {context_of(span).span_id for span in attempts}
    assert {frozenset(links_of(span)) for span in attempts} == {frozenset({context_of(call).span_id})}
    requests = {context_of(only(spans, f"request {n}")).trace_id for n in range(3)}
    assert {context_of(span).trace_id for span in attempts} == requests
    assert len(requests) == 3


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_children_belong_to_their_parents_trace(engine: Engine, spans: Spans, lane: Any) -> None:
    """Those that come with the outcome and those that are stored at once, from every lane."""
    count = engine.task(lane="thread")(traced.count)
    submit = traced.both if lane != "async" else traced.both_async
    with tracer.start_as_current_span("request"):
        handle = await engine.submit(engine.task(name="both", lane=lane)(submit))
    for child in await value(handle):
        await value(engine.handle(child))
    children = named(spans, "process custom:count")
    assert len(children) == 2
    assert {context_of(span).trace_id for span in children} == {context_of(only(spans, "request")).trace_id}
    parent = only(spans, "process custom:both")
    sent = only(spans, "send custom:count")  # at once
    assert is_below(sent, parent)
    assert {is_below(span, parent) or is_below(span, sent) for span in children} == {True}
    assert count is traced.count


def test_from_code_without_asyncio(spans: Spans) -> None:
    """The span that is current in a thread goes along."""
    engine = engine_of()
    engine.task(name="one")(traced.count)
    with engine.sync as sync, tracer.start_as_current_span("request"):
        assert sync.submit(traced.count, 1).result() == 1
    assert is_below(only(spans, "send custom:one"), only(spans, "request"))


async def test_within_a_users_transaction(tmp_path: Path, spans: Spans) -> None:
    """On a server the trace comes with the commit."""
    place = postgres.address_of(tmp_path)
    config = msgspec.structs.replace(quick(StoreConfig(blobs=tmp_path / "blobs")), tracing=True)
    try:
        async with Engine(place, config) as engine:
            one = engine.task(name="one")(traced.count)
            connection = await asyncpg.connect(postgres.url())
            try:
                with tracer.start_as_current_span("request"):
                    async with connection.transaction():
                        handle = await engine.submit(one, 1, connection=connection)
                await value(handle)
            finally:
                await connection.close()
        assert is_below(only(spans, "process custom:one"), only(spans, "send custom:one"))
        assert is_below(only(spans, "send custom:one"), only(spans, "request"))
    finally:
        postgres.drop(postgres.schema_of(tmp_path))


async def test_a_trace_begins_with_the_submit(engine: Engine, spans: Spans) -> None:
    """Where the caller has none."""
    await value(await engine.submit(engine.task(name="one")(traced.count), 1))
    assert only(spans, "send custom:one").parent is None
    assert is_below(only(spans, "process custom:one"), only(spans, "send custom:one"))


async def test_every_way_an_attempt_ends(engine: Engine, spans: Spans) -> None:
    """Each attempt has one span, which ends with it."""

    @engine.task(retry=0, timeout="50ms")
    async def slow() -> None:
        await asyncio.sleep(LIMIT_S)

    @engine.task(retry=0)
    async def wrong() -> None:
        raise KeyError("hush-hush")

    going = asyncio.Event()

    @engine.task(retry=0)
    async def waits() -> None:
        going.set()
        await asyncio.sleep(LIMIT_S)

    for handler in (slow, wrong):
        with pytest.raises(Exception, match=r"longer|hush"):
            await value(await engine.submit(handler))
    handle = await engine.submit(waits)
    await going.wait()
    await handle.cancel()
    with pytest.raises(TaskCancelled):
        await value(handle)
    told = {
        str(span.name): (span.attributes or {}).get("error.type", (span.attributes or {}).get("mainspring.outcome"))
        for span in spans()
        if span.name.startswith("process")
    }
    assert told == {
        "process custom:slow": "TaskTimeout", "process custom:wrong": "KeyError", "process custom:waits": "cancelled"
    }  # fmt: skip


async def test_what_a_crash_leaves(engine: Engine, spans: Spans) -> None:
    """The attempt's span ends when its child dies, and the next one is linked with it."""
    handle = await engine.submit(engine.task(lane="process", retry=SOON)(traced.die_once))
    await value(handle)
    first, second = named(spans, "process custom:die_once")
    assert (first.attributes or {})["mainspring.outcome"] == "crashed"
    assert links_of(second) == {context_of(first).span_id}


async def test_a_model_is_named(engine: Engine, spans: Spans) -> None:
    """By the conventions for generative models."""

    class Lengths:
        def embed(self, texts: Any) -> Any:
            import numpy

            return numpy.array([[len(text), 1.0] for text in texts], "float32")

    engine.models.register("lengths", Lengths())
    await value(await engine.submit(engine.embed, "abc", model_id="lengths"))
    said = only(spans, "process embedding_generation together").attributes or {}
    assert (said["gen_ai.operation.name"], said["gen_ai.request.model"]) == ("embeddings", "lengths")


async def test_without_tracing_nothing_is_stored(spans: Spans) -> None:
    """Also where a span is current; no span of ours is made."""
    async with engine_of(tracing=False) as engine:
        new = engine._new(engine.task(name="one")(traced.count), (1,), {})
        with tracer.start_as_current_span("request"):
            (ready,) = await engine.manager.intake.new_tasks([new])
            await value(await engine.submit(traced.count, 1))
        assert ready.spec is None
    assert [span.name for span in spans()] == ["request"]


async def test_a_worker_without_tracing_runs_traced_tasks(tmp_path: Path, spans: Spans) -> None:
    """In every lane; its log names the trace all the same."""
    async with engine_of(tmp_path / "work.db") as submitter:
        await submitter.manager.pause()
        with tracer.start_as_current_span("request"):
            handles = [
                await submitter.submit(submitter.task(name=f"inner_{lane}", lane=lane)(traced.quiet), priority="HIGH")
                for lane in ("thread", "process")
            ]
    async with engine_of(tmp_path / "work.db", tracing=False) as worker:
        for lane in ("thread", "process"):
            worker.task(name=f"inner_{lane}", lane=lane)(traced.quiet)
        await worker.manager.resume()
        said = {await value(worker.handle(handle.id)) for handle in handles}
    assert said == {f"{context_of(only(spans, 'request')).trace_id:032x}"}


async def test_equal_keys_are_equal_in_other_traces(engine: Engine, spans: Spans) -> None:
    """The trace is no part of what was asked for."""
    one = engine.task(name="one")(traced.count)
    handles = []
    for n in range(2):
        with tracer.start_as_current_span(f"request {n}"):
            handles.append(await engine.submit(one, 1, idempotency_key="k"))
    assert handles[0].id == handles[1].id


def test_a_spec_of_ours_is_read_by_those_before() -> None:
    """A field that they don't know is passed over."""

    class Before(msgspec.Struct, kw_only=True, omit_defaults=True):
        model_id: str | None = None

    raw = msgspec.msgpack.encode(Spec(model_id="m", trace={"traceparent": "00"}, before={"traceparent": "00"}))
    assert msgspec.msgpack.decode(raw, type=Before).model_id == "m"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidInput, match=r"mainspring\[otel\]"):
        engine_of()


class Collector(ThreadingHTTPServer):
    """Takes what OTLP exporters send."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Answer(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """A test says only what is wrong."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


def test_a_trace_over_processes(tmp_path: Path, collector: Collector) -> None:
    """Submitted in one process, run by a worker and its child once that is gone: over OTLP it is one trace."""
    environment = os.environ | {"COLLECTOR": f"http://127.0.0.1:{collector.server_port}/v1/traces"}
    run: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True, "timeout": LIMIT_S}
    submitted = subprocess.run([sys.executable, traced.__file__], capture_output=True, check=False, **run)
    assert submitted.returncode == 0, submitted.stderr
    ids = submitted.stdout.split()
    worker = subprocess.Popen(
        [sys.executable, "-m", "mainspring", "worker", f"{traced.__file__}:engine"],
        cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait = [sys.executable, "-m", "mainspring", "wait", "--store", "work.db", *ids]
        assert subprocess.run(wait, capture_output=True, check=False, **run).returncode == 0
    finally:
        worker.terminate()
        assert worker.wait(LIMIT_S) == 0
    found = collector.spans()
    by_name: dict[str, list[Any]] = {}
    for span in found:
        by_name.setdefault(span.name, []).append(span)
    (request,), (inner,), (computed,) = by_name["request"], by_name["inner"], by_name["process custom:compute"]
    assert {span.trace_id for span in found} == {request.trace_id}
    assert inner.parent_span_id == computed.span_id
    assert [len(by_name[f"process custom:{name}"]) for name in ("twice", "count")] == [2, 2]
    first, second = sorted(by_name["process custom:twice"], key=lambda span: span.start_time_unix_nano)
    assert [link.span_id for link in second.links] == [first.span_id]
    assert (first.status.code, first.status.message) == (2, "")
    assert b"hush" not in b"".join(request.SerializeToString() for request in collector.requests)
