"""Functions that can't do what they are there for are refused when they are declared, and no others."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import pytest

from mainspring import Batch, Engine
from mainspring.errors import InvalidInput
from mainspring.processors.custom import Handler

T = TypeVar("T")


def batched(annotation: Any) -> Callable[..., Any]:
    def together(items: list[int]) -> Any:
        return items

    together.__annotations__["return"] = annotation
    return together


NO_LISTS = [
    int, float, bool, str, bytes, None, set, frozenset, dict, dict[str, int], set[int], "int", "None", "dict[str, int]",
    str | None, "int | None", str | dict[str, int], Annotated[int, "a count"],
]  # fmt: skip
MAY_BE_LISTS = [
    Any, object, list, list[str], tuple[int, ...], Sequence[int], Iterable[int], Iterator[int], Awaitable[list[int]],
    np.ndarray, NoReturn, T, list[int] | None, "list[str] | None", "OrderedDict[str, int]", "nowhere.Named",
]  # fmt: skip


@pytest.mark.parametrize("annotation", NO_LISTS)
def test_a_batch_handler_that_gives_back_no_list(annotation: Any) -> None:
    """It would fail for all its tasks, at each of its calls."""
    says = r"together -> .*one result for each item.*annotate it as list\[\.\.\.\]"
    with pytest.raises(InvalidInput, match=says) as caught:
        Handler(batched(annotation), batch=Batch())
    assert caught.value.field == "batch"
    Handler(batched(annotation))


@pytest.mark.parametrize("annotation", MAY_BE_LISTS)
def test_a_batch_handler_that_may_give_back_a_list(annotation: Any) -> None:
    """Also where its annotation says little, or means nothing here."""
    Handler(batched(annotation), batch=Batch())


def test_what_a_decorator_left_as_it_stood() -> None:
    """The annotation is that of the function inside; what the decorated one gives back may be another thing."""

    def listed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(items: list[str]) -> Any:
            return list(function(items).values())

        return wrapper

    @listed
    def counted(items: list[str]) -> dict[str, int]:
        return {item: len(item) for item in items}

    Handler(counted, batch=Batch())
    Handler(functools.partial(counted), name="counted", batch=Batch())


class Price:
    def __call__(self, item: str) -> float:
        return len(item)


@functools.wraps(lambda: 1)
def takes_one_all_the_same(item: str) -> int:
    return 1


FITTING = [
    len,
    float,
    Price(),
    lambda item, unit=1: 1,
    lambda *items: 1,
    functools.partial(max, 1),
    takes_one_all_the_same,
]


@pytest.mark.parametrize("function", FITTING)
def test_functions_of_an_item(function: Any) -> None:
    """Builtins, objects and those with more parameters that have defaults can be asked."""
    Batch(max_cost=5, cost=function, shape=function)
    Engine(":memory:").task(cost=function)(_chat)


def _chat(prompt: str) -> str:
    return prompt


@pytest.mark.parametrize("cost", [lambda: 1, lambda prompt, more: 1, lambda prompt, *, more: 1])
def test_a_cost_that_can_not_be_asked(cost: Any) -> None:
    """It is called with the handler's arguments by place; contexts are none."""
    with pytest.raises(InvalidInput, match=r"can't be called with 1 argument by place .*that takes prompt") as caught:
        Engine(":memory:").task(cost=cost)(_chat)
    assert caught.value.field == "cost"


async def _later(prompt: str) -> int:
    return 1


def test_a_cost_that_answers_later() -> None:
    """Nobody awaits it."""
    with pytest.raises(InvalidInput, match="async"):
        Engine(":memory:").task(cost=_later)(_chat)  # type: ignore[arg-type]
