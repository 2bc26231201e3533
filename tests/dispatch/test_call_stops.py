"""Calls for several tasks that are stopped, or ask for a pause: no part of them begins any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch import batched
from tests.dispatch.batched import noted
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import Batch, Context, Engine, Retry, TaskHandle, TaskStatus, TaskTimeout

pytestmark = pytest.mark.anyio
LANES = ["async", "thread", "process"]


async def part_waits(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[int]:
    """As that of the other lanes."""
    batched.note(folder, items, contexts)
    if len(items) == 4:
        raise ValueError("not all at once")
    if 0 in items:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("asked to stop") from None
    return items


async def part_pauses(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[Any]:
    return batched.part_pauses(items, how, folder, contexts)


async def four(engine: Engine, function: Any, lane: Any, how: str, folder: Path, **options: Any) -> list[TaskHandle]:
    """Submit four tasks that run in one call."""
    options = {"retry": 0, "batch": Batch(max_size=4, max_wait=LIMIT_S), **options}
    function = engine.task(name="four", lane=lane, **options)(function)
    return await engine.map(function, range(4), how=how, folder=str(folder))


async def cancel(handles: list[TaskHandle]) -> None:
    for handle in handles:
        assert await handle.cancel() == "requested"
    for handle in handles:
        await shows(handle, status=TaskStatus.CANCELLED)


@pytest.mark.parametrize("how", ["returns", "raises"])
@pytest.mark.parametrize("lane", LANES)
async def test_no_part_begins_that_nobody_wants(tmp_path: Path, lane: str, how: str) -> None:
    """Where a call raised and half of it was asked to stop, the other half never runs, whatever the first came to."""
    async with engine_on(grace_s=LIMIT_S) as engine:
        function = part_waits if lane == "async" else batched.part_waits
        handles = await four(engine, function, lane, how, tmp_path)
        await until((tmp_path / "01.1").exists)
        await cancel(handles)
    assert noted(tmp_path) == ["01.1", "0123.1"]


@pytest.mark.parametrize("lane", LANES)
async def test_no_part_begins_whose_time_is_over(tmp_path: Path, lane: str) -> None:
    """Its tasks come again in smaller calls, uncharged, and not beside what is left of the first one."""
    async with engine_on(grace_s=LIMIT_S) as engine:
        function = part_waits if lane == "async" else batched.part_waits
        first, *others = await four(engine, function, lane, "returns", tmp_path, timeout=0.5)
        assert [await value(handle) for handle in others] == [1, 2, 3]
        with pytest.raises(TaskTimeout):
            await value(first)
    assert not {"23.1", "2.1", "3.1"} & set(noted(tmp_path))


@pytest.mark.parametrize(("how", "grace_s"), [("dies, listens", LIMIT_S), ("dies, deaf", 0.1)])
async def test_parts_in_other_children_are_cancelled(tmp_path: Path, how: str, grace_s: float) -> None:
    """The child of a call died, and the first half is done, and told: the last one is asked to stop, then killed."""
    async with engine_on(process_slots=1, grace_s=grace_s) as engine:
        handles = await four(engine, batched.part_waits, "process", how, tmp_path)
        await until((tmp_path / "23.1").exists)
        assert [await value(handle) for handle in handles[:2]] == [0, 1]
        await cancel(handles[2:])
        engine.task(lane="process", batch=Batch())(batched.lengths)
        assert await value(await engine.submit(batched.lengths, "abc")) == 3  # the slot is free
    assert noted(tmp_path) == ["01.1", "0123.1", "23.1"]


async def test_parts_in_other_children_run_out_of_time(tmp_path: Path) -> None:
    """They are killed, and their tasks come again in smaller calls until the guilty one is alone."""
    async with engine_on(process_slots=1) as engine:
        *others, last = await four(engine, batched.part_waits, "process", "dies, deaf", tmp_path, timeout=1)
        assert [await value(handle) for handle in others] == [0, 1, 2]
        with pytest.raises(TaskTimeout):
            await value(last)


@pytest.mark.parametrize(
    ("lane", "how", "calls"),
    [
        ("async", "raises", ["01.1", "0123.1", "0123.2"]),
        ("thread", "raises", ["01.1", "0123.1", "0123.2"]),
        ("process", "raises", ["01.1", "0123.1", "0123.2"]),
        ("process", "dies", ["01.1", "0123.1", "0123.2"]),
        ("process", "dies twice", ["0.1", "01.1", "0123.1", "0123.2"]),
    ],
)
async def test_nobody_asks_again_before_the_pause_is_over(tmp_path: Path, lane: str, how: str, calls: Any) -> None:
    """Where part of a call asks for one, all that are not done come again after it; that is one retry of each."""
    async with engine_on() as engine:
        function = part_pauses if lane == "async" else batched.part_pauses
        handles = await four(engine, function, lane, how, tmp_path, retry=Retry(max_retries=1))
        assert [await value(handle) for handle in handles] == [0, 1, 2, 3]
        assert {(await handle.info()).task.retry_count for handle in handles} == {1}
    assert noted(tmp_path) == calls


@pytest.mark.parametrize(
    ("lane", "how", "calls"),
    [
        ("async", "in its place", ["0.2", "01.1", "0123.1", "23.1"]),
        ("thread", "in its place", ["0.2", "01.1", "0123.1", "23.1"]),
        ("process", "in its place", ["0.2", "01.1", "0123.1", "23.1"]),
        ("process", "dies, in its place", ["0.2", "01.1", "0123.1", "23.1"]),
        ("process", "dies twice, in its place", ["0.1", "0.2", "01.1", "0123.1", "1.1", "2.1", "23.1", "3.1"]),
    ],
)
async def test_a_pause_in_the_place_of_one_is_its_own(tmp_path: Path, lane: str, how: str, calls: Any) -> None:
    """The other halves of its call go on, uncharged."""
    async with engine_on() as engine:
        function = part_pauses if lane == "async" else batched.part_pauses
        policy = Batch(max_size=4, max_wait=0.5)
        handles = await four(engine, function, lane, how, tmp_path, retry=Retry(max_retries=1), batch=policy)
        assert [await value(handle) for handle in handles] == [0, 1, 2, 3]
        assert [(await handle.info()).task.retry_count for handle in handles] == [1, 0, 0, 0]
    assert noted(tmp_path) == calls


async def test_some_are_cancelled_and_the_time_of_the_others_is_over() -> None:
    """Nobody wants their call any more: it is asked to stop at once, not when the grace of the first is over."""
    async with engine_on(process_slots=1, grace_s=LIMIT_S) as engine:
        batch = Batch(max_size=2, max_wait=LIMIT_S)
        function = engine.task(lane="process", batch=batch, timeout=1, retry=0)(batched.until_asked)
        unwanted, late = await engine.map(function, range(2))
        await shows(unwanted, status=TaskStatus.RUNNING)
        assert await unwanted.cancel() == "requested"
        await asyncio.wait_for(shows(unwanted, status=TaskStatus.CANCELLED), LIMIT_S / 2)
        with pytest.raises(TaskTimeout):
            await value(late)
