"""What tests of moves look at: all that is in a store, read without the code that moves it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
from tests import postgres

from mainspring import Engine, EngineConfig, StoreConfig

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
