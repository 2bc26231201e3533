"""Outcomes as bytes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from mainspring.execution.encoding import report
from mainspring.processors.base import failure
from mainspring.tasks import ChildTasks, Custom, CustomOutput, Done, Ref, Task, TaskId, TaskType, Usage
from mainspring.tasks.codec import decode_output


class Rude:
    """Not storable, and its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("rude")


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_a_done_outcome_keeps_everything() -> None:
    """Output, references in it, effects and usage are all in the report."""
    ref, task = Ref(TaskId()), Task(task_type=TaskType.custom("a"), input=Custom({}))
    usage = Usage(duration=1.0, cpu_time=0.5)
    got = report(Done(CustomOutput({"a": [ref, np.arange(3)]}), (ChildTasks((task,)),)), usage)
    assert got.error is None
    assert got.refs == (ref.id.bytes,)
    assert got.effects == (ChildTasks((task,)),)
    assert got.usage is usage
    value: Any = decode_output(got.output or b"").value
    assert value["a"][0] == ref


def test_a_failure_keeps_how_to_go_on() -> None:
    """Type, message and whether to retry pass through."""
    got = report(failure(ValueError("bad")), Usage())
    assert got.error is not None
    assert (got.error.type, got.error.message, got.retryable, got.output) == ("ValueError", "bad", True, None)


@pytest.mark.parametrize(
    "value",
    [object(), Rude(), 1 << 70, "\ud800", nested(100_000), [Ref(TaskId()), object()], np.array(["a"])],
    ids=type,
)
def test_what_cannot_be_stored_fails_for_good(value: Any) -> None:
    """Never an exception, never a retry; the message says what can be stored."""
    got = report(Done(CustomOutput(value)), Usage())
    assert got.error is not None
    assert (got.error.type, got.retryable, got.output) == ("InvalidInput", False, None)
    assert got.error.message.startswith("the result can't be stored")


def test_wrong_types_are_noticed() -> None:
    """A processor that gives back something else is told so, rather than storing what nobody can read."""
    bare = report(Done(cast(Any, "text")), Usage())
    assert bare.error is not None
    assert "CustomOutput" in bare.error.message
    neither = report(cast(Any, "text"), Usage())
    assert neither.error is not None
    assert neither.error.type == "InternalError"
