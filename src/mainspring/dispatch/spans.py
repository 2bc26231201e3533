"""What the spans of attempts and of submits say, by the conventions of OpenTelemetry where those have a word for it.

Nothing of what is worked on goes in: no inputs, results, messages of errors or metadata.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mainspring.dispatch.attempt import Attempt
from mainspring.store.base import CRASHED, FAILED, OUTCOMES, RELEASED, RETRY, TIMEOUT, Claimed, NewTask, Spec
from mainspring.tasks import TaskId, TaskPriority, TaskType
from mainspring.tracing import Trace, Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

T = TypeVar("T")
_FAILURES = frozenset({FAILED, TIMEOUT, RETRY, CRASHED})
_COMES_AGAIN = frozenset({RETRY, CRASHED, RELEASED})
_spec_encoder = msgspec.msgpack.Encoder()
_spec_decoder = msgspec.msgpack.Decoder(Spec)


class Spans:
    """The spans of one manager."""

    def __init__(self, tracing: Tracing, worker_id: str) -> None:
        self._tracing = tracing
        self._worker_id = worker_id

    # Submitting

    async def sent(
        self, work: Coroutine[Any, Any, T], tasks: Any = (), *, kind: str | None = None, n: int | None = None
    ) -> T:
        """Submit tasks, or `n` of one type, within a span: what becomes of them belongs to its trace."""
        known = tasks if isinstance(tasks, (list, tuple)) else ()  # whatever else is refused within
        kinds = {_kind(task) for task in known}
        if len(kinds) == 1:
            kind = kinds.pop()
        attributes = {**_operation("send"), "messaging.client.id": self._worker_id}
        if kind is not None:
            attributes["messaging.destination.name"] = kind
        if len(known) == 1:
            attributes["messaging.message.id"] = _id(known[0])
        elif known or n is not None:
            attributes["messaging.batch.message_count"] = len(known) or n
        with self._tracing.around("send" if kind is None else f"send {kind}", "producer", attributes):
            return await work

    # Attempts

    def begin(self, attempt: Attempt) -> None:
        """Begin the span of an attempt, in the trace of its task; what its handler does belongs below it."""
        attempt.span = span = self._start(attempt)
        if (trace := self._tracing.lend(span)) is not None:
            attempt.claim.trace = trace

    def begin_call(self, attempts: Sequence[Attempt]) -> Span:
        """Begin the spans of attempts that share a call, and one of that, which stands in none of their traces."""
        for attempt in attempts:
            attempt.span = self._start(attempt)
        kind = str(attempts[0].claim.task_type)
        attributes = {
            **_operation("process"),
            "messaging.destination.name": kind,
            "messaging.batch.message_count": len(attempts),
            "messaging.client.id": self._worker_id,
            "mainspring.lane": attempts[0].desk.lane,
            **_model(attempts[0].claim),
        }
        links = [attempt.span.get_span_context() for attempt in attempts]
        call = self._tracing.start(f"process {kind} together", "consumer", attributes, links=links)
        trace = self._tracing.lend(call)
        for attempt in attempts:
            attempt.span.add_link(call.get_span_context())
            attempt.claim.trace = trace or attempt.claim.trace
        return call

    def end_call(self, call: Span, attempts: Sequence[Attempt]) -> None:
        self._tracing.end(call, {}, lent=attempts[0].claim.trace)

    def _start(self, attempt: Attempt) -> Span:
        claim = attempt.claim
        kind = str(claim.task_type)
        before = None if claim.attempt == 1 else _spec_of(claim).before  # a retry as a new task has none
        attributes: dict[str, Any] = {
            **_operation("process"),
            "messaging.destination.name": kind,
            "messaging.message.id": str(claim.task_id),
            "messaging.message.body.size": len(claim.input),
            "messaging.client.id": self._worker_id,
            "mainspring.attempt": claim.attempt,
            "mainspring.lane": "process" if attempt.in_child else attempt.desk.lane,
            "mainspring.namespace": claim.namespace,
            "mainspring.priority": TaskPriority(claim.priority).name.lower(),
            **_model(claim),
        }
        if claim.class_key[2]:
            attributes["mainspring.group"] = claim.class_key[2]
        links = () if before is None else (self._tracing.context_of(before),)
        return self._tracing.start(f"process {kind}", "consumer", attributes, parent=claim.trace, links=links)

    def end(self, attempt: Attempt, outcome: int, error: str | None = None) -> bytes | None:
        """End an attempt's span, if it has one still.

        Returns: where its task comes again, what is to be stored with that, so that the next attempt finds this one.
        """
        span, claim = attempt.span, attempt.claim
        if span is None:
            return None
        attempt.span = None
        trace = self._tracing.trace_of(span) if outcome in _COMES_AGAIN else None
        attributes: dict[str, Any] = {"mainspring.outcome": OUTCOMES[outcome]}
        if (started_ms := attempt.started_ms) is not None:
            attributes["mainspring.queue_wait_ms"] = max(0, started_ms - claim.ready_ms)
        kind = (error or OUTCOMES[outcome]) if outcome in _FAILURES else None
        self._tracing.end(span, attributes, error=kind, lent=None if attempt.together else claim.trace)
        return None if trace is None else _spec_encoder.encode(msgspec.structs.replace(_spec_of(claim), before=trace))

    @contextmanager
    def below(self, attempt: Attempt) -> Iterator[None]:
        """What is submitted in the block belongs below an attempt."""
        trace: Trace | None = None if attempt.span is None else self._tracing.trace_of(attempt.span)
        if trace is None:
            yield
            return
        with self._tracing.within(trace):
            yield


def _spec_of(claim: Claimed) -> Spec:
    return Spec() if claim.spec is None else _spec_decoder.decode(claim.spec)


def _operation(name: str) -> dict[str, Any]:
    return {"messaging.system": "mainspring", "messaging.operation.name": name, "messaging.operation.type": name}


def _model(claim: Claimed) -> dict[str, Any]:
    attributes = {} if claim.model_id is None else {"gen_ai.request.model": claim.model_id}
    if claim.task_type == TaskType.EMBEDDING_GENERATION:
        attributes["gen_ai.operation.name"] = "embeddings"
    return attributes


def _kind(task: Any) -> str:
    return str(task.class_key[1] if isinstance(task, NewTask) else getattr(task, "task_type", None))


def _id(task: Any) -> str:
    return str(TaskId(task.id) if isinstance(task, NewTask) else getattr(task, "id", None))


__all__ = ["Spans"]
