"""Classifiers of texts and of tokens on onnxruntime, from folders laid out as transformers writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mainspring.errors import InvalidInput
from mainspring.models.base import BlockingModel, ModelInfo
from mainspring.models.inputs import check_params, check_texts, each, field_of, pairs_of, texts_of
from mainspring.models.layout import Layout
from mainspring.models.tokens import TextEncoder, TextSession
from mainspring.tasks import ModelInput, ModelOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]


class _Classifier(BlockingModel):
    """Reads texts or pairs; the logits of all items of a batch are computed together."""

    accepts: ClassVar[tuple[str, ...]] = ("text", "pairs")
    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, info: ModelInfo, layout: Layout, *, threads: int = 1, max_batch_tokens: int = 256) -> None:
        assert layout.tokenizer is not None
        self.info = info
        self.labels = layout.labels
        self._encoder = TextEncoder(layout.tokenizer, layout.max_tokens)
        self._session = TextSession(layout.graph_file, threads, max_batch_tokens)
        self._output = next(iter(self._session.outputs))

    def check(self, input: ModelInput, params: dict[str, Any]) -> None:
        check_params(self.info.model_id, params, self.reads)
        check_texts(self.info.model_id, input, self.accepts)

    def infer_batch(self, inputs: Sequence[ModelInput], params: dict[str, Any]) -> list[ModelOutput | Exception]:
        read = each(inputs, self._items)
        items = [item for found in read if not isinstance(found, InvalidInput) for item in found]
        results = self._answers(items, params) if items else []
        answers: list[ModelOutput | Exception] = []
        start = 0
        for input, found in zip(inputs, read, strict=True):
            if isinstance(found, InvalidInput):
                answers.append(found)
                continue
            own = results[start : start + len(found)]
            answers.append(ModelOutput(own[0] if isinstance(input.text, str) else own))
            start += len(found)
        return answers

    def _items(self, input: ModelInput) -> list[Any]:
        if field_of(self.info.model_id, input, self.accepts) == "text":
            return list(texts_of(input.text))
        return list(pairs_of(input.pairs))

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else f"LABEL_{index}"

    def _answers(self, items: list[Any], params: dict[str, Any]) -> list[Any]:
        raise NotImplementedError


class TextClassifier(_Classifier):
    """Labels with probabilities, best first: [{"label", "score"}, ...] for each text or pair.

    A model with a single label scores instead (a reranker of pairs is one): one number from 0 to 1 each.
    """

    reads = frozenset(("top_k",))

    def _answers(self, items: list[Any], params: dict[str, Any]) -> list[Any]:
        encodings = self._encoder.cut.encode_batch_fast(items)
        answers: list[Any] = [None] * len(items)
        for group, _, logits in self._session.run(encodings, self._output):
            for index, row in zip(group, logits, strict=True):
                answers[index] = float(sigmoid(row)[0]) if row.shape == (1,) else self._ranked(softmax(row), params)
        return answers

    def _ranked(self, scores: NDArray[Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        best = scores.argsort()[::-1][: params.get("top_k")]
        return [{"label": self._label(int(index)), "score": float(scores[index])} for index in best]


class TokenClassifier(_Classifier):
    """Entities in each text: [{"label", "text", "start", "end", "score"}, ...], in order.

    Neighbouring tokens of one label are one entity (labels B-X and I-X are X; B begins a new one), `score` is their
    mean. `start` and `end` count characters. Text past the model's length is not looked at.
    """

    accepts = ("text",)

    def _answers(self, items: list[Any], params: dict[str, Any]) -> list[Any]:
        encodings = self._encoder.cut.encode_batch(items)
        answers: list[Any] = [None] * len(items)
        for group, _, logits in self._session.run(encodings, self._output):
            for index, rows in zip(group, logits, strict=True):
                answers[index] = self._entities(items[index], encodings[index], softmax(rows))
        return answers

    def _entities(self, text: str, encoding: Any, scores: NDArray[Any]) -> list[dict[str, Any]]:
        entities: list[dict[str, Any]] = []
        previous = "O"
        for index, (start, end) in enumerate(encoding.offsets):
            best = int(scores[index].argmax())
            tag = "O" if encoding.special_tokens_mask[index] else self._label(best)
            label = tag.removeprefix("B-").removeprefix("I-")
            if label != "O" and not tag.startswith("B-") and label == previous:
                entities[-1]["end"] = end
                entities[-1]["scores"].append(float(scores[index, best]))
            elif label != "O":
                entities.append({"label": label, "start": start, "end": end, "scores": [float(scores[index, best])]})
            previous = label
        for entity in entities:
            found = entity.pop("scores")
            entity["score"] = sum(found) / len(found)
            entity["text"] = text[entity["start"] : entity["end"]]
        return entities
