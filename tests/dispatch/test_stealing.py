"""Work goes from processes that have more than they can begin to those that have nothing: asked for, never taken.

Two engines on one store stand for two processes. What a lane does at intervals by itself is switched off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.engine import process_work
from tests.engine.support import engine_on, shows, until, value

from mainspring import Batch, Engine, Resources, TaskHandle, TaskStatus
from mainspring.dispatch import lane
from mainspring.dispatch.gathering import Gathering
from mainspring.dispatch.lane import LaneDesk
from mainspring.dispatch.manager import TaskManager
from mainspring.execution import processes
from mainspring.store.base import Claimed

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane gives back by itself what it can't begin soon; here only what is asked for.

    It goes on to look whether there is anybody to ask: on a server others may be heard of only after the first time.
    """
    monkeypatch.setattr(LaneDesk, "take_surplus", lambda self, called: [])


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "work.db")
        return
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


class Site:
    """An engine with one slot, whose handler runs until a gate opens, and says where."""

    def __init__(
        self, place: str, name: str, *, is_open: bool = False, resources: Resources | None = None, **settings: Any
    ) -> None:  # fmt: skip
        self.engine = engine_on(place, **{"async_slots": 1, "prefetch_s": "10s", **settings})
        self.gate = asyncio.Event()
        self.began: list[int] = []
        if is_open:
            self.gate.set()

        @self.engine.task(name="work", resources=resources)
        async def work(n: int) -> str:
            self.began.append(n)
            await self.gate.wait()
            return name

        self.work = work

    @property
    def desk(self) -> LaneDesk:
        desk = self.engine.manager._desks["async"]
        assert isinstance(desk, LaneDesk)
        return desk

    async def line_up(self, n: int) -> list[TaskHandle]:
        """Let one task hold the slot, and claim so many behind it."""
        self.desk.port.limit = 1 + n
        handles = await self.engine.map(self.work, range(1 + n))
        await until(lambda: self.began == [0] and self.desk.queued == n)
        return handles


@asynccontextmanager
async def sites(place: str) -> AsyncIterator[tuple[Site, Site]]:
    """One that holds its first task until its gate opens, and one that begins with nothing to do."""
    busy = Site(place, "busy")
    async with busy.engine:
        idle = Site(place, "idle", is_open=True)
        try:
            yield busy, idle
        finally:
            busy.gate.set()


async def test_an_idle_process_gets_half_and_half_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that waits behind a slow task runs elsewhere, uncharged, the last half first; what began stays."""
    shares: list[list[int]] = []
    share = LaneDesk.share

    def seen(desk: LaneDesk, is_wanted: Any) -> list[Claimed]:
        given = share(desk, is_wanted)
        if given:
            shares.append([claim.seq for claim in given])
        return given

    monkeypatch.setattr(LaneDesk, "share", seen)
    async with sites(place) as (busy, idle):
        slow, *others = await busy.line_up(8)
        async with idle.engine:
            assert [await value(handle) for handle in others] == ["idle"] * 8
            assert busy.began == [0]
            assert (await slow.info()).status in (TaskStatus.PENDING, TaskStatus.RUNNING)
            busy.gate.set()
            assert await value(slow) == "busy"
        infos = [await handle.info() for handle in (slow, *others)]
        assert (await busy.engine.manager.stats())["lanes"]["async"]["given"] == 8
    assert [(info.task.retry_count, len(info.attempts)) for info in infos] == [(0, 1)] * 9
    assert [info.attempts[0].number for info in infos] == [1] + [2] * 8
    assert [len(given) for given in shares] == [4, 2, 1, 1]
    assert shares == sorted(shares, reverse=True), "the last ones in the order go first"


def asked(site: Site) -> list[float]:
    """Return a list that gets the seats that were free with whoever asks this one."""
    heard: list[float] = []
    asked_to_share = site.engine.manager.asked_to_share

    def hears(is_wanted: Any, spare: Any) -> None:
        asked_to_share(is_wanted, spare)
        heard.append(spare["seat"])

    site.engine.manager.asked_to_share = hears  # type: ignore[method-assign]
    return heard


def seated(place: str, name: str, *, is_open: bool = False) -> Site:
    """One that has a seat, which its tasks need, and slots enough for all."""
    one = Resources(cpu=0, custom={"seat": 1})
    return Site(place, name, is_open=is_open, resources=one, async_slots=20, custom_capacity={"seat": 1})


async def test_what_waits_for_resources_is_given_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has what it needs free gets half and half again, uncharged, the last half first; slots were never
    what it waited for."""
    given: list[int] = []
    hand_back = TaskManager._hand_back

    def seen(manager: TaskManager, desk: Any, claims: list[Claimed]) -> None:
        hand_back(manager, desk, claims)
        given.extend(claim.seq for claim in claims)

    monkeypatch.setattr(TaskManager, "_hand_back", seen)
    busy, idle = seated(place, "busy"), seated(place, "idle", is_open=True)
    async with busy.engine:
        first, *others = await busy.engine.map(busy.work, range(8))
        await until(lambda: busy.began == [0] and len(busy.desk.parked) == 7)
        async with idle.engine:
            assert [await value(handle) for handle in others] == ["idle"] * 7
            assert busy.began == [0]
            busy.gate.set()
            assert await value(first) == "busy"
        infos = [await handle.info() for handle in (first, *others)]
        assert (await busy.engine.manager.stats())["lanes"]["async"]["given"] == 7
        assert (busy.desk.port.taken, busy.desk.parked) == (busy.desk.port.released, {})
    assert [(info.task.retry_count, len(info.attempts)) for info in infos] == [(0, 1)] * 8
    assert len(given) == 7
    assert min(given[:4]) > max(given[4:])


