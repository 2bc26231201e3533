"""Handlers whose tasks run together and have a context each, for every lane."""

from __future__ import annotations

import os
from typing import Any

from mainspring import Batch, Context, RetryAfter

TOGETHER = Batch(max_size=4, max_wait=60)


def child(name: str) -> str:
    return name


def tell(names: list[str], contexts: list[Context]) -> list[Any]:
    """Each says of itself whose it is, by all that a context has."""
    for name, ctx in zip(names, contexts, strict=True):
        ctx.usage(cost=len(name))
        ctx.progress(len(name), 10)
        ctx.log.warning("this is %s", name)
    return [str(ctx.id) for ctx in contexts]


def bear(names: list[str], contexts: list[Context]) -> list[Any]:
    """Each has a child; where that of one can't be the whole call raises, after they were submitted."""
    children = [ctx.submit(child, name) for name, ctx in zip(names, contexts, strict=True)]
    if "bad" in names:
        raise ValueError("bad")
    if "late" in names and contexts[names.index("late")].retry_count == 0:
        raise RetryAfter(0.01)
    return [ValueError("worse") if name == "worse" else it for name, it in zip(names, children, strict=True)]


def bear_now(names: list[str], contexts: list[Context]) -> list[Any]:
    """The same, and the children are stored at once."""
    children = [ctx.submit(child, name, now=True) for name, ctx in zip(names, contexts, strict=True)]
    if len(names) > 2:
        raise ValueError("too many")
    return children


def die(names: list[str], contexts: list[Context]) -> list[Any]:
    """Have a child each, and one of them dies of it."""
    children = [ctx.submit(child, name) for name, ctx in zip(names, contexts, strict=True)]
    if "death" in names:
        os._exit(3)
    return children
