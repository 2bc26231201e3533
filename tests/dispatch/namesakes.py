"""Functions with the same names, each a handler of its own; a child has them by importing this."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mainspring import Context, Engine

engine = Engine(":memory:")


def raw(n: int) -> str:
    return f"raw {n}"


def twice(function: Callable[[int], str]) -> Callable[[int], str]:
    @functools.wraps(function)
    def inner(n: int) -> str:
        return f"twice {function(n)}"

    return inner


doubled = twice(raw)
engine.task(name="plain")(raw)
engine.task(name="double")(doubled)


@engine.task(name="first")
def job(n: int) -> str:
    return f"first {n}"


first = job


@engine.task(name="second")  # type: ignore[no-redef]
def job(n: int) -> str:
    return f"second {n}"


def _submits(ctx: Context) -> list[Any]:
    return [ctx.submit(function, 1) for function in (raw, doubled, first, job)]


@engine.task
def here(ctx: Context) -> list[Any]:
    return _submits(ctx)


@engine.task(lane="process")
def in_child(ctx: Context) -> list[Any]:
    return _submits(ctx)
