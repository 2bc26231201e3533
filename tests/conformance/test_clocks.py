"""Wall clocks that jump, stand wrong or sleep: nothing is handed over twice, parked or turned round for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.conformance.kit import AGEING_MS, Factory, Port, error, new, opened, state, status, submit

from mainspring.environment import SYSTEM, Environment
from mainspring.errors import TaskNotFound
from mainspring.store.base import COMPLETED, FAILED, RETRY
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio
HOUR, DAY = 3_600.0, 86_400.0
A = AGEING_MS / 1000


def ids(claims: list[Any]) -> list[bytes]:
    return [claim.id for claim in claims]


async def serving(store: Any) -> Port:
    port = Port(store)
    await port.serve()
    return port


@asynccontextmanager
async def at_a_wrong_time(factory: Factory, ahead: float) -> AsyncIterator[Any]:
    """Open a store while the wall clock that stores go by stands wrong."""
    factory.clock.jump(ahead)
    async with opened(factory.make()) as store:
        yield store
    factory.clock.jump(-ahead)


# A process with a wrong clock comes and goes


@pytest.mark.parametrize("ahead", [DAY, -DAY, 3_000 * DAY])
async def test_order_is_kept_after_a_wrong_clock(factory: Factory, ahead: float) -> None:
    """What it submitted goes before what comes later, and among later ones priorities, waiting and deadlines count as
    ever."""
    factory.clock.advance(10 * DAY)
    async with at_a_wrong_time(factory, ahead) as wrong:
        first, second = await submit(wrong, new()) + await submit(wrong, new())
    async with opened(factory.make()) as store:
        port = await serving(store)
        (low,) = await submit(store, new(priority=0))
        factory.clock.advance(0.9 * A)
        now = store.now_ms()
        normal, far, near = await submit(
            store, new(), new(priority=0, deadline_ms=now + 50 * AGEING_MS), new(priority=0, deadline_ms=now + 30_000)
        )
        factory.clock.advance(0.2 * A)
        (late,) = await submit(store, new())
        assert ids(await port.room(7)) == [first, second, normal, low, late, near, far]


async def test_delays_and_deadlines_after_a_wrong_clock(factory: Factory) -> None:
    """A process that starts with the right time judges by it, though a day ahead is what the last one wrote by."""
    async with at_a_wrong_time(factory, DAY) as wrong:
        await submit(wrong, new(type="custom:unserved"))
    async with opened(factory.make()) as store:
        port = await serving(store)
        now = store.now_ms()
        assert now == factory.clock.wall_ms()
        (soon,) = await submit(store, new(not_before_ms=now + 5_000))
        (late,) = await submit(store, new(deadline_ms=now + 5_000))
        await port.settle()
        assert ((await state(store, soon)).reason, (await state(store, late)).reason) == ("delayed", "ready")
        factory.clock.advance(5)
        await port.settle()
        assert await status(store, late) is TaskStatus.TIMEOUT
        assert ids(await port.room(2)) == [soon]


@pytest.mark.parametrize("ahead", [DAY, -DAY])
async def test_a_backoff_does_not_outlive_a_wrong_clock(factory: Factory, ahead: float) -> None:
    """What it put back for two seconds is tried again after two seconds at most, by whoever is there, and shown so."""
    async with at_a_wrong_time(factory, ahead) as wrong:
        port = await serving(wrong)
        (id,) = await submit(wrong, new())
        await port.finish(await port.take(), RETRY, error=error(), delay_ms=2_000)
        factory.clock.advance(0.5)
    async with opened(factory.make()) as store:
        port = await serving(store)
        due = (await store.info(id)).due
        if ahead > 0:
            assert 1_000 <= due.timestamp() * 1000 - store.now_ms() <= 2_000
            assert await port.room(1) == []
        else:
            assert due is None
            await port.room(1)
        factory.clock.advance(2)
        await port.settle()
        assert ids(port.order) == [id]
        await port.finish(port.order[0], RETRY, error=error(), delay_ms=2_000)
        factory.clock.advance(1.999)
        assert await port.room(1) == []
        factory.clock.advance(0.001)
        await port.settle()
        assert ids(port.order) == [id, id]


async def test_a_retry_after_a_wrong_clock(factory: Factory) -> None:
    """A task that is made anew comes after what waited already."""
    async with at_a_wrong_time(factory, DAY) as wrong:
        port = await serving(wrong)
        (failed,) = await submit(wrong, new())
        await port.finish(await port.take(), FAILED)
        (waiting,) = await submit(wrong, new())
    async with opened(factory.make()) as store:
        port = await serving(store)
        again = await store.retry(failed)
        assert ids(await port.room(2)) == [waiting, again]


async def test_order_after_a_refusal_by_a_wrong_clock(factory: Factory) -> None:
    """What it submitted in one commit with a call that was refused goes before what comes later, like all others."""
    async with at_a_wrong_time(factory, DAY) as wrong:
        async with factory.together(wrong):
            calls = [asyncio.ensure_future(submit(wrong, new(after=after))) for after in ([bytes(16)], [])]
            await asyncio.sleep(0)
        with pytest.raises(TaskNotFound):
            await calls[0]
        (first,) = await calls[1]
    async with opened(factory.make()) as store:
        port = await serving(store)
        (later,) = await submit(store, new())
        assert ids(await port.room(2)) == [first, later]


async def test_retention_after_a_wrong_clock(factory: Factory) -> None:
    """Tasks of the right time are kept for as long as they should be, whatever time the last process had."""
    async with at_a_wrong_time(factory, 20 * DAY) as wrong:
        await submit(wrong, new(type="custom:unserved"))
    async with opened(factory.make()) as store:
        port = await serving(store)
        (id,) = await submit(store, new())
        await port.finish(await port.take())
        factory.clock.advance(6 * DAY)
        await factory.prune(store)
        assert id in factory.states()
        factory.clock.advance(2 * DAY)
        await factory.prune(store)
        assert id not in factory.states()


async def test_what_a_wrong_clock_pruned_is_recognised(factory: Factory, store: Any) -> None:
    """An id does not run again because a process took its task for old, and nobody else would have."""
    port = await serving(store)
    id = factory.clock.wall_ms().to_bytes(6, "big") + bytes(10)  # made now
    await submit(store, new(id=id))
    await port.finish(await port.take())
    async with at_a_wrong_time(factory, 20 * DAY) as wrong:
        await factory.prune(wrong)
    assert id not in factory.states()
    assert (await store.submit([new(id=id)]))[0].existed
    assert id not in factory.states()


# The clock steps while a process runs


@pytest.mark.parametrize("step", [DAY, -DAY, 8 * 3600.0])
async def test_a_step_redelivers_nothing_and_parks_nothing(factory: Factory, store: Any, step: float) -> None:
    """What is held stays held and completes; a backoff ends no later than it would have; what is ready goes on in
    order; no duration becomes negative."""
    port = await serving(store)
    sent = await submit(store, *(new() for _ in range(4)))
    running, again = await port.room(2)
    store.started(running, store.now_ms())
    begun = factory.clock.monotonic()
    factory.clock.advance(1)
    await port.finish(again, RETRY, error=error(), delay_ms=3_000)
    factory.clock.jump(step)
    await port.settle()
    sent += await submit(store, new())
    await port.room(3)
    factory.clock.advance(3)
    await port.room(1)
    assert ids([claim for claim in port.order if claim.attempt == 1]) == sent
    assert ids([claim for claim in port.order if claim.attempt != 1]) == [again.id]
    started_ms, ended_ms = store.ms_at(begun), store.now_ms()
    for claim in list(port.held.values()):
        port.end(claim, COMPLETED, started_ms=started_ms)
    await port.settle()
    assert port.missed == []
    assert len(port.ends) == len(sent)
    for id in sent:
        info = await store.info(id)
        assert info.status is TaskStatus.COMPLETED
        assert info.submitted <= info.started <= info.ended
        assert (await store.result(id)).metrics.queue_wait >= 0
        assert all(attempt.started is None or attempt.started <= attempt.ended for attempt in info.attempts)
    assert ended_ms - started_ms == 4_000


async def test_people_s_times_follow_the_wall_clock(factory: Factory, store: Any) -> None:
    """Set back by mistake and right again: delays and deadlines come at their wall time, neither before nor when they
    would have by the time that has gone by."""
    port = await serving(store)
    now = store.now_ms()
    (delayed,) = await submit(store, new(not_before_ms=now + 3_600_000))
    (late,) = await submit(store, new(type="custom:unserved", deadline_ms=now + 3_600_000))
    factory.clock.jump(-DAY)
    await port.settle()
    factory.clock.advance(3_600)
    await port.settle()
    assert ((await state(store, delayed)).reason, (await state(store, late)).reason) == ("delayed", "ready")
    factory.clock.jump(DAY - 1)
    await port.settle()
    assert ((await state(store, delayed)).reason, (await state(store, late)).reason) == ("delayed", "ready")
    factory.clock.advance(1)
    await port.settle()
    assert str(await state(store, delayed)) == "PENDING (ready)"
    assert await status(store, late) is TaskStatus.TIMEOUT


@pytest.mark.parametrize("hours", [2.0, 24.0])
async def test_a_sleep_redelivers_nothing_and_is_counted(factory: Factory, store: Any, hours: float) -> None:
    """Suspended for hours: the time is right at once, what fell due meanwhile happens, backoffs are over, and what is
    held stays with its holder; its time is not counted as run."""
    port = await serving(store)
    held, again = await submit(store, new(), new())
    running, other = await port.room(2)
    begun = factory.clock.monotonic()
    await port.finish(other, RETRY, error=error(), delay_ms=60_000)
    now = store.now_ms()
    (delayed,) = await submit(store, new(not_before_ms=now + 3_600_000))
    (late,) = await submit(store, new(type="custom:unserved", deadline_ms=now + 3_600_000))
    (far,) = await submit(store, new(not_before_ms=now + 30 * 3_600_000))
    factory.clock.sleep(hours * HOUR)
    assert store.now_ms() == factory.clock.wall_ms() == now + hours * 3_600_000
    factory.clock.advance(1)
    assert store.now_ms() - store.ms_at(begun) == 1_000
    await port.settle()
    assert await status(store, late) is TaskStatus.TIMEOUT
    assert (await state(store, far)).reason == "delayed"
    assert sorted(ids(await port.room(3))) == sorted([again, delayed])
    await port.finish(running, COMPLETED, started_ms=store.ms_at(begun))
    assert port.missed == []
    assert (await store.info(held)).attempt == 1


class Machine(Environment):
    """The real one, which may have been suspended, and whose wall clock may have been set, like its server's."""

    slept_s = ahead_s = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self.slept_s

    def wall_ms(self) -> int:
        return self.server_ms(SYSTEM.wall_ms())

    def server_ms(self, told_ms: int) -> int:
        return told_ms + round((self.slept_s + self.ahead_s) * 1000)


