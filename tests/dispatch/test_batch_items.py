"""What the functions of an item that a batch is declared with get, and what becomes of a task where they fail."""

from __future__ import annotations

import asyncio
import math
import typing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dispatch import batched
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Batch, Custom, InvalidInput, Task, TaskHandle, TaskStatus, TaskType

pytestmark = pytest.mark.anyio

LANES = ["async", "thread", "process"]
KINDS: dict[type, Any] = {
    batched.Doc: batched.sizes,
    batched.Row: batched.row_sizes,
    batched.Page: batched.page_sizes,
}


def in_lane(engine: Any, lane: str, function: Any, **options: Any) -> Any:
    """Declare a handler there."""
    if lane != "async":
        return engine.task(lane=lane, **options)(function)

    async def on_the_loop(docs: Any, unit: int = 1) -> Any:
        return function(docs, unit)

    on_the_loop.__annotations__ |= {"docs": typing.get_type_hints(function)["docs"]}
    return engine.task(**options)(on_the_loop)


@pytest.mark.parametrize("oversize", ["alone", "refuse"])
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kind", [batched.Doc, batched.Row, batched.Page])
async def test_cost_and_shape_get_what_the_handler_gets(kind: Any, lane: str, oversize: Any, tmp_path: Path) -> None:
    """One item in the type that the handler is annotated with: given as such, as plain values, or by a parent."""
    seen: list[type] = []

    def cost(doc: Any) -> int:
        seen.append(type(doc))
        return len(doc.text)

    def shape(doc: Any) -> int:
        seen.append(type(doc))
        return len(doc.tags)

    async with engine_on(tmp_path / "work.db") as engine:
        policy = Batch(max_cost=10, cost=cost, shape=shape, oversize=oversize)
        sizes = in_lane(engine, lane, KINDS[kind], batch=policy, retry=0)

        @engine.task
        async def parent(text: str) -> Any:
            return kind(text=text)

        @engine.task
        async def text_of(text: str) -> str:
            return text

        handles: list[TaskHandle] = [
            await engine.submit(sizes, kind(text="a")),
            await engine.submit(sizes, {"text": "bb", "tags": []}),
            await engine.submit(sizes, await engine.submit(parent, "ccc")),
            await engine.submit(sizes, {"text": await engine.submit(text_of, "dddd")}, unit=2),
        ]
        assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [1, 2, 3, 8]
    assert set(seen) == {kind}


@pytest.mark.parametrize("lane", LANES)
async def test_an_item_that_does_not_fit_fails_before_its_call(lane: str, tmp_path: Path) -> None:
    """Where it comes from a parent: that task alone, and nobody is asked what it costs."""
    seen: list[Any] = []

    def cost(doc: batched.Doc) -> int:
        seen.append(doc)
        return len(doc.text)

    async with engine_on(tmp_path / "work.db") as engine:
        sizes = in_lane(engine, lane, batched.sizes, batch=Batch(max_size=3, max_cost=10, cost=cost, max_wait=60))

        @engine.task
        async def parent(item: Any) -> Any:
            return item

        items: list[dict[str, Any]] = [{"text": "a"}, {"text": 5}, {"text": "bb"}, {"txt": "c"}, {"text": "ddd"}]
        handles = [await engine.submit(sizes, await engine.submit(parent, item)) for item in items]
        for n, handle in enumerate(handles):
            if n in (1, 3):
                with pytest.raises(InvalidInput, match=r"arguments of (sizes|on_the_loop) .* `\$.docs"):
                    await handle.result(timeout=LIMIT_S)
            else:
                assert await handle.result(timeout=LIMIT_S) == len(items[n]["text"])
    assert sorted(seen, key=lambda doc: doc.text) == [batched.Doc("a"), batched.Doc("bb"), batched.Doc("ddd")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("3", "'3'"),
        (None, "None"),
        (True, "True"),
        (np.True_, "True"),
        (math.nan, "nan"),
        (np.float32("nan"), "nan"),
        (math.inf, "inf"),
        (-1, "-1"),
        (10**400, "1000"),
        (Decimal(1), "Decimal"),
        (np.array([1, 2]), "array"),
    ],
    ids=lambda value: repr(value)[:9],
)
async def test_what_is_no_cost(given: Any, says: str) -> None:
    """Its task fails, and the message names handler, field, value and item; the others of its call do not mind."""
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_cost=10, cost=lambda n: given if n == 2 else n))
        async def double(items: list[int]) -> list[int]:
            return [2 * n for n in items]

        handles = await engine.map(double, [1, 2, 3])
        with pytest.raises(InvalidInput, match=rf"batch\.cost = .*{says}.*double returned for 2; let it") as caught:
            await handles[1].result(timeout=LIMIT_S)
        assert caught.value.field == "batch.cost"
        assert [await handles[n].result(timeout=LIMIT_S) for n in (0, 2)] == [2, 6]


