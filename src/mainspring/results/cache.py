"""The result cache: what names equal work, and what is kept of it.

The key of a task's work is a hash of its namespace, its type, the code that does it (of a handler: version and code;
of a built-in type: the package's version), the model's id and digest, the params, and the input with mappings in one
order. The rules of keeping and sharing are the store's (`store/sql/flights.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, UnsupportedTaskType, invalid
from mainspring.execution.executor import TaskExecutor
from mainspring.processors.calls import handler_of
from mainspring.store.base import Claimed, Kept, Store, WorkName

_KEY_BYTES = 20
_decoder = msgspec.msgpack.Decoder()
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_encoder_as_written = msgspec.msgpack.Encoder()


class ResultCache:
    """Results that are kept for equal work: `Engine.cache`."""

    def __init__(self, executor: TaskExecutor, store: Store) -> None:
        self._executor = executor
        self._store = store

    async def stats(self) -> list[Kept]:
        """Return how many results are kept, and how many bytes they take, by namespace, type and version."""
        return await self._store.kept()

    async def purge(self, *, type: str | Callable[..., Any] = "", version: str = "", namespace: str = "") -> int:
        """Forget kept results, of everything or of what is named; returns how many.

        Tasks that have ended keep their results. What is under way now is kept when it ends.

        Args:
            type: as tasks have it ("custom:resize", a TaskType), a handler's name ("resize"), or the handler. A name
                that a built-in type has too is that one's.

        Raises: UnsupportedTaskType: there is no such type, here or in the store. InvalidInput: it is no type at all.
        """
        kind = "" if isinstance(type, str) and not type else await self._kind_of(type)
        return await self._store.purge(namespace=namespace, type=kind, version=version)

    async def _kind_of(self, type: str | Callable[..., Any]) -> str:
        if not isinstance(type, str):
            if not callable(type):
                remedy = "pass its name, a TaskType or the handler; leave it out for all types"
                raise invalid("type", type, "is no type of tasks", remedy)
            return str(handler_of(type).task_type)
        kept = (kept.type for kept in await self._store.kept())
        known = {*self._executor.types, *await self._store.registered_types(), *kept}
        for kind in (str(type), f"custom:{type}"):
            if kind in known:
                return kind
        why = f"type = {type!r}: nobody has registered it; known are {', '.join(sorted(known))}"
        raise UnsupportedTaskType(why, field="type", value=type)

    def check(self, kind: str, model_id: str | None) -> None:
        """Refuse to keep what depends on more than its input. Raises InvalidInput."""
        if kind in self._executor.types:
            self._code_of(kind, model_id)

    def name(self, kind: str, namespace: str, model_id: str | None, params: Any, input: bytes) -> WorkName | None:
        """Return the name of a task's work; None where that can't be told here: another process may have its code.

        Raises: InvalidInput: its result depends on more than its input.
        """
        code = self._code_of(kind, model_id) if kind in self._executor.types else None
        if code is None:
            return None
        version, exact = code
        whole = hashlib.blake2b(digest_size=_KEY_BYTES)
        for part in (namespace, kind, exact):
            whole.update(part.encode() + b"\0")
        whole.update(_in_one_order(params) if params else b"")
        whole.update(b"\0" + _in_one_order(_decoder.decode(input)))
        return WorkName(whole.digest(), version)

    def name_of(self, claim: Claimed) -> WorkName | None:
        """Return the name of a claim's work, when its input is complete."""
        params = None if claim.params is None else _decoder.decode(claim.params)
        return self.name(claim.task_type, claim.namespace, claim.model_id, params, claim.input)

    def is_same(self, claim: Claimed) -> bool:
        """Whether a claim's work has the name still that it was claimed under: its model may have been loaded anew."""
        if claim.task_type in self._executor.handlers:
            return True
        try:
            return self.name_of(claim) == claim.work
        except InvalidInput:  # the model is not known any more
            return False

    def _code_of(self, kind: str, model_id: str | None) -> tuple[str, str] | None:
        """Return what does this type: its version, and exactly; None where that is not known yet."""
        handler = self._executor.handlers.get(kind)
        if handler is not None:
            handler.check_kept()
            return handler.version, f"{handler.version}\0{handler.source_hash}"
        identity = getattr(self._executor.types[kind], "model_identity", None)
        if identity is None:
            raise invalid("cache", kind, "depends on more than its input, and is not kept", "leave it out")
        model = identity(model_id)
        return None if model is None else (_version(), f"{_version()}\0{model}")


def _in_one_order(value: Any) -> bytes:
    """Return a value's bytes with every mapping in order, so that equal ones have equal bytes."""
    try:
        return _encoder.encode(value)
    except TypeError:  # keys that are no texts have no order; what was written alike is equal all the same
        return _encoder_as_written.encode(value)


@cache
def _version() -> str:
    from importlib import metadata  # slow to load, and wanted by kept results alone

    return metadata.version("mainspring")
