"""Where the store has no room: refusals, waiting for room, and bulk submits that go on as room appears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.engine.programs import Programs, call, serves
from tests.engine.support import LIMIT_S, engine_on, quick, until, value

from mainspring import (
    Engine,
    InsufficientResources,
    InvalidInput,
    PartlySubmitted,
    ProcessingFailed,
    QueueFull,
    StoreConfig,
    StoreUnavailable,
)
from mainspring.dispatch import room as rooms
from mainspring.dispatch.room import Room
from mainspring.engine.bulk import Bulk
from mainspring.environment import SYSTEM
from mainspring.errors import SubmitIndeterminate
from mainspring.store.base import Behind, Line

pytestmark = pytest.mark.anyio
NEVER = 3600.0
"""Between two safety looks: whoever waits is woken, or not at all."""
RETRY_S = 30
"""What a refusal asks for where nothing was seen to end, at the most."""


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """Ten tasks fit in, one runs at a time; nothing is done at intervals."""
    engine = engine_on(queue_size=10, async_slots=1, processing_interval=NEVER)

    @engine.task
    async def step(n: int) -> int:
        ran(engine).append(n)
        return n + 1

    async with engine:
        yield engine


def ran(engine: Engine) -> list[int]:
    found: list[int] = vars(engine).setdefault("ran", [])
    return found


def step(engine: Engine) -> Any:
    return engine.executor.handlers["custom:step"].function


async def stored(engine: Engine, n: int) -> None:
    """Wait until so many tasks are in the store."""
    async with asyncio.timeout(LIMIT_S):
        while (await engine.manager.stats())["pending"] != n:  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.005)


async def in_line(engine: Engine, n: int) -> None:
    await until(lambda: len(engine.manager.room._waiting) == n)


# One


async def test_who_waits_gets_in_when_a_task_ends(engine: Engine) -> None:
    """By its end alone, in the order of asking; who does not wait is refused meanwhile."""
    await engine.manager.pause()
    first = await engine.map(step(engine), range(10))
    with pytest.raises(QueueFull):
        await engine.submit(step(engine), 10)
    waiting = []
    for n in range(10, 14):
        waiting.append(asyncio.ensure_future(engine.submit(step(engine), n, wait_for_room="60s")))
        await in_line(engine, n - 9)
    await first[3].cancel()
    await asyncio.wait_for(waiting[0], LIMIT_S)
    await in_line(engine, 3)
    assert [one.done() for one in waiting] == [True, False, False, False]
    await engine.manager.resume()
    assert await engine.gather([await one for one in waiting]) == [11, 12, 13, 14]


async def test_who_waits_too_long_is_refused(engine: Engine) -> None:
    """With what a refusal at once would have said; the place in the line goes to the next."""
    await engine.manager.pause()
    (first, *_) = await engine.map(step(engine), range(10))
    for limit in (0.05, "50ms"):
        with pytest.raises(QueueFull, match="queue_size = 10"):
            await engine.submit(step(engine), 10, wait_for_room=limit)
    task = engine.build(step(engine), (1,), {})
    with pytest.raises(QueueFull):
        await engine.manager.submit_task(task, wait_for_room=0.05)
    waiting = asyncio.ensure_future(engine.manager.submit_tasks([task], wait_for_room=None))
    await until(lambda: any(not turn.done() for *_, turn in engine.manager.room._waiting))
    await first.cancel()
    assert await asyncio.wait_for(waiting, LIMIT_S) == [task.id]


async def test_what_never_fits_is_refused_at_once(engine: Engine) -> None:
    """All or none, and all are more than there may ever be."""
    tasks = [engine.build(step(engine), (n,), {}) for n in range(11)]
    with pytest.raises(QueueFull, match="11 tasks would be unfinished"):
        await engine.submit_all(tasks, wait_for_room=None)
    assert len(await engine.submit_all(tasks[:10], wait_for_room=None)) == 10


async def test_bad_patience_is_refused(engine: Engine) -> None:
    for call_of in (engine.submit, lambda f, n, **more: engine.map(f, [n], **more)):
        with pytest.raises(InvalidInput) as caught:
            await call_of(step(engine), 1, wait_for_room="soon")
        assert caught.value.field == "wait_for_room"
    with pytest.raises(InvalidInput, match="wait_for_room"):

        @engine.task
        async def bad(wait_for_room: float) -> None: ...


async def test_an_engine_that_closes_lets_nobody_wait(tmp_path: Path) -> None:
    engine = engine_on(tmp_path / "work.db", queue_size=1, worker=False)
    engine.task(idle)
    async with engine:
        await engine.submit(idle)
        waiting = [asyncio.ensure_future(engine.submit(idle, wait_for_room=None)) for _ in range(3)]
        await in_line(engine, 3)
    for one in waiting:
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(one, LIMIT_S)


async def idle() -> None: ...


async def test_nobody_waits_inside_a_handler(engine: Engine) -> None:
    """It would hold the slot that makes room: it is refused, and the attempt fails as for any other reason."""

    @engine.task(retry=0)
    async def greedy() -> None:
        await engine.map(step(engine), range(50))

    with pytest.raises(
        ProcessingFailed, match=r"map stopped after 9 tasks were stored; of the next part: .* queue_size = 10"
    ):
        await value(await engine.submit(greedy))


async def test_a_full_disk_is_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of a task tells of room there: when there are new figures it is looked at again."""
    full = [InsufficientResources("storage", retry_after=0.01)] * 3

    def refuse() -> None:
        if full:
            raise full.pop()

    monkeypatch.setattr(engine.scheduler, "refuse_without_storage", refuse)
    with pytest.raises(InsufficientResources):
        await engine.submit(step(engine), 1)
    assert await value(await engine.submit(step(engine), 1, wait_for_room=60)) == 2
    full[:] = [InsufficientResources("storage", retry_after=0.01)] * 3
    assert len(await engine.map(step(engine), range(2_500))) == 2_500
    full[:] = [InsufficientResources("storage", retry_after=60)] * 2
    with pytest.raises(InsufficientResources):
        await engine.map(step(engine), range(5), wait_for_room=0)


