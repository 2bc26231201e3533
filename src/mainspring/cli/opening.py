"""Opening a store for one command. To look never makes a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mainspring.config import is_server
from mainspring.errors import StoreUnavailable, invalid

if TYPE_CHECKING:
    from mainspring.cli.screen import Screen
    from mainspring.engine import Engine
    from mainspring.store.postgres.connection import Server

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
    """Return the path of a store's file, to look at it without opening an engine. Raises as `opened` does.

    What is on a server has no path: the caller has seen to that.
    """
    if is_missing(store):
        _missing(store, None)
    return Path(store).resolve()


def server_of(name: str) -> Server:
    """Read the address of a server. Raises InvalidInput."""
    try:
        from mainspring.store.postgres.connection import parse
    except ImportError as exc:
        raise invalid(
            "store", "postgresql://...", f"needs the library {exc.name}", "pip install 'mainspring[postgres]'"
        ) from exc
    return parse(name)


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
    if is_server(store):
        return False  # its tables are made by whoever comes first
    path = Path(store)
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)
