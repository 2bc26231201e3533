"""Limits of groups by cost as users have them: said at submit or declared, settled by the handler, told by figures."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engine import process_work
from tests.engine.support import LIMIT_S, SOON, engine_on, value

from mainspring import (
    Batch,
    Context,
    Custom,
    Engine,
    GroupLimit,
    InvalidInput,
    ProcessingFailed,
    Task,
    TaskHandle,
    TaskType,
)

pytestmark = pytest.mark.anyio


async def left(engine: Engine) -> float:
    """What is left of a limit that fills by less than one while a test runs."""
    (limit,) = await engine.limits()
    assert limit.cost_left is not None
    return float(round(limit.cost_left))


@pytest.mark.parametrize("lane", ["async", "waiting", "thread", "process"])
async def test_a_handler_settles_in_every_lane(tmp_path: Path, lane: str) -> None:
    """What it says last counts in place of the estimate, also where it fails then."""
    async with engine_on(tmp_path / "work.db") as engine:
        await engine.limit("api", cost_rate="1000/d")
        if lane == "process":
            handler: Any = engine.task(lane="process", retry=0)(process_work.spend)
        elif lane == "thread":

            @engine.task(retry=0)
            def handler(cost_is: float, ctx: Context) -> float:
                ctx.usage(cost=1)
                process_work.spend(cost_is, ctx)
                if cost_is == 50:
                    raise ValueError("after the fact")
                return cost_is
        else:

            @engine.task(retry=0)
            async def handler(cost_is: float, ctx: Context) -> float:
                ctx.usage(cost=1)
                if lane == "waiting":
                    await asyncio.sleep(0)
                return process_work.spend(cost_is, ctx)

        assert await value(await engine.submit(handler, 300, group="api", cost=400)) == 300
        assert await left(engine) == 700
        if lane == "thread":
            with pytest.raises(ProcessingFailed):
                await value(await engine.submit(handler, 50, group="api", cost=1))
            assert await left(engine) == 650
        assert await value(await engine.submit(handler, 900, group="api")) == 900
        assert await left(engine) == (-250 if lane == "thread" else -200)


async def test_what_a_handler_says_that_is_no_cost(tmp_path: Path) -> None:
    """It fails at once, with the field, and its estimate stays taken."""
    async with engine_on(tmp_path / "work.db") as engine:
        await engine.limit("api", cost_rate="1000/d")

        @engine.task(retry=SOON)
        async def wrong(ctx: Context) -> None:
            ctx.usage(cost=-1)

        handle = await engine.submit(wrong, group="api", cost=10)
        with pytest.raises(InvalidInput, match="cost = -1: is no cost"):
            await value(handle)
        assert len((await handle.info()).attempts) == 1
        assert await left(engine) == 990


async def test_a_retry_reserves_again(tmp_path: Path) -> None:
    """Each attempt is charged by itself."""
    async with engine_on(tmp_path / "work.db") as engine:
        await engine.limit("api", cost_rate="1000/d")

        @engine.task(retry=SOON)
        async def second_time(ctx: Context) -> int:
            if ctx.retry_count == 0:
                raise ValueError("not yet")
            ctx.usage(cost=30)
            return ctx.retry_count

        assert await value(await engine.submit(second_time, group="api", cost=100)) == 1
        assert await left(engine) == 870


async def test_what_a_task_is_to_cost(tmp_path: Path) -> None:
    """The call says it, else the declaration: a number, or a function of the arguments; a ready task has it too, and a
    child; without a group nothing is asked."""
    asked: list[Any] = []

    def tokens(prompt: str, more: int = 5) -> int:
        asked.append(prompt)
        return len(prompt) + more

    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task(cost=tokens)
        async def chat(prompt: str, more: int = 5) -> str:
            return prompt

        @engine.task(cost=7)
        async def fixed(ctx: Context) -> Any:
            return ctx.submit(chat, "child", group="api")

        async def cost_of(handle: TaskHandle) -> float | None:
            return (await handle.info()).task.cost

        assert await cost_of(await engine.submit(chat, "abc", group="api")) == 8
        assert await cost_of(await engine.submit(chat, "abc", more=0, group="api")) == 3
        assert await cost_of(await engine.submit(chat, "abc", group="api", cost=2.5)) == 2.5
        assert await cost_of(await engine.submit(chat, "abc")) is None
        mapped = await engine.map(chat, ["a", "bb"], group="api", metadata={"x": "y"})
        assert [await cost_of(handle) for handle in mapped] == [6, 7]
        ready = Task(task_type=TaskType.custom("chat"), input=Custom({"prompt": "abcd"}), group="api")
        assert await cost_of(await engine.submit(ready)) == 9
        assert await cost_of(await engine.submit(msgspec.structs.replace(ready, id=type(ready.id)(), cost=1))) == 1
        assert await cost_of(await engine.submit(chat, await engine.submit(chat, "x"), group="api")) is None
        parent = await engine.submit(fixed, group="api")
        assert await cost_of(parent) == 7
        assert await value(parent) == "child"
        assert asked == ["abc", "abc", "a", "bb", "abcd", "child"]


async def test_who_has_no_code_knows_a_declared_number(tmp_path: Path) -> None:
    """A submitter without the handler takes the number that its worker declared."""
    worker = engine_on(tmp_path / "work.db")

    @worker.task(name="chat", cost=40)
    async def chat(prompt: str) -> str:
        return prompt

    async with worker, engine_on(tmp_path / "work.db", worker=False) as submitter:
        task = Task(task_type=TaskType.custom("chat"), input=Custom({"prompt": "x"}), group="api")
        assert (await (await submitter.submit(task)).info()).task.cost == 40


async def test_items_of_a_batch_reserve_their_own(tmp_path: Path) -> None:
    """A call takes the items that can be afforded; what each is to cost stays taken, as nobody says what it did."""
    async with engine_on(tmp_path / "work.db") as engine:
        calls: list[list[str]] = []

        @engine.task(batch=Batch(max_size=10, max_wait="5ms"), cost=len)
        async def embed(text: list[str]) -> list[int]:
            calls.append(text)
            return [len(item) for item in text]

        await engine.limit("api", cost_rate="100/d")
        handles = await engine.map(embed, ["x" * 30] * 5, group="api")
        assert [await value(handle) for handle in handles[:3]] == [30] * 3
        assert await left(engine) == 10
        assert sum(map(len, calls)) == 3
        assert (await handles[3].info()).reason == "limit"


async def test_too_much_is_refused_with_its_figures(tmp_path: Path) -> None:
    """Where the limit is known, before anything is stored, also in the middle of many."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task
        async def chat(n: int) -> int:
            return n

        await engine.limit("api", cost_rate="1,000/m")
        with pytest.raises(InvalidInput) as caught:
            await engine.submit(chat, 1, group="api", cost=1_001)
        assert (caught.value.field, caught.value.value) == ("cost", 1_001)
        assert "cost = 1001 is more than group 'api' may use at once (cost_rate 1000/m)" in str(caught.value)
        assert (await engine.manager.stats())["types"] == {}
        assert await value(await engine.submit(chat, 1, cost=1_001)) == 1


