"""A process that lives and does nothing keeps what it holds for long, loses it fenced, and is told when it wakes."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.kit import NOBODY, new, opened, status, submit
from tests.store.peers import Peer, Spawn, eventually, serving, spawning
from tests.store.process import real_store

from mainspring.config import StoreConfig
from mainspring.environment import Environment
from mainspring.errors import InvalidInput
from mainspring.store.base import MAX_RELEASES
from mainspring.store.sql import caretaker
from mainspring.store.vigil import Vigil
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio

STALL_S = 1.5
"""Longer than a slow disk or a busy machine holds a process up that lives."""
NEVER_S = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@pytest.fixture
async def spawn(path: Path) -> AsyncIterator[Spawn]:
    async with spawning(path) as start:
        yield start


def test_silence_is_counted_from_first_sight_and_by_the_watcher_alone() -> None:
    """Each look adds what has passed since the last one, a second at most; a turn of the other begins it anew."""
    vigil = Vigil(100.0)
    assert vigil.look(100.5, {"a": 7, "b": 3}) == {"a": 0.0, "b": 0.0}
    assert vigil.look(101.0, {"a": 7, "b": 4}) == {"a": 0.5, "b": 0.0}
    assert vigil.look(90_000.0, {"a": 7, "b": 4}) == {"a": 1.5, "b": 1.0}  # it was stopped itself for a day
    assert vigil.look(90_000.5, {"a": 8, "c": 1}) == {"a": 0.0, "c": 0.0}
    assert vigil.look(90_001.0, {"b": 4}) == {"b": 0.0}  # a new leader's first sight counts as well
    with pytest.raises(InvalidInput, match="stall_s"):
        StoreConfig(stall_s=0)


async def held_and_stopped(path: Path, peer: Peer, n: int, running: int) -> None:
    """Have a peer hold n tasks, some of them running, and stop it."""
    held = 0
    while held < n:
        held = int((await peer.hear("held"))[0])
    if running:
        await peer.tell("run", running)
        await peer.hear("running")
    peer.stop(path)


async def test_a_stalled_process_loses_what_it_holds(
    path: Path, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    """After stall_s everything goes to others, uncharged, and the log names the process; what ran counts as handed back
    unfinished. Awake again it is told, and what it still finishes changes nothing."""
    async with serving(path, stall_s=STALL_S) as (store, port):
        peer = await spawn("hold", 3)
        sent = await submit(store, *(new() for _ in range(3)))
        await held_and_stopped(path, peer, 3, running=1)
        port.lanes["async"].limit = 5
        with caplog.at_level(logging.WARNING, "mainspring.store"):
            await port.until(lambda: len(port.order) == 3)
        assert [claim.id for claim in port.order] == sent
        assert [(c.attempt, c.retry_count, c.crashes, c.releases) for c in port.order] == [
            (2, 0, 0, 1),
            (2, 0, 0, 0),
            (2, 0, 0, 0),
        ]
        assert f"worker {peer.name} (pid {peer.process.pid}) lives" in caplog.text
        (attempt,) = (await store.info(sent[0])).attempts
        assert (attempt.outcome, attempt.worker) == ("released", peer.name)
        assert "silent" in attempt.error.message
        peer.send(signal.SIGCONT)
        assert await peer.hear("revoked") == ["0"]
        await peer.tell("finish")
        assert await peer.hear("lost") == ["3"]
        for id in sent:
            info = await store.info(id)
            assert (info.status, info.attempt, info.worker) == (TaskStatus.PENDING, 2, store.worker_id)
        for claim in port.order:
            port.end(claim)
        await port.settle()
        assert [await status(store, id) for id in sent] == [TaskStatus.COMPLETED] * 3


async def test_what_is_over_its_time_is_taken_sooner(path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a silent process, what runs goes when its timeout and grace have passed; what has none, or has not begun, is
    left to it."""
    monkeypatch.setattr(caretaker, "SURELY_S", 0.3)
    async with serving(path, stall_s=NEVER_S) as (store, port):
        peer = await spawn("hold", 3)
        limited, unlimited, waiting = await submit(store, new(timeout_ms=100), new(), new(timeout_ms=100))
        await held_and_stopped(path, peer, 3, running=2)
        port.lanes["async"].limit = 5
        store.grace_s = 0.0
        await port.until(lambda: port.order)
        for _ in range(3):
            await store._caretaker._rescue_stalled()
        await store.withdraw(NOBODY)
        assert [claim.id for claim in port.order] == [limited]
        assert [(await store.info(id)).worker for id in (unlimited, waiting)] == [peer.name] * 2
        peer.send(signal.SIGCONT)
        assert await peer.hear("revoked") == ["2"]


