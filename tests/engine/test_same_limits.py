"""What one kind of store can't hold, none takes: texts that are no text there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.support import engine_on
from tests.engine.test_bad_input import stored

from mainspring import Custom, Engine, InvalidInput, Task, TaskType, VectorRecord

pytestmark = pytest.mark.anyio
NO_TEXTS = ["a\0", "a\udcff"]


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str) -> AsyncIterator[Engine]:
    async with engine_on(place) as engine:
        yield engine


async def refused(engine: Engine, call: Any, field: str, *words: str) -> None:
    """It is an InvalidInput that names the field and all these words, and nothing is stored."""
    before = await stored(engine)
    with pytest.raises(InvalidInput) as caught:
        await call
    assert caught.value.field == field
    assert all(word in str(caught.value) for word in (field, ";", *words)), str(caught.value)
    assert await stored(engine) == before


@pytest.mark.parametrize("bad", NO_TEXTS, ids=ascii)
async def test_versions(engine: Engine, bad: str) -> None:
    """A handler's version is refused where it is declared, not when the engine starts."""
    with pytest.raises(InvalidInput, match=r"version = .*; use") as caught:
        engine.task(version=bad, name="odd")(lambda: None)
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
    for call in (lambda: store.get("zero", ["a\udcff"]), lambda: store.page("zero", after="a\udcff")):
        with pytest.raises(InvalidInput, match="surrogates"):
            await asyncio.to_thread(call)


@pytest.mark.parametrize("bad", NO_TEXTS, ids=ascii)
async def test_filters_of_lists(engine: Engine, bad: str) -> None:
    store: Any = engine.manager.store
    for name in ("namespace", "type"):
        await refused(engine, store.list_tasks(**{name: bad}), name)
    for name in ("namespace", "type", "version"):
        await refused(engine, store.purge(**{name: bad}), name)
