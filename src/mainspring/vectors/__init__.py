"""Vectors: what comes in are records and queries, what goes out are the nearest records, exactly.

Rows in the tasks' own file are the truth; the matrix that a process searches is a copy that follows them. Nothing here
embeds texts, and nothing here knows a task: what a task writes arrives as an effect, within its finishing transaction.
"""

from mainspring.vectors.appliers import SCHEMA, apply_delete, apply_upsert
from mainspring.vectors.base import MAX_TOP_K, Collection, VectorStore
from mainspring.vectors.sqlite import SqliteVectorStore

__all__ = ["MAX_TOP_K", "SCHEMA", "Collection", "SqliteVectorStore", "VectorStore", "apply_delete", "apply_upsert"]
