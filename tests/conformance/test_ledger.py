"""What attempts cost: noted for each, summed up by type, group and day, and honest about what is not there."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, error, new, opened, submit
from tests.conformance.test_cache import does, same

from mainspring.store.base import CANCELLED, COMPLETED, CRASHED, FAILED, RELEASED, RETRY, TIMEOUT
from mainspring.tasks import Figures, Usage

pytestmark = pytest.mark.anyio
DAY_S = 86_400


async def run(store: Any, port: Port, outcome: int = COMPLETED, **task: Any) -> bytes:
    """One attempt that waited 3 ms and ran for 2 s, of that half a second on a CPU."""
    return await cost(store, port, Usage(duration=2.0, cpu_time=0.5), outcome, **task)


async def cost(store: Any, port: Port, usage: Usage, outcome: int = COMPLETED, **task: Any) -> bytes:
    (id,) = await submit(store, new(**task))
    claim = await port.take()
    fields = {} if outcome == COMPLETED else {"error": error()}
    await port.finish(claim, outcome, usage=usage, started_ms=claim.ready_ms + 3, **fields)
    return id


async def test_attempts_tell_what_they_cost(factory: Factory, store: Any, port: Port) -> None:
    """Each in all its figures, with the retries before it; what is not known is None."""
    usage = Usage(duration=2.0, cpu_time=0.5, memory_bytes=9, network_bytes=7, batch_size=4)
    id = await cost(store, port, usage, RETRY)
    factory.clock.advance(1)
    await port.finish(await port.take(), started_ms=store.now_ms())
    first, second = (await store.info(id)).attempts
    assert (first.duration, first.cpu_time, first.memory_bytes, first.network_bytes) == (2.0, 0.5, 9, 7)
    assert (first.queue_wait, first.batch_size, first.retry_count, first.lane) == (0.003, 4, 0, "async")
    assert (second.cpu_time, second.memory_bytes, second.network_bytes) == (None, None, None)
    assert (second.batch_size, second.retry_count) == (1, 1)


async def test_costs_are_summed_up(store: Any, port: Port) -> None:
    """By the keys that are asked for; a figure that some attempts don't have is the mean of the others."""
    await cost(store, port, Usage(1.0, 0.25, 100, 10), group="a")
    await cost(store, port, Usage(3.0, None, 300), group="a")
    await cost(store, port, Usage(0.5, 0.5), type=OTHER)
    ledger = await store.ledger(("group", "type"), None)
    assert (ledger.by, ledger.since, ledger.pruned) == (("type", "group"), None, 0)
    other, work = ledger.rows
    assert (other.type, other.group, other.day, other.attempts) == (OTHER, "", None, 1)
    assert other.memory_bytes == Figures()
    assert (work.type, work.group, work.attempts, work.outcomes) == (WORK, "a", 2, {"completed": 2})
    assert work.duration == Figures(known=2, total=4.0, mean=2.0, max=3.0)
    assert work.queue_wait == Figures(known=2, total=0.006, mean=0.003, max=0.003)
    assert work.cpu_time == Figures(known=1, total=0.25, mean=0.25, max=0.25)
    assert work.memory_bytes == Figures(known=2, total=None, mean=200.0, max=300.0)
    assert work.network_bytes == Figures(known=1, total=10.0, mean=10.0, max=10.0)
    (whole,) = (await store.ledger((), None)).rows
    assert (whole.type, whole.group, whole.attempts, whole.duration.total) == (None, None, 3, 4.5)


async def test_a_batch_counts_once(store: Any, port: Port) -> None:
    """Attempts that shared a call all saw it last, but the slot was taken for one call, not for three."""
    for _ in range(3):
        await cost(store, port, Usage(2.0, 0.1, batch_size=3))
    (row,) = (await store.ledger(("type",), None)).rows
    assert (row.attempts, row.calls, row.busy, row.duration.total) == (3, 1.0, pytest.approx(2.0), 6.0)


async def test_every_outcome_counts(factory: Factory, store: Any, port: Port) -> None:
    """Also those of attempts that were not the task's last."""
    for outcome in (COMPLETED, FAILED, TIMEOUT, CANCELLED):
        await run(store, port, outcome)
    for outcome in (RETRY, RELEASED, CRASHED):
        await run(store, port, outcome)
        factory.clock.advance(1)
        await port.finish(await port.take())
    (row,) = (await store.ledger((), None)).rows
    assert row.outcomes == {
        "completed": 4, "failed": 1, "timeout": 1, "cancelled": 1, "retry": 1, "released": 1, "crashed": 1,
    }  # fmt: skip
    assert row.duration.known == 7, "of attempts that never began it is not known"


async def test_days_are_those_of_utc(factory: Factory, store: Any, port: Port) -> None:
    """An attempt belongs to the day on which it ended; with a moment given, older ones are left out."""
    await run(store, port)
    factory.clock.advance(DAY_S)
    await run(store, port)
    now = datetime.fromtimestamp(store.now_ms() / 1000, UTC)
    rows = (await store.ledger(("day",), None)).rows
    assert [(row.day, row.attempts) for row in rows] == [(now.date() - timedelta(days=1), 1), (now.date(), 1)]
    assert isinstance(rows[0].day, date)
    ledger = await store.ledger(("day",), store.now_ms() - 1000)
    assert [row.day for row in ledger.rows] == [now.date()]
    assert ledger.since == now - timedelta(seconds=1)


async def test_shared_results_count_as_hits(store: Any, port: Port) -> None:
    """A task that took the result of equal work has no attempt, and cost nothing."""
    await submit(store, same())
    await port.finish(does(await port.take()), usage=Usage(1.0), started_ms=store.now_ms())
    await submit(store, same(), same())
    (row,) = (await store.ledger(("type",), None)).rows
    assert (row.type, row.attempts, row.cache_hits) == (WORK, 1, 2)


async def test_what_was_pruned_is_said(factory: Factory) -> None:
    """Attempts go with their tasks; the ledger tells how many tasks of its span are missing, and until when."""
    async with opened(factory.make(keep_completed_s=60)) as store:
        port = Port(store)
        await port.serve()
        await run(store, port)
        ended = datetime.fromtimestamp(store.now_ms() / 1000, UTC)
        factory.clock.advance(61)
        await run(store, port)
        await factory.prune(store)
        ledger = await store.ledger(("type",), None)
        assert (ledger.rows[0].attempts, ledger.pruned, ledger.pruned_until) == (1, 1, ended)
        ledger = await store.ledger(("type",), store.now_ms() - 1000)
        assert (ledger.rows[0].attempts, ledger.pruned, ledger.pruned_until) == (1, 0, None)


async def test_a_wait_begins_when_the_task_is_ready(factory: Factory, store: Any, port: Port) -> None:
    """So what keeps a ready task still, as a pause does, is in it."""
    await store.pause(type=WORK)
    (id,) = await submit(store, new())
    factory.clock.advance(2)
    await store.resume(type=WORK)
    await port.finish(await port.take(), started_ms=store.now_ms())
    assert (await store.info(id)).attempts[0].queue_wait == 2.0
