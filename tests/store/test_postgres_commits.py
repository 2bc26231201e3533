"""What goes into one commit on a server: others follow while the first one begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit

from mainspring.store.base import Accepted, NewTask
from mainspring.store.postgres.connection import QUEUEING
from mainspring.store.postgres.store import PostgresStore
from mainspring.store.sql.queueing import Submission

pytestmark = pytest.mark.anyio
WAIT_S = 60


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[PostgresFactory]:
    made = PostgresFactory(tmp_path)
    yield made
    made.drop()


def submission(*tasks: NewTask) -> Submission:
    return Submission(tasks, asyncio.get_running_loop().create_future())


def once_after(store: PostgresStore, step: str, then: Callable[[], None]) -> None:
    """Call a function on the writer's thread when it has next done a step of a transaction for a caller."""
    writer, real = store._writer, getattr(store._writer, step)

    def run(*args: Any) -> Any:
        result = real(*args)
        if step != "_commit" or args[0].tally:  # else the store's own turn
            delattr(writer, step)
            then()
        return result

    setattr(writer, step, run)


def transactions(factory: PostgresFactory) -> dict[bytes, str]:
    """Return which transaction stored which task."""
    return {bytes(id): xmin for id, xmin in factory._ask("SELECT id, xmin::text FROM task")}


@pytest.mark.parametrize(("step", "queue_size"), [("_begun", 100), ("_catch_up", None)])
async def test_what_comes_while_a_transaction_begins_goes_along(
    factory: PostgresFactory, step: str, queue_size: int | None
) -> None:
    """Of calls at once the first wakes the writer: the others don't wait for a commit of its own."""
    async with opened(factory.make(queue_size=queue_size)) as store:
        port = Port(store)
        await port.serve()
        (held,) = await submit(store, new())
        await port.room(1)
        first, late = new("first"), submission(new("a"), new("b"))

        def come() -> None:
            port.end(port.held[held])
            store._writer._inbox.append(late)

        once_after(store, step, come)
        assert await store.submit([first]) == [Accepted(first.id, False)]
        assert late.future.done()
        await port.until(lambda: port.ends)
        stored = transactions(factory)
        assert {stored[task.id] for task in late.tasks} == {stored[first.id]} == {stored[held]}


async def test_what_needs_more_does_not_go_along(factory: PostgresFactory) -> None:
    """A child needs rows that stand still: it waits for the next transaction, and whatever came after it."""
    async with opened(factory.make()) as store:
        (parent,) = await submit(store, new())
        first, late = new("first"), [submission(new(after=[parent])), submission(new("b"))]
        once_after(store, "_begun", lambda: store._writer._inbox.extend(late))
        await store.submit([first])
        for one in late:
            store._writer.put(Submission((), asyncio.get_running_loop().create_future()))
            await asyncio.wait_for(one.future, WAIT_S)
        stored = transactions(factory)
        child, other = (stored[one.tasks[0].id] for one in late)
        assert child == other != stored[first.id]


async def test_new_tasks_go_along_only_where_the_queue_is_locked(factory: PostgresFactory) -> None:
    """With a limit to the queue, a transaction that began without new tasks may not store any beside others."""
    async with opened(factory.make(queue_size=100)) as store:
        blocker = await asyncpg.connect(postgres.url())  # it fills the queue now
        await blocker.execute(f"BEGIN; SELECT pg_advisory_xact_lock({QUEUEING}, {store._writer.number})")
        late = submission(new("a"))
        once_after(store, "_begun", lambda: store._writer._inbox.append(late))
        await store.write(lambda tx: None, is_light=True)
        assert transactions(factory) == {}
        await blocker.execute("COMMIT")
        await blocker.close()
        store.demand()
        await asyncio.wait_for(late.future, WAIT_S)
        assert transactions(factory).keys() == {late.tasks[0].id}
