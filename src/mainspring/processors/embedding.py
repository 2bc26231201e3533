"""Embedding generation: texts to float32 vectors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec

from mainspring.errors import TaskCancelled, TaskError, invalid
from mainspring.models import ModelManager
from mainspring.models.inputs import has_ref
from mainspring.processors.base import Item, Lane, failure
from mainspring.processors.batch import Batch
from mainspring.processors.spending import charged
from mainspring.tasks import Done, EmbeddingOutput, Failed, Outcome, TaskInput, TaskType, Text, Work
from mainspring.tasks.codec import convert


class EmbeddingProcessor:
    """Text(str or list) in, EmbeddingOutput with one row a text out.

    All items of a batch go through the model together, sorted by length and capped by tokens, so that a short text
    never pays for a long one. An item that can't be read fails alone. Tasks of one model and with equal options join,
    up to 128 and 16 KiB: on a CPU that is some tenths of a second, for which an urgent one may have to wait.
    """

    task_type = TaskType.EMBEDDING_GENERATION
    lane: Lane = "thread"
    batch = Batch(max_size=128, max_cost=16 << 10, cost=len)

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        normalize: bool = True  # unit length; cosine similarity is then the dot product
        truncate: bool = True  # cut texts the model can't read whole; False: such an item fails

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        convert(params, self.Params, "params")
        model = self.model_of(model_id)
        if not self._models.embeds(model):
            default = self._models.config.default_embedding
            raise invalid("model_id", model, "gives no embeddings", f"leave it out for {default}")
        if not isinstance(input, Text):
            raise invalid("input", type(input).__name__, "is not Text", "pass Text(...) with a str or a list")
        if not has_ref(input.text):
            _texts(input)

    def expected_cost(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> float | None:
        """Return what a task is to cost its group where it does not say so; None: nothing is known of that."""
        return self._models.expected_cost(self.model_of(model_id), input.as_text(), params)

    def model_identity(self, model_id: str | None) -> str | None:
        """Return what beside code and input a result depends on; see `ModelManager.identity`."""
        return self._models.identity(self.model_of(model_id))

    def join(self, work: Work) -> tuple[Hashable, float]:
        """Texts for one model and with equal options go through it together; they cost their bytes."""
        return (self.model_of(work.model_id), work.params), len(work.input)

    def is_loaded(self, key: Hashable) -> bool:
        """Whether a call with what `join` gave needs no model to be loaded."""
        return isinstance(key, tuple) and self._models.is_loaded(key[0])

    def load(self) -> None:
        """Models load when the first batch needs them."""

    def close(self) -> None:
        """The models belong to their manager."""

    def process(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[str, EmbeddingProcessor.Params], list[tuple[int, Item, list[str]]]] = {}
        for index, item in enumerate(batch):
            try:
                params: EmbeddingProcessor.Params = convert(item.params, self.Params, "params")
                texts = _texts(item.input)
            except TaskError as exc:
                outcomes[index] = failure(exc)
            else:
                groups.setdefault((self.model_of(item.model_id), params), []).append((index, item, texts))
        for (model_id, params), members in groups.items():
            sizes = [sum(map(len, texts)) for _, _, texts in members]
            with charged([item for _, item, _ in members], sizes):
                results = self._embed(model_id, params, [(item, texts) for _, item, texts in members])
            outcomes.update(zip((index for index, _, _ in members), results, strict=True))
        return [outcomes[index] for index in range(len(batch))]

    def model_of(self, model_id: str | None) -> str:
        """Return the model that a task which names this one uses."""
        return model_id or self._models.config.default_embedding

    def _embed(self, model_id: str, params: Params, members: list[tuple[Item, list[str]]]) -> list[Outcome]:
        flat = [text for _, texts in members for text in texts]
        watch = _watcher([item for item, _ in members], len(flat))
        try:
            with self._models.acquire_embedding(model_id) as model:
                vectors, truncated = model.embed(flat, normalize=params.normalize, on_batch=watch)
                limit = model.max_tokens
        except Exception as exc:
            if len(members) > 1:
                raise  # whoever has put them together tries halves
            return [failure(exc)]
        outcomes: list[Outcome] = []
        start = 0
        for item, texts in members:
            end = start + len(texts)
            cut = tuple(row - start for row in truncated if start <= row < end)
            if cut and not params.truncate:
                outcomes.append(_too_long(texts[cut[0]], limit))
            else:
                of_one = isinstance(item.input.as_text(), str)
                outcomes.append(Done(EmbeddingOutput(vectors[start:end], model_id, cut, of_one)))
            start = end
        return outcomes


def _texts(input: TaskInput) -> list[str]:
    texts = input.as_text()
    return [texts] if isinstance(texts, str) else texts


def _too_long(text: str, limit: int) -> Failed:
    why = f"is longer than the {limit} tokens that the model reads"
    return failure(invalid("input.text", text, why, "split it into chunks, or leave truncate=True"))


def _watcher(items: Sequence[Item], total: int) -> Callable[[int], None]:
    """Return what ends the work once nobody wants it any more, and tells a long item how far it is."""

    def watch(done: int) -> None:
        if all(item.context.cancelled for item in items):
            raise TaskCancelled("cancelled while embedding")
        if len(items) == 1 and total > 1:
            items[0].context.progress(done, total)

    return watch
