"""Who may enter is judged by the hosts that work: with real processes, on both stores."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import postgres
from tests.engine.programs import PATHS, call
from tests.engine.support import LIMIT_S, engine_on, until, value

from mainspring import (
    Engine,
    EngineConfig,
    InsufficientResources,
    QueueFull,
    ResourceUsage,
    SchedulerConfig,
    StoreConfig,
    StoreUnavailable,
)
from mainspring.config import QUEUE_SIZE, TaskManagerConfig, cores
from mainspring.dispatch import neighbours
from mainspring.dispatch.neighbours import READ_MS, REPEAT_MS, SILENT_MS
from mainspring.resources.monitor import ResourceMonitor
from mainspring.scheduling.hosts import TELL_MS, Hosts, Telling, places
from mainspring.store.base import HostUsage

pytestmark = pytest.mark.anyio
MIB = 1 << 20
PROGRAM = Path(__file__).with_name("worker.py")
SPIN = "while True: pass"


class Workers:
    """Starts `worker.py` and sees to it that none is left."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self._started: list[subprocess.Popen[bytes]] = []

    async def start(self, name: str, used_mib: int | None = None, *arguments: object) -> subprocess.Popen[bytes]:
        if used_mib is not None:
            self.fill(name, used_mib)
        command = [sys.executable, str(PROGRAM), self.store, str(self.folder), name, *map(str, arguments)]
        program = self._run(command)
        await until((self.folder / f"{program.pid}.pid").exists)
        return program

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(command, env={**os.environ, **PATHS})
        self._started.append(program)
        return program

    def fill(self, name: str, used_mib: int) -> None:
        draft = self.folder / f"{name}.draft"
        draft.write_text(str(used_mib * MIB))
        draft.rename(self.folder / name)

    def spin(self) -> subprocess.Popen[bytes]:
        """Start a process that is nobody's but the test's, which runs no engine that works."""
        return self._run([sys.executable, "-c", SPIN])

    def end(self) -> None:
        for program in self._started:
            program.kill()
            program.wait(LIMIT_S)


@pytest.fixture(params=["sqlite", "postgres"])
def workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workers]:
    is_file = request.param == "sqlite"
    workers = Workers(tmp_path, str(tmp_path / "work.db") if is_file else postgres.address_of(tmp_path))
    yield workers
    workers.end()
    if not is_file:
        postgres.drop(postgres.schema_of(tmp_path))


