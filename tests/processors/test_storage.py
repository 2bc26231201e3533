"""Data storage: what a task brings becomes durable blobs and effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.blobs import LocalBlobStore
from mainspring.errors import InvalidInput, StoreUnavailable
from mainspring.processors.base import Item
from mainspring.processors.context import Context
from mainspring.processors.storage import StorageProcessor
from mainspring.tasks.codec import decode_input, encode_input
from mainspring.tasks.effects import BlobDelete, BlobRef, Done, Failed, Outcome, VectorDelete, VectorUpsert
from mainspring.tasks.identity import TaskId
from mainspring.tasks.payloads import Binary, Chunk, Custom, Ref, SearchQuery, StoredRef, Text


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def processor(blobs: LocalBlobStore) -> StorageProcessor:
    return StorageProcessor(blobs)


def item(input: Any, **params: Any) -> Item:
    id = TaskId()
    through_the_store = decode_input(encode_input(input)[0])
    context = Context(id=id.bytes, attempt=1, send=lambda _: None)
    return Item(input=through_the_store, params=params, context=context)


def done(outcome: Outcome) -> tuple[StoredRef, Any]:
    assert isinstance(outcome, Done), outcome
    assert isinstance(outcome.output, StoredRef)
    (effect,) = outcome.effects
    return outcome.output, effect


def run(processor: StorageProcessor, input: Any, **params: Any) -> tuple[StoredRef, Any]:
    return done(processor.process([item(input, **params)])[0])


def message(processor: StorageProcessor, input: Any, **params: Any) -> str:
    outcome = processor.process([item(input, **params)])[0]
    assert isinstance(outcome, Failed), outcome
    assert outcome.error.type == "InvalidInput"
    return outcome.error.message


@pytest.mark.parametrize(
    ("input", "data"),
    [
        (Binary(b"\x00raw"), b"\x00raw"),
        (Text("schön"), "schön".encode()),
        (Text(["a", "b"]), b'["a","b"]'),
        (Custom([{"x": 1}, np.arange(2)]), b'[{"x":1},[0,1]]'),
        (Custom("schön"), "schön".encode()),  # as another task's result comes
        (Custom(b"\x00raw"), b"\x00raw"),
        (Text(b"\x00raw"), b"\x00raw"),
        (Custom(5), b"5"),
    ],
)
def test_put(processor: StorageProcessor, blobs: LocalBlobStore, input: Any, data: bytes) -> None:
    """The value is on the disk before the task completes, and the effect gives it its name."""
    stored, effect = run(processor, input, key="folder/name")
    assert stored.digest is not None
    assert blobs.get(stored.digest) == data
    assert stored == StoredRef("folder/name", len(data), stored.digest)
    assert effect == BlobRef("folder/name", stored.digest, len(data), if_absent=False)


def test_put_without_a_key(processor: StorageProcessor) -> None:
    """The content's hash is the key then; equal content gets an equal key."""
    first, effect = run(processor, Text("same"))
    assert first.key == first.digest == effect.key
    assert run(processor, Text("same"), if_absent=True)[1].if_absent
    assert run(processor, Text("same"))[0] == first


def test_delete(processor: StorageProcessor) -> None:
    """A key is taken away by an effect."""
    assert run(processor, Text(""), op="delete", key="a") == (StoredRef("a"), BlobDelete("a"))


def test_upsert(processor: StorageProcessor) -> None:
    """Vectors, texts, chunks' places and labels become records, as they come out of the store's codec."""
    vectors = np.arange(1, 7, dtype=np.float64).reshape(3, 2)
    value = {
        "collection": "docs",
        "vectors": vectors,
        "id_prefix": "a.md",
        "texts": ["plain", Chunk("piece", 4, 9, 2), {"text": "other"}],
        "metadata": {"source": "a.md"},
        "model_id": "m",
        "replace": {"source": "a.md"},
    }
    stored, effect = run(processor, Custom(value), op="upsert")
    assert stored == StoredRef("docs", count=3)
    assert isinstance(effect, VectorUpsert)
    assert (effect.collection, effect.model_id, effect.replace) == ("docs", "m", {"source": "a.md"})
    assert [(record.id, record.text, record.metadata) for record in effect.records] == [
        ("a.md#0", "plain", {"source": "a.md"}),
        ("a.md#1", "piece", {"source": "a.md", "start": 4, "end": 9}),
        ("a.md#2", "other", {"source": "a.md"}),
    ]
    assert all(record.vector.dtype == np.float32 for record in effect.records)
    np.testing.assert_array_equal([record.vector for record in effect.records], vectors)


def test_upsert_of_lists_and_of_one(processor: StorageProcessor) -> None:
    """Nested lists are arrays too, a flat one is one record, labels may be one for each record."""
    value = {"collection": "c", "vectors": [[1, 0], [0, 1]], "ids": ["x", "y"], "metadata": [{"n": 1}, {"n": 2}]}
    records = run(processor, Custom(value), op="upsert")[1].records
    assert [(record.id, record.metadata) for record in records] == [("x", {"n": 1}), ("y", {"n": 2})]
    one = {"collection": "c", "vectors": [1.0, 0.0, 0.0], "ids": ["x"]}
    (record,) = run(processor, Custom(one), op="upsert")[1].records
    assert record.vector.shape == (3,)