@pytest.mark.parametrize("given", [2, 2.0, np.int8(2), np.float16(2), np.float64(2), Fraction(2)], ids=repr)
async def test_numbers_of_all_kinds_are_costs(given: Any) -> None:
    calls: list[int] = []
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(max_cost=4, cost=lambda n: given, max_wait=60))
        async def double(items: list[int]) -> list[int]:
            calls.append(len(items))
            return [2 * n for n in items]

        handles = await engine.map(double, [1, 2, 3, 4])
        assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [2, 4, 6, 8]
    assert calls == [2, 2]


@pytest.mark.parametrize("name", ["cost", "shape"])
async def test_a_function_of_an_item_that_raises(name: str) -> None:
    """At claim its task fails, once and for all, as would every other try; the others run."""

    def asked(n: int) -> int:
        return 6 // (n - 2)

    options: dict[str, Any] = {"max_cost": 10, "cost": asked} if name == "cost" else {"shape": asked}
    async with engine_on() as engine:

        @engine.task(batch=Batch(**options))
        async def double(items: list[int]) -> list[int]:
            return [2 * n for n in items]

        handles = await engine.map(double, [3, 2, 4])
        says = rf"batch\.{name} of double raised ZeroDivisionError for 2: .*; let it answer for every item"
        with pytest.raises(InvalidInput, match=says) as caught:
            await handles[1].result(timeout=LIMIT_S)
        assert caught.value.field == f"batch.{name}"
        assert (await handles[1].info()).status is TaskStatus.FAILED
        assert [await handles[n].result(timeout=LIMIT_S) for n in (0, 2)] == [6, 8]


async def test_what_is_to_be_refused_is_asked_at_submit() -> None:
    """There a cost that can't be told refuses the task, with the item as the handler would get it."""
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_cost=3, cost=lambda doc: 6 // len(doc["text"]), oversize="refuse"))
        async def sizes(docs: list[Any]) -> list[int]:
            return [len(doc["text"]) for doc in docs]

        assert await (await engine.submit(sizes, batched.Doc("ab"))).result(timeout=LIMIT_S) == 2
        with pytest.raises(InvalidInput, match=r"of sizes raised ZeroDivisionError for {'text': ''") as caught:
            await engine.submit(sizes, batched.Doc(""))
        assert caught.value.field == "batch.cost"
        kind = TaskType.custom("sizes")
        with pytest.raises(InvalidInput, match=r"costs 6, above max_cost = 3 of sizes"):
            await engine.submit(Task(task_type=kind, input=Custom({"docs": batched.Doc("a")})))
        with pytest.raises(InvalidInput, match="sizes misses docs"):
            await engine.submit(Task(task_type=kind, input=Custom({})))


async def test_what_costs_more_than_all_that_is_allowed_runs_alone() -> None:
    """Whatever the unit: calls stay within a `max_cost` below 1, and each item above it has a call of its own."""
    calls: list[list[float]] = []
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(max_cost=0.5, cost=float, max_wait=60))
        async def move(gigabytes: list[float]) -> list[None]:
            calls.append(gigabytes)
            await asyncio.sleep(0.003)  # long enough to be learned from
            return [None] * len(gigabytes)

        for _ in range(2):
            for handle in await engine.map(move, [0.25, 0.25, 0.75, 0.25, 0.25, 0.875, 0.625]):
                await handle.result(timeout=LIMIT_S)
    assert calls == [[0.25, 0.25], [0.75], [0.25, 0.25], [0.875], [0.625]] * 2