async def test_a_disk_that_fills_up_in_a_map(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of patience it tells what it has stored, as for a full queue."""
    calls = iter(range(9))

    def refuse() -> None:
        if next(calls):
            raise InsufficientResources("storage", retry_after=60)

    await engine.manager.pause()
    monkeypatch.setattr(engine.scheduler, "refuse_without_storage", refuse)
    with pytest.raises(PartlySubmitted, match=r"go on with items\[10:\] in 60 s") as caught:
        await engine.map(step(engine), range(20), wait_for_room=0.01)
    assert isinstance(caught.value.__cause__, InsufficientResources)
    assert len(caught.value.accepted) == 10


async def test_a_disk_with_news_at_once() -> None:
    """Where new figures are due in the very moment of the refusal, it is looked at again, and not slept for ever."""
    room = Room(Ends(), SYSTEM)  # type: ignore[arg-type]
    refusals = [InsufficientResources("storage", retry_after=0.0)]

    async def submit() -> str:
        if refusals:
            raise refusals.pop()
        return "in"

    assert await asyncio.wait_for(room.enter(submit, 1, SYSTEM.monotonic() + NEVER), LIMIT_S) == "in"


async def test_a_long_wait_is_told(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however often it is looked meanwhile whether there is room."""

    def is_told() -> bool:
        engine.manager.room.free(0)
        return "has waited for room" in caplog.text

    monkeypatch.setattr(rooms, "_TELL_S", 0.1)
    await engine.manager.pause()
    with caplog.at_level(logging.WARNING, "mainspring.dispatch"):
        going = asyncio.ensure_future(engine.map(step(engine), range(12)))
        await until(is_told)
    assert caplog.text.count("has waited for room") == 1
    await engine.manager.resume()
    assert len(await going) == 12


# Many


async def test_a_map_goes_on_as_room_appears(engine: Engine) -> None:
    """In order, whatever the parts are cut into; all handles are returned."""
    handles = await engine.map(step(engine), range(2_345))
    assert await engine.gather(handles) == list(range(1, 2_346))
    assert ran(engine) == list(range(2_345))


async def test_a_map_goes_behind_who_waits(engine: Engine) -> None:
    """Also where there is room for some of it, which who asked first needs too."""
    await engine.manager.pause()
    first = await engine.map(step(engine), range(10))
    tasks = [engine.build(step(engine), (n,), {}) for n in range(10, 15)]
    waiting = asyncio.ensure_future(engine.submit_all(tasks, wait_for_room=None))
    await in_line(engine, 1)
    for handle in first[:4]:
        await handle.cancel()
    later = asyncio.ensure_future(engine.map(step(engine), range(20, 23)))
    await in_line(engine, 2)
    assert not later.done()
    await first[4].cancel()
    await asyncio.wait_for(waiting, LIMIT_S)
    assert not later.done()
    await engine.manager.resume()
    assert await engine.gather(await asyncio.wait_for(later, LIMIT_S)) == [21, 22, 23]


async def test_a_map_that_stops_tells_what_was_stored(engine: Engine) -> None:
    """PartlySubmitted with handles in order; whoever leaves out as many items goes on without a gap or a double."""
    await engine.manager.pause()
    items = list(range(25))
    with pytest.raises(
        PartlySubmitted, match="map stopped after 10 tasks were stored; of the next part: 11 tasks would be"
    ) as caught:
        await engine.map(step(engine), items, wait_for_room=0.05)
    assert isinstance(caught.value.__cause__, QueueFull)
    assert caught.value.retry_after == caught.value.__cause__.retry_after
    when = f"in {caught.value.retry_after:.2g} s"
    assert f"Of all items the first 10 are stored, none behind them is: go on with items[10:] {when}" in str(
        caught.value
    )
    handles = list(caught.value.accepted)
    with pytest.raises(QueueFull):
        await engine.map(step(engine), items[10:], wait_for_room=0)  # nothing was stored
    await engine.manager.resume()
    handles += await engine.map(step(engine), items[10:])
    assert await engine.gather(handles) == [n + 1 for n in items]
    assert ran(engine) == items


async def test_whatever_stops_a_map(engine: Engine) -> None:
    """A bad item, or whatever yields the items, fails in the middle: what was stored is told all the same."""

    def items(bad: Any) -> Iterator[Any]:
        yield from range(1_500)
        yield bad() if callable(bad) else bad

    def broken() -> int:
        raise ValueError("the file ends here")

    for bad, cause in (("no number", InvalidInput), (broken, ValueError)):
        with pytest.raises(PartlySubmitted) as caught:
            await engine.map(step(engine), items(bad))
        assert isinstance(caught.value.__cause__, cause)
        found = await engine.gather(caught.value.accepted)
        assert found == list(range(1, len(found) + 1))
        assert found
        with pytest.raises(cause):
            await engine.map(step(engine), [bad] if cause is InvalidInput else (broken() for _ in [1]))


async def test_a_map_that_stops_in_doubt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be stored too is not said to be left."""
    store = engine._parts.store
    submit, calls = store.submit, iter(range(9))

    async def lose(tasks: Any, line: Any = None) -> Any:
        stored = await submit(tasks, line)
        if next(calls) == 1:
            raise SubmitIndeterminate("it may or may not be stored")
        return stored

    monkeypatch.setattr(store, "submit", lose)
    with pytest.raises(
        PartlySubmitted, match=r"the first \d+ are stored, whether items behind them are too is not known"
    ):
        await engine.map(step(engine), range(1_500))


def test_blocking_handles_are_told_to_blocking_callers(tmp_path: Path) -> None:
    engine = engine_on(tmp_path / "work.db", queue_size=3)
    engine.task(double)
    with engine.sync as sync:
        sync.pause()
        with pytest.raises(PartlySubmitted) as caught:
            sync.map(double, range(5), wait_for_room=0)
        sync.resume()
        assert [handle.result(LIMIT_S) for handle in caught.value.accepted] == [0, 2, 4]
        assert sync.submit(double, 4, wait_for_room=None).result(LIMIT_S) == 8


async def double(n: int) -> int:
    return 2 * n


# Several processes


@pytest.fixture(params=["sqlite", "postgres"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Programs]:
    is_file = request.param == "sqlite"
    programs = Programs(tmp_path, str(tmp_path / "work.db") if is_file else postgres.address_of(tmp_path))
    yield programs
    programs.end()
    if not is_file:
        postgres.drop(postgres.schema_of(tmp_path))


async def test_ends_in_another_process_make_room(programs: Programs) -> None:
    """Two processes that only submit and never look by themselves get all in past a short queue, as others work."""
    await programs.running()
    config = quick(StoreConfig(blobs=programs.folder / "blobs"), queue_size=5, processing_interval=NEVER)
    async with Engine(programs.store, config, worker=False) as one, Engine(programs.store, config, worker=False) as two:
        await serves(one, "custom:step")

        async def submit(engine: Engine, n: int) -> Any:
            return await value(await engine.submit(call("step", n=n), wait_for_room=None))

        async with asyncio.timeout(LIMIT_S):
            found = await asyncio.gather(*(submit(engine, n) for n in range(40) for engine in (one, two)))
        assert found == [n + 1 for n in range(40) for _ in range(2)]


# The line by itself


class Ends:
    """A store that is told of ends by the test."""

    def when_ended(self, tell: Any) -> None:
        self.tell = tell


async def test_as_many_go_on_as_have_ended() -> None:
    """Each end lets one in, in order; one that fits no more keeps its place; an end while it asks is not missed."""
    ends, free, entered = Ends(), 0, []
    room = Room(ends, SYSTEM)  # type: ignore[arg-type]

    async def ask(n: int) -> None:
        nonlocal free
        await asyncio.sleep(0)
        if free == 0:
            raise QueueFull("full", field="queue_size", value=10)
        free -= 1
        entered.append(n)

    until_s = SYSTEM.monotonic() + 60
    calls = [asyncio.ensure_future(room.enter(partial(ask, n), 1, until_s)) for n in range(7)]
    await until(lambda: len(room._waiting) == 7)
    free = 3
    ends.tell(3)
    await until(lambda: len(entered) == 3 and len(room._waiting) == 4)
    assert entered == [0, 1, 2]
    ends.tell(2)  # another process was quicker
    await asyncio.sleep(0.01)
    await until(lambda: len(room._waiting) == 4)
    free = 3
    ends.tell(1)  # others were not heard of: each that gets in lets the next one look
    calls[3].cancel()  # in the moment of its turn
    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
    assert entered == [0, 1, 2, 4, 5, 6]

    async def missed() -> None:
        nonlocal free
        if not free:
            free = 1
            ends.tell(1)
            raise QueueFull("full", field="queue_size", value=10)

    await asyncio.wait_for(room.enter(missed, 1, until_s), LIMIT_S)


class Tight:
    """Stores the first five of what is handed in; once that was too little, all."""

    def __init__(self) -> None:
        self.room = 5
        self.stored: list[int] = []

    async def hand_over(self, tasks: Any, line: Line) -> Any:
        await asyncio.sleep(0)
        if line.is_broken:
            raise Behind
        taken, self.room = tasks[: self.room], self.room - len(tasks[: self.room])
        if len(taken) < len(tasks):
            line.is_broken, self.room = True, 1_000
        self.stored += taken
        return taken


async def test_nothing_overtakes_what_had_no_room() -> None:
    """Parts that were under way when one was cut go in before those that come later, in their order."""
    tight = Tight()
    looks: list[int] = []

    async def look() -> None:
        looks.append(tight.room)
        await asyncio.sleep(0)

    until = SYSTEM.monotonic() + 60
    bulk = Bulk(tight.hand_over, Room(Ends(), SYSTEM), lambda: until, look)  # type: ignore[arg-type]
    for at in range(0, 40, 4):
        await bulk.add(list(range(at, at + 4)))  # type: ignore[arg-type]
    assert await bulk.all_in() == list(range(40))
    assert tight.stored == list(range(40))
    assert looks  # before what had to wait was handed in again
