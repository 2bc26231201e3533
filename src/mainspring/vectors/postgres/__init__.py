"""The vectors of a store on a Postgres server, by its extension pgvector."""

from mainspring.vectors.postgres.appliers import apply_delete, apply_upsert
from mainspring.vectors.postgres.store import PostgresVectorStore
from mainspring.vectors.postgres.tables import SCHEMA

__all__ = ["SCHEMA", "PostgresVectorStore", "apply_delete", "apply_upsert"]
