"""When the disk fails: every answer is true, outcomes are kept until they can be written, and nobody hangs."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from proof.faults.vfs import Disk, Fault, Operation, Plan
from tests.conformance.kit import Clock, Port, SqliteFactory, new, opened, status, submit

from mainspring.errors import StoreDamaged, StoreUnavailable, SubmitIndeterminate, TaskError
from mainspring.store.base import FAILED, Accepted, Finish
from mainspring.store.liveness import LifeFile
from mainspring.store.sql import outcomes
from mainspring.store.sql.store import MOST_RETRY_S, RETRY_S
from mainspring.store.sqlite import log
from mainspring.tasks import TaskId, TaskStatus

pytestmark = pytest.mark.anyio


def breaks(error: type[apsw.Error], fails: Callable[[int], bool] = lambda n: True) -> Plan:
    """Let operations on the store's files fail from now on: all, or those that are named by number."""
    return lambda operation: Fault(error) if fails(operation.number) else None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path) as disk:
        yield disk


@pytest.fixture
def factory(tmp_path: Path) -> SqliteFactory:
    return SqliteFactory(tmp_path)


@pytest.fixture
async def store(disk: Disk, factory: SqliteFactory) -> AsyncIterator[Any]:
    async with opened(factory.make()) as store:
        yield store
        disk.heal()


async def outcome(work: Any) -> Any:
    """The answer or the error; whoever gets neither in time hangs."""
    async with asyncio.timeout(60):
        try:
            return await work
        except TaskError as exc:
            return exc


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
async def test_a_broken_disk_is_told(disk: Disk, factory: SqliteFactory, store: Any, error: type[apsw.Error]) -> None:
    """A submit that can't be written is refused, nothing is stored, and the next one after the disk is well again
    works."""
    disk.break_(breaks(error))
    task = new()
    assert isinstance(await outcome(store.submit([task])), (StoreUnavailable, SubmitIndeterminate))
    assert isinstance(await outcome(store.pause(type="custom:x")), StoreUnavailable)
    disk.heal()
    assert factory.states() == {}
    assert await submit(store, task) == [task.id]


async def test_damage_is_told_to_all_who_ask_or_wait(disk: Disk, store: Any) -> None:
    """When the file proves to be damaged, calls are refused with what it is, and whoever waits for a result is told
    too: the tasks may never run."""
    port = Port(store)
    await port.serve()
    await submit(store, new())
    disk.break_(breaks(apsw.CorruptError))
    assert isinstance(await outcome(store.submit([new()])), SubmitIndeterminate)  # the commit itself met it
    assert isinstance(await outcome(store.submit([new()])), StoreDamaged)
    assert isinstance(await outcome(store.pause(type="custom:x")), StoreDamaged)
    await port.until(lambda: port.given_up is not None)
    assert isinstance(port.given_up, StoreDamaged)


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
async def test_outcomes_wait_for_the_disk(disk: Disk, store: Any, error: type[apsw.Error]) -> None:
    """What attempts ended with while the disk was broken is recorded when it's well, once, without being asked
    again."""
    port = Port(store)
    await port.serve()
    sent = await submit(store, *(new() for _ in range(3)))
    claims = await port.room(3)
    port.lanes["async"].limit = 0
    disk.break_(breaks(error))
    port.end(claims[0])
    port.end(claims[1], FAILED)
    assert isinstance(await outcome(submit(store, new())), TaskError)
    assert port.ends == []
    disk.heal()
    await port.until(lambda: len(port.ends) >= 2)
    assert port.ended_as() == {sent[0]: 2, sent[1]: 3}
    assert len(port.ends) == 2
    assert port.missed == []
    await port.finish(claims[2])
    assert await status(store, sent[2]) is TaskStatus.COMPLETED


async def test_close_does_not_hang_on_a_broken_disk(disk: Disk, factory: SqliteFactory) -> None:
    """A process can leave when nothing can be written; what it held is taken back by the next one."""
    store = factory.make()
    await store.open()
    port = Port(store)
    await port.serve()
    (id,) = await submit(store, new())
    claim = await port.take()
    disk.break_(breaks(apsw.FullError))
    port.end(claim)
    async with asyncio.timeout(60):
        await store.close()
    disk.heal()
    async with opened(factory.make()) as heir:
        port = Port(heir)
        await port.serve()
        claim = await port.take()
        assert (claim.id, claim.attempt, claim.crashes) == (id, 2, 0)


