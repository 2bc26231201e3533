"""Inputs and outputs: two tagged unions, each declared once for validation, codec and JSON Schema.

An input may hold a `Ref` (a task handle is one) wherever a value may stand: the task then depends on that task, and
finds its plain result there when it runs.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

import msgspec

from mainspring.errors import invalid
from mainspring.tasks.identity import TaskId


class Ref:
    """Stands for the future result of a task."""

    __slots__ = ("key",)

    def __init__(self, id: TaskId) -> None:
        self.key = id.bytes

    @property
    def id(self) -> TaskId:
        return TaskId(self.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id})"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self.key == other.key


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a text that remembers where it stood: `source[start:end] == text`."""

    text: str
    start: int
    end: int
    tokens: int | None = None


class _Payload(msgspec.Struct, frozen=True, tag_field="kind"):
    """What both unions share: asking for another kind is a typed error, as in the seeds."""

    _wants: ClassVar[str] = ""

    def as_text(self) -> str | list[str]:
        raise self._wrong("Text")

    def as_binary(self) -> bytes:
        raise self._wrong("Binary")

    def as_query(self) -> SearchQuery:
        raise self._wrong("SearchQuery")

    def as_model_input(self) -> ModelInput:
        raise self._wrong("ModelInput")

    def _wrong(self, wanted: str) -> Exception:
        got = type(self).__name__
        return invalid("input", got, f"is not {wanted}", f"pass {wanted}(...) to this task type")


class Text(_Payload, frozen=True, tag="text"):
    """One text, or several that go through the same operation."""

    text: str | list[str | Chunk] | Any

    def as_text(self) -> str | list[str]:
        if isinstance(self.text, str):
            return self.text
        if isinstance(self.text, Chunk):
            return self.text.text
        if isinstance(self.text, (list, tuple)) and all(isinstance(item, (str, Chunk, dict)) for item in self.text):
            return [_text_of(item) for item in self.text]
        raise invalid("input.text", self.text, "is neither a text nor a list of texts", "pass str or list[str]")


def _text_of(item: str | Chunk | dict[str, Any]) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Chunk):
        return item.text
    if isinstance(item.get("text"), str):
        return str(item["text"])
    raise invalid("input.text", item, "has no text", "pass str, or a mapping with a 'text' that is str")


class Binary(_Payload, frozen=True, tag="binary"):
    data: bytes | Any

    def as_binary(self) -> bytes:
        if isinstance(self.data, (bytes, bytearray, memoryview)):
            return bytes(self.data)
        raise invalid("input.data", self.data, "is not bytes", "pass Binary(data=b'...')")


class SearchQuery(_Payload, frozen=True, tag="query"):
    """What to look for. A text is embedded with the collection's model; with both, the vector is used as it is."""

    text: str | Any | None = None
    vector: Any = None  # float32, shape (dim,)
    collection: str = "default"
    top_k: int = 10  # 1..1000
    filter: dict[str, Any] | None = None  # exact match on metadata; a list means any of these

    def as_query(self) -> SearchQuery:
        return self


class ModelInput(_Payload, frozen=True, tag="model_input"):
    """Fields a model may want; each backend says which it reads."""

    text: str | list[str] | Any | None = None
    pairs: list[tuple[str, str]] | Any | None = None  # for pair scoring
    messages: list[dict[str, str]] | Any | None = None  # for chat generation
    arrays: dict[str, Any] | Any | None = None  # named inputs of a graph, numpy or nested lists

    def as_model_input(self) -> ModelInput:
        return self


class Custom(_Payload, frozen=True, tag="custom"):
    """Any JSON-like value, bytes and numpy arrays included; for a handler, its parameters by name."""

    value: Any


TaskInput: TypeAlias = Text | Binary | SearchQuery | ModelInput | Custom


class _Output(msgspec.Struct, frozen=True, tag_field="kind"):
    @property
    def value(self) -> Any:
        """The plain Python value."""
        return getattr(self, self.__struct_fields__[0])


class TextOutput(_Output, frozen=True, tag="text"):
    """A text, or what an operation makes of one: chunks, sentences, keywords."""

    text: Any


class BinaryOutput(_Output, frozen=True, tag="binary"):
    data: bytes


class EmbeddingOutput(_Output, frozen=True, tag="embedding"):
    vectors: Any  # float32, shape (n, dim); n is 1 for a single text
    model_id: str = ""
    truncated: tuple[int, ...] = ()  # rows whose text was longer than the model reads
    of_one: bool = False  # the input was a text, not a list

    @property
    def value(self) -> Any:
        """float32, shape (n, dim) for a list of n texts, (dim,) for a single text."""
        return self.vectors[0] if self.of_one else self.vectors


class ModelOutput(_Output, frozen=True, tag="model_output"):
    outputs: Any


class SearchHit(msgspec.Struct, frozen=True):
    id: str
    score: float  # cosine similarity, -1..1
    text: str | None = None
    metadata: dict[str, Any] = {}


class SearchResults(_Output, frozen=True, tag="search_results"):
    """Best first; ties by id."""

    hits: tuple[SearchHit, ...] = ()
    collection: str = "default"


class CustomOutput(msgspec.Struct, frozen=True, tag="custom", tag_field="kind"):
    value: Any


class StoredRef(_Output, frozen=True, tag="stored_ref"):
    """Where stored things are: a blob's key and hash, or how many records of a collection changed."""

    key: str
    size: int = 0  # bytes of a blob
    digest: str | None = None  # blake3, hexadecimal
    count: int = 1  # blobs or records written; of a delete: how many were named, whether or not they were there

    @property
    def value(self) -> StoredRef:
        return self


TaskOutput: TypeAlias = (
    TextOutput | BinaryOutput | EmbeddingOutput | ModelOutput | SearchResults | CustomOutput | StoredRef
)
