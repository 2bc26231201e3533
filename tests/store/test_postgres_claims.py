"""Claims on a server beside those of other processes: nobody waits for a row that another one is taking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def taking(factory: PostgresFactory, table: str, ids: Sequence[bytes]) -> AsyncIterator[None]:
    """Another process is about to take these, and then does not."""
    other = await asyncpg.connect(postgres.url())
    try:
        async with asyncio.timeout(60):
            await other.execute("BEGIN")
            await other.execute(f"SELECT 1 FROM {factory.schema}.{table} WHERE id = ANY ($1) FOR UPDATE", ids)
            yield
    finally:
        await other.close()


def claimed(port: Port) -> list[bytes]:
    return [claim.id for claim in port.order]


async def test_the_next_ones_of_a_class_are_claimed_meanwhile(factory: PostgresFactory) -> None:
    """And the first ones when they were not taken after all."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        tasks = await submit(store, *(new() for _ in range(6)))
        async with taking(factory, "task", tasks[:2]):
            await port.room(3)
            assert claimed(port) == tasks[2:5]
            await port.room(3)
            assert claimed(port) == tasks[2:]
        await port.settle()
        assert claimed(port) == [*tasks[2:], *tasks[:2]]


async def test_those_of_other_classes_are_claimed_meanwhile(factory: PostgresFactory) -> None:
    """Where the best of several classes are chosen first, what is left of them is taken; the others stay ready."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        tasks = await submit(store, *(new(group=f"g{n}") for n in range(3)))
        async with taking(factory, "task", tasks[:2]):
            await port.room(3)
            assert claimed(port) == tasks[2:]
        await port.settle()
        assert claimed(port) == [tasks[2], *tasks[:2]]


async def test_what_has_fallen_due_does_not_hold_up_the_rest(factory: PostgresFactory) -> None:
    """Others that are due become ready while another process makes the first one so."""
    async with opened(factory.make()) as store:
        port = Port(store, 5)
        await port.serve()
        await factory.hold_upkeep(store)
        tasks = await submit(store, *(new(not_before_ms=store.now_ms() + 1) for _ in range(3)))
        factory.clock.advance(1)
        async with taking(factory, "task", tasks[:1]):
            await port.settle()
            assert claimed(port) == tasks[1:]
        await port.settle()
        assert claimed(port) == [*tasks[1:], tasks[0]]


async def test_what_users_have_committed_does_not_hold_up_the_rest(factory: PostgresFactory) -> None:
    """Nor does it what another process is taking in just now."""
    async with opened(factory.make()) as store:
        port = Port(store, 5)
        await port.serve()
        await factory.hold_upkeep(store)
        tasks = [new() for _ in range(3)]
        ids = [task.id for task in tasks]
        user = await asyncpg.connect(postgres.url())
        pledges: Any = await store.submit_within(tasks, store.borrow(user))
        await user.close()
        assert [pledge.id for pledge in pledges] == ids
        async with taking(factory, "inbox", ids[:1]):
            await port.settle()
            assert claimed(port) == ids[1:]
        await port.settle()
        assert claimed(port) == [*ids[1:], ids[0]]


async def test_several_claim_at_once_and_each_task_once(factory: PostgresFactory) -> None:
    """Four processes that take from one line as fast as they can, of one class and of several."""
    async with (
        opened(factory.make()) as one,
        opened(factory.make()) as two,
        opened(factory.make()) as three,
        opened(factory.make()) as four,
    ):
        ports = [Port(store) for store in (one, two, three, four)]
        for port in ports:
            await port.serve()
        for groups in (1, 5):
            tasks = await submit(one, *(new(group=f"g{n % groups}") for n in range(200)))

            async def take(port: Port) -> None:
                while sum(len(port.held) for port in ports) < 200:
                    await port.room(7)

            async with asyncio.timeout(60):
                await asyncio.gather(*(take(port) for port in ports))
            held = [id for port in ports for id in port.held]
            assert sorted(held) == sorted(tasks)
            for port in ports:
                for claim in list(port.held.values()):
                    await port.finish(claim)
                port.lanes["async"].limit = 0
