"""The contract of whatever does the work of a task type.

A processor gets items and gives one outcome for each, in the same order. A bad item fails alone. It never touches the
store: what must be written with the outcome is returned as an effect.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from mainspring.config import seconds
from mainspring.errors import InvalidInput, Permanent, ResourceLimitExceeded, RetryAfter, TaskError
from mainspring.processors.context import Context
from mainspring.tasks import ErrorInfo, Failed, Outcome, TaskInput, TaskType

Lane: TypeAlias = Literal["async", "thread", "process", "ray"]
_MESSAGE_CHARS = 4_000


class Item(msgspec.Struct, frozen=True, gc=False):
    """One attempt's payload, with parents' results already in place of references."""

    input: TaskInput
    context: Context
    model_id: str | None = None
    params: dict[str, Any] = {}
    namespace: str = "default"


class Processor(Protocol):
    """What runs a task type.

    `process` may be a plain function (it runs in a thread or a child process) or a coroutine (it runs on the event
    loop). It may raise: then every item of the batch fails with that error.
    """

    task_type: TaskType
    lane: Lane

    @property
    def Params(self) -> type[msgspec.Struct]:  # noqa: N802 - most processors nest a class of this name
        """The options of this type; `task.params` must convert to it, checked at submit. A nested class will do."""

    def check(self, input: TaskInput, model_id: str | None, params: dict[str, Any]) -> None:
        """Refuse at submit what could never work. Values that come from parents are not known yet (they are `Ref`).

        Raises: InvalidInput.
        """

    def load(self) -> None:
        """Get ready before the first batch; heavy imports belong here. May be called from any thread, once."""

    def process(self, batch: Sequence[Item]) -> Sequence[Outcome] | Awaitable[Sequence[Outcome]]: ...

    def close(self) -> None:
        """Free what `load` took. Nothing is processed afterwards."""


def failure(exc: BaseException, traceback_chars: int = 4_000) -> Failed:
    """Return the stored form of an exception: its type, message, the traceback's tail, and whether to try again.

    Unknown exceptions are worth a retry; ours say it themselves. A text that is too long or no Unicode is made to fit.
    Never raises: of an exception whose own code does, its type and text are left.
    """
    try:
        return _failure(exc, traceback_chars)
    except BaseException:  # noqa: BLE001 - an exception's own attributes are read in there, which may be properties
        return Failed(ErrorInfo(type=type(exc).__name__, message=_storable(text_of(exc)[:_MESSAGE_CHARS])))


def _failure(exc: BaseException, traceback_chars: int) -> Failed:
    retry_after: float | None = None
    if isinstance(exc, RetryAfter):
        try:
            retry_after = seconds(exc.seconds, "RetryAfter.seconds")
        except InvalidInput as wrong:
            exc = wrong
    tail = _storable("".join(traceback.format_exception(exc))[-traceback_chars:])
    retryable = True
    if isinstance(exc, Permanent):
        retryable = False
    elif isinstance(exc, TaskError):
        retryable = exc.is_retryable
        if isinstance(exc, ResourceLimitExceeded) and exc.retry_after is not None:
            retry_after = seconds(exc.retry_after, "retry_after")
    error = ErrorInfo(
        type=type(exc).__name__,
        message=_storable(text_of(exc)[:_MESSAGE_CHARS]),
        traceback=tail,
        field=exc.field if isinstance(exc, TaskError) else None,
    )
    return Failed(error, retryable=retryable, retry_after=retry_after)


def text_of(exc: BaseException) -> str:
    """Return an exception's text, whatever its own `__str__` does."""
    try:
        return str(exc)
    except BaseException as wrong:  # noqa: BLE001 - said in the text instead
        return f"(its text can't be made: {type(wrong).__name__})"


def _storable(text: str) -> str:
    """File names that are no Unicode bring lone surrogates into messages; no store takes those."""
    return text.encode("utf-8", "backslashreplace").decode()
