"""What an attempt's end means for its task. Pure: the same facts give the same verdict."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mainspring.config import seconds
from mainspring.environment import Environment
from mainspring.execution.base import Report, StopCause
from mainspring.store.base import CANCELLED, COMPLETED, CRASHED, FAILED, RELEASED, RETRY, TIMEOUT, Claimed
from mainspring.tasks import ErrorInfo, Retry


class Verdict(NamedTuple):
    outcome: int  # a code of store.base.OUTCOMES
    error: ErrorInfo | None = None
    delay_ms: int = 0


def is_completed(claim: Claimed, report: Report, cause: StopCause | None) -> bool:
    """Whether it ended well and in time: by itself, or with a result in spite of a drain."""
    by_itself = cause is None or (cause == "drain" and report.output is not None)
    return by_itself and report.error is None and not is_late(claim, report)


def is_late(claim: Claimed, report: Report) -> bool:
    """Whether it ended after its time was over."""
    return claim.timeout_ms is not None and report.usage.duration * 1000 > claim.timeout_ms


def verdict(claim: Claimed, report: Report, cause: StopCause | None, retry: Retry, env: Environment) -> Verdict:
    """Return how the attempt ended: what the engine asked for comes before what the handler says."""
    if is_completed(claim, report, cause):
        return Verdict(COMPLETED)
    limit_s = None if claim.timeout_ms is None else claim.timeout_ms / 1000
    tries = claim.tried + 1
    if cause == "cancel":
        return Verdict(CANCELLED, ErrorInfo(type="TaskCancelled", message="cancelled while it ran", attempts=tries))
    if cause == "timeout" or is_late(claim, report):
        message = f"attempt {claim.attempt} ran longer than {limit_s} s"
        error = ErrorInfo(type="TaskTimeout", message=message, attempts=tries)
        return _again_or(TIMEOUT, claim, error, _backoff_ms(retry, claim.retry_count, env))
    if report.unstarted or (cause == "drain" and report.output is None):
        return Verdict(RELEASED)
    if report.error is None:
        return Verdict(COMPLETED)
    error = msgspec.structs.replace(report.error, attempts=tries)
    if report.crashed:
        return Verdict(CRASHED, error, _backoff_ms(retry, claim.crashes, env))
    if not report.retryable:
        return Verdict(FAILED, error)
    delay = _backoff_ms(retry, claim.retry_count, env) if report.retry_after is None else int(report.retry_after * 1000)
    return _again_or(TIMEOUT if error.type == "TaskTimeout" else FAILED, claim, error, delay)


def _again_or(final: int, claim: Claimed, error: ErrorInfo, delay_ms: int) -> Verdict:
    if claim.retry_count < claim.max_retries:
        return Verdict(RETRY, error, delay_ms)
    return Verdict(final, error)


def _backoff_ms(retry: Retry, n: int, env: Environment) -> int:
    """Exponential with full jitter. Source: see `Retry`."""
    ceiling = min(seconds(retry.max_delay, "max_delay"), seconds(retry.delay, "delay") * retry.factor ** min(n, 64))
    return int(env.uniform(0, ceiling) * 1000)