async def test_nobody_gets_what_has_to_wait_there_too(place: str) -> None:
    """What is free where somebody asks is taken: nothing goes to and fro between processes that lack the same."""
    busy, idle = seated(place, "busy"), seated(place, "idle")
    async with busy.engine:
        handles = await busy.engine.map(busy.work, range(5))
        await until(lambda: busy.began == [0] and len(busy.desk.parked) == 4)
        async with idle.engine:
            of_busy, of_idle = asked(busy), asked(idle)
            await until(lambda: len(idle.began) == 1 and len(busy.desk.parked) + len(idle.desk.parked) == 3)
            await until(lambda: not busy.desk.parked or of_busy[-1:] == [0])  # those before that were heard in order
            held, before = set(idle.desk.parked), len(of_busy) + len(of_idle)
            assert held
            await until(lambda: len(of_busy) + len(of_idle) > before + 3)
            assert set(idle.desk.parked) == held
            assert of_idle == [0] * len(of_idle)
            busy.gate.set()
            idle.gate.set()
            for handle in handles:
                await value(handle)


async def test_a_lane_without_work_gives_none(place: str) -> None:
    """What has begun stays, whoever asks; and so does what comes while a slot is free."""
    async with sites(place) as (busy, _):
        (slow,) = await busy.line_up(0)
        await shows(slow, status=TaskStatus.RUNNING)
        busy.engine.manager.asked_to_share(lambda key: True, {})
        busy.gate.set()
        assert await value(slow) == "busy"
        assert (await slow.info()).attempts[0].number == 1
        busy.gate.clear()
        await until(busy.desk.has_idle)
        claim = Claimed(bytes(16), 1, "custom:work", b"", class_key=("default", "custom:work", ""))
        busy.desk._queue.append(claim)  # as between its coming and the turn of the slot
        assert busy.desk.share(lambda key: True) == []
        busy.desk._queue.clear()


async def test_only_what_the_other_runs_is_given(place: str) -> None:
    """Of several types one goes; the others keep their places."""
    async with sites(place) as (busy, idle):

        @busy.engine.task(name="other")
        async def other() -> str:
            return "busy"

        await until(lambda: "custom:other" in busy.desk.port.types)
        slow, *works = await busy.line_up(2)
        busy.desk.port.limit += 2
        others = [await busy.engine.submit(other) for _ in range(2)]
        await until(lambda: busy.desk.queued == 4)
        async with idle.engine:
            assert [await value(handle) for handle in works] == ["idle"] * 2
            busy.gate.set()
            assert [await value(handle) for handle in (slow, *others)] == ["busy"] * 3


