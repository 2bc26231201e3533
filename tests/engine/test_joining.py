"""Tasks of built-in types join in calls, and each has the outcome that it would have alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.engine.support import engine_on, value

from mainspring import Engine, InvalidInput, ModelInput, ProcessingFailed, SearchQuery, TaskHandle

pytestmark = pytest.mark.anyio
WORDS = "tasks wait in one durable order and run when a slot falls free".split()
LONG = "word " * 400


class Lengths:
    """Gives each text its length; knows what went into each call, and can't read "bad"."""

    dim = 2
    max_tokens = 1_000_000

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def embed(self, texts: list[str]) -> Any:
        self.calls.append(texts)
        if "bad" in texts:
            raise ValueError("bad is among them")
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    engine = engine_on(thread_slots=1)
    async with engine:
        yield engine


async def sizes(engine: Engine, handles: list[TaskHandle]) -> list[int]:
    """In how large a call each ran."""
    results = [await engine.manager.get_task_result(handle.id) for handle in handles]
    return [result.metrics.batch_size for result in results if result.metrics is not None]


async def test_single_texts_join(engine: Engine) -> None:
    """A call takes all that wait, and vectors are those of a text alone."""
    alone = [await engine.embed(word) for word in WORDS]
    handles = await engine.map(engine.embed, WORDS * 20)
    together = await engine.gather(handles)
    assert max(await sizes(engine, handles)) > 10
    for index, vector in enumerate(together):
        np.testing.assert_allclose(vector, alone[index % len(WORDS)], atol=1e-5)


async def test_options_and_models_keep_them_apart(engine: Engine) -> None:
    """Only what may go through the model together does."""
    lengths = Lengths()
    engine.models.register("lengths", lengths)
    plain = await engine.map(engine.embed, WORDS, model_id="lengths", normalize=False)
    unit = await engine.map(engine.embed, WORDS, model_id="lengths")
    await engine.gather(await engine.map(engine.embed, WORDS))
    assert [vector[0] for vector in await engine.gather(plain)] == [len(word) for word in WORDS]
    for vector in await engine.gather(unit):
        assert np.linalg.norm(vector) == pytest.approx(1.0)
    assert all(len(call) <= len(WORDS) for call in lengths.calls)


async def test_a_text_that_cannot_be_embedded_fails_alone(engine: Engine) -> None:
    """Whether the model says so of one text, or raises for the whole call."""
    lengths = Lengths()
    engine.models.register("lengths", lengths)
    handles = await engine.map(engine.embed, [*WORDS, "bad", *WORDS], model_id="lengths", max_retries=0)
    for handle in handles[: len(WORDS)] + handles[len(WORDS) + 1 :]:
        await value(handle)
    with pytest.raises(Exception, match="bad is among them"):
        await value(handles[len(WORDS)])
    assert ["bad"] in lengths.calls
    short, long = await engine.map(engine.embed, ["word", LONG], truncate=False)
    assert (await value(short)).shape == (384,)
    with pytest.raises(InvalidInput, match="longer than"):
        await value(long)


class Louder:
    """Knows how many inputs went into each call, and runs out of memory where "bad" is among several."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        self.calls.append(len(inputs))
        if len(inputs) > 1 and any(one.text == "bad" for one in inputs):
            raise MemoryError("too many")
        return [ValueError("bad") if one.text == "bad" else str(one.text).upper() for one in inputs]


async def test_inference_joins_where_the_model_takes_many(engine: Engine) -> None:
    """A Python model gets what waits in one call; what it says of one input is that task's outcome."""
    model = Louder()
    engine.models.register("louder", model)
    texts = [*WORDS, "bad", *WORDS, *WORDS]
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(engine.submit(engine.infer, "louder", text, max_retries=0)) for text in texts]
    handles = [await one for one in asked]
    for text, handle in zip(texts, handles, strict=True):
        if text == "bad":
            with pytest.raises(ProcessingFailed, match="bad"):
                await value(handle)
        else:
            assert await value(handle) == text.upper()
    assert max(await sizes(engine, handles)) > 10
    assert max(model.calls) > 10


async def test_searches_of_a_collection_join(engine: Engine) -> None:
    """They find what each would find alone; a bad one fails alone; those of another collection are in other calls."""
    eye = np.eye(len(WORDS), dtype=np.float32)
    for name in ("words", "others"):
        await engine.upsert(name, eye, ids=[f"{name} {n}" for n in range(len(WORDS))])
    queries = [SearchQuery(vector=row, collection="words", top_k=1) for row in eye] * 4
    queries.append(SearchQuery(vector=eye[0][:3], collection="words", top_k=1))
    queries += [SearchQuery(vector=row, collection="others", top_k=1) for row in eye]
    handles = await engine.map(engine.search, queries, max_retries=0)
    answers = [await value(handle) for handle in handles if handle is not handles[4 * len(WORDS)]]
    names = ["words"] * 4 + ["others"]
    assert [hits[0].id for hits in answers] == [f"{name} {n}" for name in names for n in range(len(WORDS))]
    with pytest.raises(InvalidInput, match="vector of the query"):
        await value(handles[4 * len(WORDS)])
    assert max(await sizes(engine, handles)) > 10
    assert max(await sizes(engine, handles[-len(WORDS) :])) <= len(WORDS)
