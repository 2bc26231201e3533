"""Data retrieval: stored values, records of collections, and files below allowed folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.blobs.keys import BlobKeys
from mainspring.blobs.server_keys import ServerBlobKeys
from mainspring.config import RetrievalConfig
from mainspring.errors import InvalidInput, invalid
from mainspring.processors.base import Item, Lane, failure
from mainspring.processors.files import AllowedFiles, check_size
from mainspring.processors.text.extract import decode
from mainspring.tasks import (
    BinaryOutput,
    Custom,
    CustomOutput,
    Done,
    Outcome,
    Ref,
    TaskInput,
    TaskOutput,
    TaskType,
    Text,
    TextOutput,
)
from mainspring.tasks.codec import convert, from_json
from mainspring.tasks.texts import check_text
from mainspring.vectors.base import VectorStore

Offset = Annotated[int, msgspec.Meta(ge=0)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class ByKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value, or its bytes [start, end)."""

    key: str
    start: Offset = 0
    end: Offset | None = None


class ByPrefix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys with this beginning, in the order of their bytes."""

    prefix: str
    limit: Limit = 1000
    after: str = ""  # the last key of the page before


class ByIds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records of a collection."""

    collection: str
    ids: list[str]


class ByUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file, its bytes [start, end), or with a pattern the files below a folder."""

    url: str  # file:///...
    start: Offset = 0
    end: Offset | None = None
    pattern: str | None = None  # a glob such as "**/*.md"
    limit: Limit = 1000
    after: str = ""  # the last address of the page before


Request: TypeAlias = ByKey | ByPrefix | ByIds | ByUrl
_REQUESTS: dict[str, Any] = {"key": ByKey, "prefix": ByPrefix, "collection": ByIds, "url": ByUrl}


class RetrievalProcessor:
    """Reads what is asked for by Text (a key) or by Custom with the fields of ByKey, ByPrefix, ByIds or ByUrl.

    A value comes as the param `as` says: "bytes" (the default), "text" (encoding detected), "json" (the parsed value)
    or "records" (a list: of a JSON array, or of JSON Lines). Keys come as mappings with key, digest, size, updated_ms;
    files with url, size, modified_ms; records with id, vector, text, metadata, one for each id in order, None where
    there is none.
    """

    task_type = TaskType.DATA_RETRIEVAL
    lane: Lane = "thread"

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        form: Literal["bytes", "text", "json", "records"] | None = msgspec.field(default=None, name="as")

    def __init__(
        self, blobs: BlobStore, keys: BlobKeys | ServerBlobKeys, vectors: VectorStore, config: RetrievalConfig
    ) -> None:
        self._blobs = blobs
        self._keys = keys
        self._vectors = vectors
        self._files = AllowedFiles(config)
        self._max_bytes = config.max_bytes

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        options = self._options(params)
        if not _known(input):
            return
        request = _request(input)
        one_value = isinstance(request, ByKey) or (isinstance(request, ByUrl) and request.pattern is None)
        if options.form is not None and not one_value:
            raise invalid("params.as", options.form, "has no meaning for a list", "leave it out")

    def load(self) -> None:
        """Nothing: what is read from is there."""

    def close(self) -> None:
        """Nothing was taken."""

    def process(self, batch: Sequence[Item]) -> list[Outcome]:
        return [self._outcome(item) for item in batch]

    def _outcome(self, item: Item) -> Outcome:
        try:
            self.check(item.input, item.model_id, item.params)
            form = self._options(item.params).form or "bytes"
            return Done(self._answer(_request(item.input), item.namespace, form))
        except Exception as exc:  # noqa: BLE001 - one item's failure, whatever it is, is no other's
            return failure(exc)

    def _answer(self, request: Request, namespace: str, form: str) -> TaskOutput:
        if isinstance(request, ByPrefix):
            found = self._keys.list(namespace, request.prefix, request.limit, request.after)
            return CustomOutput([msgspec.structs.asdict(key) for key in found])
        if isinstance(request, ByIds):
            return CustomOutput(self._records(request))
        if isinstance(request, ByKey):
            return _output(self._value(request, namespace), form, f"key {request.key}")
        if request.pattern is not None:
            return CustomOutput(self._files.list(request.url, request.pattern, request.limit, request.after))
        return _output(self._files.read(request.url, request.start, request.end), form, request.url)

    def _options(self, params: dict[str, Any]) -> Params:
        options: RetrievalProcessor.Params = convert(params, self.Params, "params")
        return options

    def _value(self, request: ByKey, namespace: str) -> bytes:
        found = self._keys.get(namespace, request.key)
        if found is None:
            raise invalid("input.key", request.key, f"names nothing in namespace {namespace}", "store it first")
        end = found.size if request.end is None else min(request.end, found.size)
        check_size("input.key", request.key, end - request.start, self._max_bytes)
        return self._blobs.get(found.digest, request.start, request.end)

    def _records(self, request: ByIds) -> list[dict[str, Any] | None]:
        found = {record.id: record for record in self._vectors.get(request.collection, request.ids)}
        return [msgspec.structs.asdict(found[id]) if id in found else None for id in request.ids]


def _request(input: TaskInput) -> Request:
    if isinstance(input, Text):
        key = input.as_text()
        if isinstance(key, list):
            raise invalid("input.text", key, "is a list", "retrieve one key a task")
        check_text("input.text", key)
        return ByKey(key)
    if not isinstance(input, Custom) or not isinstance(input.value, dict):
        raise invalid("input", type(input).__name__, "says not what to retrieve", "pass Text(key) or Custom({...})")
    kinds = [kind for name, kind in _REQUESTS.items() if name in input.value]
    if len(kinds) != 1:
        remedy = f"pass one of {', '.join(_REQUESTS)}"
        raise invalid("input", sorted(input.value), "does not say what to retrieve", remedy)
    request: Request = convert(input.value, kinds[0], "input")
    _check_texts(request)
    if isinstance(request, (ByKey, ByUrl)) and request.end is not None and request.end < request.start:
        raise invalid("input.end", request.end, f"lies before start {request.start}", "use 0 <= start <= end")
    return request


def _check_texts(request: Request) -> None:
    """Refuse what not every store can look for. An id may be any text that could be stored."""
    if not isinstance(request, ByUrl):
        for name in ("key", "prefix", "after", "collection"):
            check_text(f"input.{name}", getattr(request, name, ""))


def _known(input: TaskInput) -> bool:
    """False while a part of the request comes from a parent."""
    value = input.text if isinstance(input, Text) else getattr(input, "value", None)
    parts = value.values() if isinstance(value, dict) else [value]
    return not any(isinstance(part, Ref) for part in parts)


def _output(data: bytes, form: str, name: str) -> TaskOutput:
    if form == "bytes":
        return BinaryOutput(data)
    text = decode(data, name)
    if form == "text":
        return TextOutput(text)
    return CustomOutput(from_json(text, field=name) if form == "json" else _parsed_records(text, name))


def _parsed_records(text: str, name: str) -> list[Any]:
    try:
        value: Any = from_json(text, field=name)
    except InvalidInput:  # not one value: then a value a line
        lines = enumerate(text.splitlines(), 1)
        return [from_json(line, field=f"{name} line {n}") for n, line in lines if line.strip()]
    return value if isinstance(value, list) else [value]
