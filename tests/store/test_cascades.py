"""Ends that concern thousands: each transaction stays short, and others get in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import Port, SqliteFactory, new, opened

from mainspring.blobs.local import LocalBlobStore
from mainspring.store.base import COMPLETED, FAILED
from mainspring.store.sql import graph
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
CHILDREN = 4 * graph.TRAVEL_LIMIT


@pytest.fixture
def factory(tmp_path: Path) -> SqliteFactory:
    return SqliteFactory(tmp_path)


def count_changes(store: Any) -> list[int]:
    """Return a list that gets the number of rows each transaction changes from now on."""
    changes: list[int] = []
    transact: Callable[..., Any] = store._writer._transact

    def counted(*values: Any) -> Any:
        before = store._writer.connection.total_changes()
        try:
            return transact(*values)
        finally:
            changes.append(store._writer.connection.total_changes() - before)

    store._writer._transact = counted
    return changes


@pytest.mark.parametrize("outcome", [FAILED, COMPLETED])
@pytest.mark.parametrize("waits_elsewhere", [False, True])
async def test_no_transaction_moves_them_all(factory: SqliteFactory, outcome: int, waits_elsewhere: bool) -> None:
    """Thousands of children, whether they wait for this parent or another one, are moved in steps that are bounded,
    by the writer alone; a call in the meantime waits for one step only."""
    async with opened(factory.make()) as store:
        await store._caretaker.stop()
        port = Port(store)
        await port.serve()
        root, other = new(), new(type="custom:unserved")
        parents = [other.id, root.id] if waits_elsewhere else [root.id]
        await store.submit([root, other, *(new(after=parents) for _ in range(CHILDREN))])
        claim = await port.take()
        changes = count_changes(store)
        port.end(claim, outcome)
        before_it = await store.write(lambda tx: len(changes))
        if outcome == FAILED:
            await port.until(lambda: len(port.ended_as()) == CHILDREN + 1)
        await port.settle()
        async with asyncio.timeout(60):
            while factory._rows("SELECT 1 FROM cascade"):
                await port.settle()
    moved = sum(changes)
    assert moved < 100 if outcome == COMPLETED and waits_elsewhere else moved > CHILDREN
    assert max(changes) < 1.5 * graph.TRAVEL_LIMIT
    assert before_it <= 1


async def test_what_is_left_is_sound_and_known(factory: SqliteFactory) -> None:
    """Between two steps the file breaks no invariant, and the work list says how far each end has come."""
    store = factory.make()
    await store.open()
    port = Port(store)
    await port.serve()
    root, other = new(), new(type="custom:unserved")
    await store.submit([root, other, *(new(after=[other.id, root.id]) for _ in range(CHILDREN))])
    claim = await port.take()
    await factory.die_with(store, lambda: port.end(claim, FAILED))
    ((task, past),) = factory._rows("SELECT task, past FROM cascade")
    assert (task, past) == (claim.seq, factory._rows("SELECT max(seq) FROM task WHERE status = 3")[0][0])
    assert check_history(factory.path, blobs=LocalBlobStore(factory.path.with_name("work.db-blobs"))) == []


async def test_two_processes_on_one_list(factory: SqliteFactory) -> None:
    """Whoever finds ends that have to go on lets them; together they do it once."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        port = Port(one)
        await port.serve()
        root = new()
        await one.submit([root, *(new(after=[root.id]) for _ in range(CHILDREN))])
        port.end(await port.take(), FAILED)
        told = Port(two)
        while (await two.stats())["pending"]:
            await two.write(graph.go_on)
        await port.settle()
        await told.settle()
        assert (await one.stats())["types"] == {"custom:work": {"failed": CHILDREN + 1}}
    assert sum(factory.recount().values()) == CHILDREN + 1
    assert check_history(factory.path) == []
