"""Tasks that run in one call have a context each: what is said there is said of that task alone, in every lane."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from tests.engine import call_work
from tests.engine.support import LIMIT_S, SOON, engine_on, value

from mainspring import Batch, Context, Engine, InvalidInput, ProcessingFailed, TaskHandle, TaskStatus

pytestmark = pytest.mark.anyio

LANES = ["async", "waiting", "thread", "process"]


def declared(engine: Engine, lane: Any, function: Callable[..., Any], **given: Any) -> Any:
    """Declare a handler in a lane, and that of its children."""
    engine.task(lane="thread")(call_work.child)
    options: Any = {"batch": call_work.TOGETHER, "retry": 0, **given}
    if lane in ("thread", "process"):
        return engine.task(lane=lane, **options)(function)

    @functools.wraps(function)
    async def on_the_loop(names: Any, contexts: Any) -> Any:
        if lane == "waiting":
            await asyncio.sleep(0)
        return function(names, contexts)

    return engine.task(**options)(on_the_loop)


async def children_of(engine: Engine) -> list[str]:
    """Return the names of all children that were ever stored."""
    inputs: list[Any] = [info.task.input for info in await engine.manager.store.list_tasks(type="custom:child")]
    return sorted(input.value["name"] for input in inputs)


async def ends(handles: Sequence[TaskHandle]) -> list[Any]:
    """Return the results; of those that failed the error's text."""
    found: list[Any] = []
    for handle in handles:
        try:
            found.append(await value(handle))
        except ProcessingFailed as exc:
            found.append(str(exc))
    return found


@pytest.mark.parametrize("lane", LANES)
async def test_each_item_speaks_for_its_own_task(tmp_path: Path, lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """Cost and lines in the log are that task's; items that can't be read leave no gap among the contexts."""
    names: list[Any] = ["a", "bbbb", 5, "ccccccc"]
    with caplog.at_level(logging.WARNING, "mainspring.handler"):
        async with engine_on(tmp_path / "work.db") as engine:
            tell = declared(engine, lane, call_work.tell)

            @engine.task
            async def parent(name: Any) -> Any:
                return name

            for n in range(4):
                await engine.limit(f"tenant-{n}", cost_rate="1000/d")
            parents = await engine.map(parent, names)
            handles = [await engine.submit(tell, it, group=f"tenant-{n}", cost=100) for n, it in enumerate(parents)]
            good = [0, 1, 3]
            assert [await value(handles[n]) for n in good] == [str(handles[n].id) for n in good]
            with pytest.raises(InvalidInput):
                await value(handles[2])
            left = {limit.group: limit.cost_left for limit in await engine.limits()}
            for n, much in enumerate((1, 4, 100, 7)):
                assert left[f"tenant-{n}"] == pytest.approx(1000 - much, abs=0.9)
    lines = {record.task_id: record.getMessage() for record in caplog.records}  # type: ignore[attr-defined]
    assert lines == {str(handles[n].id): f"this is {names[n]}" for n in good}
    assert len(caplog.records) == 3


@pytest.mark.parametrize("lane", LANES)
async def test_children_come_with_their_own_parent(tmp_path: Path, lane: str) -> None:
    """With each result its children, once, however often the call was made; with a failure none."""
    async with engine_on(tmp_path / "work.db") as engine:
        bear = declared(engine, lane, call_work.bear)
        handles = await engine.map(bear, ["a", "bad", "worse", "b"])
        assert await ends(handles) == ["a", "ValueError: bad", "ValueError: worse", "b"]
        assert await children_of(engine) == ["a", "b"]


@pytest.mark.parametrize("lane", LANES)
async def test_a_call_that_is_tried_again(tmp_path: Path, lane: str) -> None:
    """What was submitted in the attempts before is not there."""
    async with engine_on(tmp_path / "work.db") as engine:
        bear = declared(engine, lane, call_work.bear, retry=SOON)
        assert await ends(await engine.map(bear, ["a", "late", "b", "c"])) == ["a", "late", "b", "c"]
        assert await children_of(engine) == ["a", "b", "c", "late"]


@pytest.mark.parametrize("lane", ["thread", "process"])
async def test_children_that_are_stored_at_once(tmp_path: Path, lane: str) -> None:
    """A call that is made again in halves finds them again: each stands under a number of its own task's."""
    async with engine_on(tmp_path / "work.db") as engine:
        bear_now = declared(engine, lane, call_work.bear_now)
        assert await ends(await engine.map(bear_now, list("abcd"))) == list("abcd")
        assert await children_of(engine) == list("abcd")


async def test_children_that_are_stored_at_once_from_the_loop(tmp_path: Path) -> None:
    """There they are on their way when the handler returns: the attempt ends after them, or fails with what they do."""
    async with engine_on(tmp_path / "work.db") as engine:
        engine.task(lane="thread")(call_work.child)

        @engine.task(batch=call_work.TOGETHER, retry=0)
        async def bear(names: list[str], contexts: list[Context]) -> list[Any]:
            return [
                ctx.submit(call_work.child, name, now=True, group="" if name == "bad" else None)
                for name, ctx in zip(names, contexts, strict=True)
            ]

        handles = await engine.map(bear, ["a", "b", "bad", "c"])
        assert [await value(handles[n]) for n in (0, 1, 3)] == ["a", "b", "c"]
        with pytest.raises(InvalidInput, match="group"):
            await value(handles[2])
        assert await children_of(engine) == ["a", "b", "c"]


async def test_a_child_process_that_dies_of_one_item(tmp_path: Path) -> None:
    """Its halves go on in others, each with the contexts of their own tasks."""
    async with engine_on(tmp_path / "work.db") as engine:
        die = declared(engine, "process", call_work.die)
        handles = await engine.map(die, ["a", "b", "death", "c"])
        assert [await value(handles[n]) for n in (0, 1, 3)] == ["a", "b", "c"]
        with pytest.raises(ProcessingFailed, match="exited with code 3"):
            await handles[2].result(timeout=LIMIT_S)
        assert (await handles[2].info()).status is TaskStatus.FAILED
        assert await children_of(engine) == ["a", "b", "c"]


def test_declarations() -> None:
    """Contexts come to calls for several tasks alone, and one context to no such call."""
    engine = Engine(":memory:")

    def alone(text: str, contexts: list[Context]) -> str:
        return text

    def one(texts: list[str], ctx: Annotated[Context, "mine"]) -> list[str]:
        return texts

    def nothing(contexts: list[Context]) -> list[str]:
        return []

    def well(texts: list[str], contexts: Annotated[Sequence[Context], "theirs"], to: str = "en") -> list[str]:
        return texts

    with pytest.raises(InvalidInput, match=r"contexts of several tasks without batch=; annotate it as Context"):
        engine.task(alone)
    with pytest.raises(InvalidInput, match=r"a call is for several tasks; annotate ctx as list\[Context\]"):
        engine.task(batch=Batch())(one)
    with pytest.raises(InvalidInput, match="takes no items"):
        engine.task(batch=Batch())(nothing)
    engine.task(batch=Batch())(well)
    assert engine.manager.executor.handlers["custom:well"].parameters == ("texts", "to")
