"""Where the machine is full nothing new starts, what runs goes on, and all goes on when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.dispatch.test_reservations import says
from tests.engine.support import engine_on, shows, until, value

from mainspring import Batch, Engine, Resources, SchedulerConfig
from mainspring.cli.overview import overview
from mainspring.dispatch.highwater import HighWater
from mainspring.dispatch.neighbours import SILENT_MS
from mainspring.environment import SYSTEM
from mainspring.resources import ResourceMonitor, ResourceUsage
from mainspring.store.base import HostUsage

pytestmark = pytest.mark.anyio
GB = 1_000_000_000
CALM = ResourceUsage(
    cpu_usage=0.1, own_cpu_usage=0.1, memory_bytes=1 * GB, own_memory_bytes=0, storage_bytes=0, network_bytes=0,
    cpu_limit=2.0, memory_limit_bytes=10 * GB, storage_limit_bytes=GB, max_cpu_usage=0.8, max_memory_bytes=9 * GB,
    max_storage_bytes=GB,
)  # fmt: skip


class Gauge(ResourceMonitor):
    """Shows what a test says."""

    def __init__(self) -> None:
        self.limits = SchedulerConfig()
        self.usage = CALM

    def sample(self) -> ResourceUsage:
        return self.usage

    def show(self, **figures: float) -> None:
        self.usage = msgspec.structs.replace(CALM, **figures)


def watched(path: Path) -> tuple[Engine, Gauge]:
    engine, gauge = engine_on(path), Gauge()
    engine.manager._high_water._monitor = engine.manager.reservations._monitor = gauge
    return engine, gauge


async def test_full_memory_holds_back_what_is_new(tmp_path: Path) -> None:
    """In each lane, and in batches; with the figures in any process; until so much less is in use."""
    engine, gauge = watched(tmp_path / "work.db")
    go, started = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    @engine.task
    async def holds() -> str:
        started.set()
        await go.wait()
        return "done"

    @engine.task
    async def loop() -> None:
        ran.append("loop")

    @engine.task
    def thread() -> None:
        ran.append("thread")

    @engine.task(batch=Batch(max_size=3))
    async def joint(items: list[int]) -> list[int]:
        ran.append("joint")
        return items

    async with engine, engine_on(tmp_path / "work.db", worker=False) as looker:
        running = await engine.submit(holds)
        await started.wait()
        gauge.show(memory_bytes=9 * GB + GB // 100)
        await until(lambda: engine.manager._high_water.why is not None)
        waiting = [await engine.submit(loop), await engine.submit(thread), *await engine.map(joint, range(2))]
        worker = engine.manager.store.worker_id
        why = "memory in use is 9.01 GB, above max_memory_bytes = 9.00 GB; it goes on at 8.55 GB."
        for handle in waiting:
            await says(looker.handle(handle.id), f"It is ready, and worker {worker} starts nothing new: {why}")
            await shows(handle, reason="resources")
        go.set()
        assert await value(running) == "done"
        gauge.show(memory_bytes=int(8.7 * GB))
        await says(
            waiting[0], "memory in use is 8.7 GB, after it was above max_memory_bytes = 9.0 GB; it goes on at 8.6"
        )
        assert ran == []
        gauge.show(memory_bytes=int(8.5 * GB))
        await engine.gather(waiting)
        assert sorted(ran) == ["joint", "loop", "thread"]


async def test_what_can_never_run_does_not_wait_for_room(tmp_path: Path) -> None:
    """Of a worker that starts nothing new, which has met no such task, it is known all the same what it has in all."""
    engine, gauge = watched(tmp_path / "work.db")

    @engine.task(resources=Resources(gpu=1))
    async def draw() -> None: ...

    @engine.task
    async def small() -> None: ...

    async with engine, engine_on(tmp_path / "work.db", worker=False) as looker:
        gauge.show(memory_bytes=10 * GB)
        await until(lambda: engine.manager._high_water.why is not None)
        worker = engine.manager.store.worker_id
        large = await engine.submit(small, resources=Resources(memory=20 * GB))
        drawn, fits = await engine.submit(draw), await engine.submit(small)
        never = f"It can't run on any living worker: on {worker} it needs"
        for handle, more in ((drawn, "1 gpu, more than the 0 gpu"), (large, "20.0 GB, more than the 9.0 GB")):
            for looking in (handle, looker.handle(handle.id)):
                await says(looking, f"{never} {more} that there is")
        await says(fits, f"worker {worker} starts nothing new: memory in use is 10.0 GB")
        gauge.show()
        await value(fits)
        await says(looker.handle(drawn.id), f"{never} 1 gpu, more than the 0 gpu that there is")


async def test_what_was_claimed_ahead_is_handed_back(tmp_path: Path) -> None:
    """It waits in the store, for other workers too, and is charged nothing."""
    engine, gauge = watched(tmp_path / "work.db")
    go = asyncio.Event()

    @engine.task(retry=0)
    async def work(n: int) -> int:
        await go.wait()
        return n

    async with engine:
        desk = engine.manager._desks["async"]
        handles = await engine.map(work, range(100))
        await until(lambda: len(desk.running) == 64)
        for _ in range(12):  # more often than what is handed back by a drain may be
            gauge.show(memory_bytes=10 * GB)
            await until(lambda: desk.port.limit < 0)
            gauge.show()
            await until(lambda: desk.port.limit > 0)
        gauge.show(memory_bytes=10 * GB)
        await until(lambda: desk.port.limit < 0)
        go.set()
        await engine.gather(handles[:64])
        await says(handles[-1], "starts nothing new")
        assert (await engine.manager.stats())["pending"] == 36
        gauge.show()
        assert await engine.gather(handles) == [*range(100)]


async def test_strangers_on_the_cpu(tmp_path: Path) -> None:
    """Load that the engine's own processes make on this host, here or in other workers, holds nothing back."""
    engine, gauge = watched(tmp_path / "work.db")

    @engine.task
    async def work() -> str:
        return "done"

    async with engine:
        gauge.show(cpu_usage=1.0, own_cpu_usage=0.9)
        assert await value(await engine.submit(work)) == "done"
        assert engine.manager._high_water.why is None
        gauge.show(cpu_usage=1.0, own_cpu_usage=0.1)
        await until(lambda: engine.manager._high_water.why is not None)
        handle = await engine.submit(work)
        await says(handle, "others use 90% of 2 cores, above max_cpu_usage = 80%; it goes on at 76%.")
        gauge.show(cpu_usage=0.88, own_cpu_usage=0.1)
        await says(handle, "others use 78% of 2 cores, after it was above max_cpu_usage = 80%; it goes on at 76%.")
        other, beside = watched(tmp_path / "work.db")
        other.scheduler._manager.store.tell_usage(lambda: msgspec.json.encode(beside.usage).decode())
        async with other:
            other.manager._high_water._monitor = beside
            beside.show(cpu_usage=0.88, own_cpu_usage=0.5)
            assert await value(handle) == "done"


