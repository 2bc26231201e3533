"""Tasks of the built-in operations: what `engine.embed(...)` and its siblings store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mainspring.errors import invalid
from mainspring.processors.calls import split_options, typed_task
from mainspring.tasks import Binary, Custom, ModelInput, Ref, SearchQuery, Task, TaskPriority, TaskType, Text

_BYTES = (bytes, bytearray, memoryview)


def _no_more(kwargs: dict[str, Any], operation: str) -> None:
    if kwargs:
        name = next(iter(kwargs))
        raise invalid(name, kwargs[name], f"is no option of {operation}", "see its documentation for those there are")


def text_task(text: Any, *steps: str | dict[str, Any], model_id: str | None = None, **options: Any) -> Task:
    chosen = split_options(options)
    _no_more(options, "text")
    data = Binary(bytes(text)) if isinstance(text, _BYTES) else Text(text)
    params = {"steps": list(steps)} if steps else {}
    return typed_task(TaskType.TEXT_PROCESSING, data, chosen, params=params, model_id=model_id)


def embed_task(
    text: Any, *, model_id: str | None = None, normalize: bool = True, truncate: bool = True, **options: Any
) -> Task:
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
    query: Any,
    *,
    collection: str | None = None,
    top_k: int | None = None,
    filter: dict[str, Any] | None = None,
    **options: Any,
) -> Task:
    chosen = split_options(options)
    _no_more(options, "search")
    chosen.setdefault("priority", TaskPriority.HIGH)
    asked = {"collection": collection, "top_k": top_k, "filter": filter}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if isinstance(query, SearchQuery):
        for name, value in given.items():
            raise invalid(name, value, "is given beside a SearchQuery, which has its own", "set it there")
        data = query
    elif isinstance(query, str):
        data = SearchQuery(text=query, **given)
    else:
        data = SearchQuery(vector=query, **given)
    return typed_task(TaskType.VECTOR_SEARCH, data, chosen)


def store_task(data: Any, key: str | None = None, *, if_absent: bool = False, **options: Any) -> Task:
    chosen = split_options(options)
    _no_more(options, "store")
    params: dict[str, Any] = {} if key is None else {"key": key}
    if if_absent:
        params["if_absent"] = True
    payload = Binary(bytes(data)) if isinstance(data, _BYTES) else Text(data) if isinstance(data, str) else Custom(data)
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
    if key is not None and not isinstance(key, (str, Ref)):
        raise invalid("key", key, "is no text", "pass a key, or a file:// address")
    if isinstance(key, Ref):
        where["key"] = key
    elif key is not None:
        where["url" if key.startswith("file://") else "key"] = key
    params = {} if as_ is None else {"as": as_}
    return typed_task(TaskType.DATA_RETRIEVAL, Custom(where), chosen, params=params)
