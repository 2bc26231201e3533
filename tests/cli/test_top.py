"""`top`: one look for programs and for people, and a terminal that is given back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tests import postgres
from tests.cli.conftest import Answer, Worker, finished, started
from tests.conformance.kit import FACTORIES, OTHER, WORK, Factory, Port, new, opened, submit
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Engine
from mainspring.cli import overview, top
from mainspring.cli.lookup import when
from mainspring.cli.overview import Overview, Queue, WorkerUse
from mainspring.resources import ResourceMonitor
from mainspring.store.base import CRASHED, FAILED, RELEASED, RESERVES, TIMEOUT, HandlerRecord, Spec
from mainspring.tasks import Resources, TaskId, Usage

Run = Callable[..., Answer]


@pytest.fixture
def here(shop: Worker, call) -> Run:
    return partial(call, folder=shop.folder)


@pytest.fixture
def held(here: Run, shop: Worker) -> Iterator[str]:
    """A task that runs until it is cancelled."""
    id = here("submit", "custom:hold", json.dumps({"until": str(shop.folder / "never")})).out.strip()
    while here("ps", "--status", "running", "--json").json == []:
        pass
    yield id
    here("cancel", id)
    here("wait", id)


def test_one_look_for_programs(here: Run, shop: Worker, held: str) -> None:
    """Queues by type and reason, lanes with their slots, workers, machines."""
    later = here("submit", "custom:resize", '{"width": 1}', "--delay", "1h").out.strip()
    seen = here("top", "--json").json
    assert seen["store"] == str(shop.folder / "mainspring.db")
    assert seen["tasks"]["running"] == 1
    hold = next(queue for queue in seen["queues"] if queue["type"] == "custom:hold")
    assert (hold["lane"], hold["unfinished"], hold["running"], hold["waiting"]) == ("async", 1, 1, {})
    resize = next(queue for queue in seen["queues"] if queue["type"] == "custom:resize")
    assert (resize["waiting"], resize["more"], resize["is_served"]) == ({"delayed": 1}, [], True)
    (worker,) = seen["workers"]
    assert (worker["name"], worker["pid"], worker["running"]) == (shop.ready["worker"], shop.ready["pid"], 1)
    assert {lane["name"] for lane in seen["lanes"]} >= {"async", "thread", "process"}
    assert all(queue["batch"] in (None, 1.0) for queue in seen["queues"])
    assert all(lane["slots"] == worker["slots"][lane["name"]] > 0 for lane in seen["lanes"])
    assert seen["hosts"][0]["usage"]["memory_limit_bytes"] > 0
    here("cancel", later)


def test_a_list_tells_what_a_ready_task_waits_for(here: Run, shop: Worker) -> None:
    """As `why` does."""
    here("pause", "--type", "custom:resize")
    id = here("submit", "custom:resize", '{"width": 1}').out.strip()
    (listed,) = (task for task in here("ps", "--json").json if task["id"] == id)
    assert listed["reason"] == "paused"
    here("cancel", id)
    here("resume", "--type", "custom:resize")


def test_one_look_for_people(here: Run, shop: Worker, held: str) -> None:
    """The same in tables; without a terminal it has to be asked for."""
    shown = here("top", "--once")
    assert shown.code == 0
    for words in ("custom:hold", "unfinished", "slots", shop.ready["worker"], "cores", "running"):
        assert words in shown.out
    wrong = here("top")
    assert (wrong.code, "add --once" in wrong.err) == (2, True)
    assert here("top", "--once", "--interval", "1ms").code == 2


def read_until(ours: int, wanted: bytes, seen: bytes = b"") -> bytes:
    limit = time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < limit, seen[-2000:]
        seen += os.read(ours, 65_536)
    return seen


def test_a_terminal_is_watched_and_given_back(here: Run, shop: Worker, held: str) -> None:
    """It shows what comes while it looks; Ctrl-C leaves the screen, the cursor and the settings as they were."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 160))
    before = termios.tcgetattr(theirs)
    watching = started(
        "top", "--interval", "100ms", folder=shop.folder, stdout=theirs, environment={"TERM": "xterm-256color"}
    )
    seen = read_until(ours, b"custom:hold")
    assert b"\x1b[?1049h" in seen, "it has a screen of its own"
    later = here("submit", "custom:resize", '{"width": 1}', "--delay", "1h").out.strip()
    seen = read_until(ours, b"1 delayed", seen)
    here("cancel", later)
    watching.send_signal(signal.SIGINT)
    while watching.poll() is None:
        os.set_blocking(ours, False)
        with suppress(BlockingIOError):
            seen += os.read(ours, 65_536)
    with suppress(BlockingIOError):
        seen += os.read(ours, 65_536)
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)
    answer = finished(watching)
    assert (answer.code, "Traceback" in answer.err) == (130, False)
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"custom:hold")
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