@pytest.fixture
async def client(workers: Workers, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine that only submits, without any limit of its own, beside a program with room."""
    await workers.start("first", 100)
    config = EngineConfig(store=StoreConfig(blobs=workers.folder / "blobs"))
    async with Engine(workers.store, config, worker=False) as engine:
        await told(engine, 1)
        yield engine


async def told(engine: Engine, n: int) -> None:
    """Wait until so many processes have told of their machines."""

    async def is_told() -> bool:
        return len(await engine.manager.store.usages()) == n

    await eventually(is_told)


async def stored(engine: Engine) -> int:
    """Count the tasks that there are, ended or not."""
    return sum((await engine.manager.stats())["types"]["custom:step"].values())


async def eventually(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await done():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.02)


async def refusal(engine: Engine) -> InsufficientResources:
    """Schedule until it is refused."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await engine.scheduler.schedule_task(call("step", n=1))
            except InsufficientResources as exc:
                return exc
            await asyncio.sleep(0.02)


async def acceptance(engine: Engine) -> Any:
    """Schedule until it is taken, and return the value: when to come back is what the refusal says."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await value(engine.handle(await engine.scheduler.schedule_task(call("step", n=1))))
            except InsufficientResources as exc:
                await asyncio.sleep(exc.retry_after or 0)


async def test_the_host_that_works_decides(client: Engine, workers: Workers) -> None:
    """Who only submits obeys the limits and the figures of the process that works, and only in `schedule_task`."""
    assert await acceptance(client) == 2
    workers.fill("first", 1000)
    wrong = await refusal(client)
    assert "no host has room: first: memory in use by others is" in str(wrong)
    assert "above max_memory_bytes = 734.0 MB" in str(wrong)
    before = await stored(client)
    accepted = await client.submit(call("step", n=1))
    workers.fill("first", 100)
    await value(accepted)  # it waited for room there
    assert await stored(client) == before + 1  # the refused one was not
    assert await acceptance(client) == 2


async def test_one_host_with_room_is_enough(client: Engine, workers: Workers) -> None:
    """A full one beside it does not count; when the one with room is gone, however it went, it does."""
    workers.fill("first", 1000)
    await refusal(client)
    second = await workers.start("second", 100)
    await told(client, 2)
    assert await acceptance(client) == 2
    second.kill()
    assert "first: memory in use by others" in str(await refusal(client))
    await told(client, 1)


async def test_where_nobody_works_this_host_decides(client: Engine, workers: Workers) -> None:
    """What a process has told is gone with it: after a clean end as after a kill."""
    workers.fill("first", 1000)
    await refusal(client)
    workers._started[0].send_signal(signal.SIGTERM)
    await told(client, 0)
    await asyncio.sleep((await refusal_or_none(client)) or 0)
    await client.scheduler.schedule_task(call("step", n=1))


async def refusal_or_none(engine: Engine) -> float | None:
    """Return when to come back, where the last figures still hold."""
    try:
        await engine.scheduler.schedule_task(call("step", n=1))
    except InsufficientResources as exc:
        return exc.retry_after
    return None


async def test_strangers_that_take_the_cpu(workers: Workers) -> None:
    """Processes that have nothing to do with the engine keep all cores busy: its own limit makes others back off."""
    await workers.start("machine", None, 0.5)
    config = EngineConfig(store=StoreConfig(blobs=workers.folder / "blobs"))
    async with Engine(workers.store, config, worker=False) as engine:
        for _ in range(2 * cores()):
            workers.spin()
        wrong = await refusal(engine)
    assert "machine: CPU in use by others is" in str(wrong)
    assert f"of {cores()} cores, above max_cpu_usage = 50%" in str(wrong)


# The rules, with figures that the test sets


def usage(**changed: Any) -> ResourceUsage:
    figures: dict[str, Any] = {
        "cpu_usage": 0.5, "own_cpu_usage": 0.0, "memory_bytes": 500, "own_memory_bytes": 0, "storage_bytes": 10,
        "network_bytes": None, "cpu_limit": 2.0, "memory_limit_bytes": 1000, "storage_limit_bytes": 100,
        "max_cpu_usage": None, "max_memory_bytes": 950, "max_storage_bytes": 95,
    }  # fmt: skip
    return ResourceUsage(**{**figures, **changed})


class Monitor(ResourceMonitor):
    def __init__(self, **figures: Any) -> None:
        self.figures = usage(**figures)

    def sample(self) -> ResourceUsage:
        return self.figures

    def fresh_in_s(self) -> float:
        return 0.25


class Told:
    """A store in which others have told of their machines, and the time there."""

    worker_id = "me"

    def __init__(self, *told: HostUsage) -> None:
        self.told = list(told)
        self.ms = 1_000_000
        self.reads = 0
        self.is_lost = False
        self.held: list[tuple[int | None, str]] = []

    def now_ms(self) -> int:
        return self.ms

    def hold_queue(self, size: int | None, whose: str) -> None:
        self.held.append((size, whose))

    async def usages(self) -> list[HostUsage]:
        if self.is_lost:
            raise StoreUnavailable("out of reach")
        self.reads += 1
        return self.told


def row(worker: str, host: str, at_ms: int = 0, queue_size: int | None = None, **figures: Any) -> HostUsage:
    news = neighbours.Told(**msgspec.structs.asdict(usage(**figures)), queue_size=queue_size)
    return HostUsage(worker, host, at_ms, msgspec.json.encode(news).decode())


async def refused(
    *told: HostUsage, works: bool = False, here: dict[str, Any] | None = None, **limits: Any
) -> str | None:
    hosts = Hosts(Told(*told), Monitor(**(here or {})), SchedulerConfig(**limits), "here", None)  # type: ignore[arg-type]
    try:
        await hosts.refuse_without_room(works=works)
    except InsufficientResources as exc:
        return str(exc)
    return None


FULL = {"memory_bytes": 960}


async def test_own_load_does_not_count() -> None:
    """Neither that of the process that judges, nor that of all who work in the same place, taken together."""
    assert await refused(works=True, here=FULL)
    assert await refused(works=True, here={**FULL, "own_memory_bytes": 20}) is None
    assert await refused(works=True, here={"cpu_usage": 0.9}, max_cpu_usage=0.6)
    assert await refused(works=True, here={"cpu_usage": 0.9, "own_cpu_usage": 0.4}, max_cpu_usage=0.6) is None
    parts = [row(name, "there", **FULL, own_memory_bytes=6) for name in "ab"]
    assert await refused(*parts) is None
    assert await refused(parts[0])
    assert await refused(parts[0], row("b", "elsewhere", **FULL, own_memory_bytes=6))
    assert await refused(parts[0], row("b", "there", **FULL, own_memory_bytes=6, memory_limit_bytes=961))
    together = places([("there", usage(own_cpu_usage=0.2)), ("there", usage(own_cpu_usage=0.4))])
    assert [place.usage.own_cpu_usage for place in together] == [0.5]  # no more than there is in use


async def test_the_newest_figures_of_a_place_count() -> None:
    assert await refused(row("a", "there", 2, **FULL), row("b", "there", 1)) is not None
    assert await refused(row("a", "there", 1, **FULL), row("b", "there", 2)) is None


async def test_limits_of_both_sides_hold() -> None:
    """That of who submits, where it has one, and that of the host."""
    assert await refused(row("a", "there", max_memory_bytes=499))
    assert await refused(row("a", "there"), max_memory_bytes=499)
    assert await refused(row("a", "there", max_cpu_usage=0.4))
    assert await refused(row("a", "there"), max_cpu_usage=0.4)
    assert await refused(row("a", "there", storage_bytes=96))
    assert await refused(row("a", "there", cpu_usage=None), max_cpu_usage=0.4) is None  # nothing is known yet
    assert await refused(row("a", "there"), max_memory_bytes=501, max_cpu_usage=0.6) is None


async def test_who_judges_by_what() -> None:
    """This host, where it works or nobody else does; of itself a process knows more than it has told."""
    assert await refused(row("a", "there"), here=FULL) is None
    assert await refused(row("a", "there", **FULL)) is not None
    assert await refused(row("a", "there", **FULL), works=True) is None
    assert await refused(here=FULL) is not None
    assert await refused(row("me", "here"), works=True, here=FULL) is not None
    assert await refused(row("me", "here", **FULL), works=True) is None


async def test_who_is_silent_counts_no_more() -> None:
    """A process that lives and tells nothing for long, by the clock here: whatever its own shows."""
    store = Told(row("a", "there", at_ms=-5_000_000, **FULL))
    hosts = Hosts(store, Monitor(), SchedulerConfig(), "here", None)  # type: ignore[arg-type]
    with pytest.raises(InsufficientResources) as caught:
        await hosts.refuse_without_room(works=False)
    assert caught.value.retry_after == 0.5  # when it reads again
    store.ms += 100
    with pytest.raises(InsufficientResources) as caught:
        await hosts.refuse_without_room(works=False)
    assert caught.value.retry_after == 0.4
    assert store.reads == 1
    store.ms += SILENT_MS - 200
    with pytest.raises(InsufficientResources):
        await hosts.refuse_without_room(works=False)
    store.ms += 1000
    await hosts.refuse_without_room(works=False)  # as nobody works, this host is judged
    store.told = [row("a", "there", at_ms=-4_990_000, **FULL)]
    store.ms += 1000
    with pytest.raises(InsufficientResources):
        await hosts.refuse_without_room(works=False)


def test_what_is_told_and_how_often() -> None:
    """What has changed by a step, or is reserved, a second after the last at the earliest; the rest every ten."""
    store, monitor, reserved = Told(), Monitor(), {"cpu": {"reserved": 0.0, "capacity": 2.0}}
    telling = Telling(store, monitor, lambda: {**reserved}, 7)  # type: ignore[arg-type]
    assert telling.news() is not None
    for field, figure in {"cpu_usage": 0.7, "own_cpu_usage": 0.3, "memory_bytes": 600, "own_memory_bytes": 90,
                         "storage_bytes": 20}.items():  # fmt: skip
        monitor.figures = msgspec.structs.replace(monitor.figures, **{field: figure})
        store.ms += TELL_MS - 1
        assert telling.news() is None
        store.ms += 1
        assert msgspec.json.decode(telling.news() or "", type=ResourceUsage) == monitor.figures
    reserved["cpu"] = {"reserved": 1.0, "capacity": 2.0}
    store.ms += TELL_MS
    told = msgspec.json.decode(telling.news() or "{}")
    assert (told["resources"], told["queue_size"]) == (reserved, 7)
    monitor.figures = msgspec.structs.replace(monitor.figures, cpu_usage=0.72, memory_bytes=604)
    store.ms += REPEAT_MS - 1
    assert telling.news() is None
    store.ms += 1
    assert telling.news() is not None


async def test_who_only_submits_tells_nothing(tmp_path: Path) -> None:
    """Nor does one that has stopped to work: the row goes with the worker."""
    path = tmp_path / "work.db"
    async with engine_on(path, worker=False) as looking:
        async with engine_on(path):
            await told(looking, 1)
        await told(looking, 0)
        ticks = looking.manager.store._caretaker._ticks  # type: ignore[attr-defined]
        await until(lambda: looking.manager.store._caretaker._ticks > ticks + 2)  # type: ignore[attr-defined]
        assert await looking.manager.store.usages() == []


async def test_the_disk_of_those_who_work_counts_for_every_submit(workers: Workers) -> None:
    """Whichever way tasks come in: where no disk of a host that works has room, none enters, and those who wait for
    room get in when one has."""
    config = EngineConfig(store=StoreConfig(blobs=workers.folder / "blobs"))
    full = msgspec.structs.replace(config, scheduler=SchedulerConfig(max_storage_bytes=1))
    async with Engine(workers.store, config, worker=False) as engine:

        @engine.task
        async def step(n: int) -> int:
            return n + 1

        ways = (
            lambda **more: engine.submit(call("step", n=1), **more),
            lambda **more: engine.submit_all([call("step", n=1)], **more),
            lambda **more: engine.map(step, [1], **more),
        )
        async with Engine(workers.store, full):
            await told(engine, 1)
            for way in ways:
                with pytest.raises(
                    InsufficientResources, match=r"no host has room: .*above max_storage_bytes"
                ) as caught:
                    await way(wait_for_room=0)
                assert caught.value.retry_after is not None
                assert caught.value.retry_after <= READ_MS / 1000
            waiting = [asyncio.ensure_future(way(wait_for_room=LIMIT_S)) for way in ways]
            await asyncio.sleep(0)
            assert (await engine.manager.stats())["types"] == {}
            await workers.start("roomy", 100)
            await asyncio.gather(*waiting)


async def test_disks_are_looked_at_twice_a_second() -> None:
    """However often somebody submits, and not by one who works; in an outage what was seen last holds."""
    store = Told(row("a", "there", storage_bytes=96))
    hosts = Hosts(store, Monitor(), SchedulerConfig(), "here", None)  # type: ignore[arg-type]
    for _ in range(3):
        await asyncio.gather(hosts.look(works=False), hosts.look(works=False))
        with pytest.raises(InsufficientResources, match="there: storage in use") as caught:
            hosts.refuse_without_storage()
    assert store.reads == 1
    assert caught.value.retry_after == READ_MS / 1000
    store.ms += READ_MS
    store.is_lost = True
    await hosts.look(works=False)
    with pytest.raises(InsufficientResources):
        hosts.refuse_without_storage()
    store.is_lost = False
    store.told.append(row("b", "elsewhere"))
    await hosts.look(works=False)
    hosts.refuse_without_storage()
    assert hosts.look_due_ms == store.ms + READ_MS
    await hosts.look(works=True)
    assert hosts.look_due_ms == float("inf")


@pytest.mark.parametrize(
    ("own", "told", "held"),
    [
        (QUEUE_SIZE, [5], 5),
        (QUEUE_SIZE, [5, 9], 9),
        (QUEUE_SIZE, [5, None], None),
        (QUEUE_SIZE, [5, 2 * QUEUE_SIZE], None),
        (QUEUE_SIZE, [], None),
        (4, [5], None),
        (200_000, [5], None),
        (None, [5], None),
    ],
)
async def test_how_long_the_queue_may_be_is_told(own: int | None, told: list[int | None], held: int | None) -> None:
    """Where nothing was said here: as long as one of those who work allows, and again as ever when they are gone."""
    store = Told(*(row(str(n), "there", queue_size=size) for n, size in enumerate(told)))
    hosts = Hosts(store, Monitor(), SchedulerConfig(), "here", own)  # type: ignore[arg-type]
    await hosts.look(works=False)
    assert store.held == ([] if held is None else [(held, "those who work")])
    store.told.clear()
    store.ms += READ_MS
    await hosts.look(works=False)
    assert store.held[1:] == ([] if held is None else [(own, "this process")])


async def test_who_begins_to_work_holds_its_own_limit() -> None:
    store = Told(row("a", "there", queue_size=5))
    hosts = Hosts(store, Monitor(), SchedulerConfig(), "here", QUEUE_SIZE)  # type: ignore[arg-type]
    await hosts.look(works=False)
    await hosts.look(works=True)
    assert store.held == [(5, "those who work"), (QUEUE_SIZE, "this process")]


async def step(n: int) -> int:
    return n + 1


async def test_a_queue_that_those_who_work_hold_short(workers: Workers) -> None:
    """Whichever way tasks come in from a process that says nothing itself; who waits gets in when there is room."""
    blobs = StoreConfig(blobs=workers.folder / "blobs")
    short = EngineConfig(store=blobs, manager=TaskManagerConfig(queue_size=3))
    async with Engine(workers.store, short) as worker, Engine(
        workers.store, EngineConfig(store=blobs), worker=False
    ) as engine, Engine(
        workers.store, EngineConfig(store=blobs, manager=TaskManagerConfig(queue_size=4)), worker=False
    ) as longer:  # fmt: skip
        await worker.manager.pause()
        engine.task(step)
        longer.task(step)
        await told(engine, 1)
        handles = await engine.map(step, range(3))
        says = "4 tasks would be unfinished, whoever submitted them, more than queue_size = 3 of those who work"
        for refused in (
            lambda: engine.submit(step, 3),
            lambda: engine.submit_all([engine.build(step, (3,), {})]),
            lambda: engine.map(step, [3], wait_for_room=0),
        ):
            with pytest.raises(QueueFull, match=says):
                await refused()
        more = await longer.submit(step, 3)
        with pytest.raises(QueueFull, match="queue_size = 4 of this process"):
            await longer.submit(step, 4)
        waiting = asyncio.ensure_future(engine.submit(step, 5, wait_for_room=LIMIT_S))
        for handle in (more, handles[0]):
            await handle.cancel()
        await waiting
