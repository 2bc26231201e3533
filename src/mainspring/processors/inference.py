"""Model inference: whatever the named model reads and answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, TaskError
from mainspring.models import ModelManager
from mainspring.processors.base import Item, Lane, failure
from mainspring.processors.batch import Batch
from mainspring.processors.spending import charged
from mainspring.tasks import Done, ModelInput, ModelOutput, Outcome, TaskInput, TaskType, Work
from mainspring.tasks.codec import convert


class InferenceProcessor:
    """ModelInput in, ModelOutput out; which fields are read and what comes out is the model's kind to say.

    - embedding: text → vector (dim,), list → (n, dim), pairs → cosines (n,); float32
    - classification: text, list or pairs → labels with scores, best first
    - token_classification: text or list → entities with their places
    - onnx: arrays by name → arrays by name
    - python: anything → whatever `infer` gives
    - http: messages or text → generated text; or as embedding

    Tasks of one model and with equal options join, up to 64 and 16 KiB, where the model answers many in less time than
    one after the other: not graphs of named arrays, and not generation over HTTP, which had better run side by side.
    """

    task_type = TaskType.MODEL_INFERENCE
    lane: Lane = "thread"
    batch = Batch(max_size=64, max_cost=16 << 10, cost=len)

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
        """Options; a model refuses those it does not read."""

        top_k: int | None = None  # classification: labels returned
        temperature: float | None = None  # generation
        top_p: float | None = None  # generation
        max_tokens: int | None = None  # generation: length of the answer
        stop: list[str] | None = None  # generation: texts that end it
        seed: int | None = None  # generation
        options: dict[str, Any] = {}  # to a Python model as it is; into the request's body of an HTTP model

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        options = self._options(params)
        model = self.model_of(model_id)
        self._models.check(model, input.as_model_input(), options)

    def expected_cost(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> float | None:
        """Return what a task is to cost its group where it does not say so; None: nothing is known of that."""
        given = input.as_model_input()
        content = given.text if given.messages is None else given.messages
        return self._models.expected_cost(self.model_of(model_id), content, params)

    def model_identity(self, model_id: str | None) -> str | None:
        """Return what beside code and input a result depends on; see `ModelManager.identity`."""
        return self._models.identity(self.model_of(model_id))

    def join(self, work: Work) -> tuple[Hashable, float]:
        """Inputs for one model and with equal options go into one call, where that pays; they cost their bytes."""
        model = self.model_of(work.model_id)
        alone = None if self._models.answers_together(model) else work.id
        return (model, work.params, alone), len(work.input)

    def is_loaded(self, key: Hashable) -> bool:
        """Whether a call with what `join` gave needs no model to be loaded."""
        return isinstance(key, tuple) and self._models.is_loaded(key[0])

    def load(self) -> None:
        """Models load when the first batch needs them."""

    def close(self) -> None:
        """The models belong to their manager."""

    def process(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[str, bytes], list[tuple[int, Item, ModelInput]]] = {}
        for index, item in enumerate(batch):
            try:
                options = msgspec.msgpack.encode(self._options(item.params))
                key = self.model_of(item.model_id), options
                groups.setdefault(key, []).append((index, item, item.input.as_model_input()))
            except TaskError as exc:
                outcomes[index] = failure(exc)
        for (model_id, options), members in groups.items():
            indices, items, inputs = zip(*members, strict=True)
            with charged(items, [1] * len(items)):
                results = self._infer(model_id, msgspec.msgpack.decode(options), list(inputs))
            outcomes.update(zip(indices, results, strict=True))
        return [outcomes[index] for index in range(len(batch))]

    def _options(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the options that were given, checked."""
        checked: InferenceProcessor.Params = convert(params, self.Params, "params")
        return {name: value for name, value in msgspec.to_builtins(checked).items() if value is not None}

    def model_of(self, model_id: str | None) -> str:
        """Return the model that a task which names this one uses. Raises InvalidInput where it names none."""
        if not model_id:
            known = ", ".join(self._models.ids())
            raise InvalidInput(f"model_id is missing: inference needs one; known are {known}", field="model_id")
        return model_id

    def _infer(self, model_id: str, options: dict[str, Any], inputs: list[ModelInput]) -> list[Outcome]:
        try:
            with self._models.acquire(model_id) as model:
                answers = model.infer_batch(inputs, options)
        except Exception as exc:
            if len(inputs) > 1:
                raise  # whoever has put them together tries halves
            return [failure(exc)]
        return [Done(answer) if isinstance(answer, ModelOutput) else failure(answer) for answer in answers]
