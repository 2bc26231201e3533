"""Handlers whose code is not here: who submits is told by what a worker registered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.support import engine_on, value

from mainspring import Custom, Engine, InvalidInput, Task, TaskType, UnsupportedTaskType

pytestmark = pytest.mark.anyio


def resize(**input: Any) -> Task:
    return Task(task_type=TaskType.custom("resize"), input=Custom(input))


@pytest.fixture
async def submitter(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine without any handler, beside one that serves `resize`."""
    worker = engine_on(tmp_path / "work.db")

    @worker.task(name="resize", timeout=7)
    async def shrink(width: int, name: str = "x") -> str:
        return f"{name} {width}"

    async with worker, engine_on(tmp_path / "work.db", worker=False) as submitter:
        yield submitter


async def test_arguments_are_checked_before_anything_is_stored(submitter: Engine) -> None:
    """Wrong arguments are refused at submit, all of a list with them; right ones run."""
    for wrong in ({"width": "a"}, {"width": 1, "bogus": 1}, {}):
        with pytest.raises(InvalidInput):
            await submitter.submit_all([resize(width=1), resize(**wrong)])
    with pytest.raises(InvalidInput, match="arguments by name"):
        await submitter.submit(Task(task_type=TaskType.custom("resize"), input=Custom([1])))
    assert (await submitter.manager.stats())["types"] == {}
    assert await value(await submitter.submit(resize(width=3, name="y"))) == "y 3"


async def test_the_declared_timeout_holds(submitter: Engine) -> None:
    """A task that says no timeout has the handler's."""
    assert (await (await submitter.submit(resize(width=1))).info()).task.timeout == 7
    own = Task(task_type=TaskType.custom("resize"), input=Custom({"width": 1}), timeout=3)
    assert (await (await submitter.submit(own)).info()).task.timeout == 3


async def test_a_newer_worker_may_take_more(submitter: Engine, tmp_path: Path) -> None:
    """What the store said before is looked up again before a task is refused."""
    with pytest.raises(InvalidInput):
        await submitter.submit(resize(height=1))
    newer = engine_on(tmp_path / "work.db")

    @newer.task(name="resize", version="2")
    async def grow(height: int) -> int:
        return height

    async with newer:
        await submitter.submit(resize(height=1))


async def test_what_nobody_registered_is_refused(submitter: Engine) -> None:
    """A type that no worker ever served is named, with those there are."""
    with pytest.raises(UnsupportedTaskType, match="custom:resize"):
        await submitter.submit(Task(task_type=TaskType.custom("enlarge"), input=Custom({})))
