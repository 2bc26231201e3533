"""What the store says about the work of this command: unfinished steps, and what the finished ones took. Only reads."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import msgspec

from mainspring.store.base import COMPLETED, OUTCOMES, RETRY, Spec
from mainspring.store.sql.reads import View
from mainspring.tasks import TaskId

_spec = msgspec.msgpack.Decoder(Spec)


class TypeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of one task type. Times in seconds; None where no attempt has any."""

    type: str
    completed: int
    failed: int  # ended in another way: failed, timed out, cancelled, crashed
    retries: int
    duration_p50: float | None
    duration_p95: float | None
    queue_wait_p95: float | None  # from ready to start
    cpu_time: float  # of all together


def unfinished(view: View, collection: str) -> list[tuple[TaskId, str]]:
    """Return id and source of the steps that are not finished of documents on their way into a collection."""
    found = []
    for id, raw in view.rows("unfinished_specs"):
        labels = {} if raw is None else _spec.decode(raw).metadata
        if labels.get("collection") == collection and "source" in labels:
            found.append((TaskId(id), labels["source"]))
    return found


def by_type(view: View, since_ms: int) -> list[TypeFigures]:
    """Return the figures of all attempts that ended since then, by type."""
    attempts: dict[str, list[tuple[int, int | None, int | None, int | None]]] = {}
    for type, *attempt in view.rows("attempts_since", since_ms):
        attempts.setdefault(type, []).append((attempt[0], attempt[1], attempt[2], attempt[3]))
    return [_figures(type, attempts[type]) for type in sorted(attempts)]


def _figures(type: str, attempts: list[tuple[int, int | None, int | None, int | None]]) -> TypeFigures:
    outcomes = [outcome for outcome, *_ in attempts]
    durations = _sorted(duration for _, duration, _, _ in attempts)
    waits = _sorted(wait for _, _, wait, _ in attempts)
    return TypeFigures(
        type=type,
        completed=outcomes.count(COMPLETED),
        failed=sum(OUTCOMES[outcome] in ("failed", "timeout", "cancelled", "crashed") for outcome in outcomes),
        retries=outcomes.count(RETRY),
        duration_p50=_at(durations, 0.50, 1e6),
        duration_p95=_at(durations, 0.95, 1e6),
        queue_wait_p95=_at(waits, 0.95, 1e3),
        cpu_time=sum(cpu or 0 for *_, cpu in attempts) / 1e6,
    )


def _sorted(values: Iterable[int | None]) -> list[int]:
    return sorted(value for value in values if value is not None)


def _at(values: list[int], share: float, per_second: float) -> float | None:
    """Return the smallest value that `share` of them do not exceed, in seconds."""
    return values[ceil(share * len(values)) - 1] / per_second if values else None
