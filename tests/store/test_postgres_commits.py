"""What goes into one commit on a server, and when it is told: others follow while the first one begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, error, new, opened, submit

from mainspring.environment import SYSTEM
from mainspring.errors import StoreUnavailable
from mainspring.store.base import FAILED, RETRY, WANTS_KEPT, Accepted, NewTask, WorkName
from mainspring.store.postgres.connection import QUEUEING, WRITING
from mainspring.store.postgres.store import PostgresStore
from mainspring.store.sql.queueing import Submission

pytestmark = pytest.mark.anyio
WAIT_S = 60


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


async def test_what_comes_while_a_transaction_begins_goes_along(factory: PostgresFactory) -> None:
    """Of calls at once the first wakes the writer: the others don't wait for a commit of its own."""
    async with opened(factory.make(queue_size=100)) as store:
        port = Port(store)
        await port.serve()
        (held,) = await submit(store, new())
        await port.room(1)
        first, late = new("first"), submission(new("a"), new("b"))

        def come() -> None:
            port.end(port.held[held])
            store._writer._inbox.append(late)

        once_after(store, "_begun", come)
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


async def test_a_commit_is_told_while_the_next_transaction_waits_to_begin(factory: PostgresFactory) -> None:
    """It is stored: whoever asked for it does not wait for others whom the next one waits for."""
    async with opened(factory.make()) as store:
        blocker = await asyncpg.connect(postgres.url())
        await blocker.execute(f"BEGIN; SELECT pg_advisory_xact_lock_shared({WRITING}, {store._writer.number})")
        task = new("a")
        child = submission(new("b", after=[task.id]))  # it is alone, and waits for the blocker
        once_after(store, "_commit", lambda: store._writer._inbox.append(child))
        assert await asyncio.wait_for(store.submit([task]), WAIT_S) == [Accepted(task.id, False)]
        assert not child.future.done()
        await blocker.execute("COMMIT")
        await blocker.close()
        await asyncio.wait_for(child.future, WAIT_S)


