"""Opening a store for one command. To look never makes a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mainspring.config import is_server, refuse_address
from mainspring.errors import StoreReadOnly, StoreUnavailable, invalid

if TYPE_CHECKING:
    from mainspring.cli.screen import Screen
    from mainspring.engine import Engine
    from mainspring.store.postgres.address import Server

T = TypeVar("T")
_LONGEST = "-replaced-2-journal"
"""Names of files beside a store's are not longer than this after its own."""


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


def file_named(field: str, text: str) -> Path:
    """Return the path of a file that may be there.

    Raises: InvalidInput: there can't be one of that name. StoreReadOnly: it can't be reached.
    """
    refuse_address(field, text)
    path = Path(text).resolve()
    try:
        path.with_name(path.name + _LONGEST).exists()
    except PermissionError as exc:
        raise StoreReadOnly(f"{path} can't be reached ({exc}); check the rights of the folders above") from exc
    except OSError as exc:
        raise invalid(field, text, f"can't be the name of a store's file ({exc.strerror})", "name another") from exc
    return path


def server_of(name: str) -> Server:
    """Read the address of a server. Raises InvalidInput."""
    try:
        import asyncpg  # noqa: F401 - whoever reads the address goes there

        from mainspring.store.postgres.address import parse
    except ImportError as exc:
        raise invalid(
            "store", "postgresql://...", f"needs the library {exc.name}", "pip install 'mainspring[postgres]'"
        ) from exc
    return parse(name)


def _missing(store: str, making: Screen | None) -> None:
    path = Path(store).absolute()
    if making is None:
        raise StoreUnavailable(
            f"there is no store at {path}; check --store and MAINSPRING_STORE "
            "(a worker or a submit of a built-in type makes one)"
        )
    making.note(f"makes a new store at {path}")


def is_missing(store: str) -> bool:
    """Whether opening this store would make it. Raises InvalidInput for ":memory:", and what no file can be named."""
    if store == ":memory:":
        raise invalid("store", store, "is gone when this command ends", "name a file")
    if is_server(store):
        return False  # its tables are made by whoever comes first
    path = file_named("store", store)
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)
