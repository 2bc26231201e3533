"""What tells a function's code from a changed one, in this process and in every other one."""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import msgspec

_encoder = msgspec.msgpack.Encoder(order="deterministic")


def code_hash(function: Callable[..., Any]) -> str:
    """Return a hash of what a function runs: its code as it was loaded, its source and its default values.

    Of a function that wraps another one (`functools.wraps`) both count. What it calls and its closure are not looked
    into. Another version of Python compiles otherwise, and gives another hash.

    Returns: "" where that can't be told: there is no code (an object that can be called, a `partial`), or a default
    value is no data.
    """
    whole = hashlib.blake2b(str(sys.implementation.cache_tag).encode(), digest_size=8)
    for layer in _layers(function):
        code = getattr(layer, "__code__", None)
        defaults = getattr(layer, "__defaults__", None), getattr(layer, "__kwdefaults__", None)
        if isinstance(code, CodeType):
            whole.update(repr((_shape(code), _source(layer))).encode())
        elif not hasattr(layer, "__wrapped__"):
            return ""
        try:
            whole.update(_encoder.encode(defaults))
        except TypeError:
            return ""
    return whole.hexdigest()


def _layers(function: Any) -> Iterator[Any]:
    """Yield a function, the one that it wraps, and so on."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _shape(code: CodeType) -> tuple[Any, ...]:
    """Return what a code object does, without where it stands."""
    return (
        code.co_code, getattr(code, "co_exceptiontable", b""), code.co_flags, code.co_argcount,
        code.co_posonlyargcount, code.co_kwonlyargcount, code.co_names, code.co_varnames, code.co_freevars,
        code.co_cellvars, [_constant(value) for value in code.co_consts],
    )  # fmt: skip


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _shape(value)
    if isinstance(value, tuple):
        return [_constant(item) for item in value]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _source(function: Any) -> str:
    """Return what is written there, for annotations; the signature where it was typed into an interpreter.

    What is written is looked for by the function's own globals: `inspect` asks every module that is loaded, as long as
    it takes, whether it is of that file.
    """
    code: CodeType = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, getattr(function, "__globals__", None))[code.co_firstlineno - 1 :]
    return "".join(inspect.getblock(lines)) if lines else str(inspect.signature(function, follow_wrapped=False))
