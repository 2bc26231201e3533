"""From what a processor gives back to what a store can keep; the same in every lane."""

from __future__ import annotations

import typing

from mainspring.errors import InternalError, InvalidInput, invalid
from mainspring.execution.base import Report
from mainspring.processors.base import failure, text_of
from mainspring.tasks import Done, Failed, Outcome, TaskOutput, Usage
from mainspring.tasks.codec import encode

_OUTPUTS = frozenset(typing.get_args(TaskOutput))


def report(outcome: Outcome, usage: Usage) -> Report:
    """Return the outcome as bytes.

    An output that can't be stored makes the attempt a failure that is not worth a retry; its message says what can be.
    """
    if type(outcome) is Done:
        try:
            output, refs = _encoded(outcome.output)
        except BaseException as exc:  # noqa: BLE001 - a value's own methods run in there and may raise anything
            return failed(failure(_unstorable(exc)), usage)
        return Report(output, refs, effects=outcome.effects, usage=usage)
    if type(outcome) is Failed:
        return failed(outcome, usage)
    wrong = InternalError(f"a processor gave back {type(outcome).__name__} instead of Done or Failed")
    return failed(failure(wrong), usage)


def failed(outcome: Failed, usage: Usage) -> Report:
    return Report(error=outcome.error, retryable=outcome.retryable, retry_after=outcome.retry_after, usage=usage)


def _encoded(output: TaskOutput) -> tuple[bytes, tuple[bytes, ...]]:
    if type(output) not in _OUTPUTS:
        raise invalid("output", output, "is no TaskOutput", "wrap it in CustomOutput")
    data, refs = encode(output)
    return data, tuple([ref.bytes for ref in refs]) if refs else ()


def _unstorable(cause: BaseException) -> InvalidInput:
    if isinstance(cause, InvalidInput):
        return InvalidInput(f"the result can't be stored: {cause}", field="output")
    return InvalidInput(
        f"the result can't be stored ({type(cause).__name__}: {text_of(cause)}); "
        "return JSON-like values, bytes, numpy arrays, dataclasses or msgspec structs",
        field="output",
    )
