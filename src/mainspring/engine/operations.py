"""The built-in operations of the engine's face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mainspring.processors import operations
from mainspring.tasks import SearchHit, StoredRef, Task

F = TypeVar("F", bound=Callable[..., Any])


def _submits(builder: Callable[..., Task]) -> Callable[[F], F]:
    """Say which task an operation stands for when it is submitted instead of called."""

    def mark(operation: F) -> F:
        operation.__mainspring_builds__ = builder  # type: ignore[attr-defined]
        return operation

    return mark


class Operations:
    """The operations that need no handler. Each submits a task, awaits it and returns its plain value.

    All take the options of `submit`. To have the handle instead, as an argument of another task or to wait later,
    submit the operation: `await engine.submit(engine.embed, text)`.
    """

    async def _value(self: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return await (await self.submit(operation, *args, **kwargs)).result()

    @_submits(operations.text_task)
    async def text(self, text: Any, *steps: str | dict[str, Any], model_id: str | None = None, **options: Any) -> Any:
        """Run a pipeline of text steps (default: normalize) over a text, a list of texts or a document's bytes.

        A step is its name or a mapping {"step": name, option: value}; `docs/text.md` lists them.
        """
        return await self._value(self.text, text, *steps, model_id=model_id, **options)

    @_submits(operations.embed_task)
    async def embed(
        self, text: Any, *, model_id: str | None = None, normalize: bool = True, truncate: bool = True, **options: Any
    ) -> Any:
        """Return float32 vectors: shape (dim,) for one text, (n, dim) for a list of n."""
        return await self._value(self.embed, text, model_id=model_id, normalize=normalize, truncate=truncate, **options)

    @_submits(operations.infer_task)
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

    @_submits(operations.search_task)
    async def search(
        self,
        query: Any,
        *,
        collection: str | None = None,
        top_k: int | None = None,
        filter: dict[str, Any] | None = None,
        **options: Any,
    ) -> list[SearchHit]:
        """Return the records nearest to a text or a vector, best first. Its default priority is HIGH.

        Without more it gives 10 of the collection "default"; a `SearchQuery` brings all three by itself.
        """
        return list(await self._value(self.search, query, collection=collection, top_k=top_k, filter=filter, **options))

    @_submits(operations.store_task)
    async def store(self, data: Any, key: str | None = None, *, if_absent: bool = False, **options: Any) -> StoredRef:
        """Store bytes, a text or a JSON-like value under a key (default: its content hash) of up to 2,048 bytes."""
        ref: StoredRef = await self._value(self.store, data, key, if_absent=if_absent, **options)
        return ref

    @_submits(operations.upsert_task)
    async def upsert(self, collection: str, vectors: Any, **options: Any) -> StoredRef:
        """Insert or replace records of a collection: `vectors` (n, dim) with ids or id_prefix, texts, metadata,
        model_id; `replace` is a filter of what to delete in the same commit."""
        ref: StoredRef = await self._value(self.upsert, collection, vectors, **options)
        return ref

    @_submits(operations.delete_task)
    async def delete(self, key: str | None = None, **options: Any) -> StoredRef:
        """Delete a stored key, or records of a collection by ids or filter."""
        ref: StoredRef = await self._value(self.delete, key, **options)
        return ref

    @_submits(operations.retrieve_task)
    async def retrieve(self, key: str | None = None, *, as_: str | None = None, **where: Any) -> Any:
        """Return what is stored under a key, below a prefix, in a collection (ids) or at a file:// address."""
        return await self._value(self.retrieve, key, as_=as_, **where)
