"""What the tests of vector stores share: vectors, records, short calls, and the answer that sorting gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainspring.tasks import SearchQuery, VectorRecord, VectorUpsert
from mainspring.vectors import VectorStore

DIM = 16


def vectors(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def record(id: str, vector: Any, text: str | None = None, **metadata: Any) -> VectorRecord:
    return VectorRecord(id, vector, text, metadata)


def upsert(store: VectorStore, *records: VectorRecord, collection: str = "docs", **options: Any) -> int:
    return store.write(VectorUpsert(collection, records, **options))


def search(store: VectorStore, vector: Any, top_k: int = 10, **options: Any) -> list[str]:
    (found,) = store.search([SearchQuery(vector=vector, top_k=top_k, collection="docs", **options)])
    return [hit.id for hit in found.hits]


def expected(known: dict[str, NDArray[np.float32]], query: NDArray[np.float32], top_k: int) -> list[str]:
    def cosine(vector: NDArray[np.float32]) -> float:
        a, b = vector.astype(float), query.astype(float)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    return sorted(known, key=lambda id: (-round(cosine(known[id]), 6), id))[:top_k]
