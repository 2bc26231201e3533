"""Opening a store for one command. To look never makes a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mainspring.errors import StoreUnavailable, invalid

if TYPE_CHECKING:
    from mainspring.cli.screen import Screen
    from mainspring.engine import Engine

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end on a loop of its own."""
    try:
        from mainspring.engine.sync import new_loop

        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(work)
    finally:
        work.close()  # where Ctrl-C came before it began


@asynccontextmanager
async def opened(store: str, *, making: Screen | None = None) -> AsyncIterator[Engine]:
    """Open a store to look or to ask; no task runs in this process.

    A missing one is made only with `making`, which is told: a mistyped path should not pass in silence.

    Raises: StoreUnavailable: there is no such file. InvalidInput: ":memory:". What opening a store raises.
    """
    if is_missing(store):
        _missing(store, making)
    from mainspring.engine import Engine

    async with Engine(store, worker=False) as engine:
        yield engine


def existing(store: str) -> Path:
    """Return the path of a store's file, to look at it without opening an engine. Raises as `opened` does."""
    if is_missing(store):
        _missing(store, None)
    if _is_server(store):
        raise invalid("store", store, "is a database server, which this version does not support", "name a file")
    return Path(store).resolve()


def _is_server(store: str) -> bool:
    return store.startswith(("postgres://", "postgresql://"))


def _missing(store: str, making: Screen | None) -> None:
    path = Path(store).absolute()
    if making is None:
        raise StoreUnavailable(
            f"there is no store at {path}; check --store and MAINSPRING_STORE (a worker or a submit makes one)"
        )
    making.note(f"makes a new store at {path}")


def is_missing(store: str) -> bool:
    """Whether opening this store would make it. Raises InvalidInput for ":memory:"."""
    if store == ":memory:":
        raise invalid("store", store, "is gone when this command ends", "name a file")
    if _is_server(store):
        return False  # the engine says why not
    path = Path(store)
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)