async def test_within_its_time_and_grace_it_is_kept(path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout that has not passed, or its grace, is waited for also where a process is silent."""
    monkeypatch.setattr(caretaker, "SURELY_S", 0.01)
    async with serving(path, stall_s=NEVER_S) as (store, _):
        peer = await spawn("hold", 2)
        store.grace_s = 30.0
        sent = await submit(store, new(timeout_ms=100), new(timeout_ms=60_000))
        await held_and_stopped(path, peer, 2, running=2)
        vigil: Vigil = store._caretaker._over_all

        async def silent() -> bool:
            return vigil._seen.get(peer.name, (0, 0.0))[1] > 0.5

        await eventually(silent)
        await store._caretaker._rescue_stalled()
        assert [(await store.info(id)).worker for id in sent] == [peer.name] * 2


class Jumping(Environment):
    """Its wall clock is another one at each look."""

    def __init__(self) -> None:
        self.jumps = 0

    def wall_ms(self) -> int:
        self.jumps += 1
        day_ms = 86_400_000 * self.jumps
        return super().wall_ms() + (day_ms if self.jumps % 2 else -day_ms)


async def test_a_living_process_is_not_silent(path: Path, spawn: Spawn) -> None:
    """One with nothing to commit or to look at keeps what it holds beyond stall_s, whatever the wall clocks do."""
    async with serving(path, env=Jumping(), stall_s=3.0) as (store, _):
        peer = await spawn("lazy", 2)
        sent = await submit(store, new(timeout_ms=1), new())
        await peer.hear("held")
        vigil: Vigil = store._caretaker._over_all
        turns: set[int] = set()
        silent_s = 0.0

        async def watched() -> bool:
            nonlocal silent_s
            n, silence = vigil._seen.get(peer.name, (0, 0.0))
            turns.add(n)
            silent_s = max(silent_s, silence)
            return len(turns) > 4

        await eventually(watched)
        assert silent_s < 3.0
        assert [(await store.info(id)).worker for id in sent] == [peer.name] * 2


class Suspended(Environment):
    """Of a machine that can sleep: wall clocks go on meanwhile, the clock of differences may or may not."""

    def __init__(self, *, counts_sleep: bool) -> None:
        self.slept_s = 0
        self._counts_sleep = counts_sleep

    def since_boot(self) -> float:
        return super().since_boot() + self.slept_s

    def wall_ms(self) -> int:
        return super().wall_ms() + self.slept_s * 1000

    def monotonic(self) -> float:
        return super().monotonic() + self.slept_s * self._counts_sleep


@pytest.mark.parametrize("counts_sleep", [True, False])
async def test_a_suspended_machine(path: Path, spawn: Spawn, counts_sleep: bool) -> None:
    """All processes sleep for a day and wake up: nobody takes what another one holds, and what was held is finished by
    its holder, the first time."""
    env = Suspended(counts_sleep=counts_sleep)
    async with serving(path, env=env, stall_s=60.0) as (store, _):
        peer = await spawn("hold", 3)
        sent = await submit(store, *(new() for _ in range(3)))
        await held_and_stopped(path, peer, 3, running=1)
        vigil: Vigil = store._caretaker._over_all

        async def silent() -> bool:
            return vigil._seen.get(peer.name, (0, 0.0))[1] > 0.5

        async def looked() -> bool:
            return vigil._last > awake_s + 0.5

        await eventually(silent)
        env.slept_s = 86_400
        awake_s = env.monotonic()
        await eventually(looked)
        peer.send(signal.SIGCONT)
        assert [((await store.info(id)).worker, (await store.info(id)).attempt) for id in sent] == [(peer.name, 1)] * 3

        async def completed() -> bool:
            return {await status(store, id) for id in sent} == {TaskStatus.COMPLETED}

        await peer.tell("finish")
        await eventually(completed)


async def test_a_task_that_stalls_every_process_fails(path: Path, spawn: Spawn) -> None:
    """Taken back unfinished as often as a drain may do it, it is FAILED, and the error says what it did."""
    async with serving(path, stall_s=STALL_S) as (store, _):
        peer = await spawn("hold", 1)
        (id,) = await submit(store, new())
        await held_and_stopped(path, peer, 1, running=1)
        async with opened(real_store(path)) as other:
            await other.write(lambda tx: tx.cursor.execute("UPDATE task SET releases = ?", (MAX_RELEASES,)))

        async def failed() -> bool:
            return await status(store, id) is TaskStatus.FAILED

        await eventually(failed)
        assert f"pid {peer.process.pid}" in (await store.result(id)).error.message


async def test_a_cancel_that_a_stalled_process_did_not_hear(path: Path, spawn: Spawn) -> None:
    """It was promised: when the claim is taken back, the task ends as CANCELLED and runs nowhere."""
    async with serving(path, stall_s=STALL_S) as (store, port):
        peer = await spawn("hold", 1)
        (id,) = await submit(store, new())
        await held_and_stopped(path, peer, 1, running=1)
        assert await store.cancel(id) == "requested"
        port.lanes["async"].limit = 1
        await port.until(lambda: port.ended_as() == {id: 4})
        assert port.order == []


async def test_a_silent_leader_is_stood_in_for(path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the leader is stopped the others look after the file: the dead are rescued, and the leader itself too."""
    monkeypatch.setattr(caretaker, "SURELY_S", STALL_S)
    leader = await spawn("hold", 1)
    async with serving(path, stall_s=STALL_S) as (store, port):
        sent = await submit(store, new())
        await held_and_stopped(path, leader, 1, running=1)
        victim = await spawn("hold", 1)
        sent += await submit(store, new())
        await victim.hear("held")
        await victim.kill()
        port.lanes["async"].limit = 5
        await port.until(lambda: {claim.id for claim in port.order} == set(sent))
        assert not store._caretaker._lock.hold()
        assert store._caretaker._missed == leader.name
        leader.send(signal.SIGCONT)
        assert await leader.hear("revoked") == ["0"]

        async def back() -> bool:
            return not store._caretaker._missed

        await eventually(back)
