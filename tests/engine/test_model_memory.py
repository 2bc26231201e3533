"""Engines of one machine share the memory of their models: with real graphs, through tasks."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.engine.support import LIMIT_S, quick, until, value
from tests.models.conftest import linear_graph

from mainspring import Engine, ModelConfig, ModelInput
from mainspring.config import MIB

pytestmark = pytest.mark.anyio


@pytest.fixture
def config() -> Iterator[ModelConfig]:
    """A budget for one small graph, and a path that is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    yield ModelConfig(budget_bytes=100 * MIB, shared_folder=folder)
    shutil.rmtree(folder)


def engine_with(config: ModelConfig) -> Engine:
    return Engine(config=msgspec.structs.replace(quick(), models=config))


async def multiply(engine: Engine) -> Any:
    arrays = {"x": np.ones((1, 3), np.float32), "flag": np.ones(1, np.int64)}
    return (await engine.infer("linear", arrays=arrays))["y"].tolist()


async def test_an_idle_model_of_another_engine_goes(config: ModelConfig, tmp_path: Path) -> None:
    """Each computes with its own copy of a graph, of which one has room; metrics tell what all hold together."""
    graph = linear_graph(tmp_path / "linear.onnx")
    async with engine_with(config) as first, engine_with(config) as second:
        for engine in (first, second):
            engine.models.register("linear", graph)
        for here, other in ((first, second), (second, first), (first, second)):
            assert await multiply(here) == [[7.0, 10.0]]
            assert (here.models.loaded_count, other.models.loaded_count) == (1, 0)
            assert 0 < here.models.loaded_bytes == other.models.memory.machine_bytes <= 100 * MIB


class Gate:
    """A model that answers when it may."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Event()

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        self.asked.set()
        assert self.open.wait(LIMIT_S)
        return [input.text for input in inputs]


async def test_a_task_waits_for_memory_that_another_engine_uses(config: ModelConfig, tmp_path: Path) -> None:
    """Its attempt goes on as soon as that is given back."""
    graph = linear_graph(tmp_path / "linear.onnx")
    gate = Gate()
    async with engine_with(config) as first, engine_with(config) as second:
        first.models.register("gate", gate, memory_bytes=80 * MIB)
        second.models.register("linear", graph)
        busy = await first.submit(first.infer, "gate", "hello")
        await until(gate.asked.is_set)
        arrays = {"x": np.ones((1, 3), np.float32), "flag": np.ones(1, np.int64)}
        handle = await second.submit(second.infer, "linear", arrays=arrays)
        await until(lambda: first.models.memory._machine.is_asked)  # type: ignore[union-attr]
        assert second.models.loaded_count == 0
        gate.open.set()
        assert await value(busy) == "hello"
        assert (await value(handle))["y"].tolist() == [[7.0, 10.0]]
        assert (await handle.info()).attempt == 1
        assert first.models.loaded_count == 0
