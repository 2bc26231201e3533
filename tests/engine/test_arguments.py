"""Typed handlers: what a handler is annotated with is what it gets, whatever way the value took."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Optional
from uuid import UUID

import msgspec
import numpy as np
import pydantic
import pytest
from numpy.typing import NDArray
from tests.engine.support import engine_on, value

from mainspring import Engine, InvalidInput, ProcessingFailed, TaskStatus

pytestmark = pytest.mark.anyio


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@dataclass
class Page:
    url: str
    words: list[str] = field(default_factory=list)


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0)


class Colour(enum.Enum):
    RED = "red"


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


@pytest.fixture(scope="module")
def same(engine: Engine) -> Any:
    @engine.task
    async def same(value):
        return value

    return same


def kinds(engine: Engine, hint: Any, default: Any = ...) -> tuple[Any, list[Any]]:
    """Return a handler with one parameter of a type, and the list of what it got."""
    got: list[Any] = []
    number = len(engine.executor.handlers)

    async def handler(thing):
        got.append(thing)
        return thing

    if default is not ...:
        handler.__defaults__ = (default,)
    handler.__annotations__ = {"thing": hint}
    engine.task(name=f"kind_{number}")(handler)
    return handler, got


NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
CASES: list[tuple[Any, Any]] = [
    (Point, Point(3)),
    (Page, Page("u", ["a", "b"])),
    (Person, Person(name="Ada", age=36)),
    (Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
    (list[Point], [Point(1), Point(2, 2.0)]),
    (dict[str, Page], {"k": Page("u")}),
    (list[Person], [Person(name="Ada", age=36)]),
    (Optional[Point], None),  # noqa: UP045
    (Point | None, Point(1)),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"ab")),
    (datetime, NOW),
    (datetime, datetime(2026, 1, 2, 3, 4)),  # noqa: DTZ001
    (date, date(2026, 1, 2)),
    (timedelta, timedelta(seconds=90)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (Colour, Colour.RED),
    (Literal["a", "b"], "b"),
    (tuple[int, str], (1, "x")),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (dict[int, str], {1: "one"}),
    (int | str, "x"),
    (float, 3),
    (bool, True),
    (int, 2**63),
    (str, "ünïcode \U0001f40d \x00"),
    (Any, {"a": [1, None, True, 2.5, "x", b"y"]}),
]


@pytest.mark.parametrize(("hint", "given"), CASES, ids=lambda item: str(item)[:40])
async def test_a_value_arrives_as_its_annotation_says(engine: Engine, same: Any, hint: Any, given: Any) -> None:
    """Directly given, and as the result of a parent."""
    handler, got = kinds(engine, hint)
    await value(await engine.submit(handler, given))
    await value(await engine.submit(handler, await engine.submit(same, given)))
    assert got == [given, given]
    if hint is not Any and isinstance(hint, type) and hint is not float:
        assert [type(item) for item in got] == [hint, hint]


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.zeros((0, 4)),
    np.array(5),
    np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.arange(5, dtype=">i4"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
async def test_arrays_keep_dtype_and_shape(engine: Engine, same: Any, array: NDArray[Any]) -> None:
    """As an argument, inside others, and as a result; they can be written to."""
    handler, got = kinds(engine, np.ndarray)
    for given in (array, await engine.submit(same, array)):
        back = await value(await engine.submit(handler, given))
        for item in (back, got.pop()):
            assert isinstance(item, np.ndarray)
            assert (item.dtype, item.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(item, array)
            assert item.flags.writeable
    nested = await value(await engine.submit(same, {"deep": [array]}))
    np.testing.assert_array_equal(nested["deep"][0], array)


async def test_annotated_arrays(engine: Engine) -> None:
    """numpy.typing's aliases, optional arrays and lists of arrays are taken; nested lists become arrays."""
    for hint, given in (
        (NDArray[np.float32], np.ones(3, np.float32)),
        (np.ndarray | None, np.ones(2)),
        (list[np.ndarray], [np.ones(2)]),
    ):
        handler, got = kinds(engine, hint)
        await value(await engine.submit(handler, given))
        np.testing.assert_array_equal(got[0], given)
    handler, got = kinds(engine, np.ndarray)
    await value(await engine.submit(handler, [[1.0, 2.0]]))
    assert got[0].shape == (1, 2)


async def test_numpy_scalars_are_numbers(engine: Engine) -> None:
    """A numpy number fits where a Python number is wanted."""
    for hint, given in ((int, np.int64(3)), (float, np.float64(2.5)), (float, np.float32(0.5)), (bool, np.bool_(True))):
        handler, got = kinds(engine, hint)
        await value(await engine.submit(handler, given))
        assert got == [given.item()]
        assert type(got[0]) is hint


