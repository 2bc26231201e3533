"""Data storage: values under keys, and vectors in collections."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Any, Literal

import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.errors import invalid
from mainspring.models.inputs import has_ref
from mainspring.processors.base import Item, Lane, failure
from mainspring.tasks import (
    Binary,
    BlobDelete,
    BlobRef,
    Custom,
    Done,
    Outcome,
    Ref,
    StoredRef,
    TaskInput,
    TaskType,
    Text,
    VectorDelete,
    VectorRecord,
    VectorUpsert,
)
from mainspring.tasks.codec import convert, to_json
from mainspring.tasks.texts import check_key
from mainspring.vectors.checks import check_dimensions

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Names are rows, never paths: any characters but control characters. New ones are short enough for every store."""


class Upsert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `upsert` wants as Custom input."""

    collection: Key
    vectors: Any  # numbers of shape (n, dim), or (dim,) for one record; numpy or nested lists
    ids: list[Key] | None = None  # n of them, all different
    id_prefix: str | None = None  # instead of ids: they become "PREFIX#0", "PREFIX#1" ...
    texts: list[str | dict[str, Any]] | None = None  # n texts, or chunks, whose positions then go into the metadata
    metadata: dict[str, Any] | list[dict[str, Any]] | None = None  # one for all records, or n
    model_id: str | None = None  # what the vectors come from
    replace: dict[str, Any] | None = None  # delete the records that match this filter first


class DeleteVectors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `delete_vectors` wants as Custom input: ids or a filter."""

    collection: Key
    ids: list[str] | None = None
    filter: dict[str, Any] | None = None


class StorageProcessor:
    """Stores what a task brings; it becomes visible when the task completes, and not at all when it fails.

    `put` (the default) writes bytes as they are, a text as UTF-8 and anything else as JSON, in which bytes are base64
    and arrays are lists: the same value is stored the same way whether the task brings it or another task's result.
    `delete` takes a key away and reads no input: pass Text(""). `upsert` and `delete_vectors` take Custom with the
    fields of `Upsert` and `DeleteVectors`. The StoredRef of a delete by filter counts 0: how many match is known only
    when it commits.
    """

    task_type = TaskType.DATA_STORAGE
    lane: Lane = "thread"

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        op: Literal["put", "delete", "upsert", "delete_vectors"] = "put"
        key: Key | None = None  # of put (None: the content's hash) and delete
        if_absent: bool = False  # of put: a key that names other content already is a Conflict

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        options = self._options(params)
        if options.op in ("put", "delete"):
            if not isinstance(input, (Binary, Text, Custom)):
                raise invalid("input", type(input).__name__, "can't be stored", "pass Binary, Text or Custom")
            if isinstance(input, Binary) and not isinstance(input.data, Ref):
                input.as_binary()
        elif not isinstance(input, Custom):
            raise invalid("input", type(input).__name__, f"does not fit op {options.op}", "pass Custom({...})")
        elif not isinstance(input.value, Ref):
            _check_fields(input, Upsert if options.op == "upsert" else DeleteVectors)
            if options.op == "upsert":
                _check_sizes(input.value)

    def load(self) -> None:
        """Nothing: the blob store is there."""

    def close(self) -> None:
        """Nothing was taken."""

    def process(self, batch: Sequence[Item]) -> list[Outcome]:
        return [self._outcome(item) for item in batch]

    def _outcome(self, item: Item) -> Outcome:
        try:
            return self._store(item)
        except Exception as exc:  # noqa: BLE001 - one item's failure, whatever it is, is no other's
            return failure(exc)

    def _store(self, item: Item) -> Done:
        options = self._options(item.params)
        if options.op == "put":
            return self._put(item.input, options)
        if options.op == "delete":
            assert options.key is not None  # or _options had refused
            return Done(StoredRef(options.key), (BlobDelete(options.key),))
        if options.op == "upsert":
            return _upsert(_fields(item.input, Upsert))
        return _delete_vectors(_fields(item.input, DeleteVectors))

    def _put(self, input: TaskInput, options: Params) -> Done:
        blob = self._blobs.put(_bytes(input))
        key = options.key or blob.digest
        effect = BlobRef(key, blob.digest, blob.size, if_absent=options.if_absent)
        return Done(StoredRef(key, blob.size, blob.digest), (effect,))

    def _options(self, params: dict[str, Any]) -> Params:
        options: StorageProcessor.Params = convert(params, self.Params, "params")
        if options.op == "delete" and options.key is None:
            raise invalid("params.key", None, "is missing", "name the key to delete")
        if options.op != "put" and options.if_absent:
            raise invalid("params.if_absent", True, f"has no meaning for op {options.op}", "leave it out")
        if options.op not in ("put", "delete") and options.key is not None:
            raise invalid("params.key", options.key, f"has no meaning for op {options.op}", "leave it out")
        if options.op == "put" and options.key is not None:
            check_key("params.key", options.key)
        return options


def _bytes(input: TaskInput) -> bytes:
    if isinstance(input, Binary):
        return input.as_binary()
    if not isinstance(input, (Text, Custom)):
        raise invalid("input", type(input).__name__, "can't be stored", "pass Binary, Text or Custom")
    value = input.text if isinstance(input, Text) else input.value
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else to_json(value).encode()


