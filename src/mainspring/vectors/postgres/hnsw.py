"""An index for approximate search in a large collection, where somebody asked for it.

It is found by its name, and holds the rows of one collection and dimension: a collection that begins again with another
dimension is searched exactly until somebody builds another. With it

- a search without a filter walks the graph: most of the nearest are found, not all (docs/postgres.md has figures);
- a search whose filter leaves few records (`FEW`) is exact: those are looked up by the filter;
- any other walks on until enough records pass the filter (`hnsw.iterative_scan`); where it gives up before, the search
  is done exactly.

Scores are exact either way. Source: Malkov & Yashunin 2018; pgvector's own documentation.
"""

from __future__ import annotations

from typing import Final

from mainspring.errors import StoreRefused, StoreUnavailable, invalid
from mainspring.vectors.postgres.tables import Cursor, State

MEMORY_MB: Final = 256
FEW = 2_000
"""Records that are compared one by one as quickly as a graph is walked."""
_MOST_DIMENSIONS: Final = 2_000  # pgvector's limit
_OLDEST: Final = (0, 8)  # has iterative scans
_WIDTH, _MOST_WIDTH = 100, 1_000
"""How many candidates a search keeps, at least and at most: the more, the better it finds."""
_PATIENCE_S = 86_400.0
_BUILDING: Final = 0x4D535049
"""Advisory lock "MSPI": who builds an index in a store. Postgres lets two builders in one table wait for each other."""
_LOCK: Final = f"{_BUILDING}, 'vector_record'::regclass::oid::integer"

_ANY = "SELECT count(*) FROM (SELECT 1 FROM vector_record WHERE collection = $1 {matching} LIMIT {most}) AS few"


def name(state: State) -> str:
    return f"vector_hnsw_{state.id}_{state.dim}"


def predicate(state: State) -> str:
    """Return the condition that rows of the index meet, for a statement whose first value is the collection."""
    return f"AND {state.schema}.vector_dims(vector) = {state.dim}"


def is_worth_it(cursor: Cursor, state: State, matching: str, values: list[str]) -> bool:
    """Whether the filter leaves too many records to compare them one by one."""
    if not matching:
        return True
    left: int = cursor.execute(_ANY.format(matching=matching, most=FEW + 1), (state.id, *values))[0][0]
    return left > FEW


def settings(candidates: int) -> str:
    """Return what is set for one search, until its transaction ends."""
    width = min(max(_WIDTH, 2 * candidates), _MOST_WIDTH)
    chosen = {"hnsw.ef_search": width, "hnsw.iterative_scan": "relaxed_order", "enable_sort": "off"}
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in chosen.items())


def build(cursor: Cursor, state: State, memory_mb: int) -> None:
    """See `PostgresVectorStore.add_index`."""
    if state.dim > _MOST_DIMENSIONS:
        why = f"has {state.dim} dimensions, and an index can have {_MOST_DIMENSIONS}"
        raise invalid("collection", state.name, why, "search it exactly, as it is")
    if tuple(int(part) for part in state.version.split(".")[:2]) < _OLDEST:
        raise StoreRefused(
            f"the server has pgvector {state.version}, and an index needs 0.8; install it there, then let an admin run "
            "ALTER EXTENSION vector UPDATE"
        )
    if not cursor.execute(f"SELECT pg_try_advisory_lock({_LOCK})")[0][0]:
        raise StoreUnavailable("an index of this store is being built by another process; wait for it")
    try:
        if not state.has_index:
            _build(cursor, state, memory_mb)
    finally:
        cursor.execute(f"SELECT pg_advisory_unlock({_LOCK})")


def _build(cursor: Cursor, state: State, memory_mb: int) -> None:
    drop(cursor, state)  # what was left by a build that did not come to its end
    cursor.command(f"SET maintenance_work_mem = '{int(memory_mb)}MB'")
    try:
        cursor.command(
            f"CREATE INDEX CONCURRENTLY {name(state)} ON vector_record "
            f"USING hnsw ((vector::{state.schema}.vector({state.dim})) {state.schema}.vector_ip_ops) "
            f"WHERE collection = {state.id} AND {state.schema}.vector_dims(vector) = {state.dim}",
            _PATIENCE_S,
        )
    finally:
        cursor.command("RESET maintenance_work_mem")


def drop(cursor: Cursor, state: State) -> None:
    """Take the index away, where there is one."""
    cursor.command(f"DROP INDEX CONCURRENTLY IF EXISTS {name(state)}", _PATIENCE_S)