async def test_defaults(engine: Engine) -> None:
    """Left out, a parameter has its default, as it was declared."""
    for hint, default in ((Point, Point(9)), (int | None, None), (list[int], [1]), (Any, "x")):
        handler, got = kinds(engine, hint, default)
        await value(await engine.submit(handler))
        assert got == [default]


@pytest.mark.parametrize(
    ("hint", "given", "named"),
    [
        (Point, {"x": "three"}, "x"),
        (Point, {}, "x"),
        (int, "5", "int"),
        (str, 5, "str"),
        (Person, {"name": "Ada", "age": -1}, "age"),
        (list[int], [1, "two"], r"\[1\]"),
        (Literal["a", "b"], "c", "'c'"),
        (datetime, "soon", "RFC3339"),
    ],
    ids=str,
)
async def test_what_does_not_fit_is_refused(engine: Engine, same: Any, hint: Any, given: Any, named: str) -> None:
    """At submit where the value is known; as a failed task, without a call or a retry, where a parent brings it."""
    handler, got = kinds(engine, hint)
    with pytest.raises(InvalidInput, match=named):
        await engine.submit(handler, given)
    handle = await engine.submit(handler, await engine.submit(same, given))
    with pytest.raises(InvalidInput, match=named) as caught:
        await value(handle)
    assert caught.value.attempts == 1
    assert got == []
    assert (await handle.info()).status is TaskStatus.FAILED


async def test_results_are_plain_values(engine: Engine) -> None:
    """Structs, dataclasses, models, sets and tuples come back as JSON-like values."""

    @engine.task
    async def rich() -> Any:
        return [Point(1), Page("u"), Person(name="A", age=1), (1, 2), Colour.RED, NOW, UUID(int=1)]

    assert await value(await engine.submit(rich)) == [
        {"x": 1, "y": 0.5},
        {"url": "u", "words": []},
        {"name": "A", "age": 1},
        [1, 2],
        "red",
        NOW,
        str(UUID(int=1)),
    ]

    @engine.task
    async def bag() -> Any:
        return {1, 2}

    assert sorted(await value(await engine.submit(bag))) == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [object(), lambda: 1, 2**70, {"deep": [object()]}, float, iter(()), "\udcff", {object(): 1}, np.array([object()])],
    ids=lambda item: type(item).__name__,
)
async def test_what_cannot_be_stored(engine: Engine, same: Any, bad: Any) -> None:
    """As an argument it is refused at submit; as a result it fails the attempt at once, saying what can be returned."""
    with pytest.raises(InvalidInput, match=r"payload|stored"):
        await engine.submit(same, bad)
    with pytest.raises(InvalidInput, match=r"payload|stored"):
        await engine.submit(same, [await engine.submit(same, 1), bad])

    @engine.task(name=f"gives_{len(engine.executor.handlers)}")
    async def gives() -> Any:
        return bad

    handle = await engine.submit(gives)
    with pytest.raises(InvalidInput, match="the result can't be stored") as caught:
        await value(handle)
    assert caught.value.attempts == 1


async def test_an_endless_value_is_refused(engine: Engine, same: Any) -> None:
    """A list that holds itself can't be stored; nothing overflows."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidInput):
        await engine.submit(same, loop)

    @engine.task
    async def endless() -> Any:
        return loop

    with pytest.raises(InvalidInput):
        await value(await engine.submit(endless))


@pytest.mark.parametrize("depth", [200, 2_000])
async def test_deep_values_are_kept_or_refused(engine: Engine, same: Any, depth: int) -> None:
    """However deep a value is, it comes back whole, or is refused; it never breaks the engine."""
    deep: Any = 0
    for _ in range(depth):
        deep = [deep]
    try:
        handle = await engine.submit(same, deep)
    except InvalidInput:
        return
    try:
        back = await value(handle)
    except (InvalidInput, ProcessingFailed):
        return
    while isinstance(back, list):
        back, deep = back[0], deep[0]
    assert back == 0


async def test_a_type_that_cannot_be_converted_is_refused_when_declared(engine: Engine) -> None:
    """Not at the first task, and not by stopping the engine."""
    count = len(engine.executor.handlers)

    async def strange(thing):
        return thing

    strange.__annotations__ = {"thing": np.ndarray | Person}
    with pytest.raises(InvalidInput, match="thing"):
        engine.task(strange)
    assert len(engine.executor.handlers) == count


async def test_what_looks_like_another_type_is_refused(engine: Engine) -> None:
    """Text is not bytes in base64, and an array is no dict: each is named, and nothing is stored."""

    @engine.task
    async def takes_bytes(data: bytes) -> int:
        return len(data)

    @engine.task
    async def takes_dict(data: dict[str, int]) -> int:
        return len(data)

    for function, wrong in ((takes_bytes, "abcd"), (takes_dict, np.zeros(3))):
        with pytest.raises(InvalidInput, match="data"):
            await engine.submit(function, wrong)
    assert await value(await engine.submit(takes_bytes, b"abcd")) == 4