async def test_a_child_is_never_refused(tmp_path: Path) -> None:
    """What made it is done: it runs when all is there that can be, and leaves a debt."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task
        async def child() -> str:
            return "done"

        @engine.task
        async def parent(ctx: Context) -> Any:
            return ctx.submit(child, group="api", cost=1_500)

        await engine.limit("api", cost_rate="1000/d")
        assert await value(await engine.submit(parent)) == "done"
        assert await left(engine) == -500


async def test_a_wrong_cost_is_forgiven(tmp_path: Path) -> None:
    """As docs/limits.md has it: who waits is told how, and begins; what runs all the while is charged to nobody."""
    async with engine_on(tmp_path / "work.db") as engine:
        runs, goes_on = asyncio.Event(), asyncio.Event()

        @engine.task
        async def chat(cost_is: float, ctx: Context) -> float:
            ctx.usage(cost=cost_is)
            return cost_is

        @engine.task
        async def slow(cost_is: float, ctx: Context) -> float:
            runs.set()
            await goes_on.wait()
            return process_work.spend(cost_is, ctx)

        await engine.limit("openai", rate="500/m", cost_rate="1000/d")
        running = await engine.submit(slow, 1e12, group="openai")
        await runs.wait()
        await value(await engine.submit(chat, 1e12, group="openai"))
        waiting = await engine.submit(chat, 100, group="openai", cost=100)
        assert "(if that is wrong, take the cost rate off and set it again); the next starts in" in (
            await waiting.explain()
        )
        await engine.manager.pause(group="openai")
        await engine.limit("openai", rate="500/m")
        await engine.limit("openai", rate="500/m", cost_rate="1000/d")
        await engine.manager.resume(group="openai")
        await value(waiting)
        goes_on.set()
        await value(running)
        assert await left(engine) == 900


async def test_explain_says_what_is_left(tmp_path: Path) -> None:
    """With the figures of the cost, what the next one needs, and the seconds; in debt, how deep."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task
        async def chat(cost_is: float, ctx: Context) -> float:
            return process_work.spend(cost_is, ctx)

        await engine.limit("openai", cost_rate="90000/h")
        await value(await engine.submit(chat, 89_000, group="openai", cost=80_000))
        first, second = [await engine.submit(chat, 1, group="openai", cost=5_000) for _ in range(2)]
        found = re.fullmatch(
            r"Group openai: of 90,000 cost an hour 1,0\d\d are left and the next one needs 5,000; the next starts in "
            r"(1[56]\d\.\d) s; 1 of its tasks goes first\.",
            said := await second.explain(),
        )
        assert found is not None, said
        assert (await first.info()).reason == "limit"
        await first.cancel()
        await second.cancel()
        await value(await engine.submit(chat, 3_000, group="openai", cost=100))
        third = await engine.submit(chat, 1, group="openai", cost=0)
        assert re.fullmatch(
            r"Group openai: 90,000 cost an hour are used up, and (1,9\d\d|2,000) more; the next starts in "
            r"[78]\d\.\d s; 0 of its tasks go first\.",
            said := await third.explain(),
        ), said


