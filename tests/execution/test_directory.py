"""Which handler a function is that is submitted in a child; its engine tells what it has. `__mainspring__` is what a
decorator leaves on a function where its module is imported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from mainspring import InvalidInput, TaskPriority
from mainspring.execution.directory import Calls, Directory, entry_of
from mainspring.processors.custom import Handler

Function = Callable[..., Any]


def raw(n: int) -> int:
    return n


def twice(function: Function) -> Function:
    @functools.wraps(function)
    def inner(n: int) -> int:
        return 2 * int(function(n))

    return inner


def thrice(function: Function) -> Function:
    @functools.wraps(function)
    def inner(n: int) -> int:
        return 3 * int(function(n))

    return inner


def _job(result: int) -> Function:
    def job(n: int) -> int:
        return n + result

    job.__qualname__ = "job"
    job.__code__ = job.__code__.replace(co_qualname="job")
    return job


def marked(function: Function, name: str) -> Function:
    function.__mainspring__ = Handler(function, name=name)  # type: ignore[attr-defined]
    return function


def knowing(*handlers: Handler) -> Calls:
    directory = Directory()
    directory.learn([entry for handler in handlers if (entry := entry_of(handler)) is not None])
    return Calls(directory)


def submitted(calls: Calls, function: Any) -> str:
    return calls.task_of(function, (1,), {}).task_type.removeprefix("custom:")


def test_what_is_wrapped() -> None:
    """It has the names of what is within: what is submitted is what was meant, and nothing where that is no handler."""
    doubled, tripled = twice(raw), thrice(raw)
    calls = knowing(Handler(raw, name="plain"), Handler(doubled, name="double"))
    assert [submitted(calls, function) for function in (raw, doubled)] == ["plain", "double"]
    with pytest.raises(InvalidInput, match="is not registered"):
        submitted(calls, tripled)
    assert not calls.missed


def test_namesakes() -> None:
    """Functions with the same names are told apart by their decorators, else not at all."""
    first, second = _job(1), _job(2)
    handlers = Handler(first, name="first"), Handler(second, name="second")
    calls = knowing(*handlers)
    for function in (first, second):
        with pytest.raises(InvalidInput, match=r"has the name of several handlers \(first, second\).* give each"):
            submitted(calls, function)
    assert calls.missed
    calls = knowing(*handlers)
    assert [submitted(calls, marked(first, "first")), submitted(calls, marked(second, "second"))] == ["first", "second"]
    assert not calls.missed


def test_copied_marks() -> None:
    """`functools.wraps` copies the mark of what is within: it says nothing about what is wrapped around it."""
    one = marked(twice(raw), "one")
    two = twice(one)
    calls = knowing(Handler(one, name="one"), Handler(two, name="two"))
    assert submitted(calls, one) == "one"
    with pytest.raises(InvalidInput, match="has the name of several handlers"):
        submitted(calls, two)
    assert calls.missed


def test_several_names() -> None:
    """Of one function the newest registration counts, as in its engine."""
    calls = knowing(Handler(raw, name="older"), Handler(raw, name="newer"))
    assert submitted(calls, raw) == "newer"
    assert not calls.missed


def test_other_engines() -> None:
    """What counts is what the engine that runs has declared, and where it has nothing what another one has."""
    function = marked(_job(1), "there")
    assert submitted(knowing(Handler(function, name="here")), function) == "here"
    calls = knowing(Handler(function, name="there", priority=TaskPriority.HIGH))
    assert calls.task_of(function, (1,), {}).priority is TaskPriority.HIGH
    assert submitted(knowing(), function) == "there"


def test_what_is_missed() -> None:
    """Only what the engine may have: what is no handler anywhere is none there either."""
    own, strange = (lambda n: n), (lambda n: n)
    for function, why in ((strange, "is not registered"), ("raw", "is a name"), (raw, "is not registered")):
        calls = knowing()
        with pytest.raises(InvalidInput, match=why):
            submitted(calls, function)
        assert not calls.missed
    calls = knowing(Handler(own, name="own"))
    with pytest.raises(InvalidInput, match="has no name by which a child process could tell"):
        submitted(calls, own)
    assert calls.missed
