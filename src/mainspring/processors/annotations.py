"""What a function's annotations mean, each by itself: one that can't be resolved takes no other with it."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import typing
from collections.abc import Callable
from types import CodeType
from typing import Any

logger = logging.getLogger("mainspring.handler")


def resolved(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the types of a function's parameters, by name; those that are not annotated are left out.

    Names are looked up where the function stands: in its module, in what it closes over, and while the functions
    around it still run in their variables. An annotation that exists only for type checkers is left out, with a
    warning.
    """
    plain = _plain(function)
    variables = _variables(plain)
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.annotation is parameter.empty:
            continue
        try:
            hints[parameter.name] = _type_of(parameter.annotation, getattr(plain, "__globals__", {}), variables)
        except (NameError, AttributeError, TypeError, SyntaxError) as exc:
            logger.warning(
                "handler %s: the annotation of %s can't be resolved (%s); its values are neither checked nor converted",
                name,
                parameter.name,
                exc,
            )
    return hints


def returned(function: Callable[..., Any]) -> Any:
    """Return the type of what a function gives back: Any where it does not say, or the name means nothing here.

    What a decorator left as it stood in the function behind it says nothing of what the decorated one gives back.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if hasattr(function, "__wrapped__"):
        return Any
    plain = _plain(function)
    annotation = inspect.signature(function).return_annotation
    if annotation is inspect.Signature.empty:
        return Any
    try:
        return _type_of(annotation, getattr(plain, "__globals__", {}), _variables(plain))
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives something to await; also of objects that can be called."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - not whether it is there, but what it is


def _type_of(annotation: Any, names: dict[str, Any], variables: dict[str, Any]) -> Any:
    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    return typing.get_type_hints(holder, names, variables, include_extras=True)["it"]


def _plain(function: Any) -> Any:
    """Return the function behind decorators, partials and objects that can be called."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
            return type(function).__call__
        else:
            return function


def _variables(function: Any) -> dict[str, Any]:
    """Return the variables around a function, the innermost last."""
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return {}
    around: list[dict[str, Any]] = []
    inner, frame = code, sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if any(constant is inner for constant in frame.f_code.co_consts) and frame.f_code.co_name != "<module>":
            around.append(frame.f_locals)
            inner = frame.f_code
    variables: dict[str, Any] = {}
    for known in reversed(around):
        variables.update(known)
    return {**variables, **_closure(function, code)}


def _closure(function: Any, code: CodeType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found
