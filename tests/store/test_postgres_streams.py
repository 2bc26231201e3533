"""Calls of many tasks on a server: they enter as they can begin, where that is fast, and need no claims then."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests import postgres
from tests.conformance.kit import Port, PostgresFactory, new, opened
from tests.engine.support import LIMIT_S, engine_on

from mainspring.errors import QueueFull, StoreUnavailable, SubmitIndeterminate
from mainspring.store.base import Line, NewTask
from mainspring.store.postgres import streams
from mainspring.store.postgres.session import Found, Session
from mainspring.store.postgres.store import PostgresStore

pytestmark = pytest.mark.anyio
ROOM, MANY = 100, 300


@pytest.fixture(autouse=True)
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks statements have claimed."""
    found: list[int] = []
    real = Session.run

    def run(self: Session, name: str, values: Any = ()) -> Found:
        rows = real(self, name, values)
        if name.startswith("claim") and rows:
            found.append(len(rows))
        return rows

    monkeypatch.setattr(Session, "run", run)
    return found


def handed_in(store: PostgresStore, n: int = MANY, line: Line | None = None) -> tuple[list[NewTask], Any]:
    tasks = [new(str(at)) for at in range(n)]
    return tasks, asyncio.ensure_future(store.submit(tasks, line or Line()))


def stored(factory: PostgresFactory) -> list[bytes]:
    return [bytes(id) for (id,) in factory._ask("SELECT id FROM task ORDER BY seq")]


async def serving(store: PostgresStore, room: int = ROOM) -> Port:
    port = Port(store, room)
    await port.serve()
    return port


async def until_begun(port: Port, n: int) -> None:
    await port.until(lambda: len(port.order) == n)


async def of(call: Any) -> list[bytes]:
    return [accepted.id for accepted in await asyncio.wait_for(call, LIMIT_S)]


async def test_a_call_enters_as_its_tasks_can_begin(factory: PostgresFactory, claimed: list[int]) -> None:
    """Held from the beginning, in order, as ends make room; it is answered when all of it is stored."""
    async with opened(factory.make()) as store:
        port = await serving(store)
        tasks, call = handed_in(store)
        ids = [task.id for task in tasks]
        for n in range(ROOM, MANY, 50):
            await until_begun(port, n)
            assert stored(factory) == ids[:n]
            assert not call.done()
            for claim in list(port.held.values())[:50]:
                port.end(claim)
        assert await of(call) == ids
        await port.until(lambda: len(port.order) == MANY)
        assert [claim.id for claim in port.order] == stored(factory) == ids
        assert claimed == []


async def test_what_can_t_begin_soon_waits_in_the_store(factory: PostgresFactory, claimed: list[int]) -> None:
    """Where tasks take their time nobody waits for them, nor does the next call."""
    async with opened(factory.make()) as store:
        port = await serving(store)
        tasks, call = handed_in(store)
        await port.until(lambda: len(port.order) == ROOM)
        factory.clock.advance(0.2)
        assert await of(call) == [task.id for task in tasks] == stored(factory)
        await of(handed_in(store)[1])
        assert len(stored(factory)) == 2 * MANY
        assert len(port.order) == ROOM
        await port.room(2 * MANY)
        assert len(port.order) == 2 * MANY
        assert sum(claimed) == 2 * MANY - ROOM


@pytest.mark.parametrize("why", ["peers", "few", "delayed", "keeps results", "no line", "not served", "paused"])
async def test_where_nothing_is_gained_it_enters_at_once(factory: PostgresFactory, why: str) -> None:
    """Others could take it, or it could not begin at once, or is too little to matter."""
    async with opened(factory.make()) as store:
        await serving(store)
        options: dict[str, dict[str, Any]] = {
            "delayed": {"not_before_ms": store.now_ms() + 60_000}, "not served": {"type": "custom:third"},
        }  # fmt: skip
        if why == "paused":
            await store.pause(type="custom:work")
        n = 200 if why == "few" else MANY
        tasks = [new(str(at), **options.get(why, {})) for at in range(n)]
        if why == "keeps results":
            tasks = [new(str(at), work=at.to_bytes(32, "big"), keep_ms=60_000) for at in range(n)]
        call = store.submit(tasks, None if why == "no line" else Line())
        if why == "peers":
            async with opened(factory.make()):
                await of(call)
        else:
            await of(call)
        assert len(stored(factory)) == n


