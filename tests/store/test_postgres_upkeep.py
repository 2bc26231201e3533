"""What is kept for others on a server does not grow, and nobody misses what was dropped."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit
from tests.engine.support import LIMIT_S

pytestmark = pytest.mark.anyio


def count(factory: PostgresFactory, table: str, where: str = "true") -> int:
    return int(postgres.ask(f"SELECT count(*) FROM {factory.schema}.{table} WHERE {where}")[0][0])


async def test_old_news_go_and_nobody_misses_them(factory: PostgresFactory) -> None:
    """A process that has not looked for so long that news are gone looks through everything."""
    async with opened(factory.make()) as one, opened(factory.make()) as other:
        port = Port(other)
        await port.serve()
        for store in (one, other):
            await factory.hold_upkeep(store)
        await port.settle()
        first = await submit(one, new(), new(group="g"))
        assert count(factory, "news") == 2
        await one._caretaker._forget_news()  # notes how far things are
        second = await submit(one, new(group="h"))
        await one._caretaker._forget_news()
        assert count(factory, "news") < 3
        claims = await port.room(5)
        assert {claim.id for claim in claims} == {*first, *second}


async def test_news_are_left_only_for_others(factory: PostgresFactory) -> None:
    """A process alone writes none."""
    async with opened(factory.make()) as store:
        await submit(store, new(), new())
        assert count(factory, "news") == 0


async def test_counts_of_processes_that_are_gone_are_added_up(factory: PostgresFactory) -> None:
    """However many come and go, the counts stay few, and what they say stays the same."""
    for _ in range(5):
        async with opened(factory.make()) as store:
            await submit(store, new(), new(group="g"))
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        for claim in await port.room(4):
            await port.finish(claim)
        before: Any = await store.stats()
        async with opened(factory.make()):
            pass
        await store.write(lambda tx: tx.run("gather_tallies"))
        assert await store.stats() == before
        assert before["pending"] == 6
        assert before["completed"] == 4
        owners = postgres.ask(f"SELECT DISTINCT worker FROM {factory.schema}.tally ORDER BY worker")
        assert owners == [(0,), (store.owner,)]


async def test_a_long_transaction_of_others_repeats_no_news(factory: PostgresFactory) -> None:
    """While somebody's transaction stays open, what was committed since it began is looked at once, not each time."""

    async def news(since: str) -> tuple[str, list[int]]:
        row = await other.view(lambda view: view.one("catch_up", since, other.owner, 0))
        return row[0], [class_id for class_id, _ in row[2]]

    async with opened(factory.make()) as one, opened(factory.make()) as other:
        for store in (one, other):
            await factory.hold_upkeep(store)
        blocker = await asyncpg.connect(postgres.url())
        await blocker.execute(f"BEGIN; INSERT INTO {factory.schema}.news (class) VALUES (1)")
        first, _ = await news("1:1:")
        await submit(one, new())
        second, told = await news(first)
        assert told == [1]
        third, told = await news(second)
        assert told == []
        await blocker.execute("COMMIT")  # it was under way at each of them
        assert (await news(third))[1] == [1]
        await blocker.close()


async def test_rows_from_a_dump_bring_no_news_of_another_server(factory: PostgresFactory) -> None:
    """Numbers of transactions begin anew where a dump is restored: what was noted under those of the old server lies
    ahead. It would be news for ever, and each look would be through everything."""
    async with opened(factory.make()):
        pass
    ahead = postgres.ask("SELECT (pg_current_xact_id()::text::bigint + 1000000)::text")[0][0]
    postgres.command(
        f"UPDATE {factory.schema}.store SET news_floor = '{ahead}'; "
        f"INSERT INTO {factory.schema}.news (xid, class) VALUES ('{ahead}', 1)"
    )
    async with opened(factory.make()) as one, opened(factory.make()) as other:
        for store in (one, other):
            await factory.hold_upkeep(store)
        await submit(one, new())
        seen = (await other.view(lambda view: view.one("catch_up", "1:1:", other.owner, 0)))[0]
        await submit(one, new())
        _, is_behind, told, *_ = await other.view(lambda view: view.one("catch_up", seen, other.owner, 0))
        assert (is_behind, len(told)) == (False, 1)
        assert count(factory, "news", f"xid >= '{ahead}'") == 0


