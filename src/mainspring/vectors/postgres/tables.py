"""The tables of vectors: what is known of a collection, and the extension that vectors need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import asyncpg

from mainspring.errors import StoreRefused
from mainspring.vectors.checks import check_name, unknown

_FILES = Path(__file__).parent
SCHEMA: Final = _FILES.joinpath("schema.sql").read_text("utf-8")
"""Made once, with the tables of the tasks; the table of records comes with the first collection."""
_RECORDS: Final = _FILES.joinpath("records.sql").read_text("utf-8")

ALL = "SELECT name, dim, records, model_id, updated_ms FROM vector_collection ORDER BY name"
_FIND = """
SELECT c.id, c.name, c.dim, c.model_id, c.records, quote_ident(nspname), extversion, EXISTS (
    SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(format('vector_hnsw_%s_%s', c.id, c.dim)) AND indisvalid
) FROM vector_collection AS c LEFT JOIN pg_extension ON extname = 'vector'
LEFT JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE name = $1
"""
_EXTENSION = """
SELECT quote_ident(nspname), to_regclass('vector_record') IS NOT NULL
FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'
"""
_AVAILABLE = "SELECT current_database(), EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector')"
_CREATING = 0x4D535056
"""Advisory lock "MSPV": an extension belongs to the whole database."""


class Cursor(Protocol):
    """A session with the server."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]: ...

    def command(self, sql: str, patience_s: float | None = None) -> None: ...

    def snapshot(self) -> AbstractContextManager[Cursor]: ...

    def own(self) -> AbstractContextManager[Cursor]: ...


class State(NamedTuple):
    """A collection, and where the extension is."""

    id: int
    name: str
    dim: int
    model_id: str | None
    records: int
    schema: str  # of the extension, quoted
    version: str  # of the extension
    has_index: bool  # an HNSW index that is complete


def find(cursor: Cursor, name: str, *, hold: bool = False) -> State | None:
    """Return a collection; with `hold` no other transaction changes it before this one ends.

    Raises: StoreRefused: the extension is gone.
    """
    rows = cursor.execute(_FIND + "FOR UPDATE OF c" if hold else _FIND, (name,))
    if not rows:
        return None
    if rows[0][5] is None:
        raise _refusal("was there and is gone", _by_admin("its database"))
    return State(*rows[0])


def known(cursor: Cursor, name: str) -> State:
    """Raises: InvalidInput: no such collection. StoreRefused."""
    check_name(name)
    state = find(cursor, name)
    if state is None:
        raise unknown(name, [row[0] for row in cursor.execute(ALL)])
    return state


def provide(cursor: Cursor) -> None:
    """Make the table of records where it is missing, within the caller's transaction, and the extension before it.

    Raises: StoreRefused: the server has no pgvector, or this user may not create it.
    """
    cursor.command(f"SELECT pg_advisory_xact_lock({_CREATING}, 0)")
    found = cursor.execute(_EXTENSION)
    if not found:
        _create_extension(cursor)
        found = cursor.execute(_EXTENSION)
    schema, is_made = found[0]
    if not is_made:
        cursor.command(_RECORDS.format(vector=schema))


def _create_extension(cursor: Cursor) -> None:
    database, is_available = cursor.execute(_AVAILABLE)[0]
    if not is_available:
        remedy = "install pgvector on the machine of the server (Debian: postgresql-NN-pgvector)"
        raise _refusal("is not installed", f"{remedy}; then {_by_admin(database)}")
    try:
        cursor.command("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as exc:
        raise _refusal(f"may not be created by this user ({exc})", _by_admin(database)) from exc


def _by_admin(database: str) -> str:
    return f"let an admin run CREATE EXTENSION vector in {database}"


def _refusal(why: str, remedy: str) -> StoreRefused:
    return StoreRefused(
        f"vectors need the extension `vector` of Postgres, which {why}; {remedy}. All else works without"
    )
