"""Searches have a slot of their own: what takes long in the thread lane does not keep them waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import Engine, SearchQuery, TaskHandle, TaskId, TaskTimeout

pytestmark = pytest.mark.anyio
SLOTS = 2
EYE = np.eye(3, dtype=np.float32)
QUERY = SearchQuery(vector=EYE[1], collection="docs", top_k=1)


class Letters:
    """Embeds a text by its letters; "a stop" stops it until the gate opens."""

    dim = 3
    max_tokens = 1_000

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.calls: list[list[str]] = []

    def embed(self, texts: list[str]) -> Any:
        self.calls.append(texts)
        if "a stop" in texts:
            assert self.gate.wait(LIMIT_S)
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
def model(gate: threading.Event) -> Letters:
    return Letters(gate)


@pytest.fixture
async def engine(anyio_backend: str, model: Letters, gate: threading.Event) -> AsyncIterator[Engine]:
    engine = engine_on(thread_slots=SLOTS)
    engine.models.register("letters", lambda: model)
    async with engine:
        await engine.upsert("docs", EYE, ids=["a", "b", "c"], model_id="letters")
        yield engine
        gate.set()


async def fill(engine: Engine, gate: threading.Event, n: int) -> list[TaskHandle]:
    """Return so many tasks of a handler that waits for the gate, as many of them running as there are slots."""

    @engine.task(name="hold")
    def hold(n: int) -> int:
        assert gate.wait(2 * LIMIT_S)
        return n

    handles = [await engine.submit(hold, one, max_retries=0) for one in range(n)]
    await until(lambda: lane(engine)["running"] == SLOTS)
    return handles


def lane(engine: Engine) -> dict[str, Any]:
    return engine.manager.lane_stats()["lanes"]["thread"]  # type: ignore[no-any-return]


def running(engine: Engine) -> set[TaskId]:
    return {task.task_id for task in engine.manager.running_tasks()}


async def found(engine: Engine, query: Any = QUERY, **options: Any) -> list[str]:
    asked: dict[str, Any] = {} if isinstance(query, SearchQuery) else {"collection": "docs", "top_k": 1}
    async with asyncio.timeout(LIMIT_S):
        return [hit.id for hit in await engine.search(query, **asked, **options)]


async def test_a_search_waits_for_no_handler(engine: Engine, gate: threading.Event) -> None:
    """It answers while all slots are in calls, others wait for these, and again later; a text is embedded there."""
    handles = await fill(engine, gate, 20)
    for _ in range(3):
        assert await found(engine) == ["b"]
        assert await found(engine, "ccc", priority=1) == ["c"]
    assert lane(engine) == {"slots": SLOTS, "running": SLOTS, "claimed": lane(engine)["claimed"], "given": 0}
    gate.set()
    assert [await value(handle) for handle in handles] == list(range(20))


async def test_the_slot_is_for_searches_alone(engine: Engine, gate: threading.Event, model: Letters) -> None:
    """Neither a handler nor a call of another built-in type begins in it."""
    handles = await fill(engine, gate, SLOTS + 1)
    embedded = await engine.submit(engine.embed, "a", model_id="letters", priority="critical")
    assert await found(engine) == ["b"]  # the slot has looked for work since
    assert running(engine) == {handle.id for handle in handles[:SLOTS]}
    assert model.calls == []
    gate.set()
    assert list(await value(embedded)) == [1, 0, 0]


async def test_many_searches_beside_a_full_lane(engine: Engine, gate: threading.Event) -> None:
    """They join in calls, and all of them answer."""
    await fill(engine, gate, SLOTS)
    handles = await engine.map(engine.search, [QUERY] * 1_000)
    assert {(await value(handle))[0].id for handle in handles} == {"b"}
    assert engine.manager.lane_stats()["batches"]["vector_search"]["fill"] > 0.5


async def test_a_search_that_does_not_come_back(engine: Engine, gate: threading.Event, model: Letters) -> None:
    """Its slot is replaced by one that takes searches too, and again nothing else."""
    await fill(engine, gate, SLOTS)
    embedded = await engine.submit(engine.embed, "c", model_id="letters", priority="critical")
    for _ in range(2):
        with pytest.raises(TaskTimeout):
            await found(engine, "a stop", timeout=0.3, max_retries=0)
        assert await found(engine, "a") == ["a"]
    assert model.calls == [["a stop"], ["a"]] * 2
    gate.set()
    assert list(await value(embedded)) == [0, 0, 1]


async def test_a_paused_search_does_not_begin(engine: Engine, gate: threading.Event) -> None:
    """Until the pause is taken back."""
    await fill(engine, gate, SLOTS)
    await engine.manager.pause(type="vector_search")
    paused = await engine.submit(engine.search, QUERY)
    await shows(paused, reason="paused")
    await engine.manager.resume(type="vector_search")
    assert (await value(paused))[0].id == "b"


async def test_a_stop_waits_for_the_slot(engine: Engine, gate: threading.Event, model: Letters) -> None:
    """What has begun in it ends before the engine does."""
    await fill(engine, gate, SLOTS)
    asked = asyncio.create_task(found(engine, "a stop"))
    await until(lambda: model.calls == [["a stop"]])
    stopping = asyncio.create_task(engine.stop())
    await until(lambda: engine.manager._draining)
    gate.set()
    await stopping
    assert await asked == ["a"]
