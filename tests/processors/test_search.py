"""Vector search as a task type: one embedding call a model, one search a collection, and bad queries end alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mainspring.errors import InvalidInput, ProcessingFailed
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.search import SearchProcessor
from mainspring.tasks import (
    Done,
    Failed,
    Outcome,
    Ref,
    SearchQuery,
    SearchResults,
    TaskId,
    Text,
    VectorRecord,
    VectorUpsert,
)
from mainspring.vectors import SqliteVectorStore


class Embedder:
    """Letters counted: enough of a model to tell one word from another. Remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], str | None]] = []

    def __call__(self, texts: list[str], model_id: str | None) -> NDArray[np.float32]:
        self.calls.append((texts, model_id))
        if model_id == "broken":
            raise ProcessingFailed("the model does not answer")
        return np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteVectorStore]:
    store = SqliteVectorStore(tmp_path / "work.db")
    for name, model in (("docs", "letters"), ("plain", None), ("other", "letters")):
        records = tuple(
            VectorRecord(text, vector, text) for text, vector in (("aab", [2, 1, 0, 0]), ("cd", [0, 0, 1, 1]))
        )
        store.write(VectorUpsert(name, records, model))
    yield store
    store.close()


def run(
    store: SqliteVectorStore, embed: Any, *queries: SearchQuery | Text, model_id: str | None = None
) -> list[Outcome]:
    def item(query: SearchQuery | Text) -> Item:
        id = TaskId()
        context = Context(id=id.bytes, attempt=1, send=lambda signal: None)
        return Item(input=query, context=context, model_id=model_id)

    return list(SearchProcessor(store, embed).process([item(query) for query in queries]))


def ids(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Done)
    assert isinstance(outcome.output, SearchResults)
    return [hit.id for hit in outcome.output.hits]


def message(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed)
    assert not outcome.retryable
    return outcome.error.message


def test_texts_of_a_batch_are_embedded_together(store: SqliteVectorStore) -> None:
    """One call for each model, with the collection's model; vectors that are given are used as they are."""
    embed = Embedder()
    outcomes = run(
        store,
        embed,
        SearchQuery(text="d", collection="docs", top_k=1),
        SearchQuery(text="ba", collection="other", top_k=1),
        SearchQuery(text="d", vector=[1, 0, 0, 0], collection="docs", top_k=1),
        SearchQuery(text="c", collection="plain"),
    )
    assert [ids(outcome) for outcome in outcomes] == [["cd"], ["aab"], ["aab"], ["cd", "aab"]]
    assert embed.calls == [(["d", "ba"], "letters"), (["c"], None)]


def test_a_batch_is_one_search_for_each_collection(store: SqliteVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    search = store.search

    def counted(queries: Sequence[SearchQuery]) -> list[SearchResults]:
        calls.append(len(queries))
        return search(queries)

    monkeypatch.setattr(store, "search", counted)
    queries = [SearchQuery(vector=[1, 0, 0, 0], collection=("docs", "other")[n % 2]) for n in range(10)]
    run(store, Embedder(), *queries)
    assert calls == [5, 5]


def test_a_bad_query_fails_alone(store: SqliteVectorStore) -> None:
    good = SearchQuery(text="a", collection="docs", top_k=1)
    outcomes = run(
        store,
        Embedder(),
        good,
        SearchQuery(vector=[1, 0], collection="docs"),
        good,
        SearchQuery(text="a", collection="unknown"),
        SearchQuery(vector=[1, 0, 0, 0], collection="unknown"),
        SearchQuery(vector=[float("nan")] * 4, collection="docs"),
        SearchQuery(text="z", collection="docs"),
        Text("no query"),
        SearchQuery(text=3, collection="docs"),
        good,
    )
    assert [ids(outcomes[n]) for n in (0, 2, 9)] == [["aab"]] * 3
    for n, word in ((1, "2 dimensions"), (3, "unknown"), (4, "unknown"), (5, "not finite"), (6, "no length")):
        assert word in message(outcomes[n])
    assert "Text" in message(outcomes[7])
    assert "no text" in message(outcomes[8])


def test_a_model_that_does_not_answer_fails_the_call(store: SqliteVectorStore) -> None:
    """It is worth another try, which a bad query is not."""
    store.write(VectorUpsert("late", (VectorRecord("x", [1, 0, 0, 0]),), "broken"))
    with pytest.raises(ProcessingFailed):
        run(store, Embedder(), SearchQuery(text="a", collection="late"))


def test_a_tasks_model_must_be_the_collections(store: SqliteVectorStore) -> None:
    """Vectors of different models mean nothing to each other; where the writer named no model the task's is taken."""
    embed = Embedder()
    query = SearchQuery(text="a", collection="docs", top_k=1)
    (outcome,) = run(store, embed, query, model_id="large")
    assert "'letters'" in message(outcome)
    (outcome,) = run(store, embed, query, model_id="letters")
    assert ids(outcome) == ["aab"]
    run(store, embed, SearchQuery(text="a", collection="plain"), model_id="large")
    assert embed.calls[-1] == (["a"], "large")


@pytest.mark.parametrize(
    ("query", "word"),
    [
        (Text("words"), "SearchQuery"),
        (SearchQuery(), "neither text nor vector"),
        (SearchQuery(text=" "), "no text"),
        (SearchQuery(text=["a", "b"]), "no text"),
        (SearchQuery(text="a", top_k=0), "top_k"),
        (SearchQuery(text="a", top_k=1001), "top_k"),
        (SearchQuery(text="a", top_k=True), "top_k"),
    ],
)
def test_what_can_never_work_is_refused_at_submit(store: SqliteVectorStore, query: Any, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        SearchProcessor(store, Embedder()).check(query, None, {})


def test_what_comes_from_parents_is_taken_at_submit(store: SqliteVectorStore) -> None:
    processor = SearchProcessor(store, Embedder())
    processor.check(SearchQuery(text=Ref(TaskId())), None, {})
    processor.check(SearchQuery(vector=Ref(TaskId())), None, {})
