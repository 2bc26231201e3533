"""Registry, single flight and the budget of memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mainspring.config import MIB, ModelConfig
from mainspring.errors import InvalidInput, ProcessingFailed, ResourceLimitExceeded
from mainspring.models import ModelManager
from mainspring.models.base import ModelInfo
from mainspring.models.python import PythonModel
from mainspring.tasks import ModelInput

pytestmark = pytest.mark.anyio


class Echo:
    """A model that counts how often it was made and closed."""

    def __init__(self, log: list[str] | None = None, name: str = "echo") -> None:
        self.log = [] if log is None else log
        self.name = name
        self.log.append(f"made {name}")

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        return [input.text for input in inputs]

    def close(self) -> None:
        self.log.append(f"closed {self.name}")


def manager_of(*names: str, budget: int = 100) -> tuple[ModelManager, list[str]]:
    """A manager with one model of 40 MiB per name."""
    log: list[str] = []
    manager = ModelManager(ModelConfig(budget_bytes=budget * MIB))
    for name in names:
        manager.register(name, lambda name=name: Echo(log, name), memory_bytes=40 * MIB)
    return manager, log


def use(manager: ModelManager, model_id: str) -> None:
    with manager.acquire(model_id):
        pass


async def test_one_load_for_many_callers() -> None:
    """However many threads and coroutines want a model at once, it is made once and all get the same."""
    gate = threading.Event()
    log: list[str] = []

    def slow() -> Echo:
        gate.wait(30)
        return Echo(log)

    manager = ModelManager()
    manager.register("echo", slow)

    def in_thread(_: int) -> Any:
        with manager.acquire("echo") as model:
            return model

    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(in_thread, number) for number in range(8)]
        waiting = [asyncio.ensure_future(manager.get_model("echo")) for _ in range(8)]
        await asyncio.sleep(0)
        gate.set()
        models = [*await asyncio.gather(*waiting), *(thread.result() for thread in threads)]
    assert log == ["made echo"]
    assert len(set(map(id, models))) == 1


async def test_a_cancelled_caller_does_not_stop_the_load() -> None:
    """The load goes on for the others when the caller that began it is cancelled."""
    gate = threading.Event()
    log: list[str] = []

    def slow() -> Echo:
        gate.wait(30)
        return Echo(log)

    manager = ModelManager()
    manager.register("echo", slow)
    first = asyncio.ensure_future(manager.get_model("echo"))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(manager.get_model("echo"))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    answer = await (await second).infer(ModelInput(text="hello"))
    assert answer.outputs == "hello"
    assert log == ["made echo"]


def test_a_failed_load_reaches_everybody_and_can_be_tried_again() -> None:
    """A factory that raises fails its callers with a typed error; the next call tries again."""
    tries: list[int] = []

    def sometimes() -> Echo:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no weights yet")
        return Echo()

    manager = ModelManager()
    manager.register("echo", sometimes)
    with pytest.raises(ProcessingFailed, match="no weights yet"):
        use(manager, "echo")
    use(manager, "echo")
    assert len(tries) == 2


def test_least_recently_used_goes_first() -> None:
    """Above the budget the model unused for longest is closed, never one used since."""
    manager, log = manager_of("a", "b", "c")
    for name in ("a", "b", "a", "c"):
        use(manager, name)
    assert log == ["made a", "made b", "closed b", "made c"]


def test_models_in_use_or_pinned_stay() -> None:
    """When all room is in use or pinned, the load is refused for now and nothing was evicted."""
    manager, log = manager_of("a", "b", "c")
    manager.pin("a")
    use(manager, "a")
    with manager.acquire("b"), pytest.raises(ResourceLimitExceeded, match="in use or pinned") as caught:
        use(manager, "c")
    assert caught.value.retry_after is not None
    assert log == ["made a", "made b"]
    manager.unpin("a")
    use(manager, "c")
    assert log == ["made a", "made b", "closed a", "made c"]


def test_too_large_for_the_budget() -> None:
    """A model that never fits is refused with both figures, and others stay loaded."""
    manager, log = manager_of("a")
    manager.register("huge", Echo, memory_bytes=200 * MIB)
    use(manager, "a")
    with pytest.raises(ResourceLimitExceeded, match=r"200 MiB.*100 MiB.*budget_bytes"):
        use(manager, "huge")
    assert log == ["made a"]


async def test_a_model_handed_out_survives_its_eviction() -> None:
    """What get_model returned goes on working after the manager has evicted it."""
    manager, log = manager_of("a")
    model = await manager.get_model("a")
    assert manager.evict("a")
    assert (await model.infer(ModelInput(text="still here"))).outputs == "still here"
    assert log == ["made a"]


def test_close_waits_for_nobody_and_leaks_nothing() -> None:
    """Closing frees idle models at once and those in use when they are given back."""
    manager, log = manager_of("a", "b")
    use(manager, "a")
    with manager.acquire("b"):
        manager.close()
        assert log[-1] == "closed a"
    assert log[-1] == "closed b"
    with pytest.raises(InvalidInput):
        use(manager, "a")


def test_unknown_model_names_the_known_ones() -> None:
    """The error lists what is registered and says how to register."""
    manager, _ = manager_of("first", "second")
    assert not manager.known("third")
    with pytest.raises(InvalidInput, match=r"all-MiniLM-L6-v2, first, second.*register"):
        manager.describe("third")


@pytest.mark.parametrize("model_id", ["../up", "a/../../b", "/etc", ".hidden", "", "a/b/c"])
def test_ids_cannot_leave_a_folder(tmp_path: Path, model_id: str) -> None:
    """An id is never a path that leads out of the folders of models."""
    (tmp_path / "models").mkdir()
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "model.onnx").write_bytes(b"")
    manager = ModelManager(ModelConfig(folders=(tmp_path / "models",)))
    assert not manager.known(model_id)
    with pytest.raises(InvalidInput):
        manager.register(model_id, Echo())


@pytest.mark.parametrize("source", [object(), 3, "no/such/folder", None, "hf"])
def test_what_is_no_source(source: Any) -> None:
    """Registering something that can't be a model fails at once."""
    with pytest.raises(InvalidInput):
        ModelManager().register("x", source)


