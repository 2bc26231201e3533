"""Tasks whose model is loaded go first, within one ageing step."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, quick, until, value

from mainspring import Engine, ModelInput, StoreConfig, TaskPriority
from mainspring.store.base import Store

pytestmark = pytest.mark.anyio


class Model:
    """Writes down when it is called; the first call waits for a gate."""

    def __init__(self, name: str, calls: list[str], gate: threading.Event) -> None:
        self.name, self.calls, self.gate = name, calls, gate

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        self.calls.append(self.name)
        assert self.gate.wait(LIMIT_S)
        return [input.text for input in inputs]


@pytest.mark.parametrize(
    ("ageing_s", "order"),
    [(60.0, ["warm", "warm", "cold"]), (0.001, ["warm", "cold", "warm"])],
    ids=["within the step", "beyond it"],
)
async def test_who_goes_first(ageing_s: float, order: list[str]) -> None:
    """A task for a model that would have to be loaded lets those pass that came less than one step later."""
    assert await called(ageing_s, [("cold", TaskPriority.NORMAL), ("warm", TaskPriority.NORMAL)]) == order


async def test_an_urgent_one_is_not_passed_over() -> None:
    """Although the other one came before and is less than one step behind it in the order."""
    submitted = [("warm", TaskPriority.NORMAL), ("cold", TaskPriority.HIGH)]
    assert await called(60.0, submitted) == ["warm", "cold", "warm"]


def _is_after(store: Store, time_ms: int) -> bool:
    return store.now_ms() > time_ms


async def called(ageing_s: float, submitted: list[tuple[str, TaskPriority]]) -> list[str]:
    """Return in which order models were called, where these wait for the one slot and `warm` is loaded."""
    calls: list[str] = []
    gate = threading.Event()
    engine = Engine(config=quick(StoreConfig(ageing_s=ageing_s), thread_slots=1))
    for name in ("warm", "cold"):
        engine.models.register(name, partial(Model, name, calls, gate))
    async with engine:
        store = engine.manager.store
        handles = [await engine.submit(engine.infer, "warm", "first")]
        await until(lambda: calls == ["warm"])
        for model_id, priority in submitted:
            handles.append(await engine.submit(engine.infer, model_id, "next", priority=priority))
            await until(partial(_is_after, store, store.now_ms() + 3))
        await until(lambda: len(engine.manager._gatherings["model_inference"]._kinds) == 2)
        gate.set()
        for handle in handles:
            await value(handle)
    return calls
