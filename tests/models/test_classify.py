"""Classifiers from folders as transformers writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.errors import InvalidInput
from mainspring.models import ModelManager
from mainspring.tasks import ModelInput

MakeModel = Callable[..., Path]


def answers(folder: Path, inputs: list[ModelInput], **params: object) -> list[object]:
    manager = ModelManager()
    manager.register("model", folder)
    for input in inputs:
        manager.check("model", input, params)
    with manager.acquire("model") as model:
        found = model.infer_batch(inputs, params)
    return [answer if isinstance(answer, Exception) else answer.outputs for answer in found]


def test_text_classification(make_text_model: MakeModel) -> None:
    """Labels come best first with softmax probabilities; a list gives a list; top_k cuts."""
    table = {"good": [0.0, 2.0], "bad": [3.0, 0.0]}
    folder = make_text_model("XForSequenceClassification", ["NEGATIVE", "POSITIVE"], table)
    single, several = answers(folder, [ModelInput(text="good day"), ModelInput(text=["bad", "good good"])])
    probability = math.exp(2) / (1 + math.exp(2))
    assert single == [
        {"label": "POSITIVE", "score": pytest.approx(probability, rel=1e-5)},
        {"label": "NEGATIVE", "score": pytest.approx(1 - probability, rel=1e-5)},
    ]
    assert [ranked[0]["label"] for ranked in several] == ["NEGATIVE", "POSITIVE"]  # type: ignore[attr-defined]
    (cut,) = answers(folder, [ModelInput(text="bad")], top_k=1)
    assert len(cut) == 1  # type: ignore[arg-type]


def test_padding_in_the_tokenizer_file_is_ignored(make_text_model: MakeModel) -> None:
    """The file's own padding to 8 and cut to 4 tokens are replaced by the model's 6 tokens and no padding."""
    table = {"[PAD]": [100.0, 0.0], "good": [0.0, 1.0]}
    folder = make_text_model("XForSequenceClassification", ["PADDED", "GOOD"], table)
    (found,) = answers(folder, [ModelInput(text="good good good good good")])
    assert found[0] == {"label": "GOOD", "score": pytest.approx(math.exp(4) / (1 + math.exp(4)))}  # type: ignore[index]


def test_pairs_with_one_label_are_scored(make_text_model: MakeModel) -> None:
    """A reranker gives one number from 0 to 1 for each pair."""
    folder = make_text_model("XForSequenceClassification", ["SCORE"], {"good": [1.0], "bad": [-1.0]})
    (scores,) = answers(folder, [ModelInput(pairs=[("good", "good"), ("bad", "day")])])
    assert scores == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))])


def test_token_classification(make_text_model: MakeModel) -> None:
    """Entities have label, text and place; neighbours of one label join, B- begins a new one."""
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    table = {"good": [9.0, 0, 0, 0], "anna": [0, 9.0, 0, 0], "day": [0, 0, 9.0, 0], "paris": [0, 0, 0, 9.0]}
    folder = make_text_model("XForTokenClassification", labels, table)
    (found,) = answers(folder, [ModelInput(text="good  anna day paris")])
    shown = [(entity["label"], entity["text"], entity["start"], entity["end"]) for entity in found]  # type: ignore[attr-defined]
    assert shown == [("PER", "anna day", 6, 14), ("LOC", "paris", 15, 20)]
    with pytest.raises(InvalidInput, match="reads text"):
        answers(folder, [ModelInput(pairs=[("a", "b")])])


def test_a_broken_config_names_its_file(make_text_model: MakeModel) -> None:
    """A config.json that is no JSON is a typed error at registration."""
    folder = make_text_model("XForSequenceClassification", ["A"], {})
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"config\.json"):
        ModelManager().register("broken", folder)


def test_unknown_pooling_is_refused(make_text_model: MakeModel) -> None:
    """A model that pools in a way we don't do is refused rather than computed wrongly."""
    folder = make_text_model("XModel", ["A"], {})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InvalidInput, match="pooling"):
        ModelManager().register("pooled", folder)
