"""Several processes on one file: claims are never doubled, the dead are noticed at once, the silent are left in
peace."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import NOBODY, Port, SqliteFactory, new, opened, state, status, submit
from tests.store.peers import Spawn, eventually, serving, spawning
from tests.store.process import real_store

from mainspring.store.base import MAX_CRASHES, SUSPECT
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@pytest.fixture
async def spawn(path: Path) -> AsyncIterator[Spawn]:
    async with spawning(path) as start:
        yield start


def ledger_of(path: Path) -> list[list[str]]:
    """Return what handlers have written: task, attempt and process of each start."""
    return [line.split() for line in path.with_name("ledger").read_text().splitlines()]


class Waiting(Port):
    """Looks for the ends that it was not told of, as an engine does: a word that finds the other one's buffer full is
    lost."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.sent: list[bytes] = []

    def awaited(self, most: int) -> list[bytes]:
        ended = self.ended_as()
        return [id for id in self.sent if id not in ended][:most]

    def all_ended(self) -> bool:
        return len(self.ended_as()) == len(self.sent)


async def test_two_workers_share_two_thousand_tasks(path: Path, spawn: Spawn) -> None:
    """Each task is run once, by one of the two, and both take part, if need be with more tasks; the counts agree."""
    async with opened(real_store(path)) as store:
        listener = Waiting(store)
        sent = listener.sent
        for peer in await asyncio.gather(spawn("work", 20), spawn("work", 20)):
            await peer.hear("serves")
        for _ in range(20):
            sent += await submit(store, *(new() for _ in range(100)))
        await listener.until(listener.all_ended)
        async with asyncio.timeout(60):
            while len({pid for _, _, pid in ledger_of(path)}) < 2:  # where one has the machine for itself
                sent += await submit(store, *(new() for _ in range(100)))
                await listener.until(listener.all_ended)
        stats = await store.stats()
    ledger = ledger_of(path)
    assert Counter(id for id, _, _ in ledger) == Counter(id.hex() for id in sent)
    assert {attempt for _, attempt, _ in ledger} == {"1"}
    assert len({pid for _, _, pid in ledger}) == 2
    assert (stats["completed"], stats["pending"], stats["running"]) == (len(sent), 0, 0)
    assert set(listener.ended_as()) == set(sent)


async def test_a_submit_wakes_the_worker_in_another_process(path: Path, spawn: Spawn) -> None:
    """It's rung for, not found by the next safety look: with those turned off it comes all the same."""
    peer = await spawn("submit", 1)
    async with serving(path, room=10) as (store, port):
        await store._caretaker.stop()  # no safety looks
        for _ in range(3):
            port.order.clear()
            await peer.tell("go")
            await port.until(lambda: port.order)


async def test_an_end_wakes_the_waiter_in_another_process(path: Path, spawn: Spawn) -> None:
    """Who awaits a task that another process ends hears of it without a safety look."""
    async with opened(real_store(path)) as store:
        listener = Port(store)
        await spawn("work", 5)
        await store._caretaker.stop()
        (id,) = await submit(store, new())
        await listener.until(lambda: listener.ended_as() == {id: 2})


async def test_a_cancel_reaches_the_holder_in_another_process(path: Path, spawn: Spawn) -> None:
    """The process that holds the task is told to stop."""
    peer = await spawn("submit", 1)
    async with serving(path, room=1) as (_, port), opened(real_store(path)) as other:
        await peer.tell("go")
        await port.until(lambda: port.order)
        assert await other.cancel(port.order[0].id) == "held"
        await port.until(lambda: port.asked == [port.order[0].id])


async def test_without_wakeups_the_safety_look_finds_it(path: Path, spawn: Spawn, monkeypatch: Any) -> None:
    """A hint may be lost: tasks, ends and cancels come through all the same."""
    from mainspring.store.sqlite.bell import FileBell

    monkeypatch.setattr(FileBell, "ring", lambda *_: None)
    async with serving(path, room=1) as (store, port), opened(real_store(path)) as other:
        (id,) = await submit(other, new())
        listener = Port(other)
        listener.awaited = lambda most: [id]  # type: ignore[method-assign]
        await port.until(lambda: port.order)
        await other.cancel(id)
        await port.until(lambda: port.asked[:1] == [id])
        await port.finish(port.order[0])
        await listener.until(lambda: listener.ended_as() == {id: 4})
        assert await status(store, id) is TaskStatus.CANCELLED


async def test_a_killed_leader_is_followed_at_once(path: Path, spawn: Spawn) -> None:
    """When the leader is killed another process leads, and rescues what the dead one held, well within a second or
    two."""
    leader = await spawn("hold", 3)
    async with serving(path) as (store, port):
        sent = await submit(store, *(new() for _ in range(3)))
        await leader.hear("held")
        assert not store._caretaker._lock.hold()
        port.lanes["async"].limit = 5
        await leader.kill()
        began = time.monotonic()
        await port.until(lambda: len(port.order) == 3)
        took = time.monotonic() - began
        assert store._caretaker._lock.hold()
        assert [claim.id for claim in port.order] == sent
        assert [(claim.attempt, claim.retry_count, claim.crashes) for claim in port.order] == [(2, 0, 0)] * 3
        print(f"rescued {took * 1000:.0f} ms after the kill")