async def test_what_died_can_be_removed_and_its_room_is_used_again(factory: PostgresFactory) -> None:
    """Nothing of ours keeps vacuum away, whatever was looked at before: from the second round of tasks on they take no
    more room, in tables and indexes."""
    tables = ("task", "attempt", "tally")

    def size() -> int:
        names = [f"{factory.schema}.{name}" for name in tables]
        sizes = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest($1::text[]) AS name"
        return int(postgres.ask(sizes, names)[0][0])

    async with opened(factory.make()) as store:
        await factory.hold_upkeep(store)
        port = Port(store)
        await port.serve()
        sizes = []
        for _ in range(4):
            await submit(store, *(new() for _ in range(400)))
            for claim in await port.room(400):
                port.end(claim)
            port.lanes["async"].limit -= 400
            await port.settle()
            await store.stats()
            factory.clock.advance(8 * 86_400)
            await factory.prune(store)
            assert count(factory, "task") == 0
            for name in tables:
                postgres.command(f"VACUUM {factory.schema}.{name}")
            sizes.append(size())
    assert max(sizes[2:]) <= 1.1 * sizes[1], sizes


def tuples_read(factory: PostgresFactory, index: str) -> int:
    """Return how many entries of an index were looked at so far, dead ones among them."""
    return int(
        postgres.ask(
            "SELECT coalesce(idx_tup_read, 0) FROM pg_stat_user_indexes WHERE schemaname = $1 AND indexrelname = $2",
            factory.schema,
            index,
        )[0][0]
    )


@pytest.mark.parametrize("groups", [1, 3])
async def test_what_died_under_an_old_transaction_is_not_looked_at_again(factory: PostgresFactory, groups: int) -> None:
    """What was claimed stays in the index of ready tasks while anybody's old transaction is open. No claim walks over
    it: neither one after a submit of this process nor one after another's. Counted in entries, not in time."""
    rounds, each = 40, 60
    holder = await asyncpg.connect(postgres.url())
    await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await holder.execute("SELECT 1")
    try:
        async with opened(factory.make()) as one, opened(factory.make()) as other:
            port = Port(other)
            await port.serve()
            for store in (one, other):
                await factory.hold_upkeep(store)
            for n in range(rounds):
                factory.clock.advance(0.01)
                await submit(one if n % 2 else other, *(new(group=f"g{i % groups}") for i in range(each)))
                assert len(await port.room(each)) == each
        until = time.monotonic() + 30
        while tuples_read(factory, "task_ready") < rounds * each:  # what sessions count is known when they are gone
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert tuples_read(factory, "task_ready") < 8 * rounds * each
    finally:
        await holder.close()


async def test_who_was_taken_for_dead_says_again_what_it_said(factory: PostgresFactory) -> None:
    """It goes on as another row; that says the same of the tasks that it does not start, also where that stays so."""
    full = '{"closed": "it is full"}'

    async def said(store: Any) -> list[Any]:
        return [tuple(row) for row in await store.view(lambda view: view.rows("offers"))]

    async with opened(factory.make()) as store, opened(factory.make()) as other:
        await factory.hold_upkeep(other)
        store.offer(full.encode())
        async with asyncio.timeout(LIMIT_S):
            while await said(other) != [(store.worker_id, full)]:  # noqa: ASYNC110 - nobody tells when
                await asyncio.sleep(0.005)
        await factory.hold_upkeep(store)
        factory._ask("UPDATE worker SET is_lost = true WHERE name = $1", store.worker_id)
        await factory.rescue(other)
        assert await said(other) == []
        await store.write(lambda tx: None)
        assert await said(other) == [(store.worker_id, full)]