@pytest.mark.anyio
async def test_what_was_seen_stays_in_an_outage(tmp_path: Any) -> None:
    """While the store can't be read the first line says why, and the rest is as it was."""
    engine = engine_on(tmp_path / "work.db", worker=False)
    async with engine:
        seen = await top._frame(engine, [])
    again = await top._frame(engine, seen)
    assert again[1:] == seen[1:]
    assert "can't be read: the store is closed" in str(again[0])


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_numbers_are_never_cut(width: int) -> None:
    """What there is no room for goes as a whole, its header too; long text is cut so that the line fits."""
    queue = Queue(
        type="custom:a_rather_long_name_of_a_handler", lane="process", unfinished=1_234_567, running=128,
        waiting={"ready": 1_234_000, "claimed": 439}, more=(), never=0, is_served=True, paused="", ended_per_s=12_345.0,
        failed_per_s=77.0, calls_per_s=1_000.0, mean_s=0.0123, batch=12.3,
    )  # fmt: skip
    seen = Overview(at=when(0), tasks={}, queues=(queue,), lanes=(), workers=(), hosts=(), pauses=(), rates_of_s=10.0)
    to = Console(file=io.StringIO(), width=width)
    to.print(top._queues(seen))
    head, line = to.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(one.rstrip()) <= width for one in (head, line))
    assert "1,234,567" in line
    names = head.split()
    assert set(names) <= {"type", "lane", *top._QUEUE_NUMBERS, "waiting"}
    assert ("running" in names, "128 " in line) in ((True, True), (False, False))
    assert ("ended/s" in names) == ("12,345 " in line)
    assert ("batch" in names) == (width == 120), "least important"
    assert width < 60 or {"type", "unfinished", "running", "waiting"} <= set(names)


# What is read


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Factory]:
    made: Factory = FACTORIES[request.param](tmp_path)
    yield made
    made.drop()


@pytest.fixture
async def store(factory: Factory) -> AsyncIterator[Any]:
    async with opened(factory.make()) as store:
        yield store


async def look(store: Any) -> Overview:
    own, now_ms = ResourceMonitor().sample(), store.now_ms()
    return await store.view(lambda view: overview._look(view, now_ms, own))  # type: ignore[no-any-return]


def queue_of(seen: Overview, kind: str) -> Queue:
    return next(queue for queue in seen.queues if queue.type == kind)


async def served(store: Any) -> Port:
    port = Port(store)
    await port.serve()
    await store.register([WORK], [HandlerRecord(WORK, "1", "async", "{}", "{}", "")], {"async": 4})
    return port


