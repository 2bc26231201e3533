"""What only the embedded vector store has: its file, its writer, and its copy in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from tests.vectors.builders import record, search, upsert, vectors

from mainspring.config import MIB
from mainspring.errors import StoreUnavailable
from mainspring.models import ModelManager
from mainspring.resources.memory import Memory
from mainspring.tasks import SearchQuery, VectorDelete, VectorUpsert
from mainspring.vectors import SCHEMA, SqliteVectorStore, apply_upsert
from mainspring.vectors import appliers as appliers_module


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteVectorStore]:
    store = SqliteVectorStore(tmp_path / "work.db")
    yield store
    store.close()


def test_records_survive_a_restart(tmp_path: Path) -> None:
    first = SqliteVectorStore(tmp_path / "work.db")
    upsert(first, record("a", [1, 0], "kept", n=1), model_id="mini")
    first.close()
    second = SqliteVectorStore(tmp_path / "work.db")
    assert search(second, [1, 0], filter={"n": 1}) == ["a"]
    upsert(second, record("b", [1, 0]), model_id="mini")
    assert search(second, [1, 0]) == ["a", "b"]
    second.close()


WRITER = """
import sys
from mainspring.tasks import VectorDelete, VectorRecord, VectorUpsert
from mainspring.vectors import SqliteVectorStore
store = SqliteVectorStore(sys.argv[1])
store.write(VectorDelete("docs", ("a",)))
store.write(VectorUpsert("docs", (VectorRecord("b", [0, 1]), VectorRecord("c", [1, 0]))))
store.close()
"""


def test_what_another_process_committed_is_seen(store: SqliteVectorStore, tmp_path: Path) -> None:
    """Deletes, replaced and new records alike, by a process that had the collection in memory."""
    upsert(store, record("a", [1, 0]), record("b", [1, 0]))
    assert search(store, [1, 0]) == ["a", "b"]
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "work.db")], check=True)
    assert search(store, [1, 0]) == ["c", "b"]


def test_effects_commit_and_roll_back_with_the_callers_transaction(tmp_path: Path) -> None:
    """An applier runs within the transaction of whoever owns the writer; a store reads only what that one committed."""
    writer = apsw.Connection(str(tmp_path / "work.db"))
    writer.pragma("journal_mode", "wal")
    writer.execute(SCHEMA)
    effect = VectorUpsert("docs", (record("a", [1, 0]),))
    store = SqliteVectorStore(tmp_path / "work.db")

    writer.execute("BEGIN IMMEDIATE")
    assert apply_upsert(writer.cursor(), effect, 1) == 1
    assert store.collections() == []
    writer.execute("ROLLBACK")
    assert store.collections() == []

    writer.execute("BEGIN IMMEDIATE")
    apply_upsert(writer.cursor(), effect, 1)
    writer.execute("COMMIT")
    assert search(store, [1, 0]) == ["a"]
    store.close()


def test_writes_go_through_the_given_writer(tmp_path: Path) -> None:
    """With a writer given the store opens no writing connection of its own."""
    writer = apsw.Connection(str(tmp_path / "work.db"))
    writer.pragma("journal_mode", "wal")
    writer.execute(SCHEMA)
    calls = []

    def write(apply: Callable[[apsw.Cursor], int]) -> int:
        with writer:
            calls.append(apply(writer.cursor()))
        return calls[-1]

    store = SqliteVectorStore(tmp_path / "work.db", write)
    assert upsert(store, record("a", [1, 0]), record("b", [0, 1])) == 2
    assert store.write(VectorDelete("docs", ("b",))) == 1
    assert calls == [2, 1]
    assert search(store, [1, 0]) == ["a"]
    store.close()


def test_a_process_that_missed_too_many_deletions_reads_anew(
    store: SqliteVectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tombstones are bounded, and nobody finds what they no longer tell of."""
    monkeypatch.setattr(appliers_module, "TOMBSTONES", 10)
    behind = SqliteVectorStore(tmp_path / "work.db")
    upsert(store, record("kept", [1, 0]), *(record(f"r{n}", [1, n]) for n in range(200)))
    assert len(search(behind, [1, 0], top_k=1000)) == 201
    for n in range(200):
        store.write(VectorDelete("docs", (f"r{n}",)))
        assert len(search(store, [1, 0], top_k=1000)) == 200 - n
    assert search(behind, [1, 0], top_k=1000) == ["kept"]
    connection = apsw.Connection(str(tmp_path / "work.db"))
    assert connection.execute("SELECT count(*) FROM vector_tombstone").get < 100
    connection.close()
    behind.close()


def test_nothing_is_left_behind_by_many_changes(store: SqliteVectorStore, tmp_path: Path) -> None:
    """Counter, labels and memory agree with the rows after records were replaced and deleted again and again."""
    for round in range(30):
        upsert(store, *(record(f"r{n}", [1, n], round=round, even=n % 2 == 0) for n in range(round % 7, 40)))
        store.write(VectorDelete("docs", filter={"round": round - 2}))
        search(store, [1, 0])
    connection = apsw.Connection(str(tmp_path / "work.db"))
    records = int(connection.execute("SELECT count(*) FROM vector_record").get)
    assert [collection.count for collection in store.collections()] == [records]
    labels = connection.execute("SELECT count(*), count(DISTINCT row) FROM vector_label").fetchall()
    assert labels == [(2 * records, records)]
    connection.close()
    assert 0 < store.memory_bytes < 3 * records * 200
    assert len(search(store, [1, 0], top_k=1000)) == records


def test_a_closed_store_says_so(store: SqliteVectorStore) -> None:
    upsert(store, record("a", [1, 0]))
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        search(store, [1, 0])
    with pytest.raises(StoreUnavailable):
        upsert(store, record("b", [1, 0]))


def test_a_file_that_is_gone_is_a_typed_error(tmp_path: Path) -> None:
    store = SqliteVectorStore(tmp_path / "nowhere" / "work.db", lambda apply: 0)
    with pytest.raises(StoreUnavailable, match="nowhere"):
        store.collections()


class Model:
    """One that takes memory."""

    def infer(self, inputs: list[object]) -> list[object]:
        return list(inputs)


def test_copies_count_in_the_budget_of_models(tmp_path: Path) -> None:
    """A copy makes the idle model go, a model the copy that was not searched for longest; the next search makes it."""
    memory = Memory(3 * MIB)
    models = ModelManager(memory=memory)
    models.register("model", Model, memory_bytes=2 * MIB)
    store = SqliteVectorStore(tmp_path / "work.db", memory=memory)
    rows = vectors(4_000, dim=64)
    for name in ("one", "two"):
        upsert(store, *(record(str(n), row) for n, row in enumerate(rows)), collection=name)

    def search_in(name: str) -> str:
        (found,) = store.search([SearchQuery(vector=rows[7], top_k=1, collection=name)])
        return found.hits[0].id

    models.warm("model")
    assert search_in("one") == "7"
    assert (memory.own_bytes, models.loaded_count) == (3 * MIB, 1)
    assert search_in("two") == "7"
    assert (memory.own_bytes, models.loaded_count) == (2 * MIB, 0)
    models.warm("model")
    assert memory.own_bytes == 3 * MIB
    assert len(store._matrices) == 1
    assert search_in("one") == "7"
    assert (memory.own_bytes, models.loaded_count, len(store._matrices)) == (3 * MIB, 1, 1)
    store.close()
    assert memory.own_bytes == 2 * MIB