async def test_who_waits_begins_without_polling(tmp_path: Path) -> None:
    """At the moment when what it needs is there, although nobody looks: the safety look is off."""
    async with engine_on(tmp_path / "work.db", processing_interval=3600.0) as engine:

        @engine.task
        async def chat(n: int) -> int:
            return n

        await engine.limit("api", cost_rate="100/500ms")
        handles = [await engine.submit(chat, n, group="api", cost=60) for n in range(4)]
        assert [await value(handle) for handle in handles] == [0, 1, 2, 3]


def test_the_blocking_face_has_it(tmp_path: Path) -> None:
    """Scripts set and list it too."""
    engine = engine_on(tmp_path / "work.db")

    @engine.task
    def chat(cost_is: float, ctx: Context) -> float:
        return process_work.spend(cost_is, ctx)

    with engine.sync as sync:
        sync.limit("a", cost_rate="90000/d")
        assert sync.limits() == [GroupLimit(group="a", cost_rate="90000/d", cost_left=90_000)]
        assert sync.submit(chat, 90_000, group="a", cost=1).result(LIMIT_S) == 90_000
        (limit,) = sync.limits()
        assert limit.cost_left is not None
        assert limit.cost_left < 10


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "12", True, 1e18])
async def test_what_is_no_cost(tmp_path: Path, wrong: Any) -> None:
    """At submit, in a declaration and of what its function says; the same name and value each time."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task(cost=lambda n: wrong)
        async def chat(n: int) -> int:
            return n

        for submit in (
            lambda: engine.submit(chat, 1, cost=wrong),
            lambda: engine.submit(chat, 1, group="a"),
            lambda: engine.map(chat, [1], group="a"),
            lambda: engine.submit(
                Task(task_type=TaskType.custom("chat"), input=Custom({"n": 1}), group="a", cost=wrong)
            ),
        ):
            with pytest.raises(InvalidInput) as caught:
                await submit()
            assert caught.value.field == "cost"
        with pytest.raises(InvalidInput) as caught:
            engine.task(cost=wrong)(process_work.double)
        assert caught.value.field == "cost"
        assert (await engine.manager.stats())["types"] == {}


@pytest.mark.parametrize("wrong", ["90000", "0/m", "x/m", 90_000, "2000000000000/m"])
async def test_what_is_no_cost_rate(wrong: Any) -> None:
    """A mistake is told with its field, and nothing is set."""
    async with engine_on() as engine:
        with pytest.raises(InvalidInput) as caught:
            await engine.limit("a", cost_rate=wrong)
        assert caught.value.field == "cost_rate"
        assert await engine.limits() == []


async def test_a_bug_in_what_tells_a_cost(tmp_path: Path) -> None:
    """The submit is refused with the name of the function, what it raised and for what, whatever that was."""
    async with engine_on(tmp_path / "work.db") as engine:

        @engine.task(cost=lambda n: 1 // n)
        async def inverse(n: int) -> int:
            return n

        for submitting in (
            lambda: engine.submit(inverse, 0, group="g"),
            lambda: engine.map(inverse, [0], group="g"),
        ):
            with pytest.raises(InvalidInput, match=r"cost of inverse raised ZeroDivisionError for .*n.*0") as caught:
                await submitting()
            assert caught.value.field == "cost"
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
