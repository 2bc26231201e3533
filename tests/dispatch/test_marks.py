"""What whoever rescues a dead process's tasks can read of it: which handlers ran."""

from __future__ import annotations

import asyncio
import struct
import threading
from typing import Any

import pytest
from tests.engine.support import engine_on, until, value

from mainspring import Batch, Engine, TaskTimeout
from mainspring.dispatch.attempt import Attempt
from mainspring.store.liveness import SLOTS
from mainspring.tasks import Started

pytestmark = pytest.mark.anyio


def marked(engine: Engine) -> list[int]:
    """Return the slots of the handlers that run by the life file of the engine's process."""
    store: Any = engine.manager.store
    raw = (store.folder / f"{store.worker_id}.life").read_bytes()[: SLOTS * 16]
    return [slot for slot, (seq, _) in enumerate(struct.iter_unpack("<qq", raw)) if seq]


def marks(engine: Engine) -> int:
    """How many handlers run by that file."""
    return len(marked(engine))


async def test_a_handler_that_was_given_up_still_runs() -> None:
    """Whoever dies beside it did not run alone; when it comes back, it is forgotten."""
    go = asyncio.Event()
    async with engine_on(async_slots=1) as engine:

        @engine.task(retry=0, timeout="30ms")
        async def stubborn() -> None:
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue

        try:
            with pytest.raises(TaskTimeout):
                await value(await engine.submit(stubborn))
            assert marks(engine) == 1
        finally:
            go.set()
        await until(lambda: marks(engine) == 0)


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_members_of_calls_are_marked_each(lane: Any) -> None:
    """Whoever of them killed the process, all are suspects; however many calls there were, marks are taken again."""
    go = threading.Event()
    async with engine_on(async_slots=2, thread_slots=2) as engine:

        async def held(items: list[int], kind: int) -> list[int]:
            await until(go.is_set)
            return items

        def held_in_a_thread(items: list[int], kind: int) -> list[int]:
            go.wait()
            return items

        function = held if lane == "async" else held_in_a_thread
        handler: Any = engine.task(batch=Batch(max_size=3, max_wait="1h"), lane=lane)(function)
        highest = 0
        for kind in (0, 2, 4):  # new ones: they have learned nothing
            go.clear()
            handles = [await engine.submit(handler, n, kind + other) for other in range(2) for n in range(3)]
            try:
                await until(lambda: marks(engine) == 6)
                highest = highest or max(marked(engine))
                assert max(marked(engine)) == highest
            finally:
                go.set()
            assert await engine.gather(handles) == [0, 1, 2] * 2
            await until(lambda: marks(engine) == 0)


async def test_what_runs_in_a_child_is_not_marked() -> None:
    """A suspect that runs in a child process can't have killed its parent."""
    marked: list[int] = []

    class Desk:
        env = None
        mark = staticmethod(lambda slot, seq, attempt: marked.append(slot))

    desk: Any = Desk()
    async with engine_on() as engine:
        desk.env = engine.manager._env
        claim: Any = type("Claim", (), {"seq": 1, "attempt": 1})
        for in_child in (True, False):
            Attempt(claim, desk, 7, None, in_child=in_child).send(Started())
    assert marked == [7]
