"""Opening a store for one command. To look never makes a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mainspring.config import is_server, without_password
from mainspring.errors import StoreUnavailable, invalid

if TYPE_CHECKING:
    from mainspring.cli.screen import Screen
    from mainspring.engine import Engine
    from mainspring.store.sqlite.store import SqliteStore

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
    if is_server(store):
        raise invalid("store", without_password(store), "is on a server, and this works on files alone", "name a file")
    return Path(store).resolve()


def on_file(engine: Engine) -> SqliteStore:
    """Return the store of an engine on a file, for what only files can do yet. Raises InvalidInput."""
    from mainspring.store.sqlite.store import SqliteStore

    store = engine.manager.store
    if not isinstance(store, SqliteStore):
        raise invalid("store", engine.address, "is on a server, and this works on files alone", "name a file")
    return store


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
