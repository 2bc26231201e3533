"""Vectors: what comes in are records and queries, what goes out are the nearest records, exactly.

Rows beside the tasks are the truth. In a file the matrix that a process searches is a copy that follows them; on a
server pgvector searches the rows themselves (`vectors.postgres`). Nothing here embeds texts, and nothing here knows a
task: what a task writes arrives as an effect, within its finishing transaction.
"""

from mainspring.vectors.appliers import SCHEMA, apply_delete, apply_upsert
from mainspring.vectors.base import MAX_TOP_K, Collection, VectorStore
from mainspring.vectors.copying import Copied, copy_collection
from mainspring.vectors.sqlite import SqliteVectorStore

__all__ = [
    "MAX_TOP_K", "SCHEMA", "Collection", "Copied", "SqliteVectorStore", "VectorStore", "apply_delete", "apply_upsert",
    "copy_collection",
]  # fmt: skip