@pytest.mark.parametrize("is_sleep", [True, False], ids=["slept", "set"])
@pytest.mark.parametrize("hours", [2.0, 24.0])
async def test_time_that_has_gone_by_is_noticed(factory: Factory, hours: float, is_sleep: bool) -> None:
    """When the machine wakes up, or its clock is set forward, what has fallen due happens without anybody asking."""
    env = Machine()
    async with opened(factory.make(env=env)) as store:
        port = Port(store, 5)
        await port.serve()
        now = store.now_ms()
        (delayed,) = await submit(store, new(not_before_ms=now + 3_600_000))
        (late,) = await submit(store, new(type="custom:unserved", deadline_ms=now + 3_600_000))
        (other,) = await submit(store, new(not_before_ms=now + 30 * 3_600_000))
        await port.settle()
        if is_sleep:
            env.slept_s = HOUR * hours
        else:
            env.ahead_s = HOUR * hours
        await port.until(lambda: port.order and port.ends)
        assert ids(port.order) == [delayed]
        assert port.ended_as() == {late: 5}
        assert (await state(store, other)).reason == "delayed"


async def test_what_is_due_by_the_new_time_goes_before_what_is_new(factory: Factory, store: Any) -> None:
    """A backoff that is over when the clock was set back is not passed over by the next submit."""
    port = await serving(store)
    (old,) = await submit(store, new())
    await port.finish(await port.take(), RETRY, error=error(), delay_ms=3_000)
    assert await port.room(1) == []
    factory.clock.jump(-DAY)
    factory.clock.advance(3)
    await submit(store, new())
    await port.settle()
    assert ids(port.order) == [old, old]
