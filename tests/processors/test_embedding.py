"""Embedding generation with the real default model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mainspring.errors import InvalidInput, ProcessingFailed
from mainspring.models import ModelManager
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.embedding import EmbeddingProcessor
from mainspring.tasks import (
    Binary,
    Chunk,
    Done,
    EmbeddingOutput,
    Failed,
    Outcome,
    Progress,
    Ref,
    Signal,
    TaskId,
    TaskInput,
    Text,
)

LONG = "word " * 400


class Shout:
    def infer(self, inputs: list[Any]) -> list[Any]:
        return inputs


@pytest.fixture(scope="module")
def models() -> Iterator[ModelManager]:
    manager = ModelManager()
    try:
        manager.warm("all-MiniLM-L6-v2")
    except ProcessingFailed as exc:
        pytest.skip(str(exc))
    manager.register("shout", Shout())
    yield manager
    manager.close()


@pytest.fixture
def processor(models: ModelManager) -> EmbeddingProcessor:
    processor = EmbeddingProcessor(models)
    processor.load()
    return processor


def item(input: TaskInput, signals: list[Signal] | None = None, model_id: str | None = None, **params: Any) -> Item:
    id = TaskId()
    sent: list[Signal] = [] if signals is None else signals
    context = Context(id=id.bytes, attempt=1, send=sent.append)
    return Item(input=input, context=context, model_id=model_id, params=params)


def output(outcome: Outcome) -> EmbeddingOutput:
    assert isinstance(outcome, Done), outcome
    assert isinstance(outcome.output, EmbeddingOutput)
    return outcome.output


def test_a_batch_is_split_again(processor: EmbeddingProcessor) -> None:
    """Items of one and of several texts share a call and get back their own rows, as if each had been alone."""
    inputs = [Text("one"), Text(["two", Chunk("three", 0, 5), {"text": "four"}]), Text([]), Text("one")]
    found = [output(outcome) for outcome in processor.process([item(input) for input in inputs])]
    assert [one.vectors.shape for one in found] == [(1, 384), (3, 384), (0, 384), (1, 384)]
    assert {one.model_id for one in found} == {"all-MiniLM-L6-v2"}
    assert all(one.vectors.dtype == np.float32 for one in found)
    (alone,) = processor.process([item(Text("three"))])
    assert np.allclose(output(alone).vectors[0], found[1].vectors[1], atol=2e-4)


def test_a_bad_item_fails_alone(processor: EmbeddingProcessor) -> None:
    """Wrong kinds, wrong params, unknown models and texts that must not be cut fail by themselves, finally."""
    batch = [
        item(Text("good")),
        item(Text([1, 2])),
        item(Binary(b"")),
        item(Text("x"), colour="red"),
        item(Text("x"), model_id="no-such-model"),
        item(Text("x"), model_id="shout"),
        item(Text(["short", LONG]), truncate=False),
        item(Text(["short", LONG])),
    ]
    outcomes = processor.process(batch)
    assert len(output(outcomes[0]).vectors) == 1
    assert output(outcomes[7]).truncated == (1,)
    for outcome in outcomes[1:7]:
        assert isinstance(outcome, Failed)
        assert outcome.error.type == "InvalidInput"
        assert not outcome.retryable
    assert "256 tokens" in str(outcomes[6].error)  # type: ignore[union-attr]


def test_truncated_rows_are_counted_in_each_item(processor: EmbeddingProcessor) -> None:
    """`truncated` counts from the item's own first row."""
    outcomes = processor.process([item(Text(["a", LONG])), item(Text([LONG, "b", LONG]))])
    assert [output(outcome).truncated for outcome in outcomes] == [(1,), (0, 2)]


def test_raw_vectors(processor: EmbeddingProcessor) -> None:
    """Items that differ in params may share a batch."""
    raw, unit = map(output, processor.process([item(Text("x"), normalize=False), item(Text("x"))]))
    assert abs(np.linalg.norm(raw.vectors) - 1) > 0.01
    assert np.allclose(raw.vectors / np.linalg.norm(raw.vectors), unit.vectors, atol=1e-4)


@pytest.mark.parametrize(
    ("input", "model_id", "params"),
    [
        (Binary(b"x"), None, {}),
        (Text(3), None, {}),
        (Text(["a", 3]), None, {}),
        (Text("x"), "no-such-model", {}),
        (Text("x"), "shout", {}),
        (Text("x"), None, {"normalise": True}),
        (Text("x"), None, {"truncate": "no"}),
    ],
)
def test_refused_at_submit(
    processor: EmbeddingProcessor, input: TaskInput, model_id: str | None, params: dict[str, Any]
) -> None:
    """What could never work is refused before anything is stored."""
    with pytest.raises(InvalidInput):
        processor.check(input, model_id, params)


def test_accepted_at_submit(processor: EmbeddingProcessor) -> None:
    """Results of parents pass, in whole or in part."""
    for text in ("x", ["x", "y"], Ref(TaskId()), ["x", Ref(TaskId())]):
        processor.check(Text(text), None, {"normalize": False})


def test_progress_and_cancel(processor: EmbeddingProcessor) -> None:
    """An item of many texts tells how far it is after each call of the runtime; once cancelled it stops there."""
    signals: list[Signal] = []
    processor.process([item(Text([LONG] * 4), signals)])
    assert signals == [Progress(float(done), 4.0) for done in (1, 2, 3, 4)]
    cancelled = item(Text([LONG] * 4), signals)
    cancelled.context.cancel()
    (outcome,) = processor.process([cancelled])
    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TaskCancelled"
    both = [cancelled, item(Text("wanted"))]
    assert isinstance(processor.process(both)[1], Done)
