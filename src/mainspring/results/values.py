"""Stored bytes to plain values: out of blobs where they are large, other tasks' results where they stand for those."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from mainspring.blobs.base import BlobStore
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import DependencyNotMet, from_info, invalid
from mainspring.store.base import BLOB_INPUT, BLOB_OUTPUT, STANDS_FOR, Claimed, Ended, ParentResult
from mainspring.tasks import TaskId, TaskOutput
from mainspring.tasks.codec import (
    blob_named,
    decode_input,
    decode_output,
    encode,
    refs_in,
    stored_error,
    stored_output,
    with_results,
)
from mainspring.tasks.lifecycle import COMPLETED


class Values:
    """Puts large payloads into the blob store and gets them back."""

    def __init__(self, blobs: BlobStore, config: StoreConfig, env: Environment = SYSTEM) -> None:
        self._blobs = blobs
        self._env = env
        self._config = config
        self.inline_bytes = config.inline_bytes  # above it a payload becomes a blob

    async def put(self, data: bytes, field: str) -> bytes:
        """Store bytes that are too many for a column as a blob; returns its digest, which goes there instead.

        Raises: InvalidInput: above `max_payload_bytes`.
        """
        limit = self._config.max_payload_bytes
        if len(data) > limit:
            raise invalid(
                field,
                f"{len(data)} bytes",
                f"is above max_payload_bytes = {limit}",
                "store it in parts, or raise StoreConfig.max_payload_bytes",
            )
        blob = await self._env.to_thread(self._blobs.put, data)
        return blob.digest.encode()

    async def _load(self, task: bytes, field: str, data: bytes, is_blob: bool) -> bytes:
        return await self._env.to_thread(self._blobs.get, blob_named(task, field, data)) if is_blob else data

    async def output(self, ended: Ended, wait: Callable[[TaskId], Awaitable[Any]]) -> TaskOutput:
        """Return the output of a completed task; `wait` gives the plain result of a task that it stands for."""
        assert ended.output is not None
        data = await self._load(ended.id, "output", ended.output, bool(ended.flags & BLOB_OUTPUT))
        if not ended.flags & STANDS_FOR:
            return stored_output(ended.id, data)
        return stored_output(ended.id, data, {id: await wait(id) for id in refs_in(data)})

    async def input(self, claim: Claimed) -> bytes:
        """Return a claimed task's input with its parents' results in place. A parent that was allowed to fail is None.

        Raises: DependencyNotMet: a result that it refers to is gone. InvalidInput: one does not fit there.
        """
        data = await self._load(claim.id, "input", claim.input, bool(claim.flags & BLOB_INPUT))
        parents = claim.parents
        if not parents:
            return data
        if (whole := _joined(data, parents)) is not None:
            return whole
        results: dict[TaskId, Any] = {}
        for id in refs_in(data):
            parent = parents.get(id.bytes)
            if parent is not None and is_at_hand(parent):
                results[id] = decode_output(parent.output).value  # type: ignore[arg-type]
            else:
                results[id] = await self._result_of(id, parents)
        return encode(decode_input(data, results))[0]

    def input_at_hand(self, claim: Claimed) -> bytes | None:
        """Return what `input` does where nothing has to be fetched or converted for it, as most often; else None."""
        if claim.flags & BLOB_INPUT or claim.parents is None:
            return None
        try:
            return _joined(claim.input, claim.parents)
        except msgspec.DecodeError:  # `input` says what is wrong
            return None

    async def _result_of(self, id: TaskId, parents: Mapping[bytes, ParentResult]) -> Any:
        parent = parents.get(id.bytes)
        if parent is None:
            raise DependencyNotMet(f"the result of {id} is referred to, but that task is no parent of this one")
        if parent.status != COMPLETED or parent.output is None:
            return None
        data = await self._load(id.bytes, "output", parent.output, bool(parent.flags & BLOB_OUTPUT))
        if not parent.flags & STANDS_FOR:
            return decode_output(data).value
        nested = {ref: await self._result_of(ref, parents) for ref in refs_in(data)}
        return decode_output(data, nested).value


def _joined(data: bytes, parents: Mapping[bytes, ParentResult]) -> bytes | None:
    """Return an input with results in place, where those are nothing but their bytes."""
    return with_results(data, {id: parent.output for id, parent in parents.items() if is_at_hand(parent)})  # type: ignore[misc]  # those have one


def is_at_hand(ended: Ended | ParentResult) -> bool:
    """Whether its output is all there is to know: it completed, and the value is no blob and refers to no task."""
    return ended.status == COMPLETED and not ended.flags & (BLOB_OUTPUT | STANDS_FOR)


def completed(ended: Ended) -> Ended:
    """Return a completed task's end; raise the error of any other."""
    if ended.status == COMPLETED:
        return ended
    if ended.error is None:
        raise invalid("task", TaskId(ended.id), "ended without a recorded error", "please report this")
    raise from_info(stored_error(ended.id, ended.error))