async def test_a_silent_process_keeps_its_claims(path: Path, spawn: Spawn) -> None:
    """Stopped, it says nothing and does nothing, but it lives: nobody takes what it holds, however often one looks."""
    peer = await spawn("hold", 2)
    async with serving(path, room=0) as (store, port):
        sent = await submit(store, new(), new())
        await peer.hear("held")
        peer.stop(path)
        port.lanes["async"].limit = 5
        for _ in range(5):
            await store._caretaker.rescue_dead()
        store.demand()
        await store.withdraw(NOBODY)
        assert port.order == []
        assert [(await store.info(id)).worker for id in sent] == [peer.name] * 2
        await peer.kill()  # also a stopped process is dead when it's killed
        await port.until(lambda: len(port.order) == 2)


@pytest.mark.parametrize("running", [0, 1, 3])
async def test_blame(path: Path, spawn: Spawn, running: int) -> None:
    """A handler that ran alone when its process died is charged a crash; of several each is suspected and none charged;
    what had not begun comes back as if nothing had been."""
    peer = await spawn("hold", 5)
    async with serving(path) as (store, port):
        await submit(store, *(new() for _ in range(5)))
        await peer.hear("held")
        await peer.tell("run", running)
        await peer.hear("running")
        port.lanes["async"].limit = 5
        await peer.kill()
        await port.until(lambda: len(port.order) == 5)
        ran, waited = port.order[:running], port.order[running:]
        assert [claim.crashes for claim in ran] == [1 if running == 1 else 0] * running
        assert all(claim.flags & SUSPECT for claim in ran)
        assert [(claim.crashes, claim.retry_count, claim.flags & SUSPECT) for claim in waited] == [(0, 0, 0)] * len(
            waited
        )
        for claim in ran:
            (attempt,) = (await store.info(claim.id)).attempts
            assert (attempt.outcome, attempt.number, attempt.worker) == ("crashed", 1, peer.name)
            assert str(peer.process.pid) in attempt.error.message
        assert [(await store.info(claim.id)).attempts for claim in waited] == [()] * len(waited)


async def test_what_kills_its_process_again_and_again_fails(path: Path, spawn: Spawn) -> None:
    """After the third time alone the task is FAILED, and says of which process it was the end."""
    async with opened(real_store(path)) as store:
        (id,) = await submit(store, new())

        async def let_go() -> bool:
            return str(await state(store, id)) in ("PENDING (ready)", "FAILED")

        for _ in range(MAX_CRASHES):
            peer = await spawn("hold", 1)
            await peer.hear("held")
            await peer.tell("run", 1)
            await peer.hear("running")
            await peer.kill()
            await eventually(let_go)
        result = await store.result(id)
        assert result.status is TaskStatus.FAILED
        assert str(peer.process.pid) in result.error.message
        assert result.error.attempts == MAX_CRASHES
        assert [attempt.outcome for attempt in (await store.info(id)).attempts] == ["crashed"] * MAX_CRASHES


async def test_a_forked_child_does_not_stand_in_for_its_parent(path: Path, spawn: Spawn) -> None:
    """A child forked by a worker's handler outlives it: the worker counts as dead and is followed all the same."""
    leader = await spawn("fork", 1)
    child = int((await leader.hear("child"))[0])
    (leader.name,) = await leader.hear("open")
    try:
        async with serving(path) as (store, port):
            (id,) = await submit(store, new())
            await leader.hear("held")
            port.lanes["async"].limit = 1
            await leader.kill()
            await port.until(lambda: [claim.id for claim in port.order] == [id])
            assert store._caretaker._lock.hold()
    finally:
        os.kill(child, signal.SIGKILL)


async def test_the_places_of_the_dead_are_cleared(path: Path, spawn: Spawn) -> None:
    """After a rescue the dead one's file is gone and its socket is rung no more."""
    peer = await spawn("hold", 1)
    folder = path.with_name("work.db-live")
    async with serving(path) as (store, port):

        async def gone() -> bool:
            return not folder.joinpath(f"{peer.name}.life").exists()

        async def alone() -> bool:
            return not store._bell.has_peers

        assert not await gone()
        await peer.kill()
        await eventually(gone)
        port.lanes["async"].limit = 0
        await submit(store, new())
        await eventually(alone)
    assert [item.name for item in folder.iterdir()] == ["leader.lock"]


async def test_a_clean_close_leaves_one_whole_file(path: Path, tmp_path: Path) -> None:
    """When the last process closes, everything is in the one file: it can be copied as it lies."""
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make()) as store:
        (id,) = await submit(store, new())
    assert not path.with_name("work.db-wal").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path, copy)
    async with opened(SqliteFactory(copy).make()) as store:
        assert await status(store, id) is TaskStatus.PENDING
