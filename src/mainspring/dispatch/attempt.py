"""One claim on its way through a lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mainspring.execution.base import Report, StopCause
from mainspring.processors.log import relay
from mainspring.store.base import Claimed, Spec
from mainspring.tasks import ItemDone, Log, Progress, Signal, Started

_encoder = msgspec.msgpack.Encoder()
_spec_decoder = msgspec.msgpack.Decoder(Spec)


class Attempt(msgspec.Struct, eq=False, gc=False):
    """What is known of a running claim; its handler's signals arrive here, from whatever thread."""

    claim: Claimed
    desk: Any  # Desk
    slot: int
    task: Any  # the slot's asyncio.Task
    runner: Any = None  # where it runs
    started_at: float | None = None  # monotonic seconds
    in_child: bool = False  # a suspect that runs in a child process
    reserves: bool = False  # resources, while it runs
    is_last: bool = False  # of those that ran out of memory: nothing runs beside it
    recorded: bool = False  # the store has been told that it runs
    cause: StopCause | None = None  # why it was asked to stop
    asked_at: float = 0.0
    ended: bool = False  # its handler returned; only the record is missing
    abandoned: bool = False  # its slot was given up; whatever still comes is dropped
    span: Any = None  # of OpenTelemetry, where tracing is on
    together: Sequence[Attempt] = ()  # all attempts of its call, where that was formed of several tasks
    report: Report | None = None  # its end, where others of its call go on

    @property
    def started_ms(self) -> int | None:
        return None if self.started_at is None else self.desk.store.ms_at(self.started_at)

    @property
    def until_s(self) -> float | None:
        """When its deadline passes, on the monotonic clock."""
        deadline_ms = self.claim.deadline_ms
        if deadline_ms is None:
            return None
        return float(self.desk.env.monotonic() + (deadline_ms - self.desk.store.now_ms()) / 1000)

    def send(self, signal: Signal) -> None:
        if type(signal) is Started:
            desk, claim = self.desk, self.claim
            self.started_at = desk.env.monotonic()
            if desk.mark is not None and not self.in_child:
                desk.mark(self.slot, claim.seq, claim.attempt)
        elif type(signal) is Progress and not self.abandoned:
            self.desk.store.progress(self.claim, signal.done, signal.total)
        elif type(signal) is ItemDone:
            self.report = signal.report
            self.runner.tell(self)
        elif type(signal) is Log:
            relay(signal, self.claim.labels())


def complete(claim: Claimed, input: bytes) -> Spec | None:
    """Put in place what the handler needs and the claim came without: parents' results, the rarely used fields."""
    claim.input = input
    spec = None
    if claim.spec is not None:
        spec = _spec_decoder.decode(claim.spec)
        claim.model_id = spec.model_id
        claim.trace = spec.trace
        claim.params = _encoder.encode(spec.params) if spec.params else None
    return spec


def is_completed(claim: Claimed) -> bool:
    """Complete a claim whose input is there; false where its fields can't be read: `complete` says what is wrong."""
    try:
        complete(claim, claim.input)
    except msgspec.DecodeError:
        return False
    return True


def is_out_of_time(attempt: Attempt, report: Report) -> bool:
    """Whether its time was over before its end, and it was not unwanted anyway."""
    limit_ms = attempt.claim.timeout_ms
    is_late = limit_ms is not None and report.usage.duration * 1000 > limit_ms
    return attempt.cause == "timeout" or (is_late and attempt.cause != "cancel")


__all__ = ["Attempt", "complete", "is_completed", "is_out_of_time"]