@pytest.mark.anyio
async def test_each_reason_is_counted(store: Any) -> None:
    """Of a type each reason that the store records; what nobody serves and what is paused is told."""
    port = await served(store)
    first, second, _ = await submit(store, new(), new(), new())
    claims = await port.room(2)
    store.started(claims[0], store.now_ms())
    later = store.now_ms() + 10_000
    await submit(store, new(after=[first]), new(after=[second]), new(not_before_ms=later), new(type=OTHER))
    await store.pause(type=WORK, group="g")
    seen = await look(store)
    queue = queue_of(seen, WORK)
    assert (queue.unfinished, queue.running, queue.more) == (6, 1, ())
    assert queue.waiting == {"claimed": 1, "delayed": 1, "parents": 2, "ready": 1}
    assert (queue.lane, queue.is_served, queue.paused) == ("async", True, f"type {WORK}, group g")
    other = queue_of(seen, OTHER)
    assert (other.waiting, other.is_served, other.paused) == ({"ready": 1}, False, "")
    (worker,) = seen.workers
    assert (worker.running, worker.claimed, worker.slots) == (1, 1, {"async": 4})
    (lane,) = seen.lanes
    assert (lane.name, lane.slots, lane.running) == ("async", 4, 1)
    assert [host.works for host in seen.hosts] == [False], "no worker has told of its machine"


@pytest.mark.anyio
async def test_what_limits_and_resources_keep_is_told(store: Any) -> None:
    """Not as ready or claimed: slots are free for them."""
    port = await served(store)
    await store.limit("g", concurrency=1)
    await store.limit("g", namespace="n", concurrency=1)
    await submit(store, *(new(group="g") for _ in range(3)), new(group="g", type=OTHER), new(group="g", namespace="n"))
    await port.take()
    (parked,) = await submit(store, new(priority=3))
    assert (await port.take()).id == parked
    seen = await look(store)
    assert queue_of(seen, WORK).waiting == {"claimed": 2, "limit": 3}
    assert queue_of(seen, OTHER).waiting == {"limit": 1}
    await submit(store, new())
    await told(store, {"waits": {str(TaskId(parked)): "needs 1 gpu"}})
    assert queue_of(await look(store), WORK).waiting == {"claimed": 1, "limit": 3, "ready": 1, "resources": 1}
    await told(store, {"withheld": {WORK: 16}})
    assert queue_of(await look(store), WORK).waiting == {"claimed": 2, "limit": 3, "resources": 1}


