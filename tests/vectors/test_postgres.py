"""What only the vector store of a server has: an extension, an index, connections that get lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import numpy as np
import pytest
from tests import postgres
from tests.vectors.builders import expected, record, search, upsert, vectors
from tests.vectors.homes import PostgresHome, in_transaction

from mainspring.errors import InvalidInput, StoreRefused, StoreUnavailable
from mainspring.store.postgres.session import Session
from mainspring.tasks import SearchQuery, VectorDelete, VectorUpsert
from mainspring.vectors import VectorStore
from mainspring.vectors.postgres import PostgresVectorStore, apply_upsert, hnsw
from mainspring.vectors.postgres.tables import Cursor, known


@pytest.fixture
def home(tmp_path: Path) -> Iterator[PostgresHome]:
    made = PostgresHome(tmp_path)
    yield made
    made.drop()


@pytest.fixture
def store(home: PostgresHome) -> PostgresVectorStore:
    return home.open()


def hits(store: VectorStore, vector: Any, **options: Any) -> list[str]:
    (found,) = store.search([SearchQuery(vector=vector, collection="docs", **options)])
    return [hit.id for hit in found.hits]


# The transaction


def test_effects_commit_and_roll_back_with_the_callers_transaction(home: PostgresHome) -> None:
    """Even the table and the collection are gone with a transaction that rolls back."""
    store = home.open()
    effect = VectorUpsert("docs", (record("a", [1, 0]),))
    with home.session() as session:
        session.command("BEGIN")
        assert apply_upsert(session, effect, 1) == 1
        assert store.collections() == []
        session.command("ROLLBACK")
        assert store.collections() == []
        assert session.execute("SELECT to_regclass('vector_record')") == [(None,)]
        in_transaction(session, lambda cursor: apply_upsert(cursor, effect, 1))
    assert search(store, [1, 0]) == ["a"]


def test_writers_of_a_collection_come_one_after_the_other(home: PostgresHome) -> None:
    """Also the first ones, who make collection, table and all: the number of records is that of the rows."""
    stores = [home.open() for _ in range(4)]

    def write(n: int) -> None:
        upsert(stores[n], *(record(f"r{k}", [1, n], n=n) for k in range(n, n + 30)))
        stores[n].write(VectorDelete("docs", (f"r{n + 1}",)))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, n) for n in range(4)]:
            done.result()
    (collection,) = stores[0].collections()
    assert collection.count == len(stores[0].metadata("docs"))


def test_a_writer_waits_for_one_who_writes_the_same_record(home: PostgresHome, store: PostgresVectorStore) -> None:
    """And then writes over what that one has left."""
    upsert(store, record("old", [1, 0]))
    with home.session() as first, ThreadPoolExecutor(1) as pool:
        first.command("BEGIN")
        apply_upsert(first, VectorUpsert("docs", (record("a", [1, 0], "first"),)), 1)
        (backend,) = first.execute("SELECT pg_backend_pid()")
        second = pool.submit(upsert, store, record("a", [1, 0], "second"))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
        while not postgres.ask(waiting, *backend):
            assert not second.done()
        first.command("COMMIT")
        assert second.result() == 1
    assert [one.text for one in store.get("docs", ["a"])] == ["second"]
    assert [collection.count for collection in store.collections()] == [2]


# The extension


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[PostgresHome]:
    """A store in a database without the extension, by a user who owns it and can't create that one."""
    with postgres.own_database(tmp_path, "t_vector_guest") as address:
        home = PostgresHome(tmp_path, address)
        yield home
        home.close()


def test_without_the_extension_whoever_writes_is_told_what_to_do(guest: PostgresHome, tmp_path: Path) -> None:
    """Nothing is left behind, looking works, and once an admin has created it everything does."""
    store = guest.open()
    with pytest.raises(StoreRefused) as caught:
        upsert(store, record("a", [1, 0]))
    for word in ("CREATE EXTENSION vector", postgres.schema_of(tmp_path), "by this user"):
        assert word in str(caught.value)
    assert store.collections() == []
    assert store.write(VectorDelete("docs", ("a",))) == 0
    with pytest.raises(InvalidInput, match="docs"):
        search(store, [1, 0])
    make_extension(guest, "elsewhere")
    upsert(store, record("a", [1, 0]))
    assert search(store, [1, 0]) == ["a"]


def make_extension(home: PostgresHome, schema: str) -> None:
    """As an admin does, in a schema of the admin's choice."""
    admin = urlsplit(postgres.url())._replace(path=f"/{home.server.database}").geturl()
    session = Session(lambda: asyncpg.connect(admin))
    session.command(
        f"CREATE SCHEMA {schema}; CREATE EXTENSION vector SCHEMA {schema}; "
        f"GRANT USAGE ON SCHEMA {schema} TO t_vector_guest"
    )
    session.close()