def test_async_infer_is_refused() -> None:
    """A model whose infer is a coroutine function would give coroutines for answers."""

    class Async:
        async def infer(self, inputs: list[ModelInput]) -> list[Any]:
            return inputs

    with pytest.raises(InvalidInput, match="plain def"):
        ModelManager().register("x", Async())


def test_folders_are_found_by_id(graph_file: Path) -> None:
    """FOLDER/MODEL_ID/model.onnx is known and described without being loaded; its digest follows the bytes."""
    manager = ModelManager(ModelConfig(folders=(graph_file.parent.parent,)))
    info = manager.describe("linear")
    assert (info.kind, info.loaded) == ("onnx", False)
    assert [one.model_id for one in manager.info()] == ["all-MiniLM-L6-v2", "linear"]
    graph_file.write_bytes(graph_file.read_bytes() + b"\x0a\x00")
    other = ModelManager(ModelConfig(folders=(graph_file.parent.parent,))).describe("linear")
    assert info.digest is not None
    assert other.digest not in (None, info.digest)


@pytest.mark.parametrize("gives", [set, frozenset, lambda inputs: dict.fromkeys(inputs, 1), lambda inputs: "ab"])
def test_values_without_an_order_are_refused(gives: Callable[[list[str]], Any]) -> None:
    """Nothing tells which of them is whose."""

    class Mixed:
        def infer(self, inputs: list[ModelInput]) -> Any:
            return gives([str(input.text) for input in inputs])

    model = PythonModel(ModelInfo("mixed", "python"), Mixed())
    for answer in model.infer_batch([ModelInput(text="a"), ModelInput(text="b")], {}):
        assert isinstance(answer, ProcessingFailed)
        assert "for 2 inputs" in str(answer)
