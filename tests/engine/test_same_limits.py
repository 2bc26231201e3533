"""What one kind of store can't hold, none takes: long keys and ids, long vectors, and texts that are no text there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.engine.support import engine_on, value
from tests.engine.test_bad_input import stored

from mainspring import Custom, Engine, InvalidInput, Task, TaskType, VectorRecord
from mainspring.tasks.texts import MAX_KEY_BYTES
from mainspring.vectors.base import MAX_DIMENSIONS

pytestmark = pytest.mark.anyio
LONG = "".join(chr(0x4E00 + n * 7_919 % 20_000) for n in range(1_000))
"""A thousand characters that nothing can be made shorter of, with three bytes each."""
LONGEST = LONG[: MAX_KEY_BYTES // 3] + "ab"
NAMESPACE = "".join(chr(0x20000 + n * 7_919 % 40_000) for n in range(128))
NO_TEXTS = ["a\0", "a\udcff"]


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


def vectors(n: int, dim: int) -> Any:
    return np.ones((n, dim), np.float32)


async def refused(engine: Engine, call: Any, field: str, *words: str) -> None:
    """It is an InvalidInput that names the field and all these words, and nothing is stored."""
    before = await stored(engine)
    with pytest.raises(InvalidInput) as caught:
        await call
    assert caught.value.field == field
    assert all(word in str(caught.value) for word in (field, ";", *words)), str(caught.value)
    assert await stored(engine) == before


async def test_the_longest_keys_and_ids(engine: Engine) -> None:
    """They fit into every store, also with the longest namespace beside them."""
    assert len(LONGEST.encode()) == MAX_KEY_BYTES
    assert (await engine.store(b"x", key=LONGEST, namespace=NAMESPACE)).key == LONGEST
    assert await engine.retrieve(LONGEST, namespace=NAMESPACE) == b"x"
    assert (await engine.upsert("longest", vectors(1, 3), ids=[LONGEST])).count == 1
    assert [record.id for record in await asyncio.to_thread(engine.vectors.get, "longest", [LONGEST])] == [LONGEST]


async def test_longer_keys_and_ids(engine: Engine) -> None:
    """They are refused before anything is stored, by what they have in bytes and may have."""
    words = "3,000 bytes", "2,048"
    await refused(engine, engine.store(b"x", key=LONG), "params.key", *words)
    await refused(engine, engine.upsert("c", vectors(1, 3), ids=[LONG]), "input.ids", *words)
    await refused(engine, engine.upsert("c", vectors(1, 3), id_prefix=LONG), "input.id_prefix", *words)
    writes = asyncio.to_thread(engine.vectors.upsert, "c", [VectorRecord(LONG, np.ones(3, np.float32))])
    await refused(engine, writes, "id", *words)
    handle = await engine.submit(engine.upsert, "c", vectors(12, 3), id_prefix=LONGEST)
    with pytest.raises(InvalidInput, match="bytes as UTF-8"):  # which ids they become is known when it runs
        await value(handle)


async def test_what_has_a_long_key_can_be_taken_away(engine: Engine) -> None:
    """Files of long ago may hold some."""
    await engine.delete(LONG)
    await engine.upsert("deleted", vectors(1, 3), ids=["a"])
    await engine.delete(collection="deleted", ids=[LONG])
    with pytest.raises(InvalidInput, match="names nothing"):
        await engine.retrieve(LONG)


async def test_vectors_that_are_too_long(engine: Engine) -> None:
    """So is a vector of more dimensions than any store takes; the longest goes in."""
    words = "16,001 dimensions", "16,000"
    long = vectors(1, MAX_DIMENSIONS + 1)
    for given in (long, long[0], long.tolist(), long[0].tolist(), [long[0]]):
        await refused(engine, engine.upsert("long", given, ids=["a"]), "input.vectors", *words)
    writes = asyncio.to_thread(engine.vectors.upsert, "long", [VectorRecord("a", long[0])])
    await refused(engine, writes, "vectors", *words)
    assert (await engine.upsert("long", vectors(1, MAX_DIMENSIONS), ids=["a"])).count == 1


async def test_many_vectors_are_no_long_one(engine: Engine) -> None:
    """Also where each is a result that is not known yet."""

    @engine.task
    async def vector() -> list[float]:
        return [1.0, 2.0]

    given = await engine.submit(vector)
    ids = [f"r{n}" for n in range(MAX_DIMENSIONS + 1)]
    assert (await engine.upsert("many", [given] * len(ids), ids=ids)).count == len(ids)


@pytest.mark.parametrize("bad", NO_TEXTS, ids=ascii)
async def test_versions(engine: Engine, bad: str) -> None:
    """A handler's version is refused where it is declared, not when the engine starts."""
    for version in (bad, LONG):
        with pytest.raises(InvalidInput, match=r"version = .*; use") as caught:
            engine.task(version=version, name="odd")(lambda: None)
        assert caught.value.field == "version"


async def test_keys_to_retrieve(engine: Engine) -> None:
    for name in ("key", "prefix"):
        await refused(engine, engine.retrieve(**{name: "a\0"}), f"input.{name}", "character 0")
    page = Task(task_type=TaskType.DATA_RETRIEVAL, input=Custom({"prefix": "a", "after": "a\0"}))
    await refused(engine, engine.submit(page), "input.after", "character 0")
    await refused(engine, engine.retrieve(collection="a\0", ids=["a"]), "input.collection", "character 0")


@pytest.mark.parametrize("bad", NO_TEXTS, ids=ascii)
async def test_names_of_collections(engine: Engine, bad: str) -> None:
    """Whatever reads one or writes into one says so, as it does of a model's name."""
    store = engine.vectors
    record = VectorRecord("a", [1.0])
    for call in (
        lambda: store.get(bad, ["a"]),
        lambda: store.page(bad),
        lambda: store.metadata(bad),
        lambda: store.upsert(bad, [record]),
        lambda: store.delete(bad, ["a"]),
    ):
        await refused(engine, asyncio.to_thread(call), "collection")
    await refused(engine, asyncio.to_thread(store.upsert, "c", [record], model_id=bad), "model_id")


async def test_ids_of_records(engine: Engine) -> None:
    """An id may hold the character 0, and is looked for; no Unicode is none."""
    store = engine.vectors
    await asyncio.to_thread(store.upsert, "zero", [VectorRecord("a\0", [1.0])])
    assert [one.id for one in await asyncio.to_thread(store.get, "zero", ["a\0"])] == ["a\0"]
    assert await asyncio.to_thread(lambda: store.page("zero", after="a\0")) == []
    await refused(engine, asyncio.to_thread(store.get, "zero", ["a\udcff"]), "ids")
    await refused(engine, asyncio.to_thread(lambda: store.page("zero", after="a\udcff")), "after", "Unicode")


@pytest.mark.parametrize("bad", NO_TEXTS, ids=ascii)
async def test_filters_of_lists(engine: Engine, bad: str) -> None:
    store: Any = engine.manager.store
    for name in ("namespace", "type"):
        await refused(engine, store.list_tasks(**{name: bad}), name)
    for name in ("namespace", "type", "version"):
        await refused(engine, store.purge(**{name: bad}), name)