async def test_a_store_that_could_not_be_opened_keeps_no_locks(disk: Disk, factory: SqliteFactory) -> None:
    """A disk that fails while the work of a dead process is taken back costs that opening alone: the next store of this
    process leads, and takes it back."""
    dead = factory.make()
    await dead.open()
    port = Port(dead)
    await port.serve()
    (id,) = await submit(dead, new())
    await port.take()
    await factory.die(dead)
    for n in range(1, 100):
        disk.break_(breaks(apsw.FullError, lambda at, n=n: at >= n))  # type: ignore[misc]
        store = factory.make()
        try:
            await store.open()
        except StoreUnavailable:
            disk.heal()
            assert not (store.folder / f"{store.worker_id}.life").exists()
            continue
        disk.heal()
        async with asyncio.timeout(60):
            port = Port(store)
            await port.serve()
            assert [claim.id for claim in await port.room(1)] == [id]
        await store.close()
        break
    assert n > 5


def test_marks_have_their_room(tmp_path: Path) -> None:
    """What runs is noted in a file that has all its room from the start: a page of it that is first written when the
    disk is full would end the process."""
    life = LifeFile(tmp_path / "live", "name", Clock())
    try:
        taken = life.path.stat()
        assert taken.st_blocks * 512 >= taken.st_size > 0
    finally:
        life.close()


