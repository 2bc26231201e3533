"""Each vector store against a plain dict, through random upserts, deletes and searches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.vectors.homes import HOMES

from mainspring.tasks import SearchQuery, VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors import VectorStore

IDS = st.sampled_from([f"r{n}" for n in range(12)])
LABEL = st.integers(0, 3)
VECTORS = np.random.default_rng(5).standard_normal((6, 4)).astype(np.float32)  # few: ties are wanted
VECTOR = st.integers(0, 5)


class VectorStoreMachine(RuleBasedStateMachine):
    """`store` writes and searches after each step; `follower` searches now and then and must catch up over many."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.home = HOMES[self.kind](Path(self.folder.name))
        self.store, self.follower = self.home.open(), self.home.open()
        self.known: dict[str, tuple[int, int]] = {}
        self.store.write(VectorUpsert("docs", (VectorRecord("seed", VECTORS[0], None, {"label": 0}),)))
        self.known["seed"] = (0, 0)

    @rule(records=st.dictionaries(IDS, st.tuples(VECTOR, LABEL), max_size=8), replace=st.none() | LABEL)
    def upsert(self, records: dict[str, tuple[int, int]], replace: int | None) -> None:
        if replace is not None:
            self.known = {id: value for id, value in self.known.items() if value[1] != replace}
        self.known |= records
        made = tuple(VectorRecord(id, VECTORS[v], str(v), {"label": label}) for id, (v, label) in records.items())
        self.store.write(VectorUpsert("docs", made, replace=None if replace is None else {"label": replace}))

    @rule(ids=st.sets(IDS, max_size=4), label=st.none() | LABEL)
    def delete(self, ids: set[str], label: int | None) -> None:
        gone = {id for id, value in self.known.items() if id in ids or value[1] == label}
        self.known = {id: value for id, value in self.known.items() if id not in gone}
        filter = None if label is None else {"label": label}
        assert self.store.write(VectorDelete("docs", tuple(ids), filter)) == len(gone)

    @rule(vector=VECTOR, top_k=st.integers(1, 8), label=st.none() | LABEL)
    def follow(self, vector: int, top_k: int, label: int | None) -> None:
        self.compare(self.follower, vector, top_k, label)

    @invariant()
    def all_is_found(self) -> None:
        self.compare(self.store, 0, 1000, None)
        assert self.store.collections()[0].count == len(self.known)

    def compare(self, store: VectorStore, vector: int, top_k: int, label: int | None) -> None:
        def cosine(number: int) -> float:
            a, b = VECTORS[number].astype(float), VECTORS[vector].astype(float)
            return round(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 6)

        matching = {id: v for id, (v, its) in self.known.items() if label is None or its == label}
        wanted = sorted(matching, key=lambda id: (-cosine(matching[id]), id))[:top_k]
        filter: dict[str, Any] | None = None if label is None else {"label": label}
        query = SearchQuery(vector=VECTORS[vector], collection="docs", top_k=top_k, filter=filter)
        assert [hit.id for hit in store.search([query])[0].hits] == wanted

    def teardown(self) -> None:
        self.home.drop()
        self.folder.cleanup()


class OnSqlite(VectorStoreMachine):
    kind = "sqlite"


class OnPostgres(VectorStoreMachine):
    kind = "postgres"


def _examples(n: int) -> settings:
    return settings(max_examples=n, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


OnSqlite.TestCase.settings = _examples(25)
OnPostgres.TestCase.settings = _examples(8)  # each in a schema of its own
TestOnSqlite = OnSqlite.TestCase
TestOnPostgres = OnPostgres.TestCase