def _fields(input: TaskInput, wanted: Any) -> Any:
    if not isinstance(input, Custom):
        raise invalid("input", type(input).__name__, "does not fit this op", "pass Custom({...})")
    return convert(input.value, wanted, "input")


def _check_fields(input: Custom, wanted: type[Upsert | DeleteVectors]) -> None:
    """Check what is known already; values that hold a parent's result, at any depth, are looked at when it is there."""
    value = input.value
    if not isinstance(value, dict) or not has_ref(value):
        _fields(input, wanted)
        return
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    for name in (*value, *(field.name for field in fields.values() if field.required)):
        if name not in fields or name not in value:
            why = "is missing" if name in fields else f"is unknown; there are {', '.join(fields)}"
            raise invalid(f"input.{name}", value.get(name), why, "name it as the others")
        if not has_ref(value[name]):
            convert(value[name], fields[name].type, f"input.{name}")


def _check_sizes(given: Any) -> None:
    """Refuse ids and vectors that no store takes, as far as they are known."""
    ids, prefix = given.get("ids"), given.get("id_prefix")
    for id in ids if isinstance(ids, (list, tuple)) else ():
        if isinstance(id, str):
            check_key("input.ids", id)
    if isinstance(prefix, str):
        check_key("input.id_prefix", prefix)
    check_dimensions("input.vectors", _dimensions(given["vectors"]))


def _dimensions(vectors: Any) -> int:
    """Return how many numbers a vector has, by the first one; 0 where that does not show."""
    if shape := getattr(vectors, "shape", ()):
        return int(shape[-1])
    if not isinstance(vectors, (list, tuple)) or not vectors:
        return 0
    return len(vectors) if isinstance(vectors[0], Real) else _dimensions(vectors[0])


def _upsert(given: Upsert) -> Done:
    vectors = _matrix(given.vectors)
    count = len(vectors)
    ids = _ids(given, count)
    texts = [_text(text) for text in _as_many("texts", given.texts, count, None)]
    metadata = _as_many("metadata", given.metadata, count, {})
    records = tuple(
        VectorRecord(id, vector, text, {**place, **labels})
        for id, vector, (text, place), labels in zip(ids, vectors, texts, metadata, strict=True)
    )
    effect = VectorUpsert(given.collection, records, model_id=given.model_id, replace=given.replace)
    return Done(StoredRef(given.collection, count=count), (effect,))


def _delete_vectors(given: DeleteVectors) -> Done:
    if (given.ids is None) == (given.filter is None):
        raise invalid("input", given.collection, "needs ids or a filter, and not both", "pass one of the two")
    effect = VectorDelete(given.collection, tuple(given.ids or ()), given.filter)
    return Done(StoredRef(given.collection, count=len(effect.ids)), (effect,))


def _matrix(value: Any) -> Any:
    """Return float32 of shape (n, dim)."""
    import numpy as np

    remedy = "pass numbers of shape (n, dim)"
    try:
        given = np.asarray(value)
        if given.dtype.kind == "c":
            raise invalid("input.vectors", str(given.dtype), "is complex", remedy)
        vectors = given.astype(np.float32, copy=False)
    except (TypeError, ValueError) as exc:
        raise invalid("input.vectors", value, f"is no array of numbers ({exc})", remedy) from exc
    if vectors.size == 0:
        return vectors.reshape(0, 0)
    if vectors.ndim == 1:
        vectors = vectors[np.newaxis]
    if vectors.ndim != 2:
        raise invalid("input.vectors", vectors.shape, f"has {vectors.ndim} dimensions", remedy)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
    if bad.size:
        raise invalid(
            "input.vectors", int(bad[0]), "this row is zero, NaN or infinite", "pass vectors with a direction"
        )
    return vectors


def _ids(given: Upsert, count: int) -> list[str]:
    if given.ids is None:
        if given.id_prefix is None:
            raise invalid("input.ids", None, "is missing", "pass ids, or id_prefix to have them made")
        return [f"{given.id_prefix}#{n}" for n in range(count)]
    if given.id_prefix is not None:
        raise invalid("input.id_prefix", given.id_prefix, "is given beside ids", "pass one of the two")
    if len(given.ids) != count:
        raise invalid("input.ids", len(given.ids), f"is not the number of vectors, {count}", "pass one id for each")
    if len(set(given.ids)) != count:
        twice = next(id for n, id in enumerate(given.ids) if id in given.ids[:n])
        raise invalid("input.ids", twice, "stands there twice", "give each record an id of its own")
    return given.ids


def _as_many(name: str, value: Any, count: int, missing: Any) -> list[Any]:
    if isinstance(value, list):
        if len(value) != count:
            raise invalid(f"input.{name}", len(value), f"is not the number of vectors, {count}", "pass one for each")
        return value
    return [missing if value is None else value] * count


def _text(value: Any) -> tuple[str | None, dict[str, Any]]:
    """Return a text, and where it stood in its source when it is a chunk."""
    if value is None or isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"], {name: value[name] for name in ("start", "end") if name in value}
    raise invalid("input.texts", value, "has no text", "pass str, or a mapping with a 'text' that is str")
