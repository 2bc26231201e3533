"""A wait with no time, or hardly any, looks once: what has ended is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.engine.support import engine_on, value

from mainspring import Context, TaskId, TaskNotFound, TaskStatus, TaskTimeout

pytestmark = pytest.mark.anyio
HARDLY_ANY = (0, "1ms", 0.000001)


@pytest.mark.parametrize("timeout", HARDLY_ANY)
async def test_what_has_ended_is_told_however_short_the_time(place: str, timeout: Any) -> None:
    """By a handle that is new, and by the manager; also where the output stands for another task's."""
    engine = engine_on(place)

    @engine.task
    async def child(x: int) -> int:
        return x

    @engine.task
    async def parent(ctx: Context) -> Any:
        return await ctx.submit(child, 7)

    async with engine:
        plain, standing = await engine.submit(child, 3), await engine.submit(parent)
        assert (await value(plain), await value(standing)) == (3, 7)
        keys = [str(plain.id), str(standing.id)]
        del plain, standing
        looks = [await engine.handle(key).result(timeout=timeout) for key in keys]
        results = [await engine.manager.get_task_result(key, timeout=timeout) for key in keys]
    assert looks == [3, 7]
    assert [(one.status, one.output and one.output.value) for one in results] == [
        (TaskStatus.COMPLETED, 3),
        (TaskStatus.COMPLETED, 7),
    ]


@pytest.mark.parametrize("timeout", HARDLY_ANY)
async def test_what_has_not_ended_or_is_unknown_is_told_too(place: str, timeout: Any) -> None:
    """The one as TaskTimeout, the other as TaskNotFound."""
    engine = engine_on(place)
    release = asyncio.Event()

    @engine.task
    async def held() -> None:
        await release.wait()

    async with engine:
        handle = await engine.submit(held)
        for wait in (handle.result, lambda timeout: engine.manager.get_task_result(handle.id, timeout)):
            with pytest.raises(TaskTimeout, match=r"has not ended within (0|0\.001|1e-06) s; it goes on"):
                await wait(timeout=timeout)
        for wait in (
            engine.handle(TaskId.new()).result,
            lambda timeout: engine.manager.get_task_result(TaskId.new(), timeout),
        ):
            with pytest.raises(TaskNotFound):
                await wait(timeout=timeout)
        release.set()


async def test_a_blocking_wait_looks_once_too(place: str) -> None:
    """As `engine.sync` has it."""
    engine = engine_on(place)

    @engine.task
    async def child(x: int) -> int:
        return x

    def script() -> Any:
        with engine.sync as sync:
            id = str(sync.submit(child, 3).id)
            assert sync.handle(id).result() == 3
            return sync.handle(id).result(timeout=0)

    assert await asyncio.to_thread(script) == 3
