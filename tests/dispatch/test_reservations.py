"""Declared resources: what runs never needs more than there is, whatever fits goes on, and everything gets its turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine import process_work
from tests.engine.support import LIMIT_S, engine_on, quick, shows, until, value

from mainspring import (
    Batch,
    Context,
    Engine,
    EngineConfig,
    InvalidInput,
    Resources,
    Retry,
    TaskHandle,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
)
from mainspring.config import SchedulerConfig, TaskManagerConfig
from mainspring.dispatch import reservations
from mainspring.dispatch.reservations import PATIENCE_S
from mainspring.environment import Random
from mainspring.resources.monitor import machine
from mainspring.tasks.needs import need_of
from mainspring.testing import SimulatedEngine
from mainspring.testing.stage.stage import Stage

pytestmark = pytest.mark.anyio
ONE = Resources(cpu=0, custom={"seat": 1})


class Hall:
    """Who is inside, and how full it ever was."""

    def __init__(self) -> None:
        self.inside = self.most = self.entered = 0
        self.go = asyncio.Event()

    async def visit(self, seats: int = 1) -> None:
        self.inside += seats
        self.entered += 1
        self.most = max(self.most, self.inside)
        await self.go.wait()
        self.inside -= seats


async def says(handle: TaskHandle, words: str) -> None:
    """Wait until it is explained so."""
    async with asyncio.timeout(LIMIT_S):
        while words not in await handle.explain():  # noqa: ASYNC110 - the store has no event for what is told of it
            await asyncio.sleep(0.005)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    with stage.open():
        yield stage


async def test_no_more_runs_than_there_is_room_for() -> None:
    """Tasks wait for what others have reserved, with the reason and the figures; others pass them by."""
    hall = Hall()
    async with engine_on(async_slots=8, custom_capacity={"seat": 2}) as engine:

        @engine.task(resources=ONE)
        async def visit(n: int = 0) -> None:
            await hall.visit()

        @engine.task
        async def walk(n: int) -> int:
            return n

        visits = await engine.map(visit, range(10))
        await until(lambda: hall.inside == 2)
        assert await engine.gather(await engine.map(walk, range(20))) == [*range(20)]
        waiting = visits[2:]
        for handle in waiting:
            await shows(handle, status=TaskStatus.PENDING, reason="resources")
        worker = engine.manager.store.worker_id
        await says(
            waiting[0], f"It waits for resources: it needs 1 seat and 0 seat is free, of 2 seat, on worker {worker}."
        )
        hall.go.set()
        await engine.gather(visits)
        assert (hall.entered, hall.most) == (10, 2)


async def test_a_call_says_more_than_its_handler() -> None:
    """Resources of a call replace those of the declaration, and stand with the task."""
    hall = Hall()
    async with engine_on(custom_capacity={"seat": 4}) as engine:

        @engine.task(resources=ONE)
        async def visit(seats: int) -> None:
            await hall.visit(seats)

        party = await engine.submit(visit, 3, resources=Resources(custom={"seat": 3}))
        await until(lambda: hall.inside == 3)
        others = await engine.map(visit, [1, 1])
        await until(lambda: hall.inside == 4)
        assert (await party.info()).task.resources == Resources(custom={"seat": 3})
        hall.go.set()
        await engine.gather([party, *others])
        assert hall.most == 4


def test_a_large_one_gets_its_turn(stage: Stage, tmp_path: Path) -> None:
    """Small ones that go on coming overtake it only for a while: then what it needs is set aside for it."""
    inside: list[float] = []
    config = EngineConfig(manager=quick(custom_capacity={"seat": 4}).manager)
    engine = SimulatedEngine(stage, tmp_path / "work.db", config)

    @engine.task(resources=ONE)
    async def small(n: int) -> None:
        if n < 200:
            await engine.submit(small, n + 1)
        await asyncio.sleep(1)

    @engine.task(resources=Resources(cpu=0, custom={"seat": 4}))
    async def large() -> float:
        inside.append(asyncio.get_running_loop().time())
        return inside[0]

    async def play() -> None:
        await engine.start()
        for at in range(4):
            await engine.submit(small, 0, delay=at / 4)
        await asyncio.sleep(2)
        now = asyncio.get_running_loop().time()
        started = await (await engine.submit(large)).result()
        assert PATIENCE_S - 0.5 < started - now < PATIENCE_S + 2.5
        assert (await engine.manager.stats())["types"]["custom:small"]["unfinished"] >= 4  # they go on coming

    stage.run(play())


async def test_a_flood_of_what_does_not_fit(tmp_path: Path) -> None:
    """Few are looked past at a time, whatever waits; those of its type say why, others run, and all end."""
    hall = Hall()
    async with engine_on(tmp_path / "work.db", async_slots=4, custom_capacity={"seat": 1}) as engine:

        @engine.task(resources=ONE)
        async def visit(n: int = 0) -> None:
            await hall.visit()

        @engine.task
        async def walk(n: int) -> int:
            return n

        first = await engine.submit(visit)
        await until(lambda: hall.inside == 1)
        visits = await engine.map(visit, range(300))
        assert await engine.gather(await engine.map(walk, range(20))) == [*range(20)]
        parked = engine.manager._desks["async"].parked
        assert 0 < len(parked) <= 16
        await says(visits[-1], "takes no more of its type: 16 tasks that go first wait there")
        await shows(visits[-1], reason="resources")
        hall.go.set()
        await engine.gather([first, *visits])
        assert (hall.entered, hall.most, len(parked)) == (301, 1, 0)


def test_who_goes_first_is_looked_at_also_where_many_wait(stage: Stage, tmp_path: Path) -> None:
    """As many wait at the desk as it looks past: whoever is urgent comes after them and begins before them, in the one
    order, and so do many of them."""
    ran: list[str] = []
    config = EngineConfig(manager=quick(custom_capacity={"seat": 1}).manager)
    engine = SimulatedEngine(stage, tmp_path / "work.db", config)

    @engine.task(resources=ONE)
    async def visit(who: str) -> None:
        ran.append(who)
        await asyncio.sleep(1)

    async def play() -> None:
        await engine.start()
        low = [await engine.submit(visit, "low", priority=TaskPriority.LOW) for _ in range(40)]
        await asyncio.sleep(0.5)
        parked = engine.manager._desks["async"].parked
        assert (ran, len(parked)) == (["low"], 16)
        urgent = [await engine.submit(visit, f"{n}", priority=TaskPriority.CRITICAL) for n in range(20)]
        await asyncio.sleep(0.1)
        assert len(parked) == 16
        assert "It waits for resources: it needs 1 seat and 0 seat is free" in await urgent[0].explain()
        for behind in (urgent[-1], low[1]):
            assert "takes no more of its type: 16 tasks that go first wait there" in await behind.explain()
        await engine.run_until_idle()
        assert ran == ["low", *map(str, range(20)), *["low"] * 39]
        for handle in (*low, *urgent):
            info = await handle.info()
            assert (info.status, info.task.retry_count, len(info.attempts)) == (TaskStatus.COMPLETED, 0, 1)

    stage.run(play())


async def test_what_waits_can_be_taken_back(tmp_path: Path) -> None:
    """A cancel, a deadline, a pause and a drain reach it; nothing stays reserved."""
    hall = Hall()
    async with engine_on(tmp_path / "work.db", custom_capacity={"seat": 1}) as engine:

        @engine.task(resources=ONE)
        async def visit(n: int = 0) -> None:
            await hall.visit()

        @engine.task
        async def walk() -> str:
            return "done"

        parked = engine.manager._desks["async"].parked
        first = await engine.submit(visit)
        await until(lambda: hall.inside == 1)
        unwanted, late, paused = await engine.submit(visit), await engine.submit(visit, deadline="200ms"), None
        await until(lambda: len(parked) == 2)
        assert await unwanted.cancel() == "cancelled"
        with pytest.raises(TaskTimeout, match="deadline passed before start"):
            await value(late)
        paused = await engine.submit(visit)
        await until(lambda: len(parked) == 1)
        await engine.manager.pause(type="custom:visit")
        await shows(paused, reason="paused")
        assert not parked
        await engine.manager.resume(type="custom:visit")
        await until(lambda: len(parked) == 1)
        hall.go.set()
        await engine.gather([first, paused])
        port = engine.manager._desks["async"].port
        assert (port.taken, hall.entered) == (port.released, 2)
        hall.go.clear()
        holder, left = await engine.submit(visit), await engine.submit(visit)
        await until(lambda: len(parked) == 1)
        asyncio.get_running_loop().call_later(0.01, hall.go.set)
    assert hall.entered == 3
    async with engine_on(tmp_path / "work.db", worker=False) as looker:
        assert (await looker.handle(holder.id).info()).status is TaskStatus.COMPLETED
        assert (await looker.handle(left.id).info()).reason in ("ready", "no_worker")


async def test_what_can_never_run_here(tmp_path: Path) -> None:
    """It is said so, in any process; a worker that has what it needs runs it, and others of its type run meanwhile."""

    def made(gpus: float) -> Engine:
        engine = engine_on(tmp_path / "work.db", gpu_capacity=gpus)

        @engine.task
        async def train(n: int) -> int:
            return n

        return engine

    async with made(0) as poor, engine_on(tmp_path / "work.db", worker=False) as looker:
        train = poor.executor.handlers["custom:train"].function
        handle = await poor.submit(train, 1, resources=Resources(gpu=1))
        expected = (
            "It can't run on any living worker: on {} it needs 1 gpu, more than the 0 gpu that there is; start one"
        )
        await says(looker.handle(handle.id), expected.format(poor.manager.store.worker_id))
        assert (await handle.info()).reason == "resources"
        async with made(1) as rich:
            assert await value(handle) == 1
            assert (await handle.info()).attempts[-1].worker == rich.manager.store.worker_id
        assert await value(await poor.submit(train, 2)) == 2


async def test_what_can_never_run_while_no_slot_is_free(tmp_path: Path) -> None:
    """No worker has met it, and what they have in all says so: the slots are not what it waits for."""
    worker = engine_on(tmp_path / "work.db", async_slots=1)
    go = asyncio.Event()

    @worker.task
    async def hold() -> None:
        await go.wait()

    async with worker, engine_on(tmp_path / "work.db", worker=False) as looker:
        holder = await worker.submit(hold)
        await shows(holder, status=TaskStatus.RUNNING)
        large, next_one = await worker.submit(hold, resources=Resources(gpu=1)), await worker.submit(hold)
        for handle in (large, looker.handle(large.id)):
            await says(handle, "It can't run on any living worker: on ")
            await shows(handle, reason="resources")
        await says(next_one, "It is ready")
        go.set()
        await value(next_one)


async def test_what_can_run_nowhere_is_refused(tmp_path: Path) -> None:
    """More than this process has, where there can be no other; in a file, nothing but nonsense: settings of a worker
    may say that it has more cores and memory than are built in."""
    cores, memory = machine()
    rich = TaskManagerConfig(cpu_capacity=cores + 2, memory_capacity=2 * memory)
    limits = SchedulerConfig(max_memory_bytes=3 * memory)
    worker = Engine(tmp_path / "work.db", EngineConfig(manager=rich, scheduler=limits))

    @worker.task
    async def one(n: int) -> int:
        return n

    async with worker, Engine(tmp_path / "work.db", worker=False) as engine:
        for resources in (Resources(memory=memory + 1), Resources(cpu=cores + 1)):
            assert await value(await engine.submit(one, 1, resources=resources)) == 1
        nonsense: list[Any] = [
            3, Resources(cpu=-1), Resources(memory="2GB"),  # type: ignore[arg-type]
            Resources(custom={"gpu": 1}), Resources(custom={"x": float("nan")}),
        ]  # fmt: skip
        for bad in nonsense:
            with pytest.raises(InvalidInput, match="resources"):
                await engine.submit(one, 1, resources=bad)
    async with engine_on() as engine:

        @engine.task(resources=Resources(custom={"seat": 1}))
        async def two() -> None: ...

        with pytest.raises(InvalidInput, match="needs 1 seat, more than the 0 seat that there is"):
            await engine.submit(two)


@pytest.mark.parametrize("lane", ["async", "thread"])
@pytest.mark.parametrize("bad", [{"resources": ONE}, {"resources": Resources(cpu=-1)}, {"group": ""}])
async def test_a_child_that_is_refused(lane: str, bad: dict[str, Any]) -> None:
    """What is wrong with it is said at the call: a handler that catches it goes on, and its other children run."""

    async with engine_on() as engine:

        @engine.task
        async def child(n: int) -> int:
            return n

        def submits(ctx: Context) -> list[Any]:
            with pytest.raises(InvalidInput, match=next(iter(bad))):
                ctx.submit(child, 1, **bad)
            return [ctx.submit(child, 2)]

        async def submits_async(ctx: Context) -> list[Any]:
            return submits(ctx)

        parent = engine.task(name="parent")(submits_async if lane == "async" else submits)
        assert await value(await engine.submit(parent)) == [2]


async def test_tasks_that_run_together() -> None:
    """A call reserves once, what the most demanding of its tasks needs; one that has to wait keeps its tasks."""
    calls: list[int] = []
    go = asyncio.Event()
    async with engine_on(async_slots=4, custom_capacity={"seat": 1}) as engine:

        @engine.task(batch=Batch(max_size=4), resources=ONE)
        async def sizes(items: list[str]) -> list[int]:
            calls.append(len(items))
            await go.wait()
            calls.append(-len(items))
            return [len(item) for item in items]

        handles = await engine.map(sizes, ["a" * n for n in range(12)])
        await until(lambda: len(calls) == 1)
        await shows(handles[-1], reason="resources")
        cancelled = handles.pop(6)
        await cancelled.cancel()
        go.set()
        assert await engine.gather(handles) == [n for n in range(12) if n != 6]
        assert all(-after == before for before, after in zip(calls[::2], calls[1::2], strict=True))


async def test_the_process_lane(tmp_path: Path) -> None:
    """What runs in children reserves only once a child is there for it, whatever could be sent ahead."""
    config = quick(process_slots=2, memory_capacity=3_000_000_000)
    async with Engine(tmp_path / "work.db", config) as engine:
        line = engine.task(lane="process", resources=Resources(cpu=0, memory=2_000_000_000))(process_work.line)
        first = await engine.submit(line, str(tmp_path / "long"))
        await until((tmp_path / "order").exists)
        others = await engine.map(line, [str(tmp_path / f"{n}") for n in range(5)])
        await says(others[0], "needs 2.0 GB and 1.0 GB is free, of 3.0 GB")
        assert (tmp_path / "order").read_text() == "long\n"
        (tmp_path / "go").touch()
        await engine.gather([first, *others])
        assert need_of(Resources(cpu=0, memory=1), "process") == {"memory": 1, "children": 1}


async def test_memory_that_others_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What strangers have in use is not there to be reserved; it begins when they have left."""
    others = [6_000_000_000]

    class Monitor:
        def sample(self) -> Any:
            return Usage()

    class Usage:
        cpu_limit = 8.0
        max_memory_bytes = 9_000_000_000
        cpu_usage = 0.0

        @property
        def memory_bytes(self) -> int:
            return others[0]

    engine = engine_on(tmp_path / "work.db")
    monkeypatch.setattr(engine.manager.reservations, "_monitor", Monitor())

    @engine.task(resources=Resources(memory=4_000_000_000))
    async def large() -> str:
        return "done"

    @engine.task(resources=Resources(memory=1_000_000_000))
    async def small() -> str:
        return "done"

    monkeypatch.setattr(reservations, "PATIENCE_S", 0.0)
    async with engine:
        handle = await engine.submit(large)
        await says(handle, "needs 4.0 GB and 3.0 GB is free, of 9.0 GB")
        assert await value(await engine.submit(small)) == "done"  # nothing is set aside for whom no end of ours helps
        others[0] = 4_900_000_000
        assert await value(handle) == "done"


