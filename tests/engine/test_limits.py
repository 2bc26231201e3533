"""Limits of groups as users have them: set once, kept by all, and told why a task waits."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import GroupLimit, InvalidInput, TaskStatus

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_fresh", [True, False], ids=["handed over", "from the queue"])
async def test_no_more_run_than_the_limit(is_fresh: bool) -> None:
    """Three of a group run at once, in two lanes together, however many slots there are; others go by."""
    async with engine_on(async_slots=20, thread_slots=5) as engine:
        now, most, go = [0], [0], asyncio.Event()

        @engine.task
        async def call(n: int) -> int:
            now[0] += 1
            most[0] = max(most[0], now[0])
            await go.wait()
            now[0] -= 1
            return n

        @engine.task
        def other(n: int) -> int:
            return n

        await engine.limit("tenant-a", concurrency=3)
        if not is_fresh:
            await engine.manager.pause()
        calls = await engine.map(call, range(20), group="tenant-a")
        others = await engine.map(other, range(5), group="tenant-a")
        free = await engine.submit(other, 7, group="tenant-b")
        if not is_fresh:
            await engine.manager.resume()
        assert await value(free) == 7
        await until(lambda: now[0] == 3)
        info = await calls[-1].info()
        assert (info.status, info.reason) == (TaskStatus.PENDING, "limit")
        assert (
            "Group tenant-a is at its limit: 3/3 are claimed or run; 16 of its tasks go first, and the next one starts"
            in await calls[-1].explain()
        )
        assert await engine.limits() == [GroupLimit(group="tenant-a", concurrency=3, held=3)]
        go.set()
        assert await engine.gather(calls) == list(range(20))
        assert await engine.gather(others) == list(range(5))
        assert most[0] <= 3


async def test_another_process_knows_the_limit(tmp_path: Path) -> None:
    """A limit that one engine sets holds in others on the same store, and after all of them are gone."""
    path = tmp_path / "work.db"
    async with engine_on(path, worker=False) as setter:
        await setter.limit("tenant-a", concurrency=1)
    async with engine_on(path) as worker, engine_on(path, worker=False) as setter:
        go = asyncio.Event()

        @worker.task
        async def call(n: int) -> int:
            await go.wait()
            return n

        handles = await worker.map(call, range(3), group="tenant-a")
        await shows(handles[0], status=TaskStatus.RUNNING)
        assert (await worker.manager.get_task(handles[1].id)).reason == "limit"
        await setter.limit("tenant-a")
        await shows(handles[2], status=TaskStatus.RUNNING)
        go.set()
        await asyncio.gather(*(value(handle) for handle in handles))


async def test_a_rate_is_kept_without_polling() -> None:
    """Who waits for a rate begins when it lets the next one, although nobody looks: the safety look is off."""
    async with engine_on(processing_interval=3600.0) as engine:
        began: list[float] = []

        @engine.task
        async def call(n: int) -> int:
            began.append(time.monotonic())
            return n

        await engine.limit("api", rate="2/400ms")
        handles = await engine.map(call, range(6), group="api")
        assert await engine.gather(handles) == list(range(6))
        assert began[-1] - began[0] > 0.75


async def test_explain_says_when_a_rate_lets_the_next_one() -> None:
    """With the rate in words and the seconds."""
    async with engine_on() as engine:

        @engine.task
        async def call(n: int) -> int:
            return n

        await engine.limit("tenant-a", rate="60/m")
        handles = await engine.map(call, range(70), group="tenant-a")
        await value(handles[59])
        said = await handles[-1].explain()
        found = re.fullmatch(
            r"Group tenant-a: 60 tasks a minute are used up; the next starts in (\d+\.\d) s; "
            r"\d of its tasks go first\.",
            said,
        )
        assert found is not None, said
        assert float(found[1]) <= 1.0


def test_the_blocking_face_has_them(tmp_path: Path) -> None:
    """Scripts set and list limits too."""
    engine = engine_on(tmp_path / "work.db")

    @engine.task
    async def call(n: int) -> int:
        return n

    with engine.sync as sync:
        sync.limit("a", concurrency=2, rate="3/h", namespace="x")
        assert sync.limits() == [GroupLimit(group="a", namespace="x", concurrency=2, held=0, rate="3/h", left=3)]
        assert sync.submit(call, 1, group="a", namespace="x").result(LIMIT_S) == 1
        sync.limit("a", namespace="x")
        assert sync.limits() == []
        sync.share(2, namespace="x")
        assert sync.limits() == [GroupLimit(group="", namespace="x", share=2.0)]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("group", {"group": ""}),
        ("group", {"group": "x" * 129}),
        ("group", {"group": 3}),
        ("namespace", {"group": "a", "namespace": ""}),
        ("concurrency", {"group": "a", "concurrency": 0}),
        ("concurrency", {"group": "a", "concurrency": 1.5}),
        ("concurrency", {"group": "a", "concurrency": True}),
        ("concurrency", {"group": "a", "concurrency": 10**12}),
        ("rate", {"group": "a", "rate": "60"}),
        ("rate", {"group": "a", "rate": 60}),
    ],
)
async def test_what_is_no_limit(field: str, arguments: dict[str, object]) -> None:
    """A mistake is told with its field and value, and nothing is set."""
    async with engine_on() as engine:
        with pytest.raises(InvalidInput) as caught:
            await engine.limit(**arguments)  # type: ignore[arg-type]
        assert caught.value.field == field
        assert await engine.limits() == []


async def test_a_tenant_is_not_kept_waiting_by_anothers_flood() -> None:
    """With a share each the small one is done long before the flood is."""
    async with engine_on(async_slots=2) as engine:
        done: list[str] = []

        @engine.task
        async def call(who: str) -> None:
            await asyncio.sleep(0)
            done.append(who)

        await engine.manager.pause()
        await engine.share(1, group="big")
        await engine.share(1, group="small")
        flood = await engine.map(call, ["big"] * 500, group="big")
        few = await engine.map(call, ["small"] * 5, group="small")
        await engine.manager.resume()
        await asyncio.gather(*(value(handle) for handle in [*flood, *few]))
        assert done.index("small") < 100
        assert len(done) - done[::-1].index("small") < 300


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("group", {"weight": 1}),
        ("group", {"weight": 1, "group": ""}),
        ("namespace", {"weight": 1, "namespace": 3}),
        ("weight", {"weight": 0, "group": "a"}),
        ("weight", {"weight": "2", "group": "a"}),
        ("weight", {"weight": float("nan"), "group": "a"}),
        ("weight", {"weight": True, "group": "a"}),
    ],
)
async def test_what_is_no_share(field: str, arguments: dict[str, object]) -> None:
    """A mistake is told with its field and value, and nothing is set."""
    async with engine_on() as engine:
        with pytest.raises(InvalidInput) as caught:
            await engine.share(**arguments)  # type: ignore[arg-type]
        assert caught.value.field == field
        assert await engine.limits() == []