def test_upsert_of_nothing_still_replaces(processor: StorageProcessor) -> None:
    """A document that became empty takes its old records away."""
    value = {"collection": "c", "vectors": [], "texts": [], "id_prefix": "d", "replace": {"source": "d"}}
    stored, effect = run(processor, Custom(value), op="upsert")
    assert (stored.count, effect.records, effect.replace) == (0, (), {"source": "d"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vectors": [[1.0, float("nan")], [1, 1]]}, "input.vectors = 0"),
        ({"vectors": [[1, 1], [0, 0]]}, "input.vectors = 1"),
        ({"vectors": [[1], [1, 2]]}, "input.vectors"),
        ({"vectors": [[[1.0]], [[2.0]]]}, "3 dimensions"),
        ({"vectors": "text"}, "input.vectors"),
        ({"vectors": np.array([[1 + 1j], [1]])}, "is complex"),
        ({"ids": ["a"]}, "input.ids"),
        ({"ids": ["a", "a"]}, "'a'"),
        ({"ids": None}, "id_prefix"),
        ({"id_prefix": "x"}, "one of the two"),
        ({"texts": ["a"]}, "input.texts"),
        ({"texts": ["a", {"txt": "b"}]}, "input.texts"),
        ({"metadata": [{}]}, "input.metadata"),
        ({"collection": ""}, "collection"),
        ({"vector": [1]}, "vector"),
    ],
)
def test_what_does_not_fit_is_named(processor: StorageProcessor, change: dict[str, Any], says: str) -> None:
    """A wrong field of an upsert fails the task for good and is named."""
    value = {"collection": "c", "vectors": [[1, 0], [0, 1]], "ids": ["x", "y"], **change}
    assert says in message(processor, Custom(value), op="upsert")


def test_delete_vectors(processor: StorageProcessor) -> None:
    """Records go by ids or by filter, never by a forgotten field."""
    assert run(processor, Custom({"collection": "c", "ids": ["a", "b"]}), op="delete_vectors") == (
        StoredRef("c", count=2),
        VectorDelete("c", ("a", "b")),
    )
    by_filter = run(processor, Custom({"collection": "c", "filter": {"x": 1}}), op="delete_vectors")[1]
    assert by_filter == VectorDelete("c", (), {"x": 1})
    for fields in ({}, {"ids": ["a"], "filter": {}}):
        assert "not both" in message(processor, Custom({"collection": "c", **fields}), op="delete_vectors")


@pytest.mark.parametrize(
    ("input", "params", "says"),
    [
        (Text("x"), {"op": "move"}, "op"),
        (Text("x"), {"key": ""}, "key"),
        (Text("x"), {"key": "a\0b"}, "key"),
        (Text("x"), {"op": "delete"}, "key"),
        (Text("x"), {"op": "delete", "key": "a", "if_absent": True}, "if_absent"),
        (Custom({"collection": "c", "vectors": []}), {"op": "upsert", "key": "a"}, "key"),
        (Custom({"collection": "c"}), {"op": "upsert"}, "vectors"),
        (Text("x"), {"op": "upsert"}, "input"),
        (SearchQuery("x"), {}, "input"),
        (Binary("x"), {}, "input.data"),
        (Custom(5), {"op": "upsert"}, "input"),
        (Custom({"collection": "c", "vectors": Ref(TaskId()), "id": ["a"]}), {"op": "upsert"}, "input.id"),
        (Custom({"vectors": Ref(TaskId()), "ids": ["a"]}), {"op": "upsert"}, "input.collection"),
        (Custom({"collection": 5, "vectors": [Ref(TaskId())]}), {"op": "upsert"}, "input.collection"),
    ],
)
def test_refused_at_submit(processor: StorageProcessor, input: Any, params: dict[str, Any], says: str) -> None:
    """What could never be stored does not become a task."""
    with pytest.raises(InvalidInput, match=says):
        processor.check(input, None, params)


def test_parents_results_are_looked_at_later(processor: StorageProcessor) -> None:
    """A value that another task will give passes the check at submit."""
    processor.check(Binary(Ref(TaskId())), None, {})
    for late in (Ref(TaskId()), [Ref(TaskId())], {"a": Ref(TaskId())}, [{"a": [Ref(TaskId())]}]):
        for name in ("vectors", "texts", "ids", "metadata", "replace"):
            processor.check(Custom({"collection": "c", "vectors": [[1.0]], name: late}), None, {"op": "upsert"})


def test_a_full_store_fails_its_items_alone(processor: StorageProcessor, blobs: LocalBlobStore) -> None:
    """An item whose blob can't be written may be tried again; the others of its batch complete."""
    (blobs.folder / "tmp").rmdir()
    failed, other = processor.process([item(Text("x")), item(Text(""), op="delete", key="a")])
    assert isinstance(failed, Failed)
    assert (failed.error.type, failed.retryable) == (StoreUnavailable.__name__, True)
    done(other)
