"""Ids, types, priorities and statuses: the words that every room shares."""

from __future__ import annotations

import enum
import re
from operator import attrgetter
from typing import Final, Literal, Protocol, cast

import uuid_utils

from mainspring.environment import HERE
from mainspring.errors import invalid

_Bytes = bytes


class _Uuid(Protocol):
    @property
    def bytes(self) -> _Bytes: ...


class TaskId:
    """A UUIDv7, made by the submitter before the commit, so that a repeated submit is harmless.

    Prints as the usual 36 characters and orders by time of creation. `TaskId()` and `TaskId.new()` make a fresh one.
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes | str | _Uuid | None = None) -> None:
        if type(value) is bytes and len(value) == 16:
            self._bytes = value
            return
        if value is None:
            value = HERE.get().new_id()
        elif isinstance(value, str):
            value = _parse_uuid(value)
        else:  # another TaskId, or a UUID of whatever library
            given, value = value, getattr(value, "bytes", None)
            if type(value) is not bytes or len(value) != 16:
                why, remedy = "is not 16 bytes or a UUID's text", "pass a TaskId, a UUID, its text or its bytes"
                raise invalid("task id", given, why, remedy)
        self._bytes = value

    bytes = cast(_Bytes, property(attrgetter("_bytes"), doc="The 16 bytes."))

    @classmethod
    def new(cls) -> TaskId:
        return cls()

    def __str__(self) -> str:
        return str(uuid_utils.UUID(bytes=self.bytes))

    def __repr__(self) -> str:
        return f"TaskId('{self}')"

    def __hash__(self) -> int:
        return hash(self.bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskId) and self.bytes == other.bytes

    def __lt__(self, other: object) -> bool:
        return self.bytes < other.bytes if isinstance(other, TaskId) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self.bytes <= other.bytes if isinstance(other, TaskId) else NotImplemented


def _parse_uuid(text: str) -> bytes:
    try:
        return uuid_utils.UUID(text).bytes
    except ValueError:
        raise invalid("task id", text, "is no UUID", "copy the whole id as `mainspring ps` prints it") from None


class TaskPriority(enum.IntEnum):
    """Each step is worth one ageing step (60 s) of waiting; none starves."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class TaskStatus(enum.Enum):
    """The six of the design. The last four are final: nothing ever leaves them."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"

    @property
    def is_final(self) -> bool:
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


Reason = Literal[
    "ready",
    "parents",
    "delayed",
    "retry",
    "resources",
    "paused",
    "limit",
    "claimed",
    "batch",
    "same_work",
    "no_worker",
]
"""Why a PENDING task is not running."""

_CUSTOM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}")
_CUSTOM_REMEDY = (
    "use up to 128 of A-Z a-z 0-9 _ . - that begin with a letter or _; "
    "name= of a declaration gives a handler another one than its function's"
)
_BUILT_IN: Final = (
    "text_processing",
    "model_inference",
    "vector_search",
    "embedding_generation",
    "data_storage",
    "data_retrieval",
)


class TaskType(str):
    """What kind of work: one of six built-in names, or `custom:NAME` for a registered handler.

    It is its own text form: `TaskType.TEXT_PROCESSING == "text_processing"`.
    """

    __slots__ = ()

    TEXT_PROCESSING: TaskType
    MODEL_INFERENCE: TaskType
    VECTOR_SEARCH: TaskType
    EMBEDDING_GENERATION: TaskType
    DATA_STORAGE: TaskType
    DATA_RETRIEVAL: TaskType

    def __new__(cls, text: str) -> TaskType:
        if type(text) is cls:
            return text
        if not isinstance(text, str):
            raise invalid("task_type", text, "is no task type", f"use one of {', '.join(_BUILT_IN)} or custom:NAME")
        if text not in _BUILT_IN and not (text.startswith("custom:") and _CUSTOM_NAME.fullmatch(text, 7)):
            raise invalid("task_type", text, "is no task type", f"use one of {', '.join(_BUILT_IN)} or custom:NAME")
        return super().__new__(cls, text)

    @classmethod
    def custom(cls, name: str) -> TaskType:
        if not isinstance(name, str) or not _CUSTOM_NAME.fullmatch(name):
            raise invalid("name", name, "is no name of a handler", _CUSTOM_REMEDY)
        return cls(f"custom:{name}")

    @property
    def is_custom(self) -> bool:
        return self.startswith("custom:")

    @property
    def name(self) -> str:
        """The handler's name of a custom type, else the type's own."""
        return self[7:] if self.is_custom else str(self)

    def __repr__(self) -> str:
        return f"TaskType({str(self)!r})"


for _name in _BUILT_IN:
    setattr(TaskType, _name.upper(), TaskType(_name))

BUILT_IN_TYPES: Final = tuple(TaskType(name) for name in _BUILT_IN)
