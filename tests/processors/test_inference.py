"""Model inference by model id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from mainspring.errors import InvalidInput, ProcessingFailed, RetryAfter
from mainspring.models import ModelManager
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.inference import InferenceProcessor
from mainspring.tasks import Done, Failed, ModelInput, ModelOutput, Outcome, Ref, TaskId, TaskInput, Text
from mainspring.tasks.codec import decode_output, encode


class Shout:
    """Counts its calls; raises what it is told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def infer(self, inputs: list[ModelInput], options: dict[str, Any]) -> list[Any]:
        self.calls.append(len(inputs))
        return [self._one(input.text, options) for input in inputs]

    def _one(self, text: Any, options: dict[str, Any]) -> Any:
        if text == "later":
            return RetryAfter(7)
        return text.upper() + options.get("end", "")


def twice_graph(path: Path) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", inputs, outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture
def shout() -> Shout:
    return Shout()


@pytest.fixture
def models(tmp_path: Path, shout: Shout) -> Iterator[ModelManager]:
    manager = ModelManager()
    manager.register("shout", shout)
    manager.register("twice", twice_graph(tmp_path / "twice.onnx"))
    yield manager
    manager.close()


@pytest.fixture
def processor(models: ModelManager) -> InferenceProcessor:
    return InferenceProcessor(models)


def item(input: TaskInput, model_id: str | None, **params: Any) -> Item:
    id = TaskId()
    context = Context(id=id.bytes, attempt=1, send=lambda signal: None)
    return Item(input=input, context=context, model_id=model_id, params=params)


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, Done), outcome
    assert isinstance(outcome.output, ModelOutput)
    return outcome.output.outputs


def test_one_outcome_each_in_order(processor: InferenceProcessor, shout: Shout) -> None:
    """Several models and options may share a batch: those alike go in one call, and a bad item fails alone."""
    batch = [
        item(ModelInput(text="a"), "shout"),
        item(ModelInput(arrays={"x": [1.5]}), "twice"),
        item(ModelInput(text="b"), "shout"),
        item(ModelInput(arrays={"x": ["one"]}), "twice"),
        item(ModelInput(text="c"), "shout", options={"end": "!"}),
        item(Text("d"), "shout"),
        item(ModelInput(text="e"), None),
        item(ModelInput(text="f"), "unknown"),
        item(ModelInput(text="later"), "shout"),
    ]
    outcomes = processor.process(batch)
    assert [value(outcomes[index]) for index in (0, 2, 4)] == ["A", "B", "C!"]
    assert value(outcomes[1])["y"].tolist() == [3.0]
    assert shout.calls == [3, 1]
    for index in (3, 5, 6, 7):
        outcome = outcomes[index]
        assert isinstance(outcome, Failed)
        assert (outcome.error.type, outcome.retryable) == ("InvalidInput", False)
    assert isinstance(outcomes[8], Failed)
    assert outcomes[8].retry_after == 7


def test_arrays_survive_the_store(processor: InferenceProcessor) -> None:
    """Outputs of a graph can be stored and read back as the same arrays."""
    (outcome,) = processor.process([item(ModelInput(arrays={"x": np.array([1, 2], np.float32)}), "twice")])
    assert isinstance(outcome, Done)
    stored: Any = decode_output(encode(outcome.output)[0]).value
    assert stored["y"].dtype == np.float32
    assert stored["y"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("input", "model_id", "params", "message"),
    [
        (ModelInput(text="x"), None, {}, "model_id is missing.*all-MiniLM-L6-v2, shout, twice"),
        (ModelInput(text="x"), "unknown", {}, "not registered"),
        (Text("x"), "shout", {}, "ModelInput"),
        (ModelInput(text="x"), "twice", {}, "reads arrays"),
        (ModelInput(arrays={"z": [1]}), "twice", {}, r"x: float32 \[n\]"),
        (ModelInput(arrays={"x": [1]}), "twice", {"top_k": 1}, "top_k"),
        (ModelInput(text="x"), "shout", {"unknown": 1}, "unknown"),
        (ModelInput(text="x"), "shout", {"top_k": "many"}, "top_k"),
        (ModelInput(), "all-MiniLM-L6-v2", {}, "no field"),
        (ModelInput(text="x", pairs=[]), "all-MiniLM-L6-v2", {}, "text and pairs"),
        (ModelInput(pairs=[("a",)]), "all-MiniLM-L6-v2", {}, "pair"),
    ],
)
def test_refused_at_submit(
    processor: InferenceProcessor, input: TaskInput, model_id: str | None, params: dict[str, Any], message: str
) -> None:
    """What could never work is refused before anything is stored, without loading or downloading a model."""
    with pytest.raises(InvalidInput, match=message):
        processor.check(input, model_id, params)


def test_accepted_at_submit(processor: InferenceProcessor) -> None:
    """Good inputs pass, and so do results of parents that are still to come."""
    processor.check(ModelInput(text="x"), "shout", {"options": {"end": "?"}})
    processor.check(ModelInput(arrays={"x": Ref(TaskId())}), "twice", {})
    processor.check(ModelInput(pairs=[("a", "b")]), "all-MiniLM-L6-v2", {})
    processor.check(ModelInput(text=Ref(TaskId())), "all-MiniLM-L6-v2", {})


def test_the_sentence_model_answers_too(processor: InferenceProcessor, models: ModelManager) -> None:
    """Text gives a vector; pairs give cosines, higher for what means the same."""
    try:
        models.warm("all-MiniLM-L6-v2")
    except ProcessingFailed as exc:
        pytest.skip(str(exc))
    pairs = [("The cat sleeps.", "A kitten naps."), ("The cat sleeps.", "Stock prices fell.")]
    batch = [item(ModelInput(text="x"), "all-MiniLM-L6-v2"), item(ModelInput(pairs=pairs), "all-MiniLM-L6-v2")]
    vector, scores = map(value, processor.process(batch))
    assert vector.shape == (384,)
    assert scores[0] > 0.5 > 0.2 > scores[1]