class Used:
    """What is in use of each kind, and the most that ever was."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, need: dict[str, float]) -> Iterator[None]:
        self.now.update(need)
        self.most |= self.now
        try:
            yield
        finally:
            self.now.subtract(need)


THERE_IS = {"seat": 4.0, "tool": 2.0}


async def mix(engine: SimulatedEngine, work: Any, joint: Any, rng: Random) -> list[TaskHandle]:
    """Submit all kinds of tasks, and do to them what can be done."""
    handles = []
    for n in range(80):
        if rng.random() < 0.2:
            handles.append(await engine.submit(joint, n))
            continue
        need = {kind: float(rng.randrange(int(much) + 1)) for kind, much in THERE_IS.items()}
        handle = await engine.submit(
            work, need, rng.choice((0.0, 0.1, 2.0)), rng.random() < 0.2,
            resources=Resources(cpu=0, custom=need), priority=TaskPriority(rng.randrange(4)),
        )  # fmt: skip
        handles.append(handle)
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random())
            await rng.choice(handles).cancel()
        if rng.random() < 0.05:
            await engine.manager.pause(type="custom:work")
            await asyncio.sleep(rng.random())
            await engine.manager.resume(type="custom:work")
    return handles


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture(seed: int, tmp_path: Path) -> None:
    """Needs of several kinds, batches, priorities, failures, cancels and pauses: never more than there is, all end,
    and nothing stays reserved."""
    used, stage = Used(), Stage(seed)
    config = EngineConfig(manager=quick(async_slots=5, custom_capacity=THERE_IS).manager)
    with stage.open():
        engine = SimulatedEngine(stage, tmp_path / "work.db", config)

        @engine.task(retry=2)
        async def work(need: dict[str, float], seconds: float, fails: bool, ctx: Context) -> None:
            with used(need):
                await asyncio.sleep(seconds)
            if fails and ctx.attempt == 1:
                raise ValueError("once")

        @engine.task(batch=Batch(max_size=3), resources=Resources(cpu=0, custom={"tool": 1}))
        async def joint(items: list[int]) -> list[int]:
            with used({"tool": 1}):
                await asyncio.sleep(0.5)
            return items

        async def play() -> None:
            await engine.start()
            handles = await mix(engine, work, joint, Random(f"{seed}:mixture"))
            await engine.run_until_idle()
            for handle in handles:
                assert (await handle.info()).status.is_final
            reservations = engine.manager.reservations
            assert (reservations._held, reservations._used, reservations._waiting) == ({}, {}, {})
            for desk in engine.manager._desks.values():
                assert (desk.parked, desk.port.taken) == ({}, desk.port.released)

        stage.run(play())
    assert used.most == THERE_IS  # never more, and that at times


async def test_an_attempt_that_outlives_the_next_one_keeps_its_own_reservation() -> None:
    """A handler that does not stop goes on with what it has, and its retry needs as much again."""
    hall, seats = Hall(), list[float]()
    async with engine_on(grace_s=0.05, custom_capacity={"seat": 2}) as engine:

        def reserved() -> float:
            return engine.manager.reservations.stats()["seat"]["reserved"]

        @engine.task(resources=ONE, timeout=0.2, retry=Retry(max_retries=1, delay=0))
        async def visit(ctx: Context) -> int:
            if ctx.attempt == 1:
                while not hall.go.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await hall.go.wait()
                return 1
            seats.append(reserved())
            return 2

        handle = await engine.submit(visit)
        try:
            assert await value(handle) == 2
            await until(lambda: reserved() == 1)
        finally:
            hall.go.set()
        await until(lambda: reserved() == 0)
    assert seats == [2]
