"""Commits on a server whose fate is unknown at first, and transactions that get into each other's way."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened, status, submit

from mainspring.errors import StoreRefused, StoreUnavailable, SubmitIndeterminate, TaskNotFound
from mainspring.store.base import COMPLETED, Accepted
from mainspring.store.postgres import writer as writing
from mainspring.store.postgres.store import PostgresStore
from mainspring.store.postgres.writer import PostgresWriter
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio


def failing_once(store: PostgresStore, *, is_stored: bool) -> None:
    """Let the connection be lost during the next commit of something, before or after the server has carried it out."""
    writer, real = store._writer, store._writer._commit

    def commit(tx: Any) -> None:
        if not (tx.tally or tx.claims):  # the store's own turn
            real(tx)
            return
        del writer._commit
        if is_stored:
            real(tx)
        assert writer.session is not None
        writer.session._connection.terminate()
        raise asyncpg.exceptions.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    writer._commit = commit  # type: ignore[method-assign]


def losing(store: PostgresStore, error: Exception) -> None:
    """Let the writer find with its next transaction that its connection is of no use any more."""
    session = store._writer.session
    assert session is not None

    def fail(sql: str, patience_s: float | None = None) -> None:
        raise error

    session.command = fail  # type: ignore[method-assign]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_failed_commit_is_looked_up(factory: PostgresFactory, is_stored: bool) -> None:
    """Whoever submitted is told what became of it, and nothing is stored twice."""
    async with opened(factory.make()) as store:
        task = new("a")
        failing_once(store, is_stored=is_stored)
        if is_stored:
            assert await store.submit([task]) == [Accepted(task.id, False)]
        else:
            with pytest.raises(StoreUnavailable, match="nothing was stored"):
                await store.submit([task])
            with pytest.raises(TaskNotFound):
                await store.info(task.id)
        assert await store.submit([task]) == [Accepted(task.id, is_stored)]
        assert len(factory.states()) == 1


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.exceptions.AdminShutdownError("terminating connection due to administrator command"),
        ConnectionResetError(),
    ],
)
async def test_a_connection_that_ended_meanwhile_is_made_anew(factory: PostgresFactory, error: Exception) -> None:
    """However the driver tells it: nothing had been asked of it, so the call goes through on another one."""
    async with opened(factory.make()) as store:
        losing(store, error)
        task = new("a")
        assert await store.submit([task]) == [Accepted(task.id, False)]


async def test_a_connection_that_can_t_be_made_anew(factory: PostgresFactory) -> None:
    """Callers are told why, and the next call after the server came back goes through."""
    async with opened(factory.make()) as store:
        losing(store, ConnectionResetError())
        connect = store._writer._connect

        def refuse() -> Any:
            raise StoreUnavailable("the server is gone")

        store._writer._connect = refuse
        task = new("a")
        with pytest.raises(StoreUnavailable, match="the server is gone"):
            await store.submit([task])
        store._writer._connect = connect
        assert await store.submit([task]) == [Accepted(task.id, False)]


async def test_an_error_without_words_is_named(factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a transaction, where nothing else tells what happened."""
    async with opened(factory.make()) as store:

        def reset(*_: Any) -> None:
            raise ConnectionResetError

        monkeypatch.setattr(store._writer, "_catch_up", reset)
        with pytest.raises(StoreUnavailable, match=r"\(ConnectionResetError\)"):
            await store.submit([new("a")])
        monkeypatch.undo()


@pytest.mark.parametrize("is_stored", [True, False])
async def test_claims_and_outcomes_of_a_failed_commit_are_kept(factory: PostgresFactory, is_stored: bool) -> None:
    """What was claimed in it is handed over, or claimed again; what ended in it ends once."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        (id,) = await submit(store, new())
        failing_once(store, is_stored=is_stored)
        port.lanes["async"].limit = 1
        store.demand()
        await port.until(lambda: port.held)
        failing_once(store, is_stored=is_stored)
        port.end(port.held[id], COMPLETED)
        await port.until(lambda: port.ends)
        await port.settle()
        assert await status(store, id) is TaskStatus.COMPLETED
        assert [ended.id for ended in port.ends] == [id]
        assert port.missed == []
        assert [attempt.outcome for attempt in (await store.info(id)).attempts] == ["completed"]


async def test_a_doubt_that_stays_is_told(factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server does not come back in time the answer is that nobody knows, with the id to ask for later."""
    monkeypatch.setattr(writing, "_RESOLVE_S", 0.0)
    async with opened(factory.make()) as store:
        connect = store._writer._connect
        task = new("a")

        def refuse() -> Any:
            raise StoreUnavailable("the server is gone")

        failing_once(store, is_stored=True)
        store._writer._connect = refuse
        with pytest.raises(SubmitIndeterminate) as caught:
            await store.submit([task])
        assert caught.value.task_id.bytes == task.id  # type: ignore[attr-defined]
        store._writer._connect = connect
        assert await store.submit([task]) == [Accepted(task.id, True)]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_refusal_in_the_middle_of_a_doubt_may_pass(factory: PostgresFactory, is_stored: bool) -> None:
    """A server that takes over, or starts, may refuse users and databases that it knows a moment later: it is asked
    again, and the writer lives on."""
    async with opened(factory.make()) as store:
        writer, connect, task, refusals = store._writer, store._writer._connect, new("a"), [1, 2, 3]

        def refuse() -> Any:
            if refusals:
                raise StoreRefused(f"no such database ({refusals.pop()})")
            return connect()

        failing_once(store, is_stored=is_stored)
        writer._connect = refuse
        async with asyncio.timeout(60):
            if is_stored:
                assert await store.submit([task]) == [Accepted(task.id, False)]
            else:
                with pytest.raises(StoreUnavailable, match="nothing was stored"):
                    await store.submit([task])
        assert refusals == []
        assert await store.submit([task]) == [Accepted(task.id, is_stored)]


