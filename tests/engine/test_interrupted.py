"""A `map` that is interrupted on its way tells what it has stored, and stores nothing more."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, until

from mainspring import Engine
from mainspring.engine.sync import SyncEngine
from mainspring.store.sql.operations import Group

ROOM = 5


def full_engine(tmp_path: Path) -> Engine:
    engine = engine_on(tmp_path / "work.db", worker=False, queue_size=ROOM)
    engine.task(name="f")(lambda n: n)
    return engine


async def until_full(engine: Engine) -> None:
    while (await engine.manager.stats())["pending"] < ROOM:  # noqa: ASYNC110 - nobody tells of that
        await asyncio.sleep(0.005)


@pytest.mark.anyio
async def test_a_timeout_around_it(tmp_path: Path) -> None:
    """The first items are stored, as many as there was room for, and the caller gets their handles."""
    async with full_engine(tmp_path) as engine:
        f = engine.executor.handlers["custom:f"].function

        async def cut_off(limit: asyncio.Timeout) -> None:
            await until_full(engine)
            limit.reschedule(asyncio.get_running_loop().time())

        async def cut() -> None:
            async with asyncio.timeout(None) as limit:
                cutting = asyncio.ensure_future(cut_off(limit))
                await engine.map(f, range(200))
            await cutting

        with pytest.raises(TimeoutError) as late:
            await cut()
        accepted = late.value.__cause__.accepted  # type: ignore[union-attr]
        assert [(await handle.info()).task.input.value["n"] for handle in accepted] == list(range(ROOM))
        assert late.value.__cause__.__notes__ == [f"map had stored {ROOM} tasks by then; `accepted` are their handles"]  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_while_the_store_writes(tmp_path: Path) -> None:
    """What got room and is being written in the moment of the cancel is stored: it is told too."""
    async with full_engine(tmp_path) as engine:
        f = engine.executor.handlers["custom:f"].function
        first, *_ = await engine.map(f, range(ROOM - 1))
        going = asyncio.ensure_future(engine.map(f, range(200)))
        await until(lambda: bool(engine.manager.room._waiting))
        writing, go_on = hold_submissions(engine)
        await first.cancel()
        await until(writing.is_set)
        going.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await going
        accepted = cancelled.value.accepted  # type: ignore[attr-defined]
        assert [(await handle.info()).task.input.value["n"] for handle in accepted] == [0, 1]
        assert (await engine.manager.stats())["pending"] == ROOM


def hold_submissions(engine: Engine) -> tuple[threading.Event, threading.Event]:
    """Have the writer stop at the next tasks it is handed: the first event tells that, the second lets it go on."""
    writer: Any = engine.manager.store._writer
    commit, writing, go_on = writer.commit, threading.Event(), threading.Event()

    def held(group: Group) -> None:
        if group.submissions:
            writing.set()
            go_on.wait(LIMIT_S)
        commit(group)

    writer.commit = held
    return writing, go_on


async def calls() -> int:
    """Return how many calls of the blocking face are under way, beside this one."""
    return sum(task.get_coro().__qualname__ in ("_Call.go", "Submitting.map") for task in asyncio.all_tasks()) - 1  # type: ignore[union-attr]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """It interrupts, also where whoever runs the tests ignores it, as a shell does for what runs behind it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_blocking_face(tmp_path: Path) -> None:
    """Nothing of the call is left behind, so that nothing is stored when there is room again."""
    engine = full_engine(tmp_path)
    f = engine.executor.handlers["custom:f"].function
    with engine.sync as sync:
        interrupting = threading.Thread(target=interrupt, args=(sync, engine))
        interrupting.start()  # it waits until the queue is full: that is inside of the call
        with pytest.raises(KeyboardInterrupt) as interrupted:
            sync.map(f, range(200))
        interrupting.join()
        accepted = interrupted.value.accepted  # type: ignore[attr-defined]
        assert [handle.info().task.input.value["n"] for handle in accepted] == list(range(ROOM))
        assert sync.run(calls()) == 0
        for handle in accepted:
            assert handle.cancel() == "cancelled"
        assert sync.stats()["pending"] == 0


def interrupt(sync: SyncEngine, engine: Engine) -> None:
    sync.run(until_full(engine))
    os.kill(os.getpid(), signal.SIGINT)
