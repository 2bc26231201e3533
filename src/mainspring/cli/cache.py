"""`cache`: which results are kept, and how to forget them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath, Type
from mainspring.cli.screen import Screen, size, span, table
from mainspring.environment import SYSTEM

if TYPE_CHECKING:
    from mainspring.store.base import Kept

cache = typer.Typer()


@cache.callback(invoke_without_command=True)
def list_kept(context: typer.Context, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List what is kept of results, by type and version of the code that computed it."""
    if context.invoked_subcommand is None:
        run(_list(store, Screen(as_json)))


async def _list(store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        found = await engine.cache.stats()
    if screen.as_json:
        screen.document({"kept": [_document(kept) for kept in found]})
    elif found:
        rows = [
            (kept.namespace, kept.type, kept.version, f"{kept.entries:,}", size(kept.bytes), _age(kept))
            for kept in found
        ]
        right = ("results", "size", "oldest")
        screen.draw(table(("namespace", "type", "version", *right), rows, right=right))
    else:
        screen.text("no result is kept; declare a handler with cache=, or pass it to a call")


def _document(kept: Kept) -> dict[str, object]:
    return {**kept._asdict(), "age_s": _age_s(kept)}


def _age_s(kept: Kept) -> float:
    return max(0.0, (SYSTEM.wall_ms() - kept.oldest_ms) / 1000)


def _age(kept: Kept) -> str:
    return span(_age_s(kept))


@cache.command()
def purge(
    type: Type = None,
    version: Annotated[str | None, typer.Option(metavar="TEXT", help="Only of this version of the code.")] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Only this namespace.")] = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Forget kept results; without options all of them. Tasks that have ended keep theirs."""
    run(_purge(type or "", version or "", namespace or "", store, Screen(as_json)))


async def _purge(kind: str, version: str, namespace: str, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        n = await engine.cache.purge(type=kind, version=version, namespace=namespace)
    if screen.as_json:
        screen.document({"purged": n})
    else:
        screen.text(f"{n:,} kept results are forgotten")