async def test_parts_of_one_call_keep_their_order(factory: PostgresFactory) -> None:
    """A small part behind one that waits waits too; a call of somebody else goes by."""
    async with opened(factory.make()) as store:
        port = await serving(store)
        line = Line()
        first, call = handed_in(store, MANY, line)
        last, end = handed_in(store, 5, line)
        await port.until(lambda: len(port.order) == ROOM)
        (other,) = [accepted.id for accepted in await store.submit([new("other")])]
        assert stored(factory) == [*(task.id for task in first[:ROOM]), other]
        await port.run_all()
        ids = await of(call) + await of(end)
        assert ids == [task.id for task in (*first, *last)]
        assert [id for id in stored(factory) if id != other] == ids


async def test_a_store_that_closes_stores_what_waits(factory: PostgresFactory) -> None:
    """Whoever submitted it is told that it is stored."""
    store = factory.make()
    await store.open()
    port = await serving(store)
    tasks, call = handed_in(store)
    await port.until(lambda: len(port.order) == ROOM)
    await store.close()
    assert await of(call) == [task.id for task in tasks] == stored(factory)


async def test_a_store_that_closes_stores_the_parts_of_a_call_in_order(factory: PostgresFactory) -> None:
    """What comes as it closes does not go by what waits of the same call."""
    store = factory.make()
    await store.open()
    port = await serving(store)
    line, busy, closes = Line(), threading.Event(), threading.Event()
    first, call = handed_in(store, MANY, line)
    await port.until(lambda: len(port.order) == ROOM)

    def hold(tx: Any) -> None:
        busy.set()
        closes.wait(LIMIT_S)

    held = asyncio.ensure_future(store.write(hold))
    assert await asyncio.to_thread(busy.wait, LIMIT_S)
    last, end = handed_in(store, 5, line)
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    while not store._writer._leaving:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0)
    closes.set()
    await asyncio.wait_for(closing, LIMIT_S)
    await held
    assert await of(call) + await of(end) == [task.id for task in (*first, *last)] == stored(factory)


async def test_where_room_ends_the_first_ones_are_stored(factory: PostgresFactory) -> None:
    """As many as `queue_size` allows, as for a call that enters at once."""
    async with opened(factory.make(queue_size=150)) as store:
        port = await serving(store)
        tasks, call = handed_in(store)
        await port.until(lambda: len(port.order) == ROOM)
        await port.room(ROOM)
        ids = [task.id for task in tasks[:150]]
        assert await of(call) == ids == stored(factory)
        with pytest.raises(QueueFull):
            await store.submit(tasks[150:], Line())


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), SubmitIndeterminate("unknown", task_id=None)])
async def test_a_piece_that_is_refused_ends_the_call(factory: PostgresFactory, error: Exception) -> None:
    """What was stored before counts; where that can't be known of the rest, it is said of all."""
    async with opened(factory.make()) as store:
        port = await serving(store)
        tasks, call = handed_in(store)
        await port.until(lambda: len(port.order) == ROOM)
        writer, real = store._writer, store._writer._report

        def refuse(tx: Any, group: Any, next_event_ms: int | None) -> None:
            for submission in group.submissions:
                submission.error = error
            real(tx, group, next_event_ms)

        writer._report = refuse
        await port.room(50)
        writer._report = real
        if isinstance(error, SubmitIndeterminate):
            with pytest.raises(SubmitIndeterminate):
                await of(call)
        else:
            assert await of(call) == [task.id for task in tasks[:ROOM]]


async def test_where_a_later_part_is_refused_the_call_is_answered(factory: PostgresFactory) -> None:
    """What is stored by then counts, and nothing enters behind that."""
    async with opened(factory.make()) as store:
        port = await serving(store)
        line = Line()
        tasks, call = handed_in(store, MANY, line)
        await port.until(lambda: len(port.order) == ROOM)
        line.is_broken = True
        store.demand()
        assert await of(call) == [task.id for task in tasks[:ROOM]] == stored(factory)


async def test_a_map_of_an_engine_needs_no_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: list[int]
) -> None:
    """Though it is ten times what runs at once."""
    monkeypatch.setattr(streams, "_FIRST_S", LIMIT_S)
    url, schema = postgres.store_url(), postgres.schema_of(tmp_path)
    engine = engine_on(f"{url}{'&' if '?' in url else '?'}schema={schema}", async_slots=ROOM, prefetch_s=0)

    @engine.task
    async def step(n: int) -> int:
        return n

    async with engine:
        found = await asyncio.wait_for(engine.gather(await engine.map(step, range(1_000))), LIMIT_S)
    postgres.drop(schema)
    assert found == list(range(1_000))
    assert claimed == []
