"""Who has no code of a handler checks its arguments by what the store knows: as the worker does, or more leniently."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
import pydantic
import pytest
from numpy.typing import NDArray

from mainspring.dispatch.registry import record_of
from mainspring.errors import InvalidInput
from mainspring.processors.custom import Handler
from mainspring.processors.declared import Declared
from mainspring.tasks import Custom, Ref, TaskId, Text
from mainspring.tasks.codec import decode, encode


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["a", "b"]


@dataclass
class Page:
    url: str
    near: list[Page] | None = None


class Pair(NamedTuple):
    left: int
    right: str


class Person(pydantic.BaseModel):
    age: int


VALUES: list[Any] = [
    None, True, 0, -1, 3, 2.0, 2.5, float("inf"), "", "a", "text", b"bytes", [], [1], [1, "a"], ["a", "b"], [[1.0]],
    [1, "a", 2], {}, {"x": 1}, {"x": "1"}, {"x": 1, "y": 2, "z": 3}, {"kind": "a"}, {"kind": "c"},
    {"kind": "a", "x": 1}, {"url": "u", "near": [{"url": "v"}]}, {"url": "u", "near": [{"uri": "v"}]}, {"age": 3},
    {"age": "3"}, {"age": "x"}, {"a": 1}, {"a": "b"}, np.float32(1), datetime(2026, 1, 1, tzinfo=UTC),
    Decimal("1.5"), UUID(int=5), Point(1), Page("u"), Person(age=1),
]  # fmt: skip
HINTS: list[Any] = [
    Any, int, float, bool, str, None, int | None, str | list[int], list[str], list[Any], dict[str, int],
    tuple[int, str], tuple[int, ...], Literal["a", 3], Annotated[int, msgspec.Meta(ge=0, lt=3)],
    Annotated[str, msgspec.Meta(min_length=2)], Annotated[str, msgspec.Meta(pattern="^t")], Point, Closed, Page, Pair,
    Person, datetime, Decimal, UUID, list[Page], dict[str, Point], bytes, bytes | None, list[bytes], dict[str, bytes],
]  # fmt: skip
LOOSER = (list[Any], Person, datetime, Decimal, UUID)
"""Hints whose JSON Schema says less than their types know."""


def declared(handler: Handler) -> Declared:
    record = record_of(handler)
    return Declared.read(handler.name, record.options, record.schema)


def fits(check: Any, *args: Any) -> bool:
    try:
        check(*args)
    except InvalidInput:
        return False
    return True


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_nothing_that_the_handler_takes_is_refused(hint: Any) -> None:
    """Each value passes if the worker would take it; where JSON Schema says all there is to say, only then."""

    def work(value: Any) -> None: ...

    work.__annotations__["value"] = hint
    handler = Handler(work)
    known = declared(handler)
    for value in VALUES:
        taken = fits(handler.typed, decode(encode({"value": value})[0]))
        passed = fits(known.check, Custom({"value": value}))
        assert passed or not taken, value
        if hint not in LOOSER:
            assert passed == taken or isinstance(value, (bytes, datetime, UUID, Decimal)), value


def test_arrays() -> None:
    """What makes an array of numbers passes for one, and an array for nothing else."""

    def work(value: NDArray[Any]) -> None: ...

    def plain(value: str | dict[str, int] | list[int] | None) -> None: ...

    for good in (np.arange(3), [1, 2], [[0.5]], 3):
        declared(Handler(work)).check(Custom({"value": good}))
    assert not fits(declared(Handler(work)).check, Custom({"value": {"a": 1}}))
    assert not fits(declared(Handler(plain)).check, Custom({"value": np.arange(3)}))


def test_bytes_in_json() -> None:
    """What came as JSON has its bytes as base64, at any depth; in the store bytes are bytes and texts are texts."""

    def work(
        data: bytes, more: list[bytes] | None = None, named: dict[str, bytes] | None = None, text: str = ""
    ) -> None: ...

    known = declared(Handler(work))
    given = known.from_json({"data": "AP8=", "more": ["YQ=="], "named": {"a": "Yg=="}, "text": "YQ=="})
    assert given == {"data": b"\x00\xff", "more": [b"a"], "named": {"a": b"b"}, "text": "YQ=="}
    known.check(Custom(given))
    assert known.from_json({"data": b"a", "more": None}) == {"data": b"a", "more": None}
    for wrong in ({"data": "AP8="}, known.from_json({"data": "no base64"}), {"data": b"", "text": b"a"}):
        with pytest.raises(InvalidInput, match=r"data is no bytes|text is no string"):
            known.check(Custom(wrong))


def resize(width: int, name: str = "x", page: Page | None = None) -> int:
    return width


@pytest.mark.parametrize(
    ("input", "says"),
    [
        (Custom({"width": "a"}), "width"),
        (Custom({"width": 1, "page": {"url": "u", "near": [{"url": 5}]}}), "page.near"),
        (Custom({"width": 1, "bogus": 1}), "bogus"),
        (Custom({}), "width"),
        (Custom([1]), "input"),
        (Custom(5), "input"),
        (Text("x"), "input"),
        (Custom({"width": [Ref(TaskId()), 5]}), "width"),
    ],
)
def test_what_does_not_fit_is_named(input: Any, says: str) -> None:
    """The error says which argument is wrong, and which there are."""
    with pytest.raises(InvalidInput, match=says) as caught:
        declared(Handler(resize)).check(input)
    assert says.startswith(str(caught.value.field))


def test_values_that_are_not_known_yet_pass() -> None:
    """What another task will give is for the worker to check; what stands beside it is checked here."""
    known = declared(Handler(resize))
    known.check(Custom({"width": Ref(TaskId()), "page": {"url": "u", "near": [Ref(TaskId())]}}))
    with pytest.raises(InvalidInput, match="name"):
        known.check(Custom({"width": Ref(TaskId()), "name": 5}))
