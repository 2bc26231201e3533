"""An engine whose spans go to an OTLP endpoint, in whatever process imports this: a submitter, a worker, a child."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from mainspring import Context, Engine, EngineConfig, Retry, TaskManagerConfig

if "COLLECTOR" in os.environ:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(os.environ["COLLECTOR"])))
    trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")
engine = Engine("work.db", EngineConfig(tracing=True, manager=TaskManagerConfig(process_slots=1)))


def inner(ctx: Context) -> str:
    """Make a span of one's own, and return the trace that the log names."""
    with tracer.start_as_current_span("inner"):
        return str(ctx.log.extra["trace_id"])  # type: ignore[index]


@engine.task(lane="process")
def compute(secret: str, ctx: Context) -> str:
    child = ctx.submit(count, len(secret))
    now = ctx.submit(count, 0, now=True)
    assert child.id != now.id
    return inner(ctx)


@engine.task(lane="thread")
def count(n: int) -> int:
    return n


@engine.task(retry=Retry(max_retries=1, delay=0))
async def twice(secret: str, ctx: Context) -> None:
    if ctx.attempt == 1:
        raise ValueError(f"no {secret}")


def quiet(ctx: Context) -> str:
    return str(ctx.log.extra["trace_id"])  # type: ignore[index]


def both(ctx: Context) -> list[str]:
    return [str(child.id) for child in (ctx.submit(count, 1), ctx.submit(count, 2, now=True))]


async def both_async(ctx: Context) -> list[str]:
    return both(ctx)


def die_once(ctx: Context) -> None:
    if ctx.attempt == 1:
        os.abort()


def together(items: list[int]) -> list[str]:
    with tracer.start_as_current_span("inner") as span:
        return [f"{span.get_span_context().trace_id:032x}"] * len(items)


async def together_async(items: list[int]) -> list[str]:
    return together(items)


async def submit() -> None:
    async with Engine("work.db", EngineConfig(tracing=True), worker=False) as submitter:
        with tracer.start_as_current_span("request"):
            for function in (compute, twice):
                submitter.task(function)
                print((await submitter.submit(function, "hush-hush")).id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(submit())
    sys.stdout.flush()
