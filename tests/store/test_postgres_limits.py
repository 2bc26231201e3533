"""Limits of groups on a server, where processes claim at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit

from mainspring.tasks import CostRate, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[PostgresFactory]:
    factory = PostgresFactory(tmp_path)
    yield factory
    factory.drop()


async def test_a_group_that_another_process_claims_for_is_put_off(factory: PostgresFactory) -> None:
    """Nobody waits for it, other groups go on, and it is looked at again without anybody's word."""
    async with opened(factory.make()) as store:
        port = Port(store, 10)
        await port.serve()
        await store.limit("a", concurrency=1)

        postgres.command(f"SET search_path = {factory.schema}; BEGIN; SELECT 1 FROM group_limit FOR UPDATE")
        try:
            sent = await submit(store, new(group="a"), new(group="b"), new(group="a"))
            await port.settle()
            assert [claim.id for claim in port.order] == sent[1:2]
        finally:
            postgres.command("COMMIT")
        factory.clock.advance(1)
        await port.until(lambda: len(port.order) == 2)
        assert port.order[1].id == sent[0]


async def test_processes_at_once_never_exceed_a_limit(factory: PostgresFactory) -> None:
    """Three that claim, end and claim again as fast as they can."""
    async with opened(factory.make()) as one, opened(factory.make()) as two, opened(factory.make()) as three:
        ports = [Port(store, 8) for store in (one, two, three)]
        await one.limit("a", concurrency=5)
        await one.limit("b", concurrency=1)
        for port in ports:
            await port.serve()

        async def work(port: Port, n: int) -> None:
            await submit(port.store, *(new(group="ab"[n % 3 == 0]) for n in range(n)))
            while sum(len(one.order) for one in ports) < 3 * n or port.held:
                for claim in list(port.held.values()):
                    port.end(claim)
                await port.settle()
                held = {limit.group: limit.held for limit in await port.store.limits()}
                assert held["a"] <= 5
                assert held["b"] <= 1

        async with asyncio.timeout(120):
            await asyncio.gather(*(work(port, 100) for port in ports))
        assert factory.contents().violations == []


async def test_processes_at_once_lose_nothing_of_what_they_settle(factory: PostgresFactory) -> None:
    """Three that claim and settle as fast as they can: what is left is what a single one would have left."""
    n, real = 30, 10.0
    async with opened(factory.make()) as one, opened(factory.make()) as two, opened(factory.make()) as three:
        ports = [Port(store, 4) for store in (one, two, three)]
        await one.limit("a", cost_rate=CostRate(1_000_000, 60_000))
        for port in ports:
            await port.serve()

        async def work(port: Port) -> None:
            await submit(port.store, *(new(group="a") for _ in range(n)))
            while sum(len(one.order) for one in ports) < 3 * n or port.held:
                for claim in list(port.held.values()):
                    port.end(claim, started_ms=port.store.now_ms(), usage=Usage(cost=real))
                await port.settle()

        async with asyncio.timeout(120):
            await asyncio.gather(*(work(port) for port in ports))
        (limit,) = await two.limits()
        assert limit.cost_left == 1_000_000 - 3 * n * real
