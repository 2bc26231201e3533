"""The one order: priorities, deadlines and age decide who goes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.support import engine_on, value

from mainspring import Engine, TaskPriority

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    async with engine_on(async_slots=1) as engine:
        yield engine


def recorder(engine: Engine) -> tuple[Any, list[Any]]:
    order: list[Any] = []

    @engine.task
    async def record(word: Any) -> None:
        order.append(word)

    return record, order


@pytest.mark.parametrize("number", range(4))
async def test_priorities_and_deadlines(engine: Engine, number: int) -> None:
    """Of what waits together, higher priority goes first, then the earlier; a near deadline counts like waiting."""
    record, order = recorder(engine)
    await engine.manager.pause()
    words = ["low", "normal", "high", "critical"]
    words = words[number:] + words[:number]
    handles = [await engine.submit(record, word, priority=word) for word in words]
    handles += [
        await engine.submit(record, "normal 2"),
        await engine.submit(record, "urgent", priority="low", deadline=50),
    ]
    await engine.manager.resume()
    await engine.gather(handles)
    assert order[:2] == ["critical", "high"]
    assert order.index("normal") < order.index("normal 2") < order.index("low")
    assert order.index("urgent") < order.index("low")


async def test_critical_overtakes_a_long_queue(engine: Engine) -> None:
    """A CRITICAL task behind 5,000 LOW ones starts before a tenth of them has."""
    record, order = recorder(engine)
    await engine.manager.pause()
    await engine.map(record, range(5_000), priority=TaskPriority.LOW)
    await engine.manager.resume()
    while len(order) < 500:  # noqa: ASYNC110 - a step of the loop at a time
        await asyncio.sleep(0)
    urgent = await engine.submit(record, "now", priority=TaskPriority.CRITICAL)
    at = len(order)
    assert at < 4_000, "it comes too late to overtake many"
    await value(urgent)
    assert order.index("now") - at < 500


async def test_first_come_first_served(engine: Engine) -> None:
    """Equal tasks run in the order of their submission, whatever their type's class."""
    record, order = recorder(engine)
    await engine.manager.pause()
    handles = [await engine.submit(record, n, group=f"g{n % 3}", namespace=f"n{n % 2}") for n in range(60)]
    await engine.manager.resume()
    await engine.gather(handles)
    assert order == list(range(60))


async def test_a_parent_goes_as_early_as_its_best_child(engine: Engine) -> None:
    """A LOW parent of a CRITICAL child overtakes NORMAL work."""
    record, order = recorder(engine)
    await engine.manager.pause()
    parent = await engine.submit(record, "parent", priority="low")
    others = [await engine.submit(record, n) for n in range(20)]
    child = await engine.submit(record, "child", after=parent, priority="critical")
    await engine.manager.resume()
    await engine.gather([*others, parent, child])
    assert order[0] == "parent"
    assert order.index("child") <= 12


async def test_priority_of_the_handler_and_of_the_call(engine: Engine) -> None:
    """The call's wins."""

    @engine.task(priority="high")  # type: ignore[call-overload]
    async def important() -> None: ...

    assert (await (await engine.submit(important)).info()).task.priority is TaskPriority.HIGH
    assert (await (await engine.submit(important, priority=0)).info()).task.priority is TaskPriority.LOW
