"""The only door to OpenTelemetry, which is loaded when tracing is on.

What travels from process to process is the W3C Trace Context of a span: `traceparent`, and `tracestate` if it has one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mainspring.errors import InvalidInput

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

logger = logging.getLogger("mainspring.tracing")

Trace: TypeAlias = dict[str, str]
"""A span's context by the names of its headers."""
Kind: TypeAlias = Literal["producer", "consumer", "internal"]


class Tracing:
    """Makes spans, and makes one the current one: where handlers run, and where tasks are submitted.

    Raises: InvalidInput: opentelemetry-api is missing.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as exc:
            raise InvalidInput(
                "tracing needs opentelemetry-api: pip install 'mainspring[otel]'", field="tracing"
            ) from exc
        self._context = context
        self._api = trace
        self._tracer = trace.get_tracer("mainspring")
        self._headers = TraceContextTextMapPropagator()
        self._live: dict[str, Span] = {}
        self._has_failed = False

    def current(self) -> Trace | None:
        """Return the context of the span that is current here, if one is."""
        return self._trace_of(None)

    def trace_of(self, span: Span) -> Trace | None:
        """Return a span's context."""
        return self._trace_of(self._api.set_span_in_context(span, self._context.Context()))

    def context_of(self, trace: Trace) -> SpanContext:
        """Return what a link takes; the opposite of `trace_of`."""
        context = self._headers.extract(trace, self._context.Context())
        return self._api.get_current_span(context).get_span_context()

    def _trace_of(self, context: Any) -> Trace | None:
        trace: Trace = {}
        self._headers.inject(trace, context)
        return trace or None

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Any],
        *,
        parent: Trace | None = None,
        links: Iterable[SpanContext] = (),
    ) -> Span:
        """Begin a span below `parent`, or one that begins a trace; whatever is current here is no parent of it."""
        below = self._headers.extract(parent or {}, self._context.Context())
        return self._begin(name, below, kind, attributes, links) or self._api.INVALID_SPAN

    def _begin(
        self, name: str, below: Any, kind: Kind, attributes: Mapping[str, Any], links: Iterable[SpanContext] = ()
    ) -> Span | None:
        """Return a span, or nothing where somebody's sampler or processor raises."""
        with self._harmless():
            return self._tracer.start_span(
                name,
                below,
                self._api.SpanKind[kind.upper()],
                dict(attributes),
                [self._api.Link(context) for context in links if context.is_valid],
            )
        return None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What users have set up to make and take spans runs in here: work goes on whatever it raises."""
        try:
            yield
        except Exception:
            if not self._has_failed:
                logger.exception("a span failed, and others may; tasks go on without, and this is not told again")
            self._has_failed = True

    def lend(self, span: Span) -> Trace | None:
        """Return a span's context, and let whoever enters it in this process have the span itself, to add to it.

        None where nobody has set up a provider.
        """
        trace = self.trace_of(span)
        if trace is not None:
            self._live[trace["traceparent"]] = span
        return trace

    def end(
        self, span: Span, attributes: Mapping[str, Any], *, error: str | None = None, lent: Trace | None = None
    ) -> None:
        """End a span. An error is told by its type alone: messages may hold what was worked on."""
        if lent is not None:
            self._live.pop(lent["traceparent"], None)
        with self._harmless():
            span.set_attributes(dict(attributes))
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(self._api.StatusCode.ERROR)
            span.end()

    def enter(self, trace: Trace) -> Any:
        """Make a span the current one, here and in what is begun from here; returns what `leave` takes."""
        span = self._live.get(trace["traceparent"])
        if span is None:
            context = self._headers.extract(trace, self._context.Context())
        else:
            context = self._api.set_span_in_context(span, self._context.Context())
        return self._context.attach(context)

    def leave(self, token: Any) -> None:
        self._context.detach(token)

    @contextmanager
    def within(self, trace: Trace) -> Iterator[None]:
        token = self.enter(trace)
        try:
            yield
        finally:
            self.leave(token)

    @contextmanager
    def around(self, name: str, kind: Kind, attributes: Mapping[str, Any]) -> Iterator[None]:
        """Make a span, below the one that is current, for the time of the block."""
        span = self._begin(name, None, kind, attributes)
        if span is None:  # what is current stays so
            yield
            return
        token, error = self._context.attach(self._api.set_span_in_context(span)), None
        try:
            yield
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            self._context.detach(token)
            self.end(span, {}, error=error)


__all__ = ["Trace", "Tracing"]
