"""A store on a server as a file in memory, so that it is judged by what judges files."""

from __future__ import annotations

import apsw
import asyncpg

from mainspring.blobs.keys import SCHEMA as BLOB_SCHEMA
from mainspring.store.postgres.address import parse
from mainspring.store.sqlite.statements import SCHEMA
from mainspring.vectors.appliers import SCHEMA as VECTOR_SCHEMA

_OF_ONE_OF_THEM = {"news", "sqlite_sequence", "kept_size", "store"}
"""They are made otherwise and say nothing of tasks, or are counted by what comes in."""
_TALLY = "SELECT class, status, sum(n)::bigint FROM tally GROUP BY class, status HAVING sum(n) <> 0"


async def copied(address: str) -> apsw.Connection:
    """Return a file in memory with all that the store at this address holds but vectors, as of one moment."""
    server = parse(address)
    file = apsw.Connection(":memory:")
    file.execute(SCHEMA + VECTOR_SCHEMA + BLOB_SCHEMA)
    connection = await asyncpg.connect(server.url, server_settings={"search_path": server.schema})
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", server.schema)
            for table in {row[0] for row in found} - _OF_ONE_OF_THEM:
                if not table.startswith("vector_"):  # they have another form there
                    await _copy(connection, file, table)
    finally:
        await connection.close()
    return file


async def _copy(connection: asyncpg.Connection, file: apsw.Connection, table: str) -> None:
    names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
    if not names:
        return  # only a server needs it
    columns = ", ".join(names)
    rows = await connection.fetch(_TALLY if table == "tally" else f"SELECT {columns} FROM {table}")
    file.executemany(
        f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))})", [tuple(row) for row in rows]
    )