async def test_a_commit_is_told_while_the_next_statement_is_on_its_way(
    factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server works on that meanwhile."""
    monkeypatch.setattr("mainspring.store.postgres.writer._TOLD_S", 1_000.0)
    async with opened(factory.make()) as store:
        blocker = await asyncpg.connect(postgres.url())
        task, later = new("a"), submission(new("b"))

        def block() -> None:
            store._writer._inbox.append(later)
            asyncio.run_coroutine_threadsafe(lock(), loop).result(WAIT_S)

        async def lock() -> None:
            await blocker.execute(f"BEGIN; LOCK TABLE {factory.schema}.task IN SHARE MODE")

        loop = asyncio.get_running_loop()
        once_after(store, "_commit", block)
        assert await asyncio.wait_for(store.submit([task]), WAIT_S) == [Accepted(task.id, False)]
        assert not later.future.done()
        await blocker.execute("COMMIT")
        await blocker.close()
        await asyncio.wait_for(later.future, WAIT_S)


@pytest.mark.parametrize("step", ["begin", "_catch_up"])
async def test_a_commit_is_told_where_the_next_transaction_can_t_begin(factory: PostgresFactory, step: str) -> None:
    """The server is gone a moment later: what is stored was stored, and only the call after it is refused."""
    async with opened(factory.make()) as store:
        writer, first, later = store._writer, submission(new("a")), submission(new("b"))
        told: list[str] = []
        first.future.add_done_callback(lambda _: told.append("first"))
        later.future.add_done_callback(lambda _: told.append("later"))

        def lose() -> None:
            writer._inbox.append(later)
            setattr(writer, step, gone)

        def gone(*args: Any, **options: Any) -> Any:
            delattr(writer, step)
            raise StoreUnavailable("the server is gone")

        once_after(store, "_commit", lose)
        writer.put(first)
        assert await asyncio.wait_for(first.future, WAIT_S) == [Accepted(first.tasks[0].id, False)]
        with pytest.raises(StoreUnavailable, match="the server is gone"):
            await asyncio.wait_for(later.future, WAIT_S)
        await asyncio.sleep(0)  # from Python 3.12 on nobody else has had a turn yet where it was over already
        assert told == ["first", "later"]
        assert await store.submit([new("c")])


@asynccontextmanager
async def counted(factory: PostgresFactory) -> AsyncIterator[tuple[PostgresStore, Port, _Trips]]:
    """Give an open store with somebody who works, and the count of its round trips."""
    factory.clock = SYSTEM  # type: ignore[assignment]  # an id that seems old is looked for among those that are gone
    async with opened(factory.make()) as store:
        await factory.hold_upkeep(store)
        port = Port(store)
        await port.serve()
        yield store, port, _Trips(store)


async def test_a_commit_costs_the_same_however_much_it_holds(factory: PostgresFactory) -> None:
    """Counted in round trips: four for new tasks, or for ends; one more for what else goes with them, or is claimed."""
    async with counted(factory) as (store, port, trips):
        await submit(store, *(new() for _ in range(200)))
        await port.room(200)

        async def cost(submits: int, ends: int, claims: int) -> int:
            port.lanes["async"].limit += claims - ends
            until = len(port.ends) + ends
            async with factory.together(store, ends + bool(submits)):
                for claim in list(port.held.values())[:ends]:
                    port.end(claim)
                submitting = asyncio.ensure_future(_submit(store, submits))
            await submitting
            await port.until(lambda: len(port.ends) == until)
            return trips.of_the_last

        for n in (1, 50):
            assert await cost(n, 0, 0) == 4
            assert await cost(0, n, 0) == 4
            assert await cost(n, n, 0) == 5
            assert await cost(0, n, n) == 5


async def test_failures_and_retries_cost_the_same_however_many(factory: PostgresFactory) -> None:
    """They are written together: three round trips more than what a commit takes anyway, and one for what is due."""
    costs = []
    async with counted(factory) as (store, port, trips):
        for n in (1, 50):
            await store.submit([new() for _ in range(2 * n)])
            claims = await port.room(2 * n)
            async with factory.together(store, 2 * n):
                port.lanes["async"].limit -= 2 * n
                for claim in claims[:n]:
                    port.end(claim, FAILED)
                for claim in claims[n:]:
                    port.end(claim, RETRY, error=error(), delay_ms=3_600_000)
            await port.settle()
            costs.append(trips.of_the_last)
        assert costs[0] == costs[1]


async def test_children_cost_the_same_however_many(factory: PostgresFactory) -> None:
    """Those of all attempts that end in a commit are stored at once, and go on beside what others do."""
    costs = []
    async with counted(factory) as (store, port, trips):
        for n in (1, 2, 50):  # with the first their class is made
            await store.submit([new() for _ in range(n)])
            claims = await port.room(n)
            async with factory.together(store, n):
                port.lanes["async"].limit -= n
                for claim in claims:
                    port.end(claim, children=(new(type="custom:unserved"),))
            await port.settle()
            costs.append(trips.of_the_last)
        assert costs[1] == costs[2]


async def test_failures_ask_once_whether_anybody_depends_on_them(factory: PostgresFactory) -> None:
    """Also in a transaction that is alone, as another end travels in it."""
    costs = []
    async with counted(factory) as (store, port, trips):
        for n in (2, 50):
            parent, *_ = tasks = [new() for _ in range(n)]
            await store.submit([*tasks, new(after=[parent.id])])
            claims = await port.room(n)
            async with factory.together(store, n):
                port.lanes["async"].limit -= n
                for claim in claims:
                    port.end(claim, FAILED)
            await port.settle()
            costs.append(trips.of_the_last)
        assert costs[0] == costs[1]


@pytest.mark.parametrize("kind", ["key", "kept"])
async def test_keys_and_kept_results_cost_the_same_however_many(factory: PostgresFactory, kind: str) -> None:
    """They are looked up and noted at once, and what completes with one ends together with the rest."""
    costs = []
    async with counted(factory) as (store, port, trips):
        for n in (1, 2, 50):  # with the first their class is made
            names = [f"{n} {number}" for number in range(n)]
            if kind == "key":
                tasks = [new(key=name) for name in names]
            else:
                tasks = [new(work=name.encode().ljust(20), keep_ms=60_000, flags=WANTS_KEPT) for name in names]
            works = {task.id: task.work for task in tasks}
            await store.submit(tasks)
            entered = trips.of_the_last
            await port.room(n)
            async with factory.together(store, n):
                for claim in list(port.held.values()):
                    work = works[claim.id]
                    claim.work = None if work is None else WorkName(work, "1")
                    port.end(claim)
                port.lanes["async"].limit -= n
            await port.until(lambda: not port.held and len(port.ends) >= len(factory.states()))
            costs.append((entered, trips.of_the_last))
        assert costs[1] == costs[2]


async def _submit(store: PostgresStore, n: int) -> None:
    if n:
        await submit(store, *(new() for _ in range(n)))


class _Trips:
    """Counts how often the writer waits for the server."""

    def __init__(self, store: PostgresStore) -> None:
        session, writer = store._writer.session, store._writer
        assert session is not None
        self._wait, session._wait = session._wait, self._counted  # type: ignore[method-assign]
        self._begin, writer.begin = writer.begin, self._begun  # type: ignore[method-assign]
        self._commit, writer._commit = writer._commit, self._committed  # type: ignore[method-assign]
        self._n = 0
        self.of_the_last = 0  # transaction that wrote something

    def _counted(self, work: Any) -> Any:
        self._n += 1
        return self._wait(work)

    def _begun(self, **options: Any) -> Any:
        self._n = 0
        return self._begin(**options)

    def _committed(self, tx: Any) -> None:
        self._commit(tx)
        if tx.tally:
            self.of_the_last = self._n
