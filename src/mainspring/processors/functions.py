"""What users' functions are checked for when they are declared: whether they can do at all what they are there for.

Only what can't go well is refused: a function whose signature can't be read passes, and an annotation that says little.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from mainspring.errors import invalid
from mainspring.processors.annotations import is_async, returned

_NO_ORDER = (str, bytes, bytearray, memoryview, collections.abc.Mapping, collections.abc.Set)
"""What `tasks.order.in_order` refuses although it holds several values."""
_ONE_VALUE = (int, float, complex, type(None))


def check_function(function: Any) -> None:
    """Raises InvalidInput for what can be called and is no handler all the same."""
    if not callable(function):
        raise invalid("handler", function, "is not callable", "decorate a function")
    if inspect.ismethod(function) or inspect.isbuiltin(function):
        raise invalid("handler", function, "is a bound method or a builtin", "wrap it in a function of your own")
    if inspect.isclass(function):
        raise invalid("handler", function, "is a class", "decorate a function that makes what it returns")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise invalid("handler", function, "is a generator, which is no value", "return a list")


def check_asked(function: Any, field: str, count: int, remedy: str) -> None:
    """Refuse what can't be called with so many arguments by place, or answers later. Raises InvalidInput."""
    if not callable(function):
        raise invalid(field, function, "is no function", remedy)
    if is_async(function):
        raise invalid(field, function, "is async, and nobody awaits it", remedy)
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):  # a builtin that does not tell
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as exc:
        why = f"can't be called with {count} argument{'s' if count != 1 else ''} by place ({exc})"
        raise invalid(field, function, why, remedy) from None


def check_gives_list(function: Callable[..., Any], name: str) -> None:
    """Refuse a batch handler that by its annotation gives back no list of results. Raises InvalidInput."""
    hint = returned(function)
    if _is_no_list(hint):
        what = hint.__name__ if isinstance(hint, type) else hint
        why = "a call for several tasks gives back one result for each item, in order"
        raise invalid("batch", f"{name} -> {what}", why, "return a list, and annotate it as list[...]")


def _is_no_list(hint: Any) -> bool:
    """Whether nothing of this type has one value for each item."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_no_list(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return all(_is_no_list(one) for one in typing.get_args(hint))
    kind = origin or hint
    return isinstance(kind, type) and issubclass(kind, (*_NO_ORDER, *_ONE_VALUE))
