"""A model's declared limits: whose tasks they hold for, who stores them, and what `explain` says."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, engine_on, until, value

from mainspring import Engine, GroupLimit, ModelInput

pytestmark = pytest.mark.anyio


class Gate:
    """A model that answers when it may, and counts how many inputs it works at."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.open = threading.Event()
        self._lock = threading.Lock()

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        with self._lock:
            self.now += len(inputs)
            self.most = max(self.most, self.now)
        assert self.open.wait(LIMIT_S)
        with self._lock:
            self.now -= len(inputs)
        return [input.text for input in inputs]


async def ask(engine: Engine, n: int, **options: Any) -> list[Any]:
    return [await engine.submit(engine.infer, "gate", str(number), **options) for number in range(n)]


async def test_no_more_tasks_of_a_model_run_than_it_declares(place: str) -> None:
    """The submitter knows nothing of limits and the worker's declaration holds; `explain` names the model."""
    gate = Gate()
    async with engine_on(place, thread_slots=5) as worker, engine_on(place, worker=False) as submitter:
        submitter.models.register("gate", Gate())
        worker.models.register("gate", gate, concurrency=2)
        await until(lambda: not worker.manager._model_limits.is_due)
        handles = await ask(submitter, 6)
        await until(lambda: gate.now == 2)
        assert (await handles[-1].info()).reason == "limit"
        said = await handles[-1].explain()
        assert "Model gate is at its limit: 2/2 are claimed or run; 3 of its tasks go first" in said
        assert said.endswith("and the next one starts when one of the model's tasks ends.")
        assert await submitter.limits() == [GroupLimit(group="model:gate", concurrency=2, held=2)]
        gate.open.set()
        assert [await value(handle) for handle in handles] == list("012345")
        assert gate.most == 2


async def test_tasks_do_not_overtake_the_limits_of_a_model_that_has_just_come() -> None:
    """Registered in a running worker and used at once, as many of its tasks run as it says."""
    gate = Gate()
    async with engine_on(thread_slots=5) as engine:
        engine.models.register("gate", gate, concurrency=1)
        handles = await ask(engine, 4)
        await until(lambda: gate.now == 1)
        gate.open.set()
        for handle in handles:
            await value(handle)
        assert gate.most == 1


async def test_a_rate_may_be_declared() -> None:
    """So many begin, the next ones wait for the rate."""
    gate = Gate()
    gate.open.set()
    engine = engine_on()
    engine.models.register("gate", gate, rate="2/h")
    async with engine:
        handles = await ask(engine, 3)
        assert [await value(handle) for handle in handles[:2]] == ["0", "1"]
        assert "Model gate: 2 tasks an hour are used up" in await handles[2].explain()


async def test_a_cost_may_be_declared(caplog: pytest.LogCaptureFixture) -> None:
    """What tasks say that they cost is counted; equal declarations leave the limit as it is."""
    caplog.set_level(logging.WARNING, "mainspring.dispatch")
    gate = Gate()
    gate.open.set()
    engine = engine_on()
    engine.models.register("gate", gate, cost_rate="1000/h")
    async with engine:
        (first,) = await ask(engine, 1, cost=800)
        assert await value(first) == "0"
        (second,) = await ask(engine, 1, cost=300)
        assert "Model gate: of 1,000 cost an hour 200" in await second.explain()
        engine.models.register("other", gate, cost_rate="1000/h")
        await until(lambda: not engine.manager._model_limits.is_due)
        assert caplog.messages == []


async def test_a_group_of_their_own_stands_for_the_models() -> None:
    """Tasks that name a group have its limits, and are not counted for the model."""
    gate = Gate()
    engine = engine_on(thread_slots=5)
    engine.models.register("gate", gate, concurrency=1)
    async with engine:
        own = await ask(engine, 3, group="tenant-a")
        (other,) = await ask(engine, 1)
        assert (await engine.manager.get_task(own[0].id)).task.group == "tenant-a"
        assert (await engine.manager.get_task(other.id)).task.group == "model:gate"
        await until(lambda: gate.now == 4)
        gate.open.set()
        for handle in (*own, other):
            await value(handle)


async def test_the_last_worker_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says in the log what it has changed; equal ones change nothing, and one that declares none leaves them."""
    path = tmp_path / "work.db"
    caplog.set_level(logging.WARNING, "mainspring.dispatch")

    async def start(**limits: Any) -> list[GroupLimit]:
        engine = engine_on(path)
        engine.models.register("gate", Gate(), **limits)
        async with engine:
            return await engine.limits()

    first = [GroupLimit(group="model:gate", concurrency=2)]
    assert await start(concurrency=2) == first
    assert await start(concurrency=2) == first
    assert await start() == first
    assert caplog.messages == []
    assert await start(rate="60/m") == [GroupLimit(group="model:gate", rate="60/m", left=60)]
    (said,) = caplog.messages
    assert "model gate" in said
    assert "(concurrency None, rate 60/m, cost_rate None) take the place" in said
    assert "(concurrency 2, rate None, cost_rate None)" in said


async def test_who_only_submits_stores_nothing(tmp_path: Path) -> None:
    """Limits are the workers' to say."""
    async with engine_on(tmp_path / "work.db", worker=False) as engine:
        engine.models.register("gate", Gate(), concurrency=2)
        await ask(engine, 1)
        assert await engine.limits() == []