async def test_the_fate_of_a_commit_is_not_told_before_it_is_settled(factory: PostgresFactory) -> None:
    """A transaction whose client is gone may still be under way on the server: it is waited for."""
    async with opened(factory.make()) as store:
        real = PostgresWriter._settle
        blocker = await asyncpg.connect(postgres.url())
        number = store._writer.number
        await blocker.execute(f"BEGIN; SELECT pg_advisory_xact_lock_shared({0x4D535052}, {number})")
        settled = []

        def settle(self: PostgresWriter, *args: Any) -> Any:
            answer = real(self, *args)
            settled.append(answer)
            return answer

        store._writer._settle = lambda *args: settle(store._writer, *args)
        failing_once(store, is_stored=False)
        call = asyncio.ensure_future(store.submit([new("a")]))
        await asyncio.sleep(0.3)
        assert not settled
        await blocker.execute("COMMIT")
        with pytest.raises(StoreUnavailable):
            await call
        assert settled == [False]
        await blocker.close()


async def test_writers_on_new_rows_don_t_wait_for_one_another(factory: PostgresFactory) -> None:
    """A transaction that submits and completes goes through while another such one is under way."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        (id,) = await submit(store, new())
        blocker = await asyncpg.connect(postgres.url())
        await blocker.execute(f"BEGIN; SELECT pg_advisory_xact_lock_shared({0x4D535052}, {store._writer.number})")
        async with asyncio.timeout(60):
            await port.room(1)
            port.end(port.held[id])
            await submit(store, new(), new(not_before_ms=store.now_ms() + 1))
            factory.clock.advance(1)
            await port.settle()
            assert await status(store, id) is TaskStatus.COMPLETED
            waiting = asyncio.ensure_future(submit(store, new(after=[id])))
            await asyncio.sleep(0.2)
            assert not waiting.done()  # follows dependencies: alone
            await blocker.execute("COMMIT")
            await waiting
        await blocker.close()


async def test_two_processes_that_end_the_parents_of_one_child_release_it(factory: PostgresFactory) -> None:
    """Whoever ends the last one sees the others' ends, however they overlap: no child is left waiting."""
    async with opened(factory.make()) as one, opened(factory.make()) as other:
        ports = [Port(one), Port(other)]
        for port in ports:
            await port.serve()
        for _ in range(15):
            parents = [new() for _ in range(8)]
            child = new(after=[parent.id for parent in parents])
            await one.submit([*parents, child])
            for port in ports:
                await port.room(4)
            for port in ports:
                for claim in list(port.held.values()):
                    port.end(claim)
                port.lanes["async"].limit -= 4
            for port in ports:
                await port.settle()
            assert str(factory.states()[child.id]) == "PENDING (ready)"
            assert await one.cancel(child.id) == "cancelled"


@pytest.mark.parametrize("n", [40, 400])
async def test_one_key_from_two_processes_is_one_task(
    factory: PostgresFactory, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """Submits under the same keys from two processes at once, in whatever order, give one task each; and neither waits
    for keys that the other one holds while that waits for its own, which costs the server's deadlock_timeout."""
    failures: list[Exception] = []
    transact = PostgresWriter._transact

    def watched(*args: Any) -> Any:
        try:
            return transact(*args)
        except Exception as exc:
            failures.append(exc)
            raise

    monkeypatch.setattr(PostgresWriter, "_transact", watched)
    async with opened(factory.make()) as one, opened(factory.make()) as other:
        for store in (one, other):  # whoever makes a class first keeps others waiting until its commit
            await store.submit([new("a")])
        keys = [f"k{number}" for number in range(n)]
        answers = await asyncio.gather(
            *(one.submit([new("a", key=key)]) for key in keys),
            *(other.submit([new("a", key=key)]) for key in reversed(keys)),
        )
        ids = [answer[0].id for answer in answers]
        assert ids[:n] == ids[n:][::-1]
        assert sum(not answer[0].existed for answer in answers) == n
        assert len(factory.states()) == n + 2
    assert [exc for exc in failures if isinstance(exc, asyncpg.DeadlockDetectedError)] == []
