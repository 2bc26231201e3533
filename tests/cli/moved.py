"""Stores that tests move: homes for them, what comes in between, and all that is in one, read without what moves it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
import pytest
from tests import postgres
from tests.store.fixtures.make import make, make_there

from mainspring import Engine, EngineConfig, StoreConfig
from mainspring.blobs.local import LocalBlobStore
from mainspring.cli.moving import Place, Report, move
from mainspring.cli.stages import Stages
from mainspring.testing import check_history

FOR_EVER = StoreConfig(keep_completed_s=3e8, keep_failed_s=3e8, keep_tombstones_s=3e8)
WAYS = [("file", "server"), ("server", "file"), ("file", "file"), ("server", "server")]
_OWN = {"migration", "news", "sqlite_sequence", "store", "inbox", "note"}
_ONE_SIDED = {"beat", "turns", "revoked", "is_lost", "running"}
Dump = dict[str, list[dict[str, Any]]]


def dump_file(path: Path) -> Dump:
    """Return the rows of every table, as columns and values."""
    found: Dump = {}
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for table in (str(row[0]) for row in tables):
            number = "rowid AS n, " if table == "audit" else ""
            cursor = connection.execute(f"SELECT {number}* FROM {table}")
            found[table] = [
                {column[0]: value for column, value in zip(cursor.get_description(), row, strict=True)}
                for row in cursor
            ]
    return _tidy(found)


def dump_server(schema: str) -> Dump:
    found: Dump = {}
    for (table,) in postgres.ask("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema):
        columns = [
            row[0]
            for row in postgres.ask(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0",
                f"{schema}.{table}",
            )
        ]
        rows = postgres.ask(f"SELECT * FROM {schema}.{table}") if not table.startswith("vector_") else []
        found[table] = [dict(zip(columns, row, strict=True)) for row in rows]
    return _tidy(found)


def _tidy(found: Dump) -> Dump:
    """Leave out what is no content, and bring the rest into one form and order."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for row in found["tally"]:
        counts[row["class"], row["status"]] += row["n"]
    found["tally"] = [{"class": c, "status": s, "n": n} for (c, s), n in counts.items() if n]
    return {
        table: sorted(
            ({name: value for name, value in sorted(row.items()) if name not in _ONE_SIDED} for row in rows), key=repr
        )
        for table, rows in found.items()
        if table not in _OWN and not table.startswith("vector_")
    }


async def vectors_of(store: str, blobs: Path) -> dict[str, Any]:
    """Return all collections with their records."""
    async with Engine(store, EngineConfig(store=StoreConfig(blobs=blobs)), worker=False) as engine:
        return await asyncio.to_thread(_vectors, engine)


def _vectors(engine: Engine) -> dict[str, Any]:
    return {
        collection.name: (
            collection.dim,
            collection.model_id,
            collection.count,
            collection.updated_ms,
            [
                (record.id, record.vector.tobytes(), record.text, record.metadata)
                for record in engine.vectors.page(collection.name, limit=10_000)
            ],
        )
        for collection in engine.vectors.collections()
    }


class Home(NamedTuple):
    """A store of a test, made or not."""

    name: str
    blobs: Path
    schema: str | None = None

    @property
    def place(self) -> Place:
        return Place(self.name, self.blobs)

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(store=msgspec.structs.replace(FOR_EVER, blobs=self.blobs))

    def engine(self, *, worker: bool = False) -> Engine:
        return Engine(self.name, self.config, worker=worker)

    def dump(self) -> Dump:
        return dump_file(Path(self.name)) if self.schema is None else dump_server(self.schema)

    def marks(self) -> list[Any]:
        return self.place.peek(lambda end: end.marks()) or []

    def vectors(self) -> Any:
        return asyncio.run(vectors_of(self.name, self.blobs))

    def check(self) -> list[Any]:
        return list(check_history(self.name, blobs=LocalBlobStore(self.blobs, make=False)))


def filled(home: Home) -> Home:
    """Fill it with tasks in every state, held by a process that died."""
    folder = home.blobs.parent
    asyncio.run(make(folder) if home.schema is None else make_there(folder, home.name))
    return home


class At(Stages):
    """Does something when a stage begins."""

    def __init__(self, stage: str, then: Callable[[], Any]) -> None:
        self._stage, self._then = stage, then

    def of(self, name: str) -> Callable[[int, int], None]:
        if name == self._stage:
            self._then()
        return super().of(name)


class Stopped(Exception):
    """Whoever moved has stopped."""


def stop() -> None:
    raise Stopped


def moved(source: Home, target: Home, *, anew: bool = False, stages: Stages | None = None) -> Report:
    return move(source.place, target.place, stages or Stages(), lambda text: None, anew=anew)


def half_moved(source: Home, target: Home) -> None:
    """All rows are there, and nothing was compared."""
    with pytest.raises(Stopped):
        moved(source, target, stages=At("rows compared", stop))


def opening(home: Home, **config: Any) -> None:
    """Open it, as an engine does, and close it."""

    async def open_it() -> None:
        store = msgspec.structs.replace(home.config.store, **config)
        async with Engine(home.name, EngineConfig(store=store), worker=False):
            pass

    asyncio.run(open_it())


def statement(home: Home, sql: str) -> Any:
    """Run a statement on a store that nobody has open."""
    if home.schema is not None:
        return postgres.ask(sql.replace("{}", home.schema + "."))
    with closing(apsw.Connection(home.name)) as connection:
        return connection.execute(sql.replace("{}", "")).fetchall()


async def make_some(home: Home, n: int = 3) -> list[Any]:
    """Make a store with tasks that wait."""
    engine = home.engine()

    @engine.task(name="work")
    async def work(text: Any) -> Any:
        return text

    async with engine:
        return [handle.id for handle in await engine.map(work, [str(i) for i in range(n)])]
