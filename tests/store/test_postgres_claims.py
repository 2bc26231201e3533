"""Claims on a server beside those of other processes: nobody waits for a row that another one is taking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import WORK, Port, PostgresFactory, new, opened, submit
from tests.conformance.test_cache import same

from mainspring.store.base import WorkName

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


async def test_kept_results_that_others_take_hold_up_nobody(factory: PostgresFactory) -> None:
    """The use of a result is noted by whoever comes first, so that two who take the same ones wait for each other in no
    order."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        keys = [bytes([n]) * 20 for n in range(2)]
        for key in keys:
            await submit(store, same(key))
            claim = await port.take()
            claim.work = WorkName(key, "1")
            await port.finish(claim)
        factory.clock.advance(100)
        other = await asyncpg.connect(postgres.url(), server_settings={"search_path": factory.schema})
        try:
            await other.execute("BEGIN")
            await other.execute("UPDATE cache SET used_ms = used_ms + 1 WHERE key = $1", keys[0])
            async with asyncio.timeout(60):
                taken = await submit(store, *(same(key) for key in keys))
            assert [(await store.result(id)).metrics.cache_hit for id in taken] == [True, True]
            await other.execute("COMMIT")
            used = await other.fetch("SELECT used_ms FROM cache ORDER BY key")
            assert [row[0] == store.now_ms() for row in used] == [False, True]
        finally:
            await other.close()


async def queue(factory: PostgresFactory, n: int) -> None:
    """Let so many more tasks wait, in ten groups."""
    session = await asyncpg.connect(postgres.url(), server_settings={"search_path": factory.schema})
    await session.execute(f"""
        ALTER TABLE task SET (autovacuum_enabled = false);
        INSERT INTO class (id, namespace, type, grp) OVERRIDING SYSTEM VALUE
            SELECT n, 'default', '{WORK}', 'g' || n FROM generate_series(1, 10) AS n ON CONFLICT DO NOTHING;
        INSERT INTO task (seq, id, class, rank, status, reason, priority, max_retries, submitted_ms, ready_ms, input)
            SELECT n, decode(lpad(to_hex(n), 32, '0'), 'hex'), n % 10 + 1, n, 0, 0, 1, 3, n, n, ''
            FROM (SELECT nextval('task_seq') FROM generate_series(1, {n})) AS number (n);
        INSERT INTO tally (class, status, n, worker) VALUES (0, 0, {n}, 0)
            ON CONFLICT (class, status, worker) DO UPDATE SET n = tally.n + excluded.n""")
    await session.close()


async def pages(factory: PostgresFactory, changes: int) -> int:
    """Return how many pages of the store's tables and indexes were looked at so far. The server counts what a session
    did when that ends; by then it has counted so many changes of tasks."""
    counted = "SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'task'"
    async with asyncio.timeout(60):
        while postgres.ask(counted, factory.schema)[0][0] < changes:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    looked_at = "sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint"
    from_all = "FROM pg_statio_user_tables WHERE schemaname = $1"
    return int(postgres.ask(f"SELECT {looked_at} {from_all}", factory.schema)[0][0])


async def test_what_a_process_does_costs_the_same_however_many_are_queued(factory: PostgresFactory) -> None:
    """It comes, claims from several classes, ends what it got, and goes. Counted in pages, so that neither the machine
    nor its load matters."""
    costs: list[int] = []
    changes = 0
    async with opened(factory.make()):
        pass
    for n in (2_000, 50_000):
        await queue(factory, n)
        changes += n
        before = await pages(factory, changes)
        async with opened(factory.make()) as store:
            await factory.hold_upkeep(store)
            port = Port(store)
            await port.serve()
            for _ in range(10):
                for claim in await port.room(10):
                    port.end(claim)
                port.lanes["async"].limit -= 10
                await port.settle()
            assert len(port.ends) == 100
        changes += 200
        costs.append(await pages(factory, changes) - before)
    assert costs[1] <= 1.5 * costs[0]


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
