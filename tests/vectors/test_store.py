"""Vector stores, each of them: exact answers, one moment, nothing half written, any number of processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.vectors.builders import expected, record, search, upsert, vectors
from tests.vectors.homes import Home, PostgresHome, SqliteHome

from mainspring.errors import InvalidInput
from mainspring.tasks import SearchQuery, VectorDelete, VectorRecord
from mainspring.vectors import VectorStore


def test_answers_are_exact(store: VectorStore) -> None:
    """A batch of queries gets the same hits, in the same order, as sorting all cosines gives."""
    known = {f"r{n}": vector for n, vector in enumerate(vectors(500))}
    upsert(store, *(record(id, vector) for id, vector in known.items()))
    queries = vectors(8, seed=1)
    found = store.search([SearchQuery(vector=query, top_k=7, collection="docs") for query in queries])
    for query, results in zip(queries, found, strict=True):
        assert [hit.id for hit in results.hits] == expected(known, query, 7)
        scores = [hit.score for hit in results.hits]
        assert scores == sorted(scores, reverse=True)
        assert all(-1 <= score <= 1 for score in scores)


def test_hits_carry_text_and_metadata(store: VectorStore) -> None:
    upsert(store, record("a", [1, 0], "hello", page=3, tags=["x"]), record("b", [0, 1]))
    (found,) = store.search([SearchQuery(vector=[1, 0], collection="docs")])
    assert [(hit.id, hit.text, hit.metadata) for hit in found.hits] == [
        ("a", "hello", {"page": 3, "tags": ["x"]}),
        ("b", None, {}),
    ]
    assert found.hits[0].score == pytest.approx(1)
    assert found.collection == "docs"


@pytest.mark.parametrize("dim", [16, 383])
def test_ties_go_by_id_wherever_they_lie(store: VectorStore, dim: int) -> None:
    """Equal vectors have equal scores, though a matrix product gives those at its edge another last bit."""
    (same,) = vectors(1, dim=dim)
    upsert(store, *(record(f"r{n:02}", same) for n in range(49, -1, -1)))  # the first ids lie at the edge
    queries = [SearchQuery(vector=query, collection="docs", top_k=3) for query in vectors(64, seed=1, dim=dim)]
    for found in store.search(queries):
        assert [hit.id for hit in found.hits] == ["r00", "r01", "r02"]
        assert len({hit.score for hit in found.hits}) == 1


def test_a_query_gets_the_same_answer_alone_and_in_a_batch(store: VectorStore) -> None:
    """Scores are equal to the last bit, so that cached and repeated results agree."""
    upsert(store, *(record(f"r{n}", vector) for n, vector in enumerate(vectors(300, dim=384))))
    queries = [SearchQuery(vector=query, collection="docs") for query in vectors(16, seed=1, dim=384)]
    together = store.search(queries)
    assert [store.search([query])[0] for query in queries] == together


def test_top_k_larger_than_the_collection_gives_all(store: VectorStore) -> None:
    upsert(store, record("a", [1, 0]), record("b", [0, 1]), record("c", [1, 1]))
    store.write(VectorDelete("docs", ("b",)))
    assert search(store, [1, 0], top_k=1000) == ["a", "c"]


def test_an_emptied_collection_finds_nothing(store: VectorStore) -> None:
    upsert(store, record("a", [1, 0]))
    store.write(VectorDelete("docs", filter={}))
    assert search(store, [1, 0]) == []
    assert store.get("docs", ["a"]) == []


def test_queries_of_several_collections_come_back_in_order(store: VectorStore) -> None:
    upsert(store, record("a", [1, 0]), collection="one")
    upsert(store, record("b", [1, 0, 0]), collection="two")
    found = store.search(
        [
            SearchQuery(vector=[1, 0, 0], collection="two"),
            SearchQuery(vector=[1, 0], collection="one"),
            SearchQuery(vector=[0, 1, 0], collection="two"),
        ]
    )
    assert [[hit.id for hit in results.hits] for results in found] == [["b"], ["a"], ["b"]]


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ({"lang": "en"}, ["a", "b"]),
        ({"lang": ["en", "de"]}, ["a", "b", "c"]),
        ({"lang": "en", "n": 2}, ["b"]),
        ({"n": 1}, ["a", "d"]),
        ({"n": 1.0}, ["a", "d"]),
        ({"n": True}, ["e"]),
        ({"n": "1"}, ["f"]),
        ({"lang": None}, ["d"]),
        ({"tags": [["x", "y"]]}, ["a"]),
        ({"tags": "x"}, []),
        ({"deep": {"b": 1, "a": 2}}, ["c"]),
        ({"long": "x" * 5000}, ["c"]),
        ({"long": "x" * 5001}, []),
        ({"lang": []}, []),
        ({"nothing": 1}, []),
        ({"lang": "en' OR 1=1 --"}, []),
        ({}, ["a", "b", "c", "d", "e", "f"]),
    ],
)
def test_filters_match_top_level_values_exactly(store: VectorStore, filter: dict[str, Any], ids: list[str]) -> None:
    upsert(
        store,
        record("a", [1, 0], lang="en", n=1, tags=["x", "y"]),
        record("b", [1, 0], lang="en", n=2),
        record("c", [1, 0], lang="de", deep={"a": 2, "b": 1}, long="x" * 5000),
        record("d", [1, 0], lang=None, n=1.0),
        record("e", [1, 0], n=True),
        record("f", [1, 0], n="1"),
    )
    assert search(store, [1, 0], filter=filter) == ids
    assert [id for id, _ in store.metadata("docs", filter)] == ids


@pytest.mark.parametrize("share", [3, 50])
def test_filtered_search_is_exact_for_rare_and_for_common_values(store: VectorStore, share: int) -> None:
    """Gathering the few and masking the many give what sorting the matching records gives; in one batch with others."""
    known = {f"r{n}": vector for n, vector in enumerate(vectors(400))}
    upsert(store, *(record(id, vector, part=int(id[1:]) % 100 < share) for id, vector in known.items()))
    store.write(VectorDelete("docs", ("r0", "r1", "r150")))
    matching = {id: known[id] for id in known if int(id[1:]) % 100 < share and id not in ("r0", "r1", "r150")}
    one, two = vectors(2, seed=2)
    found = store.search(
        [
            SearchQuery(vector=one, collection="docs", top_k=5, filter={"part": True}),
            SearchQuery(vector=two, collection="docs", top_k=5),
            SearchQuery(vector=two, collection="docs", top_k=300, filter={"part": True}),
        ]
    )
    assert [hit.id for hit in found[0].hits] == expected(matching, one, 5)
    assert len(found[1].hits) == 5
    assert [hit.id for hit in found[2].hits] == expected(matching, two, 300)


def test_upsert_replaces_by_id(store: VectorStore) -> None:
    """The old vector, text and labels are gone, for a process that had searched before and for a new one."""
    assert upsert(store, record("a", [1, 0], "old", v=1), record("b", [0, 1], v=1)) == 2
    assert search(store, [1, 0], top_k=1) == ["a"]
    assert upsert(store, record("a", [-1, 0], "new", v=2)) == 1
    assert search(store, [1, 0], top_k=2) == ["b", "a"]
    assert search(store, [1, 0], filter={"v": 1}) == ["b"]
    assert [record.text for record in store.get("docs", ["a"])] == ["new"]
    (collection,) = store.collections()
    assert collection.count == 2


def test_replace_indexes_a_document_anew_in_one_step(store: VectorStore) -> None:
    upsert(store, *(record(f"doc#{n}", [1, n], doc="doc") for n in range(5)), record("other", [1, 1], doc="other"))
    upsert(store, *(record(f"doc#{n}", [1, n], doc="doc") for n in range(2)), replace={"doc": "doc"})
    assert sorted(search(store, [1, 0])) == ["doc#0", "doc#1", "other"]
    assert upsert(store, replace={"doc": "doc"}) == 0
    assert search(store, [1, 0]) == ["other"]


def test_delete_by_id_and_filter(store: VectorStore) -> None:
    upsert(store, *(record(f"r{n}", [1, n], half=n % 2) for n in range(6)))
    assert store.write(VectorDelete("docs", ("r0", "unknown"))) == 1
    assert store.write(VectorDelete("docs", ("r2",), {"half": 1})) == 4
    assert store.write(VectorDelete("docs")) == 0
    assert store.write(VectorDelete("no such collection", ("r0",))) == 0
    assert search(store, [1, 0]) == ["r4"]


def test_get_and_metadata(store: VectorStore) -> None:
    """Vectors come back at unit length, in the order asked for, without those that are not there."""
    upsert(store, record("a", [3, 4], "text", n=1), record("b", np.array([[0.0, 2.0]])))
    b, a = store.get("docs", ["b", "missing", "a"])
    assert (a.id, a.text, a.metadata) == ("a", "text", {"n": 1})
    assert a.vector.dtype == np.float32
    np.testing.assert_allclose(a.vector, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(b.vector, [0, 1])
    assert store.metadata("docs") == [("a", {"n": 1}), ("b", {})]


def test_collections_tell_what_fixes_them(store: VectorStore) -> None:
    upsert(store, record("a", [1, 0]), model_id="mini")
    upsert(store, record("a", [1, 0, 0]), collection="another")
    another, docs = store.collections()
    assert (docs.name, docs.dim, docs.count, docs.model_id) == ("docs", 2, 1, "mini")
    assert (another.name, another.dim, another.count, another.model_id) == ("another", 3, 1, None)
    assert docs.updated_ms > 0


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([record("new", [1, 0, 0])], {"model_id": "mini"}, ["3", "2", "docs"]),
        ([record("new", [1, 0])], {"model_id": "large"}, ["'large'", "'mini'", "docs"]),
        ([record("new", [1, 0])], {}, ["None", "'mini'"]),
        ([record("new", [1, 0]), record("bad", [1, float("nan")])], {"model_id": "mini"}, ["'bad'", "not finite"]),
        ([record("new", [1, 0]), record("bad", [1, float("inf")])], {"model_id": "mini"}, ["'bad'", "not finite"]),
        ([record("new", [1, 0]), record("bad", [0, 0])], {"model_id": "mini"}, ["'bad'", "no length"]),
        ([record("new", [1, 0]), record("bad", [1])], {"model_id": "mini"}, ["'bad'", "1", "2"]),
        ([record("bad", ["x", "y"])], {"model_id": "mini"}, ["'bad'", "no vector"]),
        ([record("bad", [[1, 0], [0, 1]])], {"model_id": "mini"}, ["'bad'", "shape"]),
        ([record("bad", np.array([1 + 1j, 0]))], {"model_id": "mini"}, ["'bad'", "complex"]),
        ([record("bad", None)], {"model_id": "mini"}, ["'bad'"]),
        ([record("twice", [1, 0]), record("twice", [1, 0])], {"model_id": "mini"}, ["'twice'"]),
        ([record("", [1, 0])], {"model_id": "mini"}, ["id", "not empty"]),
        ([record("new", [1, 0], what=object())], {"model_id": "mini"}, ["'new'", "JSON-like"]),
        ([record("new", [1, 0])], {"model_id": "mini", "replace": {"what": object()}}, ["what", "JSON-like"]),
        ([record("new", [1, 0])], {"model_id": "mini", "collection": ""}, ["collection"]),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    store: VectorStore, records: list[VectorRecord], options: dict[str, Any], words: list[str]
) -> None:
    upsert(store, record("old", [1, 0], v=1), record("older", [1, 1], v=0), model_id="mini")
    before = store.collections(), store.metadata("docs")
    with pytest.raises(InvalidInput) as caught:
        upsert(store, *records, **{"replace": {"v": 1}, **options})
    for word in words:
        assert word in str(caught.value)
    assert (store.collections(), store.metadata("docs")) == before


def test_all_records_can_be_replaced_by_those_of_another_model(store: VectorStore) -> None:
    """An emptied collection begins again with any dimension and model, also for those who had searched it."""
    upsert(store, record("a", [1, 0]), record("b", [0, 1]), model_id="mini")
    search(store, [1, 0])
    upsert(store, record("a", [0, 0, 1]), model_id="large", replace={})
    assert search(store, [0, 0, 1]) == ["a"]
    (collection,) = store.collections()
    assert (collection.dim, collection.model_id, collection.count) == (3, "large", 1)
    store.write(VectorDelete("docs", filter={}))
    assert search(store, [0, 0, 1]) == []
    upsert(store, record("c", [1, 0, 0, 0]))
    assert search(store, [1, 0, 0, 0]) == ["c"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (SearchQuery(vector=[1, 0], collection="dcos"), ["dcos", "docs"]),
        (SearchQuery(vector=[1, 0, 0], collection="docs"), ["3", "2"]),
        (SearchQuery(vector=[1, float("nan")], collection="docs"), ["not finite"]),
        (SearchQuery(vector=[0, 0], collection="docs"), ["no length"]),
        (SearchQuery(text="words", collection="docs"), ["vector", "embed"]),
        (SearchQuery(vector=[1, 0], collection="docs", top_k=0), ["top_k", "1000"]),
        (SearchQuery(vector=[1, 0], collection="docs", top_k=1001), ["top_k", "1000"]),
        (SearchQuery(vector=[1, 0], collection="docs", filter={"a": object()}), ["filter", "JSON-like"]),
    ],
)
def test_bad_queries_are_named(store: VectorStore, query: SearchQuery, words: list[str]) -> None:
    upsert(store, record("a", [1, 0]))
    with pytest.raises(InvalidInput) as caught:
        store.search([SearchQuery(vector=[1, 0], collection="docs"), query])
    for word in words:
        assert word in str(caught.value)


def test_searches_during_writes_see_one_moment(store: VectorStore) -> None:
    """While all records are replaced again and again, each search finds all of them, all of the same round."""
    ids = [f"r{n}" for n in range(50)]
    near = vectors(50, seed=3)

    def write(round: int) -> None:
        upsert(store, *(record(id, vector, str(round), round=round) for id, vector in zip(ids, near, strict=True)))

    def read(n: int) -> set[Any]:
        options: dict[str, Any] = {} if n % 2 else {"filter": {"round": list(range(100))}}
        (found,) = store.search([SearchQuery(vector=near[0], top_k=1000, collection="docs", **options)])
        assert sorted(hit.id for hit in found.hits) == sorted(ids)
        return {(hit.text, hit.metadata["round"]) for hit in found.hits}

    write(0)
    with ThreadPoolExecutor(4) as pool:
        reads = []
        for round in range(1, 60):
            reads += [pool.submit(read, round * 4 + n) for n in range(4)]
            write(round)
        rounds = [future.result() for future in reads]
    assert all(len(seen) == 1 for seen in rounds)
    assert read(0) == {("59", 59)}


def test_what_another_process_committed_is_seen(home: Home, store: VectorStore) -> None:
    """Deletes, replaced and new records alike, by one that had searched the collection, and by one that comes later."""
    upsert(store, record("a", [1, 0], "kept", n=1), record("b", [1, 0]), model_id="mini")
    assert search(store, [1, 0]) == ["a", "b"]
    other = home.open()
    other.write(VectorDelete("docs", ("a",)))
    upsert(other, record("b", [0, 1]), record("c", [1, 0]), model_id="mini")
    assert search(store, [1, 0]) == search(home.open(), [1, 0]) == ["c", "b"]


def test_pages_hold_all_records_in_the_order_of_their_ids(store: VectorStore) -> None:
    """Each record is in one page, as `get` gives it; ids are ordered by their characters."""
    ids = ["", "A", "a", "a\u0000b", "a b", "aa", "z", "ä", "\uffff", "\U0001f600"][1:]
    upsert(store, *(record(id, [1, n], f"text {n}", n=n) for n, id in enumerate(reversed(ids))))
    found: list[VectorRecord] = []
    while page := store.page("docs", after=found[-1].id if found else "", limit=4):
        assert len(page) <= 4
        found += page
    assert [one.id for one in found] == sorted(ids)
    for one, other in zip(found, store.get("docs", sorted(ids)), strict=True):
        assert (one.id, one.text, one.metadata) == (other.id, other.text, other.metadata)
        assert one.vector.tolist() == other.vector.tolist()
    with pytest.raises(InvalidInput, match="dcos"):
        store.page("dcos")


def test_any_text_comes_back_as_it_was(store: VectorStore) -> None:
    """Also one with characters that a database may refuse, in ids, texts, metadata and filters."""
    odd = "a\u0000b \ud7ff \U0001f600 ' \" \\ {x}, %s $1"
    upsert(store, record(odd, [1, 0], odd, **{odd: odd, "list": [odd]}))
    for filter in ({odd: odd}, {"list": [[odd]]}):
        (found,) = store.search([SearchQuery(vector=[1, 0], collection="docs", filter=filter)])
        assert [(hit.id, hit.text, hit.metadata) for hit in found.hits] == [(odd, odd, {odd: odd, "list": [odd]})]
    assert store.write(VectorDelete("docs", (odd,))) == 1


def test_a_vector_of_unit_length_is_kept_to_the_last_bit(store: VectorStore) -> None:
    """What a store gives can be put into another one again and again: nothing drifts."""
    many = 2000  # in few dimensions rounding changes the length most
    upsert(store, *(record(f"r{n}", vector) for n, vector in enumerate(vectors(many, dim=2))))
    first = store.page("docs", limit=many)
    upsert(store, *first)
    assert [one.vector.tobytes() for one in store.page("docs", limit=many)] == [one.vector.tobytes() for one in first]


def test_both_stores_give_the_same_answers(tmp_path: Path) -> None:
    """Ids, order, texts, metadata and scores to the last bit, with and without filters, ties included."""
    homes = SqliteHome(tmp_path), PostgresHome(tmp_path)
    stores = [home.open() for home in homes]
    drawn = vectors(600, dim=384)
    drawn[100:140] = drawn[:40]  # ties
    drawn[200:260] = drawn[0]
    labels = [{"half": n % 2, "tenth": n % 10 or None, "tags": ["x", n % 3]} for n in range(600)]
    records = [record(f"r{n}", drawn[n], str(n), **labels[n]) for n in range(600)]
    filters: list[Any] = [None, {"half": 1}, {"tenth": [3, None], "half": [0, 1]}, {"tags": [["x", 2]]}, {"half": 7}]
    queries = [
        SearchQuery(vector=vector, collection="docs", filter=filter, top_k=top_k)
        for vector in (drawn[0], *vectors(3, seed=9, dim=384))
        for filter in filters
        for top_k in (1, 10, 61, 1000)
    ]
    for store in stores:
        upsert(store, *records)
        store.write(VectorDelete("docs", ("r17", "r201"), {"tenth": 9}))
    one, other = (store.search(queries) for store in stores)
    assert one == other
    assert stores[0].metadata("docs", {"half": 0}) == stores[1].metadata("docs", {"half": 0})
    for home in homes:
        home.drop()