class WithoutFiles:
    """A session with a server whose machine has no pgvector."""

    def __init__(self, session: Cursor) -> None:
        self._session = session

    def execute(self, sql: str, values: Any = ()) -> Any:
        if "pg_available_extensions" in sql:
            sql = sql.replace("'vector'", "'no such thing'")
        return self._session.execute(sql, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def test_a_server_without_pgvector_is_told_from_one_without_the_right(guest: PostgresHome) -> None:
    effect = VectorUpsert("docs", (record("a", [1, 0]),))
    with guest.session() as session, pytest.raises(StoreRefused, match="install pgvector on the machine"):
        in_transaction(session, lambda cursor: apply_upsert(WithoutFiles(cursor), effect, 1))


def test_an_extension_that_was_dropped_is_named(tmp_path: Path) -> None:
    with postgres.own_database(tmp_path) as address:
        home = PostgresHome(tmp_path, address)
        store = home.open()
        upsert(store, record("a", [1, 0]))
        with home.session() as session:
            session.command("SET client_min_messages = error; DROP EXTENSION vector CASCADE")
        for call in (lambda: search(store, [1, 0]), lambda: upsert(store, record("b", [1, 0]))):
            with pytest.raises(StoreRefused, match="CREATE EXTENSION vector"):
                call()
        home.close()


# The index


@pytest.fixture
def indexed(store: PostgresVectorStore, monkeypatch: pytest.MonkeyPatch) -> PostgresVectorStore:
    """1,500 records with an index, beside another collection that has none."""
    monkeypatch.setattr(hnsw, "FEW", 20)
    upsert(store, *(record(f"r{n}", vector, part=n % 100) for n, vector in enumerate(vectors(1500))))
    upsert(store, *(record(f"x{n}", vector) for n, vector in enumerate(vectors(50, dim=8))), collection="other")
    store.add_index("docs")
    return store


def recall(found: list[str], wanted: list[str]) -> float:
    return len(set(found) & set(wanted)) / len(wanted)


@pytest.mark.parametrize("parts", [100, 10, 2])
def test_an_index_finds_nearly_all(indexed: PostgresVectorStore, parts: int) -> None:
    """With filters too that leave many or few of the records; scores and order are those of exact search."""
    known = {f"r{n}": vector for n, vector in enumerate(vectors(1500)) if n % 100 < parts}
    filter = None if parts == 100 else {"part": list(range(parts))}
    shares = []
    for query in vectors(20, seed=1):
        found = hits(indexed, query, top_k=10, filter=filter)
        assert len(found) == 10
        wanted = expected(known, query, 10)
        assert found == expected({id: known[id] for id in found}, query, 10)
        shares.append(recall(found, wanted))
    assert np.mean(shares) > 0.9


class Explaining:
    """A session that keeps the plans of the searches it runs."""

    def __init__(self, session: Any, plans: list[str]) -> None:
        self._session = session
        self._plans = plans

    def execute(self, sql: str, values: Any = ()) -> Any:
        if "<#>" in sql:
            self._plans.append("\n".join(row[0] for row in self._session.execute(f"EXPLAIN {sql}", values)))
        return self._session.execute(sql, values)

    @contextmanager
    def snapshot(self) -> Iterator[Explaining]:
        with self._session.snapshot():
            yield self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def test_the_index_is_used_only_where_it_helps(indexed: PostgresVectorStore) -> None:
    """Not for a filter that leaves few, not for another collection, and not once it is dropped."""
    plans: list[str] = []
    store = PostgresVectorStore(
        lambda run: indexed._look(lambda cursor: run(Explaining(cursor, plans))), indexed._write
    )
    query, other = vectors(1, seed=1)[0], vectors(1, seed=1, dim=8)[0]

    def plan(call: Callable[[], object]) -> str:
        call()
        (only,) = plans
        plans.clear()
        return only

    assert "vector_hnsw" in plan(lambda: hits(store, query))
    assert "vector_hnsw" in plan(lambda: hits(store, query, filter={"part": list(range(50))}))
    assert "vector_hnsw" not in plan(lambda: hits(store, query, filter={"part": 7}))
    assert "vector_hnsw" not in plan(lambda: store.search(SearchQuery(vector=other, collection="other")))
    store.drop_index("docs")
    assert "vector_hnsw" not in plan(lambda: hits(store, query))


def test_a_walk_that_gives_up_is_followed_by_an_exact_search(
    indexed: PostgresVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the records that a filter leaves lie far from the query, none of them is left out."""
    given = hnsw.settings
    monkeypatch.setattr(hnsw, "settings", lambda n: f"{given(n)}; SET LOCAL hnsw.max_scan_tuples = 1")
    known = {f"r{n}": vector for n, vector in enumerate(vectors(1500)) if n % 100 < 2}
    for query in vectors(5, seed=1):
        assert hits(indexed, query, top_k=25, filter={"part": [0, 1]}) == expected(known, query, 25)


def test_an_index_follows_its_collection(indexed: PostgresVectorStore) -> None:
    """New, replaced and deleted records; a collection that begins again with another dimension is searched exactly."""
    query = vectors(1, seed=1)[0]
    upsert(indexed, record("new", query), record("r3", -query))
    assert hits(indexed, query)[0] == "new"
    assert hits(indexed, -query)[0] == "r3"
    indexed.delete("docs", ["new"])
    assert "new" not in hits(indexed, query)
    known = {f"r{n}": vector for n, vector in enumerate(vectors(100, dim=5))}
    upsert(indexed, *(record(id, vector) for id, vector in known.items()), replace={})
    assert not indexed.has_index("docs")
    assert hits(indexed, known["r7"]) == expected(known, known["r7"], 10)
    indexed.add_index("docs")
    assert indexed.has_index("docs")


def test_an_index_that_was_left_half_built_is_built_anew(store: PostgresVectorStore, home: PostgresHome) -> None:
    """It is not used before that; two builders don't meet."""
    upsert(store, *(record(f"r{n}", vector) for n, vector in enumerate(vectors(60))))
    store.add_index("docs")
    store.add_index("docs")  # it is there already
    with home.session() as session:
        state = known(session, "docs")
        session.command(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{hnsw.name(state)}'::regclass")
        assert not store.has_index("docs")
        session.execute(f"SELECT pg_advisory_lock({hnsw._LOCK})")
        with pytest.raises(StoreUnavailable, match="another process"):
            store.add_index("docs")
    store.add_index("docs")
    assert store.has_index("docs")


def test_builders_of_one_store_come_one_after_the_other_and_those_of_others_at_once(
    home: PostgresHome, store: PostgresVectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collections have the same numbers in each store of a database; two builders in one table would wait for each
    other."""
    elsewhere = PostgresHome(tmp_path / "elsewhere")
    try:
        beside, other, build = home.open(), elsewhere.open(), hnsw._build
        for one in (store, other):
            upsert(one, *(record(f"r{n}", vector) for n, vector in enumerate(vectors(60))))
        upsert(store, record("a", [1, 0]), collection="notes")

        def meanwhile(*args: Any) -> None:
            monkeypatch.setattr(hnsw, "_build", build)
            for collection in ("docs", "notes"):
                with pytest.raises(StoreUnavailable, match="another process"):
                    beside.add_index(collection)
            other.add_index("docs")
            build(*args)

        monkeypatch.setattr(hnsw, "_build", meanwhile)
        store.add_index("docs")
        assert store.has_index("docs")
        assert other.has_index("docs")
        beside.add_index("notes")
    finally:
        elsewhere.drop()


def test_what_an_index_can_t_have_is_refused(store: PostgresVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such collections are searched exactly."""
    large = vectors(3, dim=2500)
    upsert(store, *(record(f"r{n}", vector) for n, vector in enumerate(large)))
    assert hits(store, large[2])[0] == "r2"
    with pytest.raises(InvalidInput, match="2500 dimensions"):
        store.add_index("docs")
    with pytest.raises(InvalidInput, match="dcos"):
        store.add_index("dcos")
    upsert(store, record("a", [1, 0]), replace={})
    monkeypatch.setattr(hnsw, "_OLDEST", (99, 0))
    with pytest.raises(StoreRefused, match="ALTER EXTENSION vector UPDATE"):
        store.add_index("docs")


# Connections


def test_a_lost_connection_is_made_anew(store: PostgresVectorStore) -> None:
    upsert(store, record("a", [1, 0]))
    assert search(store, [1, 0]) == ["a"]
    (backend,) = store._look(lambda cursor: cursor.execute("SELECT pg_backend_pid()"))
    postgres.ask("SELECT pg_terminate_backend($1, 10000)", *backend)
    assert search(store, [1, 0]) == ["a"]


def test_closed_connections_say_so(home: PostgresHome) -> None:
    store = home.open()
    upsert(store, record("a", [1, 0]))
    home.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        search(store, [1, 0])
