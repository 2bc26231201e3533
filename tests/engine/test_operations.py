"""The built-in operations as users call them: a value means the same whether it is given or comes from a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.engine.support import engine_on, value

from mainspring import Engine, InvalidInput, SearchQuery

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = engine_on()
    async with engine:
        yield engine


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (b"doc \xff bytes", b"doc \xff bytes"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        ("schön", "schön".encode()),
        ({"a": 1}, b'{"a":1}'),
    ],
)
async def test_a_value_is_stored_as_it_is(engine: Engine, data: Any, stored: bytes) -> None:
    """Bytes, texts and values are the same bytes under a key whether they are given or another task's result."""

    @engine.task
    async def give() -> Any:
        return data

    await engine.store(data, "given")
    await value(await engine.submit(engine.store, await engine.submit(give), "came"))
    assert await engine.retrieve("given", as_="bytes") == stored
    assert await engine.retrieve("came", as_="bytes") == stored


async def test_stored_bytes_are_documents(engine: Engine) -> None:
    """What `retrieve` gives can be extracted: one document, and several together."""
    await engine.store(b"plain", "a")
    documents = [await engine.submit(engine.retrieve, "a", as_="bytes") for _ in range(2)]
    assert await engine.text(documents[0], "extract") == "plain"
    assert await engine.text(documents, "extract") == ["plain", "plain"]
    assert await engine.text(bytearray(b"plain"), "extract") == "plain"


async def test_handles_within_lists_of_an_upsert(engine: Engine) -> None:
    """Each value of a record may be another task's result, at any depth."""

    @engine.task
    async def give(value: Any) -> Any:
        return value

    id, text, label = [await engine.submit(give, name) for name in ("a", "words", "en")]
    vector = await engine.submit(give, [1.0, 0.0])
    await engine.upsert("c", [vector], ids=[id], texts=[text], metadata=[{"language": label}])
    (hit,) = await engine.search([1.0, 0.0], collection="c")
    assert (hit.id, hit.text, hit.metadata) == ("a", "words", {"language": "en"})


async def test_a_ready_query_brings_everything(engine: Engine) -> None:
    """Beside a SearchQuery nothing may be given that it has itself: it would do nothing."""
    await engine.upsert("c", [[1.0, 0.0], [0.0, 1.0]], ids=["a", "b"])
    query = SearchQuery(vector=[1.0, 0.0], collection="c")
    assert [hit.id for hit in await engine.search(query)] == ["a", "b"]
    for beside in ({"top_k": 1}, {"filter": {"a": 1}}, {"collection": "c"}):
        with pytest.raises(InvalidInput, match="beside a SearchQuery"):
            await engine.search(query, **beside)


class Lengths:
    def embed(self, texts: list[str]) -> Any:
        return np.array([[len(text), 1.0] for text in texts], np.float32)


async def test_one_text_has_one_vector(engine: Engine) -> None:
    """A single text gives (dim,), a list (n, dim): awaited, submitted, from another task and as its result."""
    engine.models.register("lengths", Lengths())

    @engine.task
    async def shape(vectors: Any) -> list[int]:
        return list(vectors.shape)

    text = await engine.submit(engine.text, "words")
    for given, wanted in (("words", (2,)), (text, (2,)), (["words"], (1, 2)), ([text, "b"], (2, 2))):
        assert (await engine.embed(given, model_id="lengths")).shape == wanted
        handle = await engine.submit(engine.embed, given, model_id="lengths")
        assert (await value(handle)).shape == wanted
        assert await value(await engine.submit(shape, handle)) == list(wanted)
    await value(
        await engine.submit(engine.upsert, "c", await engine.submit(engine.embed, text, model_id="lengths"), ids=["a"])
    )
    (hit,) = await engine.search(await engine.submit(engine.embed, text, model_id="lengths"), collection="c")
    assert hit.id == "a"