@pytest.mark.anyio
async def test_what_fits_nowhere_is_told_apart(factory: Factory, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it is looked at; a worker that has enough, or has met none of them yet, may take them."""
    await served(store)
    five = msgspec.msgpack.encode(Spec(resources=Resources(cpu=0, custom={"seat": 5})))
    await submit(
        store, *(new(spec=five, flags=RESERVES, group=group) for group in ("", "", "a")), new(), new(type=OTHER)
    )
    queue = queue_of(await look(store), WORK)
    assert (queue.waiting, queue.never) == ({"ready": 4}, 0)
    await told(store, {"passes": {"has": {"seat": 2.0}, "types": {WORK: {}}}})
    seen = await look(store)
    queue = queue_of(seen, WORK)
    assert (queue.waiting, queue.never, queue.more) == ({"ready": 1, "resources": 3}, 3, ())
    assert "3 never fit here" in top._notes(queue)
    assert queue_of(seen, OTHER).never == 0
    monkeypatch.setattr(overview, "_WEIGHED", 2)
    queue = queue_of(await look(store), WORK)
    assert (queue.never, queue.more) == (3, ("never",))
    assert ">3 never fit here" in top._notes(queue)
    async with opened(factory.make()) as beside:
        await served(beside)
        assert queue_of(await look(store), WORK).never == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("offer", "said"),
    [
        ({"closed": "memory is full"}, "starts nothing new: memory is full"),
        (
            {"alone": {"task": "t", "why": "was short of memory", "lanes": []}},
            "starts nothing new: task t was short of memory and runs alone",
        ),
    ],
)
async def test_a_worker_that_starts_nothing_is_told(store: Any, offer: dict[str, Any], said: str) -> None:
    """What is ready waits for it, and why is told with the worker; one that keeps another lane keeps none of it."""
    await served(store)
    await submit(store, new(), new())
    await told(store, offer)
    seen = await look(store)
    assert queue_of(seen, WORK).waiting == {"resources": 2}
    assert [worker.starts_nothing for worker in seen.workers] == [said]
    screen = Console(file=io.StringIO(), width=200)
    screen.print(*top._drawn("here", seen), sep="\n")
    assert said in screen.file.getvalue()  # type: ignore[attr-defined]
    await told(store, {"alone": {"task": "t", "why": "is large", "lanes": ["thread"]}})
    assert queue_of(await look(store), WORK).waiting == {"ready": 2}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_is_reserved_is_told(kind: str, tmp_path: Path) -> None:
    """By each worker, of what it has in all; of one that does not tell nothing is shown."""
    where = tmp_path / "work.db" if kind == "sqlite" else postgres.address_of(tmp_path)
    go = asyncio.Event()
    worker = engine_on(where, cpu_capacity=4, memory_capacity=8_000_000, custom_capacity={"seat": 3})

    @worker.task(resources=Resources(cpu=0.5, memory=2_000_000, custom={"seat": 1}))
    async def dine() -> None:
        await go.wait()

    async def seen(engine: Engine, custom: float | None) -> WorkerUse:
        async with asyncio.timeout(LIMIT_S):
            while True:
                (one,) = (await overview.overview(engine)).workers
                reserved = None if one.resources is None else one.resources["seat"]["reserved"]
                if reserved == custom:
                    return one
                await asyncio.sleep(0.02)

    try:
        async with engine_on(where, worker=False) as looker, worker:
            assert list(top._reserved(await seen(looker, 0.0))) == []
            handles = [await worker.submit(dine) for _ in range(2)]
            one = await seen(looker, 2.0)
            assert one.resources is not None
            assert one.resources["cpu"] == {"reserved": 1.0, "capacity": 4.0}
            assert "gpu" not in one.resources
            assert list(top._reserved(one)) == ["1 core of 4 cores", "4.0 MB of 8.0 MB", "2 seat of 3 seat"]
            go.set()
            await worker.gather(handles)
            await seen(looker, 0.0)
    finally:
        if kind == "postgres":
            postgres.drop(postgres.schema_of(tmp_path))


@pytest.mark.anyio
async def test_a_worker_that_does_not_tell_what_is_reserved(store: Any) -> None:
    """One of an older version, or that has just begun."""
    await served(store)
    (worker,) = (await look(store)).workers
    assert (worker.resources, list(top._reserved(worker))) == (None, [])
    figures = msgspec.json.encode(ResourceMonitor().sample()).decode()
    store.tell_usage(lambda: figures)
    async with asyncio.timeout(LIMIT_S):
        while not (await look(store)).hosts[0].works:  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.02)
    (worker,) = (await look(store)).workers
    assert worker.resources is None


@pytest.mark.anyio
async def test_what_is_paused_is_told_where_it_is(store: Any) -> None:
    """A pause of a group or namespace with the types that have tasks there; those tasks are paused and not ready."""
    await served(store)
    await submit(store, new(group="g"), new(), new(type=OTHER), new(type=OTHER, namespace="n"))
    await store.pause(group="g")
    seen = await look(store)
    assert (queue_of(seen, WORK).paused, queue_of(seen, OTHER).paused) == ("group g", "")
    assert queue_of(seen, WORK).waiting == {"paused": 1, "ready": 1}
    assert queue_of(seen, OTHER).waiting == {"ready": 2}
    await store.pause(namespace="n")
    seen = await look(store)
    assert (queue_of(seen, WORK).paused, queue_of(seen, OTHER).paused) == ("group g", "namespace n")
    assert queue_of(seen, OTHER).waiting == {"paused": 1, "ready": 1}


async def told(store: Any, offer: dict[str, Any]) -> None:
    """It is kept soon, not at once."""
    store.offer(json.dumps(offer).encode())
    async with asyncio.timeout(LIMIT_S):
        while await offers(store) != [offer]:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.005)


async def offers(store: Any) -> list[Any]:
    rows = await store.view(lambda view: view.rows("offers"))
    return [json.loads(state) for _, state in rows]


@pytest.mark.anyio
async def test_many_are_said_to_be_more(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted beyond the limit. What is ready is the rest where all else is counted, else counted itself."""
    monkeypatch.setattr(overview, "COUNTED", 3)
    await served(store)
    later = store.now_ms() + 10_000
    await submit(store, *(new() for _ in range(5)))
    await submit(store, *(new(not_before_ms=later) for _ in range(2)))
    queue = queue_of(await look(store), WORK)
    assert (queue.waiting, queue.more) == ({"delayed": 2, "ready": 5}, ())
    await submit(store, *(new(not_before_ms=later) for _ in range(2)))
    queue = queue_of(await look(store), WORK)
    assert (queue.unfinished, queue.waiting, queue.more) == (9, {"delayed": 3, "ready": 3}, ("delayed", "ready"))


@pytest.mark.anyio
async def test_rates_are_those_of_the_last_seconds(factory: Factory, store: Any) -> None:
    """Attempts and calls by type, failures among them, and how many slots they took."""
    port = await served(store)
    await submit(store, *(new() for _ in range(10)))
    for claim in await port.room(1):
        await port.finish(claim, usage=Usage(1.0), started_ms=store.now_ms())
    factory.clock.advance(11)
    for claim in await port.room(4):
        await port.finish(claim, usage=Usage(2.0, batch_size=4), started_ms=store.now_ms())
    for outcome, claim in zip((FAILED, TIMEOUT, CRASHED, RELEASED), await port.room(4), strict=True):
        await port.finish(claim, outcome, usage=Usage(3.0), started_ms=store.now_ms(), error=b"\x80")
    seen = await look(store)
    queue = queue_of(seen, WORK)
    assert (queue.ended_per_s, queue.failed_per_s, queue.calls_per_s) == (0.8, 0.3, 0.5), (
        "what is handed back is no failure"
    )
    assert (queue.batch, queue.mean_s) == (1.6, 2.8)
    (lane,) = seen.lanes
    assert (lane.busy, lane.ended_per_s) == (1.4, 0.8)


@pytest.mark.anyio
async def test_slots_are_taken_by_what_runs_and_by_what_ran_within_the_time(factory: Factory, store: Any) -> None:
    """Of a long attempt only what lies within the last seconds counts, while it runs and when it has ended. More slots
    than there are were never taken, however long what runs has been ready."""
    port = await served(store)
    await submit(store, *(new() for _ in range(8)))
    began_ms, claims = store.now_ms(), await port.room(4)
    for claim in claims:
        store.started(claim, began_ms)
    await port.settle()
    factory.clock.advance(4)
    assert busy_of(await look(store)) == pytest.approx(1.6)
    factory.clock.advance(26)
    assert busy_of(await look(store)) == 4.0
    for claim in claims:
        await port.finish(claim, usage=Usage(30.0), started_ms=began_ms)
    seen = await look(store)
    assert (busy_of(seen), queue_of(seen, WORK).mean_s) == (4.0, 30.0)
    factory.clock.advance(5)
    assert busy_of(await look(store)) == pytest.approx(2.0)
    for claim in await port.room(4):
        store.started(claim, store.now_ms())
    await port.settle()
    assert busy_of(await look(store)) == 4.0


def busy_of(seen: overview.Overview) -> float:
    (lane,) = seen.lanes
    return lane.busy


@pytest.mark.anyio
async def test_a_flood_is_measured_by_its_newest_part(
    factory: Factory, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many attempts are looked at; the rate is of the time that they took."""
    monkeypatch.setattr(overview, "_NEWEST", 4)
    port = await served(store)
    await submit(store, *(new() for _ in range(8)))
    for claim in await port.room(8):
        factory.clock.advance(0.25)
        await port.finish(claim, usage=Usage(0.1), started_ms=store.now_ms())
    factory.clock.advance(0.25)
    seen = await look(store)
    assert (seen.rates_of_s, queue_of(seen, WORK).ended_per_s) == (1.0, 4.0)


@pytest.mark.anyio
async def test_an_idle_store(store: Any) -> None:
    """Nobody works, nothing waits."""
    seen = await look(store)
    assert (seen.queues, seen.lanes, seen.workers) == ((), (), ())
    assert seen.tasks["pending"] == 0
