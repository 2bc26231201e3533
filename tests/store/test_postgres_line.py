"""The line between processes on a server: who was cut off looks for what it missed, and one process leads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit
from tests.engine.support import engine_on, value
from tests.store.peers import eventually

from mainspring.store.postgres.connection import UPKEEP
from mainspring.store.postgres.line import Line
from mainspring.store.postgres.store import PostgresStore

pytestmark = pytest.mark.anyio


class Gate:
    """Lets a line that was cut off join in again when the test says so."""

    def __init__(self, line: Line) -> None:
        self.goes = asyncio.Event()
        self._connect, line._connect = line._connect, self

    async def __call__(self) -> Any:
        await self.goes.wait()
        return await self._connect()


async def cut(store: PostgresStore) -> None:
    """End the connection of its line on the server, and return when the process has noticed."""
    connection: Any = store.line._connection
    postgres.ask("SELECT pg_terminate_backend($1)", connection.get_server_pid())
    await eventually(lambda: _is(store.line._connection is not connection))


async def _is(what: bool) -> bool:
    return what


async def joined_again(store: PostgresStore) -> None:
    await eventually(lambda: _is(store.line._connection is not None))


def leader_on_the_server(store: PostgresStore) -> list[tuple[int]]:
    """Return the sessions that have the lock of whoever looks after the store."""
    held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
    lock = "classid = $1::bigint::oid AND objid = $2::bigint::oid"
    return postgres.ask(f"{held} AND {lock}", UPKEEP, store._writer.number)


async def test_who_was_cut_off_looks_for_what_it_missed(factory: PostgresFactory) -> None:
    """New tasks, and the end of one that is waited for, which were told meanwhile by a process that is gone since:
    nobody is left to say so, and no look at intervals is waited for."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        await factory.hold_upkeep(store, hears=True)
        (awaited,) = await submit(store, new())
        port.awaited = lambda most: [awaited]  # type: ignore[method-assign]
        port.lanes["async"].limit = 1
        gate = Gate(store.line)
        await cut(store)
        async with opened(factory.make()) as other:
            await factory.hold_upkeep(other)
            assert await other.cancel(awaited) == "cancelled"
            (missed,) = await submit(other, new())
        assert (port.ends, port.order) == ([], [])
        gate.goes.set()
        await port.until(lambda: port.ends and port.order)
        assert [ended.id for ended in port.ends] == [awaited]
        assert [claim.id for claim in port.order] == [missed]


async def test_one_process_leads(factory: PostgresFactory) -> None:
    """However many there are and however often they ask; the others hear who does."""
    async with opened(factory.make()) as one, opened(factory.make()) as two, opened(factory.make()) as three:
        stores = (one, two, three)
        for store in stores:
            await factory.hold_upkeep(store)
        for _ in range(2):
            assert [await store.line.lead() for store in stores] == [True, False, False]
            for store in stores:
                await store._caretaker._lead()
            assert [store._caretaker._leads for store in stores] == [True, False, False]
            assert await three.view(lambda view: view.one("leader")) == (one.owner,)
        assert len(leader_on_the_server(one)) == 1


async def test_another_leads_when_the_connection_of_the_leader_ends(factory: PostgresFactory) -> None:
    """The server gives its lock to the next one that asks. Whoever had it knows that it leads no more, also once it is
    connected again."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        for store in (one, two):
            await factory.hold_upkeep(store)
        assert [await store.line.lead() for store in (one, two)] == [True, False]
        gate = Gate(one.line)
        await cut(one)
        assert not await one.line.lead()
        await two._caretaker._lead()
        assert await two.view(lambda view: view.one("leader")) == (two.owner,)
        gate.goes.set()
        await joined_again(one)
        await one._caretaker._lead()
        assert [store._caretaker._leads for store in (one, two)] == [False, True]
        assert await one.view(lambda view: view.one("leader")) == (two.owner,)


async def test_somebody_leads_again_by_itself(factory: PostgresFactory) -> None:
    """Nobody has to ask: the looks of all processes see to it, and only one gets it."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        before = leader_on_the_server(one)
        await cut(one)
        await eventually(lambda: _is(leader_on_the_server(one) not in ([], before)))
        await eventually(lambda: _is(one._caretaker._leads is not two._caretaker._leads))
        leader = one if one._caretaker._leads else two
        await eventually(lambda: _named(two, leader.owner))


async def _named(store: PostgresStore, owner: int) -> bool:
    return bool(await store.view(lambda view: view.one("leader")) == (owner,))


async def test_each_schema_is_a_store_of_its_own(factory: PostgresFactory, tmp_path: Path) -> None:
    """Two of them in one database have a leader each, don't hear each other, and don't wait for each other's writes."""
    elsewhere = PostgresFactory(tmp_path / "elsewhere")
    try:
        async with opened(factory.make()) as one, opened(elsewhere.make()) as other:
            for store in (one, other):
                await factory.hold_upkeep(store)
            assert [await store.line.lead() for store in (one, other)] == [True, True]
            assert [store.line.has_peers for store in (one, other)] == [False, False]
            begun, goes = threading.Event(), threading.Event()

            def hold(tx: Any) -> None:
                begun.set()
                assert goes.wait(60)

            writing = asyncio.ensure_future(one.write(hold))  # alone in its store
            assert await asyncio.to_thread(begun.wait, 60)
            await submit(other, new())
            assert not writing.done()
            goes.set()
            await writing
            async with opened(factory.make()) as third:
                await eventually(lambda: _is(one.line.has_peers and third.line.has_peers))
                assert not other.line.has_peers
    finally:
        elsewhere.drop()


async def test_whoever_hears_nothing_looks(tmp_path: Path) -> None:
    """Wake-ups are hints: where none arrives, new tasks are found by the worker, and their ends by whoever waits."""
    worker, client = (engine_on(postgres.address_of(tmp_path), worker=works) for works in (True, False))
    for engine in (worker, client):
        engine.task(_same)
        engine.manager.store.line._heard = lambda kind, payload: None  # type: ignore[attr-defined]
    async with worker, client:
        assert [await value(await client.submit(_same, n)) for n in range(2)] == [0, 1]
    postgres.drop(postgres.schema_of(tmp_path))


async def _same(n: int) -> int:
    return n
