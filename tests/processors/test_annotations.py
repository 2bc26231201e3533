"""Annotations are resolved one by one, where the function stands; what can't be is untyped alone, and said."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from mainspring.errors import InvalidInput
from mainspring.processors.context import Context
from mainspring.processors.custom import Handler

if TYPE_CHECKING:
    from collections import OrderedDict


def test_a_type_of_the_function_around() -> None:
    """A dataclass that stands beside the handler in a function arrives as itself."""

    @dataclasses.dataclass
    class Point:
        x: int

    def inner() -> Handler:
        def local(p: Point) -> int:
            return p.x

        return Handler(local)

    assert inner().typed({"p": {"x": 1}}) == {"p": Point(1)}
    with pytest.raises(InvalidInput, match="int"):
        inner().typed({"p": {"x": "q"}})


def test_a_type_that_the_function_closes_over() -> None:
    """Also where the function around has returned since."""

    def make() -> Any:
        class Point(msgspec.Struct):
            x: int

        def local(p: Point) -> Any:
            return Point(p.x)

        return local

    function = make()
    (point,) = Handler(function).typed({"p": {"x": 1}}).values()
    assert function(point) == point


def test_one_that_cannot_be_resolved(caplog: pytest.LogCaptureFixture) -> None:
    """The others keep their types, the context is found, and the declaration says which one is lost."""

    async def one_bad(a: int, b: OrderedDict[str, int], ctx: Context) -> int:
        return a

    with caplog.at_level(logging.WARNING, "mainspring"):
        handler = Handler(one_bad)
    assert handler.context_parameter == "ctx"
    assert handler.parameters == ("a", "b")
    with pytest.raises(InvalidInput, match="int"):
        handler.typed({"a": "x", "b": {}})
    assert handler.typed({"a": 1, "b": {}}) == {"a": 1, "b": {}}
    (record,) = caplog.records
    assert "one_bad: the annotation of b can't be resolved" in record.getMessage()


def test_a_return_type_is_not_needed(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is read from it, but for handlers of several tasks."""

    def returns(a: int, ctx: Context) -> OrderedDict[str, int]:
        raise NotImplementedError

    with caplog.at_level(logging.WARNING, "mainspring"):
        handler = Handler(returns)
    assert (handler.context_parameter, handler.parameters, caplog.records) == ("ctx", ("a",), [])


def test_bounds() -> None:
    """What `Annotated` says about a value is held."""

    def bounded(a: Annotated[int, msgspec.Meta(ge=0)], ctx: Annotated[Context, "mine"]) -> None: ...

    handler = Handler(bounded)
    assert handler.context_parameter == "ctx"
    assert handler.typed({"a": 0}) == {"a": 0}
    with pytest.raises(InvalidInput, match=">= 0"):
        handler.typed({"a": -1})
