"""`mainspring index` and `mainspring search`: a folder into a collection, and answers out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mainspring.cli.exits import NOT_COMPLETED, OK
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen
from mainspring.config import is_server
from mainspring.errors import from_info, invalid

if TYPE_CHECKING:
    from mainspring.cli.folder import Listing
    from mainspring.cli.indexing import IndexReport
    from mainspring.tasks import SearchHit

DEFAULT_COLLECTION = "default"
_SNIPPET = 240  # characters of an answer that people see
_NAMED = 20  # collections that an error names


def index(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder with text, Markdown, HTML and PDF files.")],
    collection: Annotated[str, typer.Option(metavar="NAME", help="Collection to fill.")] = DEFAULT_COLLECTION,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> int:
    """Index a folder for search. Run it again after changes: only what changed is computed."""
    from mainspring.cli.folder import look
    from mainspring.cli.session import INTERRUPTED

    screen = Screen(as_json)
    own_file = None if is_server(store) else Path(store)
    report = run(_index(look(path, own_file), collection, store, screen))
    if as_json:
        screen.document(report)
    else:
        for line in lines_of(report):
            screen.text(line)
    if report.interrupted:
        screen.note("stopped; the same command goes on from here")
        return INTERRUPTED
    return NOT_COMPLETED if report.failed else OK


async def _index(listing: Listing, collection: str, store: str, screen: Screen) -> IndexReport:
    from mainspring.cli.indexing import Indexer
    from mainspring.cli.progress import progress
    from mainspring.cli.session import Session, fetch_model
    from mainspring.config import EngineConfig, RetrievalConfig

    config = EngineConfig(retrieval=RetrievalConfig(allowed_roots=(listing.folder,)))
    fetch_model(config.models, screen)
    with progress(as_json=screen.as_json) as shown:
        async with Session(store, config, screen) as session:
            indexer = Indexer(session.engine, listing, collection, shown)
            await session.until_stopped(indexer.run())
    return indexer.report()


def lines_of(report: IndexReport) -> list[str]:
    """Return what people read about a run: what failed and why, then the sums."""
    failed = [f"not indexed: {failure.source} ({failure.step}): {failure.reason}" for failure in report.failed]
    return [
        *failed,
        f"{report.indexed} documents indexed ({report.chunks} chunks), {report.unchanged} unchanged, "
        f"{report.removed} removed, {len(failed)} failed, {report.skipped} skipped, in {report.seconds:.1f} s; "
        f"collection {report.collection}",
    ]


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in plain words.")],
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Collection to search; default: the only one, else `default`.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", help="How many answers, 1 to 1000.")] = 5,
    filter: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="What the metadata must say; repeat it for more.")
    ] = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Answer a question from a collection, best first. Works while an index runs, and when nothing does."""
    screen = Screen(as_json)
    hits = run(_search(query, collection, top_k, parse_filter(filter or []), store, screen))
    if as_json:
        screen.document({"query": query, "hits": hits})
        return
    for rank, hit in enumerate(hits, 1):
        screen.text(f"{rank}. {hit.score:.3f}  {source_of(hit)}\n   {snippet(hit)}")
    if not hits:
        screen.text("nothing found")


async def _search(
    query: str, collection: str | None, top_k: int, filter: dict[str, Any], store: str, screen: Screen
) -> tuple[SearchHit, ...]:
    """Ask in this process and store no task: no worker need be alive, and none loses work to this process."""
    from mainspring.cli.session import fetch_model
    from mainspring.processors.operations import search_task

    async with opened(store) as engine:
        names = [found.name for found in engine.vectors.collections()]
        name = collection or (names[0] if len(names) == 1 else DEFAULT_COLLECTION)
        if name not in names:
            known = ", ".join(names[:_NAMED]) or "none; `mainspring index PATH` makes one"
            raise invalid("collection", name, "does not exist", f"there are: {known}")
        fetch_model(engine.config.models, screen)
        asked = search_task(query, collection=name, top_k=top_k, filter=filter or None)
        result = await engine.executor.execute_task(asked)
    if result.error is not None:
        raise from_info(result.error)
    hits: tuple[SearchHit, ...] = getattr(result.output, "hits", ())
    return hits


def parse_filter(conditions: list[str]) -> dict[str, Any]:
    """Return KEY=VALUE texts as a filter: values that are JSON count as such, a repeated key means any of its values.

    Raises: InvalidInput: one is no KEY=VALUE.
    """
    found: dict[str, list[Any]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not key or not equals:
            raise invalid("filter", condition, "is no KEY=VALUE", "write it as --filter size=120")
        found.setdefault(key, []).append(_value(value))
    return dict(found)


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def source_of(hit: SearchHit) -> str:
    """Return where an answer stands, in one line and as short as it can be said from here."""
    source = str(hit.metadata.get("source", hit.id)).removeprefix(f"{Path.cwd()}/")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in source)


def snippet(hit: SearchHit) -> str:
    """Return the beginning of an answer in one line."""
    text = " ".join((hit.text or "").split())
    return text if len(text) <= _SNIPPET else f"{text[: _SNIPPET - 3]}..."