async def test_no_room_for_marks_is_told(factory: SqliteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk too full for that file keeps the store from opening, and nothing of the try stays."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = factory.make()
    with pytest.raises(StoreUnavailable, match="no space left"):
        await store.open()
    assert list(store.folder.iterdir()) == []


async def test_after_a_failed_checkpoint_the_file_is_opened_anew(
    disk: Disk, factory: SqliteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows then what the connection takes to be on the disk. The commit before it stands, and it is tried again
    once the log has grown as much again, not with each commit."""
    monkeypatch.setattr(log, "FOLD_BYTES", 8 * 4096)
    async with opened(factory.make()) as store:
        checkpoints: list[Operation] = []

        def fail_in_the_file(operation: Operation) -> Fault | None:
            if operation.name != factory.path.name:
                return None
            checkpoints.append(operation)
            return Fault(apsw.IOError)

        await submit(store, new("x" * 40_000))
        before = store._writer.connection
        disk.break_(fail_in_the_file)
        sent = await submit(store, new("x" * 40_000))
        assert await submit(store, new()) != sent
        disk.heal()
        assert len(checkpoints) == 1
        assert store._writer.connection is not before
        assert len(factory.states()) == 3


async def test_a_full_disk_has_the_room_of_the_log(disk: Disk, factory: SqliteFactory) -> None:
    """When the log can't grow any more it is folded into the file and begins anew in its own room, so that work goes on
    as long as the file has free pages, however little there is on the disk."""
    async with opened(factory.make(keep_completed_s=0)) as store:
        port = Port(store)
        await port.serve()
        port.lanes["async"].limit = 1_000
        await submit(store, *(new("x" * 2000) for _ in range(300)))
        await port.run_all()
        factory.clock.advance(1)
        await factory.prune(store)  # leaves free pages
    size = factory.path.stat().st_size

    def beyond_the_disk(operation: Operation) -> Fault | None:
        files = {path.name: path.stat().st_size for path in (factory.path, log_of) if path.exists()}
        files[operation.name] = max(files.get(operation.name, 0), operation.end)
        return Fault(apsw.FullError) if sum(files.values()) > size + 40 * 4096 else None

    log_of = factory.path.with_name(factory.path.name + "-wal")
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        port.lanes["async"].limit = 1_000
        disk.break_(beyond_the_disk)
        for n in range(20):
            task, tries = new(), 0
            while isinstance(await outcome(store.submit([task])), TaskError):
                tries += 1
                assert tries < 5
            await port.until(lambda: port.held)
            port.end(port.held[task.id])
            await port.until(lambda n=n: len(port.ends) > n)  # type: ignore[misc]
        assert disk.failed > 0
        disk.heal()


def test_tries_come_less_and_less_often(factory: SqliteFactory) -> None:
    """A disk that stays broken is asked ten times a second at first, then every few seconds."""
    delays: list[float] = []

    class Loop:
        def call_soon_threadsafe(self, call_later: Any, delay: float, run: Any) -> None:
            delays.append(delay)

        def call_later(self, delay: float, run: Any) -> None: ...

    store = factory.make()
    store._loop = Loop()  # type: ignore[assignment]
    for before in range(1000):
        store._retry_soon(before)
    assert delays[0] == RETRY_S
    assert delays == sorted(delays)
    assert set(delays[10:]) == {MOST_RETRY_S}


async def test_a_locked_file_is_told_and_waited_for(tmp_path: Path) -> None:
    """While another program holds the write lock too long callers are told to try again; outcomes come through
    later."""
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make(lock_timeout_s=0.05)) as store:
        port = Port(store)
        await port.serve()
        (id,) = await submit(store, new())
        claim = await port.take()
        rival = apsw.Connection(str(factory.path))
        rival.set_busy_timeout(20_000)
        rival.execute("BEGIN IMMEDIATE")
        port.lanes["async"].limit = 0
        port.end(claim)
        refused = await outcome(submit(store, new()))
        assert isinstance(refused, StoreUnavailable)
        assert "locked" in str(refused)
        rival.execute("ROLLBACK")
        rival.close()
        await port.until(lambda: port.ends)
        assert await status(store, id) is TaskStatus.COMPLETED
        assert len(factory.states()) == 1


# Commits whose fate is unknown


class Doubtful:
    """A connection whose next commit of something is reported as failed, carried out or not."""

    def __init__(self, real: Any, plan: dict[str, Any]) -> None:
        self.__dict__.update(_real=real, _plan=plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def cursor(self) -> Any:
        return DoubtfulCursor(self._real.cursor(), self)


class DoubtfulCursor:
    def __init__(self, real: Any, connection: Doubtful) -> None:
        self._real = real
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real)

    def execute(self, sql: str, *values: Any) -> Any:
        plan, changes = self.connection._plan, self.connection._real.total_changes()
        if sql == "BEGIN IMMEDIATE":
            self._before = changes
        if sql == "COMMIT" and plan.get("next") and changes > self._before:
            self._real.execute("COMMIT" if plan.pop("next") == "carried out" else "ROLLBACK")
            raise apsw.IOError("the commit is in doubt")
        self._real.execute(sql, *values)
        return self

    def executemany(self, sql: str, rows: Any) -> Any:
        self._real.executemany(sql, rows)
        return self


@pytest.fixture
def plan() -> dict[str, Any]:
    return {}


@pytest.fixture
async def doubtful(factory: SqliteFactory, plan: dict[str, Any]) -> AsyncIterator[Any]:
    store = factory.make()
    connect = store._writer._connect

    def connect_doubtfully() -> Any:
        if away := plan.get("unreachable"):
            raise away if isinstance(away, Exception) else StoreUnavailable("the disk is away")
        return Doubtful(connect(), plan)

    store._writer._connect = connect_doubtfully
    async with opened(store):
        yield store
        plan.clear()


@pytest.mark.parametrize("fate", ["carried out", "rolled back"])
async def test_a_commit_in_doubt_is_looked_up(
    doubtful: Any, plan: dict[str, Any], factory: SqliteFactory, fate: str
) -> None:
    """A commit that is reported as failed may have been carried out: the answer is what is in the file afterwards."""
    plan["next"] = fate
    tasks = [new() for _ in range(3)]
    async with factory.together(doubtful, 3):
        submitting = asyncio.gather(*(outcome(doubtful.submit([task])) for task in tasks))
    answers = await submitting
    for task, answer in zip(tasks, answers, strict=True):
        if fate == "carried out":
            assert [accepted.id for accepted in answer] == [task.id]
        else:
            assert isinstance(answer, StoreUnavailable)
    assert len(factory.states()) == (3 if fate == "carried out" else 0)


@pytest.mark.parametrize("fate", ["carried out", "rolled back"])
async def test_a_commit_in_doubt_with_a_key(doubtful: Any, plan: dict[str, Any], fate: str) -> None:
    """The same for a call of which a part existed already under its key."""
    (known,) = await submit(doubtful, new("a", key="k"))
    plan["next"] = fate
    fresh = new()
    answer = await outcome(doubtful.submit([new("a", key="k"), fresh]))
    if fate == "carried out":
        assert answer == [Accepted(known, True), Accepted(fresh.id, False)]
    else:
        assert isinstance(answer, StoreUnavailable)


@pytest.mark.parametrize("fate", ["carried out", "rolled back"])
async def test_claims_and_outcomes_of_a_commit_in_doubt(doubtful: Any, plan: dict[str, Any], fate: str) -> None:
    """Whatever its fate, no claim is lost that was taken in it, and no outcome that was given with it."""
    port = Port(doubtful)
    await port.serve()
    sent = await submit(doubtful, new(), new())
    first = await port.take()
    plan["next"] = fate
    port.end(first)  # its room goes to the second one, in the commit in doubt
    await port.until(lambda: port.ends and len(port.order) == 2)
    assert port.ended_as() == {sent[0]: 2}
    assert port.order[1].id == sent[1]
    await port.finish(port.order[1])
    assert port.missed == []
    assert await status(doubtful, sent[1]) is TaskStatus.COMPLETED


async def test_a_reader_does_not_keep_a_doubt_from_being_cleared(
    doubtful: Any, plan: dict[str, Any], factory: SqliteFactory
) -> None:
    """Somebody who reads an older state for a long time is not waited for: the answer is definite."""
    await submit(doubtful, new())
    reader = apsw.Connection(str(factory.path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM task").fetchall()
    await submit(doubtful, new())
    plan["next"] = "rolled back"
    assert isinstance(await outcome(doubtful.submit([new()])), StoreUnavailable)
    reader.close()
    assert len(factory.states()) == 2


async def test_one_doubt_is_no_evidence_in_another(doubtful: Any, plan: dict[str, Any], factory: SqliteFactory) -> None:
    """What an earlier commit in doubt has stored, a claim or an outcome, does not speak for a later one that has
    not."""
    port = Port(doubtful)
    await port.serve()
    sent = await submit(doubtful, new(), new())
    first = await port.take()
    plan.update({"next": "carried out", "unreachable": True})
    port.end(first)
    assert isinstance(await outcome(doubtful.submit([new()])), TaskError)
    plan.clear()
    async with factory.together(doubtful, 2):  # the outcome is tried again with it, or is there already
        failing = doubtful.write(lambda tx: plan.update({"next": "rolled back"}))
        pausing = asyncio.gather(outcome(doubtful.pause(type="custom:x")), outcome(failing))
    assert [type(answer) for answer in await pausing] == [StoreUnavailable] * 2
    await port.until(lambda: len(port.order) == 2)
    assert port.order[1].id == sent[1]
    assert port.ended_as() == {sent[0]: 2}
    assert factory._rows("SELECT * FROM pause") == []


@pytest.mark.parametrize("away", [True, OSError(errno.EIO, "input/output error")])
async def test_doubt_that_can_not_be_cleared_is_named(
    doubtful: Any, plan: dict[str, Any], factory: SqliteFactory, away: Any
) -> None:
    """If the file can't be read either, the error says that the task may be stored, and under which id; submitting it
    again is safe."""
    plan.update({"next": "carried out", "unreachable": away})
    task = new()
    answer = await outcome(doubtful.submit([task]))
    assert isinstance(answer, SubmitIndeterminate)
    assert answer.task_id == TaskId(task.id)
    assert isinstance(await outcome(doubtful.submit([new()])), StoreUnavailable)
    plan.clear()
    assert await doubtful.submit([task]) == [Accepted(task.id, True)]
    assert len(factory.states()) == 1


async def test_a_mistake_in_one_call_harms_no_other(factory: SqliteFactory) -> None:
    """A function that raises whatever it likes in the writer's thread fails its own caller; all others of the
    commit go on."""

    def wrong(tx: Any) -> None:
        tx.cursor.execute("INSERT INTO note VALUES ('half')")
        raise ZeroDivisionError

    async with opened(factory.make()) as store:
        answers = await asyncio.gather(
            outcome(store.submit([new()])), outcome(store.write(wrong)), outcome(store.submit([new()]))
        )
        assert [type(answer).__name__ for answer in answers] == ["list", "InternalError", "list"]
        assert factory.notes() == []
        assert len(factory.states()) == 2


async def test_an_end_that_can_not_be_recorded_harms_no_other(
    factory: SqliteFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped and told in the log: everything that came with it and after it is written."""
    async with opened(factory.make()) as store:
        port = Port(store, room=2)
        await port.serve()
        bad, good = await submit(store, new(), new())
        real = outcomes.finish_one

        def broken(tx: Any, finish: Finish) -> None:
            tx.cursor.execute("UPDATE task SET flags = 0")
            if finish.claim.id == bad:
                raise KeyError("a mistake of the store")
            real(tx, finish)

        monkeypatch.setattr(outcomes, "_IN_VAIN", ())  # each is ended by itself
        monkeypatch.setattr(outcomes, "finish_one", broken)
        for claim in port.order:
            port.end(claim, FAILED)
        (later,) = await submit(store, new())
        await port.settle()
        assert [await status(store, id) for id in (bad, good)] == [TaskStatus.PENDING, TaskStatus.FAILED]
        assert await status(store, later) is TaskStatus.PENDING
        assert f"task {TaskId(bad)} attempt 1 can't be recorded" in caplog.text


async def test_room_is_filled_without_a_safety_look(factory: SqliteFactory) -> None:
    """A lane with more room than one commit hands over gets all there is at once."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        await store._caretaker.stop()
        await submit(store, *(new() for _ in range(2000)))
        port.lanes["async"].limit = 2000
        store.demand()
        await port.until(lambda: len(port.order) == 2000)


async def test_stopping_with_work_in_hand(factory: SqliteFactory) -> None:
    """A close right behind a finish ends, and the outcome is in the file."""
    for _ in range(20):
        store = factory.make()
        await store.open()
        port = Port(store)
        await port.serve()
        (id,) = await submit(store, new())
        port.end(await port.take())
        async with asyncio.timeout(60):
            await store.close()
        assert factory.durable_status(id) == 2


async def test_claims_of_a_doubt_that_lasts_are_not_forgotten(doubtful: Any, plan: dict[str, Any]) -> None:
    """What a commit in doubt handed over is handed over once the file can be read again, and only if it is there."""
    port = Port(doubtful)
    await port.serve()
    sent = await submit(doubtful, new(), new())
    first = await port.take()
    plan.update({"next": "carried out", "unreachable": True})
    port.end(first)  # its room goes to the second one, in the commit in doubt
    assert isinstance(await outcome(doubtful.submit([new()])), TaskError)
    assert len(port.order) == 1
    plan.clear()
    await port.until(lambda: len(port.order) == 2)
    assert port.order[1].id == sent[1]
    await port.finish(port.order[1])
    assert port.missed == []
    assert await status(doubtful, sent[1]) is TaskStatus.COMPLETED
    assert doubtful._memory.lanes["async"].room() == 0


async def test_a_second_commit_in_doubt_is_judged_by_what_is_new_in_it(doubtful: Any, plan: dict[str, Any]) -> None:
    """What an earlier commit in doubt brought into the file says nothing about the next one, which is rolled back."""
    port = Port(doubtful)
    await port.serve()
    sent = await submit(doubtful, new(), new(), new())
    first = await port.take()
    plan.update({"next": "carried out", "unreachable": True})
    port.end(first)  # its room goes to the second one
    assert isinstance(await outcome(doubtful.submit([new()])), TaskError)
    port.lanes["async"].limit += 1  # the third one is claimed in the commit that fails next
    plan.clear()
    plan["next"] = "rolled back"
    await port.until(lambda: len(port.order) >= 3)
    for claim in port.order[1:]:
        await port.finish(claim)
    assert sorted(claim.id for claim in port.order) == sorted(sent)
    assert port.missed == []
    assert [await status(doubtful, id) for id in sent] == [TaskStatus.COMPLETED] * 3


async def test_opening_on_a_disk_that_fails(disk: Disk, factory: SqliteFactory) -> None:
    """Wherever the disk breaks while a store is made, the error is ours, and the next try goes well."""
    for n in range(1, 200):
        disk.break_(breaks(apsw.FullError, lambda at, n=n: at == n))  # type: ignore[misc]
        store = factory.make()
        try:
            await store.open()
        except StoreUnavailable:
            disk.heal()
            continue
        break
    else:
        raise AssertionError("it never came through")
    assert n > 5
    disk.heal()
    await store.close()


async def test_a_reader_that_can_not_be_opened_is_told(
    factory: SqliteFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A look fails as long as the file can't be opened for it, and the next one works; a failed hint is a warning."""
    async with opened(factory.make()) as store:
        connect = store._reader._connect
        (id,) = await submit(store, new())
        store._reader._connection = None

        def refuse() -> apsw.Connection:
            raise StoreUnavailable("no file descriptor is left")

        store._reader._connect = refuse
        answers: list[Any] = []
        store._reader.put(lambda connection: 1, answers.append)
        assert isinstance(await outcome(store.info(id)), StoreUnavailable)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        store._reader._connect = connect
        assert (await store.info(id)).status is TaskStatus.PENDING
        assert answers == []
