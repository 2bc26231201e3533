"""Effects: writes that commit together with an attempt's outcome; and the outcome itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from mainspring.tasks.payloads import TaskOutput
from mainspring.tasks.task import ErrorInfo, Task


class VectorRecord(msgspec.Struct, frozen=True):
    id: str
    vector: Any  # float32, shape (dim,)
    text: str | None = None
    metadata: dict[str, Any] = {}  # JSON-like; filters match on it exactly


class VectorUpsert(msgspec.Struct, frozen=True, tag="vector_upsert"):
    """Insert or replace records by id. The first upsert into a collection fixes its dimension and model."""

    collection: str
    records: tuple[VectorRecord, ...]
    model_id: str | None = None
    replace: dict[str, Any] | None = None  # delete what matches this filter first, in the same transaction


class VectorDelete(msgspec.Struct, frozen=True, tag="vector_delete"):
    """Delete records by id or by filter; unknown ids are no error."""

    collection: str
    ids: tuple[str, ...] = ()
    filter: dict[str, Any] | None = None


class BlobRef(msgspec.Struct, frozen=True, tag="blob_ref"):
    """A key that names a blob already written under its content hash."""

    key: str
    digest: str
    size: int
    if_absent: bool = False  # refuse when the key exists already


class BlobDelete(msgspec.Struct, frozen=True, tag="blob_delete"):
    key: str


class ChildTasks(msgspec.Struct, frozen=True, tag="child_tasks"):
    """Tasks submitted by the handler; they exist if and only if the outcome does.

    None: it has submitted all of its children at once, and they are there.
    """

    tasks: tuple[Task, ...]


Effect: TypeAlias = VectorUpsert | VectorDelete | BlobRef | BlobDelete | ChildTasks


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What an attempt used, as far as its lane can tell; None is unknown."""

    duration: float = 0.0  # seconds
    cpu_time: float | None = None  # seconds
    memory_bytes: int | None = None  # peak
    network_bytes: int | None = None
    batch_size: int = 1
    cost: float | None = None  # what the handler said that it cost its group


class Done(msgspec.Struct, frozen=True, tag="done", gc=False):
    """The attempt worked."""

    output: TaskOutput
    effects: tuple[Effect, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The attempt did not work."""

    error: ErrorInfo
    retryable: bool = True
    retry_after: float | None = None  # seconds, overrides the backoff


Outcome: TypeAlias = Done | Failed
"""What a processor gives back for one item."""
