"""One claim on its way through a lane."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.execution.base import StopCause, Work
from mainspring.store.base import Claimed, Spec
from mainspring.tasks import Progress, Signal, Started

if TYPE_CHECKING:
    from mainspring.dispatch.lane import LaneDesk

_encoder = msgspec.msgpack.Encoder()
_spec_decoder = msgspec.msgpack.Decoder(Spec)


class Attempt:
    """What is known of a running claim; its handler's signals arrive here, from whatever thread."""

    __slots__ = (
        "abandoned",
        "asked_at",
        "cause",
        "claim",
        "desk",
        "ended",
        "in_child",
        "recorded",
        "slot",
        "started_at",
        "started_ms",
        "task",
        "work",
    )

    def __init__(self, claim: Claimed, work: Work, desk: LaneDesk, slot: int, task: asyncio.Task[Any]) -> None:
        self.claim = claim
        self.work = work
        self.desk = desk
        self.slot = slot
        self.started_at: float | None = None  # monotonic seconds
        self.started_ms: int | None = None
        self.in_child = False  # a suspect that runs in a child process
        self.recorded = False  # the store has been told that it runs
        self.cause: StopCause | None = None  # why it was asked to stop
        self.asked_at = 0.0
        self.task = task  # the slot's
        self.ended = False  # its handler returned; only the record is missing
        self.abandoned = False  # its slot was given up; whatever still comes is dropped

    def send(self, signal: Signal) -> None:
        if type(signal) is Started:
            desk = self.desk
            self.started_at = desk.env.monotonic()
            self.started_ms = desk.store.ms_at(self.started_at)
            if desk.mark is not None:
                desk.mark(self.slot, self.claim.seq, self.claim.attempt)
        elif type(signal) is Progress and not self.abandoned:
            self.desk.store.progress(self.claim, signal.done, signal.total)


def work_of(claim: Claimed, data: bytes) -> Work:
    """Return what a runner needs of a claim; `data` is its input with parents' results in place."""
    namespace, kind, _ = claim.class_key
    if claim.spec is None:
        return Work(claim.id, claim.attempt, kind, data, namespace, None, None, claim.retry_count, claim.deadline_ms)
    spec = _spec_decoder.decode(claim.spec)
    params = _encoder.encode(spec.params) if spec.params else None
    return Work(
        claim.id, claim.attempt, kind, data, namespace, spec.model_id, params, claim.retry_count, claim.deadline_ms
    )
