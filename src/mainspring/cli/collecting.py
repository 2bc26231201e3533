"""`collections`: what there is to search, and moving and indexing it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from mainspring.cli.lookup import when
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, local, table
from mainspring.config import is_server, without_password
from mainspring.errors import invalid

if TYPE_CHECKING:
    from mainspring.vectors import Copied

collections = typer.Typer()


@collections.callback(invoke_without_command=True)
def list_collections(context: typer.Context, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the collections of vectors."""
    if context.invoked_subcommand is None:
        run(_list(store, Screen(as_json)))


async def _list(store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        found = await asyncio.to_thread(engine.vectors.collections)
    if screen.as_json:
        screen.document(
            [
                {"name": c.name, "count": c.count, "dim": c.dim, "model_id": c.model_id, "updated": when(c.updated_ms)}
                for c in found
            ]
        )
        return
    rows = [(c.name, f"{c.count:,}", str(c.dim), c.model_id or "", local(when(c.updated_ms))) for c in found]
    screen.draw(
        table(("collection", "records", "dimensions", "model", "updated"), rows, right=("records", "dimensions"))
    )


@collections.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Collection to copy.")],
    source: Annotated[str, typer.Option("--from", metavar="STORE", help="A file, or the address of a server.")],
    target: Annotated[str, typer.Option("--to", metavar="STORE", help="Where to; a file is made when missing.")],
    into: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Its name there; default: the same.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a collection into another store, or under another name.

    Run it again after an interruption, or after changes: what is there already is not written again.
    """
    screen = Screen(as_json)
    done = run(_copy(name, source, target, into, screen))
    if as_json:
        screen.document({"name": into or name, **msgspec.structs.asdict(done)})
        return
    screen.text(f"{done.records:,} records looked at, {done.written:,} written into {into or name}")


async def _copy(name: str, source: str, target: str, into: str | None, screen: Screen) -> Copied:
    from mainspring.vectors import copy_collection

    if without_password(source) == without_password(target) and (into or name) == name:
        raise invalid("to", without_password(target), "is where it comes from", "name another store, or --as NAME")
    async with opened(source) as one, opened(target, making=screen) as other:
        return await asyncio.to_thread(copy_collection, one.vectors, other.vectors, name, into=into)


@collections.command()
def index(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Collection to search by an index.")],
    drop: Annotated[bool, typer.Option("--drop", help="Take it away: search exactly again.")] = False,
    memory_mb: Annotated[int, typer.Option(metavar="N", help="MiB that the server may use to build it.")] = 256,
    store: StorePath = DEFAULT_STORE,
) -> None:
    """Build an index for a large collection on a server: searches are quicker and approximate from then on.

    Takes minutes for 100,000 records; others read and write meanwhile.
    """
    if not 1 <= memory_mb <= 1 << 20:
        raise invalid("memory_mb", memory_mb, "is out of range", "use about 256")
    if not is_server(store):
        raise invalid("store", store, "is a file, whose collections are searched exactly", "name a server")
    run(_index(name, store, drop, memory_mb))


async def _index(name: str, store: str, drop: bool, memory_mb: int) -> None:
    async with opened(store) as engine:
        from mainspring.vectors.postgres import PostgresVectorStore

        vectors = engine.vectors
        assert isinstance(vectors, PostgresVectorStore)
        if drop:
            await asyncio.to_thread(vectors.drop_index, name)
        else:
            await asyncio.to_thread(lambda: vectors.add_index(name, memory_mb=memory_mb))