class Told:
    """A store in which another worker on this host has told of its load, and the time there."""

    worker_id = "me"
    ms = 1_000_000

    def __init__(self, **figures: float) -> None:
        told = msgspec.json.encode(msgspec.structs.replace(CALM, **figures)).decode()
        self.told = [HostUsage("other", SYSTEM.host(), -5_000_000, told)]  # its clock is another one

    def now_ms(self) -> int:
        return self.ms

    async def usages(self) -> list[HostUsage]:
        return self.told


def judges(store: Told) -> HighWater:
    gauge = Gauge()
    gauge.show(cpu_usage=1.0, own_cpu_usage=0.1)
    return HighWater(gauge, store, SYSTEM)  # type: ignore[arg-type]


async def test_workers_under_another_limit() -> None:
    """All that is in use of a fifth of a core is not all that is in use of two."""
    for limits in ({"cpu_limit": 0.2}, {"memory_limit_bytes": GB}):
        high_water = judges(Told(own_cpu_usage=0.98, **limits))
        assert await high_water.look()
        assert high_water.why is not None
        assert high_water.why.startswith("others use 90% of 2 cores")
    assert not await judges(Told(own_cpu_usage=0.98)).look()


async def test_a_worker_that_was_stopped() -> None:
    """What it has told is its load for as long as it speaks: what strangers take then is theirs again."""
    store = Told(own_cpu_usage=0.98)
    high_water = judges(store)
    for _ in range(SILENT_MS // 1000):
        assert not await high_water.look()
        store.ms += 1000
    assert await high_water.look()
    store.told = [store.told[0]._replace(at_ms=-4_000_000)]
    store.ms += 1000
    assert await high_water.look(), "it goes on"
    assert high_water.why is None


async def test_a_drain_while_the_machine_is_full(tmp_path: Path) -> None:
    """Stopping does not wait for room, and nothing begins in it."""
    engine, gauge = watched(tmp_path / "work.db")

    @engine.task
    async def work() -> None: ...

    async with engine:
        gauge.show(memory_bytes=10 * GB)
        await until(lambda: engine.manager._high_water.why is not None)
        handle = await engine.submit(work)
        gauge.show()
    async with engine_on(tmp_path / "work.db", worker=False) as looker:
        assert (await looker.handle(handle.id).info()).attempts == ()


async def test_a_machine_that_is_full_from_the_start(tmp_path: Path) -> None:
    """It is looked at before the first claim: nothing of what waits begins."""
    ran: list[int] = []

    def made() -> tuple[Engine, Gauge]:
        engine, gauge = watched(tmp_path / "work.db")

        @engine.task
        async def work(n: int) -> int:
            ran.append(n)
            return n

        return engine, gauge

    engine, gauge = made()
    async with engine:
        await engine.manager.pause()
        handles = await engine.map(engine.executor.handlers["custom:work"].function, range(100))
    engine, gauge = made()
    gauge.show(memory_bytes=10 * GB)
    async with engine:
        await engine.manager.resume()
        await says(engine.handle(handles[0].id), "starts nothing new")
        assert (ran, engine.manager._desks["async"].port.taken) == ([], 0)
        gauge.show()
        assert await engine.gather([engine.handle(handle.id) for handle in handles]) == [*range(100)]


async def test_who_comes_while_the_machine_is_full(tmp_path: Path) -> None:
    """A type whose tasks run together and that is declared meanwhile takes none either."""
    engine, gauge = watched(tmp_path / "work.db")
    gauge.show(memory_bytes=10 * GB)
    async with engine:

        @engine.task(batch=Batch(max_size=3))
        async def joint(items: list[int]) -> list[int]:
            return items

        handle = await engine.submit(joint, 1)
        await says(handle, "starts nothing new")
        assert engine.manager._desks["async/custom:joint"].port.taken == 0
        gauge.show()
        assert await value(handle) == 1


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_while_the_machine_cant_be_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Out of descriptors: tasks are taken, also those that reserve memory, and whoever asks gets the last figures."""
    engine = engine_on(tmp_path / "work.db")
    engine.monitor._interval_s = 0.0  # each look is a real one

    @engine.task(resources=Resources(memory=1 << 20), retry=0)
    async def large(n: int) -> int:
        return n

    async with engine:
        assert await value(await engine.submit(large, 0)) == 0
        with no_descriptors(), caplog.at_level(logging.WARNING):
            await until(lambda: engine.monitor.as_seen() != "")
            assert await engine.gather(await engine.map(large, range(20))) == [*range(20)]
        await until(lambda: engine.monitor.as_seen() == "")
    assert caplog.text.count("can't be seen now") == 1
    assert "Traceback" not in caplog.text


async def test_whoever_asks_meanwhile_gets_the_last_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is watched is gone: admission, the overview and metrics go on."""
    engine = engine_on(tmp_path / "work.db")
    engine.monitor._interval_s = 0.0

    @engine.task
    async def work(n: int) -> int:
        return n

    def gone(_folder: Path) -> None:
        raise FileNotFoundError("it is gone")

    async with engine:
        monkeypatch.setattr(shutil, "disk_usage", gone)
        await until(lambda: engine.monitor.as_seen() != "")
        id = await engine.scheduler.schedule_task(engine.build(work, (7,), {}))
        assert await value(engine.handle(id)) == 7
        assert (await overview(engine)).hosts
        assert b"mainspring_host_memory" in await engine.metrics()


async def test_figures_of_long_ago_say_so(tmp_path: Path) -> None:
    """A mark that was passed when the machine was last seen holds, with that moment."""
    engine, gauge = watched(tmp_path / "work.db")

    @engine.task
    async def work() -> None: ...

    async with engine:
        gauge._blind_since = "12:00:00 UTC"
        gauge.show(memory_bytes=10 * GB)
        await until(lambda: engine.manager._high_water.why is not None)
        handle = await engine.submit(work)
        await says(handle, "it goes on at 8.6 GB, as seen at 12:00:00 UTC; nothing newer can be read.")