async def test_what_was_given_is_not_claimed_back(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While whoever asked is on its way the lane claims only for a slot that finds nothing here; then as ever."""
    monkeypatch.setattr(lane, "_STEP_BACK_S", 3600.0)
    async with sites(place) as (busy, _):
        slow, *others = await busy.line_up(8)
        busy.engine.manager.asked_to_share(lambda key: True, {})
        for handle in others[4:]:
            await shows(handle, reason="ready")
        for _ in range(3):  # each of them is a commit in which it could take what it has room for
            await busy.engine.manager.pause(type="custom:nothing")
        assert [(await handle.info()).reason for handle in others] == ["claimed"] * 4 + ["ready"] * 4
        assert busy.desk.port.room() <= 0
        busy.gate.set()
        assert [await value(handle) for handle in (slow, *others)] == ["busy"] * 9
        infos = [await handle.info() for handle in others]
        assert [info.attempts[0].number for info in infos] == [1] * 4 + [2] * 4
        assert busy.desk.port.limit == 1, "nothing is claimed ahead before the other has come"


async def test_a_lane_whose_slots_are_in_calls_steps_back_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of what runs together hold the slot: the lane has room by its own count, and takes nothing back."""
    monkeypatch.setattr(lane, "_STEP_BACK_S", 3600.0)
    async with sites(place) as (busy, _):
        began = asyncio.Event()

        @busy.engine.task(batch=Batch(max_size=2))
        async def together(items: list[int]) -> list[int]:
            began.set()
            await busy.gate.wait()
            return items

        await until(lambda: "custom:together" in busy.engine.manager._gatherings)
        call = await busy.engine.submit(together, 1)
        await began.wait()
        busy.desk.port.limit = 2
        waiting = await busy.engine.map(busy.work, range(2))
        await until(lambda: busy.desk.queued == 2)
        busy.engine.manager.asked_to_share(lambda key: True, {})
        await shows(waiting[1], reason="ready")
        await busy.engine.manager.pause(type="custom:nothing")
        assert [(await handle.info()).reason for handle in waiting] == ["claimed", "ready"]
        busy.gate.set()
        assert await value(call) == 1
        assert await value(waiting[0]) == "busy"
        busy.desk._come_forward()
        assert await value(waiting[1]) == "busy"


async def test_what_gathers_for_a_call_stays_together(place: str) -> None:
    """A batch in the making is not taken apart, also where another process would run its members one by one."""
    busy, idle = engine_on(place, async_slots=1), engine_on(place, async_slots=1)

    @busy.task(name="sizes", batch=Batch(max_size=4, max_wait="1h"))
    async def together(items: list[int]) -> list[int]:
        return [len(items)] * len(items)

    @idle.task(name="sizes")
    async def alone(items: int) -> int:
        return 1

    asked = asyncio.Event()
    async with busy:
        handles = await busy.map(together, range(3))
        gathering = busy.manager._gatherings["custom:sizes"]
        await until(lambda: gathering.queued == 3)
        asked_to_share = busy.manager.asked_to_share

        def heard(is_wanted: Any, spare: Any) -> None:
            asked_to_share(is_wanted, spare)
            asked.set()

        busy.manager.asked_to_share = heard  # type: ignore[method-assign]
        async with idle:
            await asyncio.wait_for(asked.wait(), 60)
            assert gathering.queued == 3
            handles += await busy.map(together, [3])
            assert [await value(handle) for handle in handles] == [4] * 4


@pytest.mark.parametrize(
    "batch",
    [
        Batch(max_size=2, max_wait="1h", shape=lambda n: n % 8),
        Batch(max_size=4, shape=lambda n: n % 8),
    ],
    ids=["full", "not full"],
)
async def test_whole_calls_are_given(place: str, monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    """Calls of many kinds that stand behind a busy slot run elsewhere, each whole; the last ones are given first."""
    gate, shares, ran = asyncio.Event(), [], {"busy": [], "idle": []}  # type: ignore[var-annotated]
    share = Gathering.share

    def seen(gathering: Gathering, is_wanted: Any) -> list[Claimed]:
        given = share(gathering, is_wanted)
        if given:
            shares.append(sorted(claim.seq for claim in given))
        return given

    monkeypatch.setattr(Gathering, "share", seen)

    def site(name: str) -> tuple[Engine, Any]:
        engine = engine_on(place, async_slots=1)

        @engine.task(name="sizes", batch=batch)
        async def sizes(items: list[int]) -> list[int]:
            ran[name].append(items)
            if name == "busy":
                await gate.wait()
            return [len(items)] * len(items)

        return engine, sizes

    (busy, sizes), (idle, _) = site("busy"), site("idle")
    async with busy:
        first = await busy.submit(sizes, -1, priority="HIGH")
        await until(lambda: ran["busy"] == [[-1]])
        handles = await busy.map(sizes, range(16))
        gathering = busy.manager._gatherings["custom:sizes"]
        await until(lambda: gathering.queued == 16)
        async with idle:
            sizes_there = [await value(handle) for handle in handles]
            if batch.max_wait:
                assert sizes_there == [2] * 16
            assert ran["busy"] == [[-1]]
            gate.set()
            assert await value(first) == 1
        infos = [await handle.info() for handle in handles]
        given = (await busy.manager.stats())["lanes"]["async"]["given"]
    assert {info.task.retry_count for info in infos} == {0}
    assert len(shares[0]) == 8, "half of them"
    assert given == sum(len(some) for some in shares) >= 14
    assert shares[0][0] > shares[-1][0], "the last ones in the order go first"


async def test_a_batch_that_may_wait_still_does_after_others_were_given(tmp_path: Path) -> None:
    """That nothing is claimed while whoever asked is on its way is no reason to begin it."""
    gate, calls = asyncio.Event(), list[list[int]]()
    async with engine_on(tmp_path / "work.db", async_slots=1) as engine:

        @engine.task(batch=Batch(max_size=2, max_wait="1h", shape=lambda n: n % 8))
        async def pairs(items: list[int]) -> list[int]:
            calls.append(items)
            await gate.wait()
            return items

        first = await engine.submit(pairs, -1, priority="HIGH")
        await until(lambda: calls == [[-1]])
        handles = await engine.map(pairs, [0, 1, 2, 8, 9])
        gathering = engine.manager._gatherings["custom:pairs"]
        await until(lambda: gathering.queued == 5)
        engine.manager.asked_to_share(lambda key: True, {})
        assert gathering.queued == 3
        gate.set()
        for handle in (first, *handles[:2], *handles[3:]):
            await value(handle)
        await shows(handles[2], reason="batch")
    assert sorted(calls[1:]) == [[0, 8], [1, 9]]


async def test_what_was_sent_ahead_is_taken_back_and_given(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a child that has not begun with it goes as well, and runs once."""
    monkeypatch.setattr(processes, "_LONG_S", 600.0)
    busy = _with_children(place)
    async with busy:
        assert len(await busy.gather(await busy.map(process_work.double, range(300)))) == 300
        desk = busy.manager._desks["process"]
        desk.port.limit = 9
        handles = await busy.map(process_work.line, [str(tmp_path / name) for name in ("long", *"abcdefgh")])
        await until(lambda: _order(tmp_path) == ["long"])
        await until(lambda: len(desk.running) == 9)
        async with _with_children(place):
            for handle in handles[1:]:
                await value(handle)
            assert _order(tmp_path)[0] == "long"
            assert sorted(_order(tmp_path)[1:]) == [*"abcdefgh"]
            (tmp_path / "go").touch()
            await value(handles[0])
        assert {(await handle.info()).task.retry_count for handle in handles} == {0}


def _with_children(place: str) -> Engine:
    engine = engine_on(place, process_slots=1, prefetch_s="10s")
    engine.task(lane="process")(process_work.line)
    engine.task(lane="process")(process_work.double)
    return engine


def _order(folder: Path) -> Sequence[str]:
    path = folder / "order"
    return path.read_text().split() if path.exists() else []


async def test_who_has_nothing_asks_soon_and_then_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """While work comes by itself nobody is asked; without any the waits grow up to a second."""
    from mainspring.dispatch.asking import Asking
    from mainspring.store.lane import Lane

    waits: list[float] = []
    due: list[Any] = []
    asked: list[Lane] = []
    port = Lane("async", 1)

    class Loop:
        def call_later(self, delay: float, call: Any) -> Any:
            waits.append(round(delay, 3))
            due.append(call)
            return asyncio.TimerHandle(0.0, call, (), asyncio.get_event_loop())

    class Ear:
        has_others = True

        def ask(self, lane: Lane) -> bool:
            asked.append(lane)
            return self.has_others

    loop = asyncio.get_running_loop()
    ear = Ear()
    asking = Asking(port, ear, lambda: is_idle, lambda: True)  # type: ignore[arg-type]
    is_idle = True
    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    monkeypatch.setattr(asyncio, "get_event_loop", lambda: loop)
    asking.rests()
    asking.rests()
    port.taken += 1
    due.pop()()
    assert (asked, waits) == ([], [0.005, 0.005])
    for _ in range(10):
        due.pop()()
    assert asked == [port] * 10
    assert waits[2:] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]
    is_idle = False
    due.pop()()
    assert not due, "until a slot rests again"
    asking.rests()
    assert waits[-1] == 0.005
    is_idle, ear.has_others = True, False
    due.pop()()
    asking.rests()
    assert not due, "there is nobody to ask"
    asking.look_up()
    assert not due
    ear.has_others = True
    asking.look_up()
    assert len(due) == 1, "somebody has come"
    asking.close()
