"""Machines on one server: all go by its clock, wherever their own ones stand, and notice what they slept through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.conformance.kit import Clock, Port, PostgresFactory, error, new, opened, state, submit

from mainspring.store.base import RETRY

pytestmark = pytest.mark.anyio
HOUR, DAY = 3_600.0, 86_400.0


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[PostgresFactory]:
    made = PostgresFactory(tmp_path)
    yield made
    made.drop()


def times(factory: PostgresFactory) -> list[Any]:
    return list(postgres.ask(f"SELECT worker, order_ms FROM {factory.schema}.clock ORDER BY worker"))


@pytest.mark.parametrize("ahead", [DAY, -DAY])
async def test_machines_with_wrong_clocks(factory: PostgresFactory, ahead: float) -> None:
    """What one means by its own clock falls due by the server's, and all hand over in the order of submission."""
    async with (
        opened(factory.make()) as right,
        opened(factory.make(env=factory.clock.beside(ahead))) as wrong,
    ):
        port = Port(right)
        await port.serve()
        assert wrong.now_ms() == right.now_ms() == factory.clock.wall_ms()
        in_an_hour = wrong.ms_of(wrong.env.wall_ms() + 3_600_000)
        (delayed,) = await submit(wrong, new(not_before_ms=in_an_hour))
        sent = []
        for store in (right, wrong, right, wrong, wrong, right):
            factory.clock.advance(0.25)
            sent += await submit(store, new())
        factory.clock.advance(HOUR - 2)
        await port.settle()
        assert (await state(right, delayed)).reason == "delayed"
        factory.clock.advance(2)
        assert [claim.id for claim in await port.room(9)] == [*sent, delayed]


async def test_a_machine_sleeps_and_its_server_does_not(factory: PostgresFactory) -> None:
    """Awake again it starts nothing before it has asked what is still its own, and judges by the time it is."""
    env = Sleeper(factory.clock)
    async with opened(factory.make(env=env)) as store:
        await factory.hold_upkeep(store)
        port = Port(store)
        await port.serve()
        await submit(store, new())
        await port.take()
        (delayed,) = await submit(store, new(not_before_ms=store.now_ms() + 3_600_000))
        assert not store.is_revoked()
        factory.clock.advance(8 * HOUR)
        env.behind_s = 8 * HOUR
        assert store.now_ms() == factory.clock.wall_ms()
        assert store.is_revoked()
        await port.settle()
        assert not store.is_revoked()
        assert (await state(store, delayed)).reason == "ready"


class Sleeper(Clock):
    """A machine whose monotonic clock stood still for some time."""

    behind_s = 0.0

    def __init__(self, server: Clock) -> None:
        super().__init__()
        self._machine, self._server = server._machine, server

    def monotonic(self) -> float:
        return super().monotonic() - self.behind_s


async def test_the_order_outlives_those_that_wrote_by_it(factory: PostgresFactory) -> None:
    """The server's clock is set back: what comes later goes later, and a backoff ends in time, whoever was there."""
    factory.clock.jump(DAY)
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        (first, again) = await submit(store, new(), new())
        claims = await port.room(2)
        for claim in claims:
            await port.finish(claim, RETRY, error=error(), delay_ms=2_000)
    factory.clock.jump(-DAY)
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        (later,) = await submit(store, new())
        factory.clock.advance(2)
        await port.settle()
        assert [claim.id for claim in await port.room(3)] == [first, again, later]


async def test_times_of_processes_that_are_gone_become_one(factory: PostgresFactory) -> None:
    """However many come and go, one row tells how far the order's clock has come."""
    for _ in range(4):
        async with opened(factory.make()) as store:
            await submit(store, new())
            newest = max(ms for _, ms in times(factory))
    async with opened(factory.make()) as store:
        await factory.hold_upkeep(store)
        assert len(times(factory)) > 1
        await store.write(lambda tx: tx.run("gather_times"))
        assert times(factory) == [(0, newest)]
        factory.clock.advance(1)
        await submit(store, new())
        await store.write(lambda tx: tx.run("gather_times"))
        assert times(factory) == [(0, newest), (store.owner, newest + 1_000)]
