"""The built-in operations: how `engine.embed(...)` and its siblings become tasks, and their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mainspring.errors import invalid
from mainspring.processors.calls import split_options, typed_task
from mainspring.tasks import (
    Binary,
    Custom,
    ModelInput,
    SearchHit,
    SearchQuery,
    StoredRef,
    Task,
    TaskPriority,
    TaskType,
    Text,
)

def _no_more(kwargs: dict[str, Any], operation: str) -> None:
    if kwargs:
        name = next(iter(kwargs))
        raise invalid(name, kwargs[name], f"is no option of {operation}", "see its documentation for those there are")


def text_task(text: Any, *steps: str | dict[str, Any], model_id: str | None = None, **options: Any) -> Task:
    chosen = split_options(options)
    _no_more(options, "text")
    data = Binary(text) if isinstance(text, bytes) else Text(text)
    params = {"steps": list(steps)} if steps else {}
    return typed_task(TaskType.TEXT_PROCESSING, data, chosen, params=params, model_id=model_id)


def embed_task(text: Any, *, model_id: str | None = None, normalize: bool = True, truncate: bool = True, **options: Any) -> Task:
    chosen = split_options(options)
    _no_more(options, "embed")
    params: dict[str, Any] = {}
    if not normalize:
        params["normalize"] = False
    if not truncate:
        params["truncate"] = False
    return typed_task(TaskType.EMBEDDING_GENERATION, Text(text), chosen, params=params, model_id=model_id)


def infer_task(
    model_id: str, text: Any = None, *, pairs: Any = None, messages: Any = None, arrays: Any = None, **params: Any
) -> Task:
    chosen = split_options(params)
    data = ModelInput(text=text, pairs=pairs, messages=messages, arrays=arrays)
    return typed_task(TaskType.MODEL_INFERENCE, data, chosen, params=params, model_id=model_id)


def search_task(
    query: Any, *, collection: str = "default", top_k: int = 10, filter: dict[str, Any] | None = None, **options: Any
) -> Task:
    chosen = split_options(options)
    _no_more(options, "search")
    chosen.setdefault("priority", TaskPriority.HIGH)
    if isinstance(query, SearchQuery):
        data = query
    elif isinstance(query, str):
        data = SearchQuery(text=query, collection=collection, top_k=top_k, filter=filter)
    else:
        data = SearchQuery(vector=query, collection=collection, top_k=top_k, filter=filter)
    return typed_task(TaskType.VECTOR_SEARCH, data, chosen)


def store_task(data: Any, key: str | None = None, *, if_absent: bool = False, **options: Any) -> Task:
    chosen = split_options(options)
    _no_more(options, "store")
    params: dict[str, Any] = {} if key is None else {"key": key}
    if if_absent:
        params["if_absent"] = True
    payload: Any = Binary(data) if isinstance(data, bytes) else Text(data) if isinstance(data, str) else Custom(data)
    return typed_task(TaskType.DATA_STORAGE, payload, chosen, params=params)


def upsert_task(
    collection: str,
    vectors: Any,
    *,
    ids: Any = None,
    id_prefix: str | None = None,
    texts: Any = None,
    metadata: Any = None,
    model_id: str | None = None,
    replace: dict[str, Any] | None = None,
    **options: Any,
) -> Task:
    chosen = split_options(options)
    _no_more(options, "upsert")
    given = {
        "ids": ids,
        "id_prefix": id_prefix,
        "texts": texts,
        "metadata": metadata,
        "model_id": model_id,
        "replace": replace,
    }
    value = {"collection": collection, "vectors": vectors, **{k: v for k, v in given.items() if v is not None}}
    return typed_task(TaskType.DATA_STORAGE, Custom(value), chosen, params={"op": "upsert"})


def delete_task(
    key: str | None = None,
    *,
    collection: str | None = None,
    ids: Sequence[str] | None = None,
    filter: dict[str, Any] | None = None,
    **options: Any,
) -> Task:
    chosen = split_options(options)
    _no_more(options, "delete")
    if (key is None) == (collection is None):
        raise invalid("delete", key, "wants a key or a collection", "give exactly one of them")
    if key is not None:
        return typed_task(TaskType.DATA_STORAGE, Text(""), chosen, params={"op": "delete", "key": key})
    value: dict[str, Any] = {"collection": collection}
    if ids is not None:
        value["ids"] = list(ids)
    if filter is not None:
        value["filter"] = filter
    return typed_task(TaskType.DATA_STORAGE, Custom(value), chosen, params={"op": "delete_vectors"})


def retrieve_task(key: str | None = None, *, as_: str | None = None, **where: Any) -> Task:
    chosen = split_options(where)
    if key is not None:
        where["url" if key.startswith("file://") else "key"] = key
    params = {} if as_ is None else {"as": as_}
    return typed_task(TaskType.DATA_RETRIEVAL, Custom(where), chosen, params=params)


class Operations:
    """The operations that need no handler. Each submits a task, awaits it and returns its plain value.

    All take the options of `submit`. To have the handle instead, as an argument of another task or to wait later, submit
    the operation: `await engine.submit(engine.embed, text)`.
    """

    async def _value(self: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return await (await self.submit(operation, *args, **kwargs)).result()

    async def text(self, text: Any, *steps: str | dict[str, Any], model_id: str | None = None, **options: Any) -> Any:
        """Run a pipeline of text steps (default: normalize) over a text, a list of texts or a document's bytes.

        A step is its name or a mapping {"step": name, option: value}; `docs/text.md` lists them.
        """
        return await self._value(self.text, text, *steps, model_id=model_id, **options)

    async def embed(
        self, text: Any, *, model_id: str | None = None, normalize: bool = True, truncate: bool = True, **options: Any
    ) -> Any:
        """Return float32 vectors: shape (dim,) for one text, (n, dim) for a list of n."""
        vectors = await self._value(
            self.embed, text, model_id=model_id, normalize=normalize, truncate=truncate, **options
        )
        return vectors[0] if isinstance(text, str) else vectors

    async def infer(
        self,
        model_id: str,
        text: Any = None,
        *,
        pairs: Any = None,
        messages: Any = None,
        arrays: Any = None,
        **params: Any,
    ) -> Any:
        """Return what the model makes of the input; its kind says which fields it reads."""
        return await self._value(self.infer, model_id, text, pairs=pairs, messages=messages, arrays=arrays, **params)

    async def search(
        self, query: Any, *, collection: str = "default", top_k: int = 10, filter: dict[str, Any] | None = None, **options: Any
    ) -> list[SearchHit]:
        """Return the records nearest to a text or a vector, best first. Its default priority is HIGH."""
        return list(
            await self._value(self.search, query, collection=collection, top_k=top_k, filter=filter, **options)
        )

    async def store(self, data: Any, key: str | None = None, *, if_absent: bool = False, **options: Any) -> StoredRef:
        """Store bytes, a text or a JSON-like value under a key (default: its content hash)."""
        ref: StoredRef = await self._value(self.store, data, key, if_absent=if_absent, **options)
        return ref

    async def upsert(self, collection: str, vectors: Any, **options: Any) -> StoredRef:
        """Insert or replace records of a collection: `vectors` (n, dim) with ids or id_prefix, texts, metadata, model_id;
        `replace` is a filter of what to delete in the same commit."""
        ref: StoredRef = await self._value(self.upsert, collection, vectors, **options)
        return ref

    async def delete(self, key: str | None = None, **options: Any) -> StoredRef:
        """Delete a stored key, or records of a collection by ids or filter."""
        ref: StoredRef = await self._value(self.delete, key, **options)
        return ref

    async def retrieve(self, key: str | None = None, *, as_: str | None = None, **where: Any) -> Any:
        """Return what is stored under a key, below a prefix, in a collection (ids) or at a file:// address."""
        return await self._value(self.retrieve, key, as_=as_, **where)


BUILDERS: dict[Any, Callable[..., Task]] = {
    Operations.text: text_task,
    Operations.embed: embed_task,
    Operations.infer: infer_task,
    Operations.search: search_task,
    Operations.store: store_task,
    Operations.upsert: upsert_task,
    Operations.delete: delete_task,
    Operations.retrieve: retrieve_task,
}
"""Which task an operation stands for when it is submitted."""
