"""Vector search: queries of a batch are embedded together and answered together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from mainspring.errors import InvalidInput, invalid
from mainspring.processors.base import Item, Lane, failure
from mainspring.processors.batch import Batch
from mainspring.tasks import Done, Outcome, Ref, SearchQuery, TaskInput, TaskType, Work
from mainspring.tasks.codec import decode_input
from mainspring.vectors import MAX_TOP_K, VectorStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Embed = Callable[[list[str], str | None], NDArray[np.float32]]

Step: TypeAlias = SearchQuery | Outcome
"""How far an item has come."""


class SearchProcessor:
    """Answers each query with the nearest records of its collection, best first.

    A query that has only a text is embedded by the model that made the collection's vectors; where their writer named
    none, by the task's own, else by the default one. Tasks that look into one collection join, up to 64.

    Args:
        embed: texts and a model's id (None: the default one) to vectors, shape (len(texts), dim).
    """

    task_type = TaskType.VECTOR_SEARCH
    lane: Lane = "thread"
    batch = Batch(max_size=64)
    has_own_slot = True  # it is quick, and people wait for it: it need not wait for calls that take long

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """All that can be asked stands in the query."""

    def __init__(self, vectors: VectorStore, embed: Embed) -> None:
        self._vectors = vectors
        self._embed = embed

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        query = input.as_query()
        if query.text is None and query.vector is None:
            raise invalid("input", query, "has neither text nor vector", "pass SearchQuery(text=...) or (vector=...)")
        known = query.vector is None and not isinstance(query.text, Ref)
        if known and (not isinstance(query.text, str) or not query.text.strip()):
            raise invalid("input.text", query.text, "is no text to look for", "pass words, or a vector")
        for name in ("collection", "top_k", "filter"):
            if isinstance(value := getattr(query, name), Ref):
                raise invalid(f"input.{name}", value, "can't come from a task", "await its result, and pass that")
        if type(query.collection) is not str or not query.collection:
            raise invalid("input.collection", query.collection, "is no name", 'use one such as "docs"')
        if query.filter is not None and not (
            isinstance(query.filter, dict) and all(type(name) is str for name in query.filter)
        ):
            raise invalid("input.filter", query.filter, "is no mapping", 'use one such as {"language": "en"}, or None')
        if type(query.top_k) is not int or not 1 <= query.top_k <= MAX_TOP_K:
            raise invalid("input.top_k", query.top_k, "is out of range", f"use 1 to {MAX_TOP_K}")

    def join(self, work: Work) -> tuple[Hashable, float]:
        """Queries of one collection are answered by one pass over its vectors."""
        return (decode_input(work.input).as_query().collection, work.model_id), 0.0

    def load(self) -> None:
        """Nothing to load: a model comes with its first text."""

    def close(self) -> None:
        """The store and the models belong to whoever made them."""

    def process(self, batch: Sequence[Item]) -> Sequence[Outcome]:
        models = {collection.name: collection.model_id for collection in self._vectors.collections()}
        steps, texts = self._read(batch, models)
        for model_id, indexes in texts.items():
            _advance(steps, indexes, partial(self._embedded, model_id))
        collections: dict[str, list[int]] = {}
        for index, step in enumerate(steps):
            if isinstance(step, SearchQuery):
                collections.setdefault(step.collection, []).append(index)
        for indexes in collections.values():
            _advance(steps, indexes, self._answered)
        return [step for step in steps if not isinstance(step, SearchQuery)]

    def _read(
        self, batch: Sequence[Item], models: dict[str, str | None]
    ) -> tuple[list[Step], dict[str | None, list[int]]]:
        """Return what each item asks, and by model which of them need a vector."""
        steps: list[Step] = []
        texts: dict[str | None, list[int]] = {}
        for index, item in enumerate(batch):
            try:
                self.check(item.input, item.model_id, item.params)
                query = item.input.as_query()
                if query.vector is None:
                    texts.setdefault(_model_of(query, item.model_id, models), []).append(index)
                steps.append(query)
            except InvalidInput as exc:
                steps.append(failure(exc))
        return steps, texts

    def _embedded(self, model_id: str | None, queries: list[SearchQuery]) -> Iterable[Step]:
        vectors = self._embed([str(query.text) for query in queries], model_id)
        return [msgspec.structs.replace(query, vector=vector) for query, vector in zip(queries, vectors, strict=True)]

    def _answered(self, queries: list[SearchQuery]) -> Iterable[Step]:
        return [Done(found) for found in self._vectors.search(queries)]


def _model_of(query: SearchQuery, wanted: str | None, models: dict[str, str | None]) -> str | None:
    if query.collection not in models:
        raise invalid("input.collection", query.collection, "does not exist", f"use one of {list(models)[:20]}")
    model = models[query.collection]
    if wanted is not None and model is not None and wanted != model:
        raise invalid(
            "model_id", wanted, f"collection {query.collection!r} holds vectors of {model!r}", "leave model_id out"
        )
    return model or wanted


def _advance(steps: list[Step], indexes: list[int], call: Callable[[list[SearchQuery]], Iterable[Step]]) -> None:
    """Take these items one step further together.

    A call that refuses them is repeated with halves, so that only those that can't work end here. Any other error is
    the whole batch's.
    """
    queries = [step for index in indexes if isinstance(step := steps[index], SearchQuery)]
    try:
        for index, step in zip(indexes, call(queries), strict=True):
            steps[index] = step
    except InvalidInput as exc:
        if len(indexes) == 1:
            steps[indexes[0]] = failure(exc)
            return
        middle = len(indexes) // 2
        _advance(steps, indexes[:middle], call)
        _advance(steps, indexes[middle:], call)
