"""What a batch handler's functions may get wrong: it costs the task whose item it was, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import apsw
import numpy as np
import pytest
from tests.dispatch import batched
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Batch, Custom, InvalidInput, ProcessingFailed, Task, TaskType
from mainspring.dispatch.gathering import Gathering
from mainspring.errors import InternalError
from mainspring.processors.custom import HandlerProcessor
from mainspring.store.base import Claimed
from mainspring.tasks import Work

pytestmark = pytest.mark.anyio


class Sly:
    """Can be hashed, and not be compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison")


def of(kind: str, **arguments: Any) -> Task:
    return Task(task_type=TaskType.custom(kind), input=Custom(arguments))


@pytest.mark.parametrize("shape", [lambda _: [1], np.zeros, lambda _: {"a": 1}])
async def test_any_value_is_a_shape(shape: Callable[[Any], Any]) -> None:
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(max_wait=3600, max_size=2, shape=shape))
        async def pairs(items: list[int]) -> list[int]:
            return [len(items)] * len(items)

        handles = await engine.map(pairs, [3, 3])
        assert [await handle.result(timeout=LIMIT_S) for handle in handles] == [2, 2]


@pytest.mark.parametrize("shape", [lambda _: Sly(), lambda _: object(), lambda _: 1 / 0])
async def test_what_is_no_shape_fails_its_task(shape: Callable[[Any], Any]) -> None:
    """Those that were claimed in the same commit run, and those that come later."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(shape=shape), retry=0)
        async def bad(items: list[int]) -> list[int]:
            return items

        @engine.task
        async def other(n: int) -> int:
            return n

        tasks = [of("bad", items=1), of("other", n=2), of("bad", items=3), of("other", n=4)]
        handles = await engine.submit_all(tasks)
        for n in (0, 2):
            with pytest.raises((InvalidInput, ProcessingFailed)):
                await handles[n].result(timeout=LIMIT_S)
        assert [await handles[n].result(timeout=LIMIT_S) for n in (1, 3)] == [2, 4]
        assert await (await engine.submit(other, 5)).result(timeout=LIMIT_S) == 5


class Panic(BaseException):
    """As what native code raises is, which is no Exception."""


def out(n: int, kind: type[BaseException]) -> int:
    if n == 3:
        raise kind("out")
    return 1


@dataclass
class Picky:
    n: int
    kind: ClassVar[type[BaseException]] = Panic

    def __post_init__(self) -> None:
        out(self.n, self.kind)


BASE = [Panic, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, RuntimeError]


@pytest.mark.parametrize("kind", BASE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("asked", ["cost", "shape", "type"])
async def test_whatever_is_raised_for_an_item_fails_it_alone(asked: str, kind: type[BaseException]) -> None:
    """Also what would end a program, or is no Exception, as a panic of a tokenizer: all claimed with it runs."""
    policies = {
        "cost": Batch(max_cost=9, cost=lambda doc: out(doc["n"], kind)),
        "shape": Batch(shape=lambda doc: out(doc["n"], kind)),
        "type": Batch(max_cost=9, cost=lambda doc: doc.n),
    }
    Picky.kind = kind
    async with engine_on(async_slots=1) as engine:

        async def read(docs: list[Any]) -> list[Any]:
            return [doc.n if isinstance(doc, Picky) else doc["n"] for doc in docs]

        if asked == "type":
            read.__annotations__["docs"] = list[Picky]
        engine.task(batch=policies[asked], retry=0)(read)

        @engine.task
        async def parent(n: int) -> Any:
            return {"n": n}

        @engine.task
        def other(n: int) -> int:
            return n

        parents = await engine.map(parent, range(1, 5))
        await engine.gather(parents)
        tasks = [task for one in parents for task in (engine.build(read, (one,), {}), engine.build(other, (5,), {}))]
        handles = await engine.submit_all(tasks)
        with pytest.raises(InvalidInput, match=rf"read .*raised {kind.__name__} for .*: out; "):
            await handles[4].result(timeout=LIMIT_S)
        rest = [await handle.result(timeout=LIMIT_S) for n, handle in enumerate(handles) if n != 4]
        assert rest == [1, 5, 2, 5, 5, 4, 5]
        later = await engine.submit(read, parents[0])
        assert await later.result(timeout=LIMIT_S) == 1


async def test_a_desk_that_fails_costs_its_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours there is told as such, and what was claimed in the same commit runs."""

    def wrong(self: Gathering, claims: list[Claimed]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Gathering, "put", wrong)
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(), retry=0)
        async def same(items: list[int]) -> list[int]:
            return items

        @engine.task
        def other(n: int) -> int:
            return n

        tasks = [engine.build(function, (n,), {}) for n in range(70) for function in (same, other)]
        handles = await engine.submit_all(tasks)
        late = await engine.submit(other, 1, delay=0.01)
        for handle in handles[::2]:
            with pytest.raises(InternalError, match="the engine failed around it with RuntimeError: a bug"):
                await handle.result(timeout=LIMIT_S)
        assert [await handle.result(timeout=LIMIT_S) for handle in handles[1::2]] == list(range(70))
        assert await late.result(timeout=LIMIT_S) == 1


async def test_many_bad_items_take_no_room() -> None:
    """However many were refused as they were claimed, as many as ever are claimed after them."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(max_size=2, shape=lambda n: 1 / n), retry=0)
        async def inverse(items: list[int]) -> list[float]:
            return [1 / n for n in items]

        handles = await engine.map(inverse, [0] * 40 + [1, 2, 4])
        for handle in handles[:40]:
            with pytest.raises(InvalidInput, match="division by zero"):
                await handle.result(timeout=LIMIT_S)
        assert [await handle.result(timeout=LIMIT_S) for handle in handles[40:]] == [1, 0.5, 0.25]


async def test_no_key_of_one_claim_costs_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a processor calls equal: where that can't be used, the task it was of fails."""
    real = HandlerProcessor.join

    def join(self: HandlerProcessor, work: Work) -> tuple[Hashable, float]:
        key, cost = real(self, work)
        return ([key] if b"bad" in work.input else key), cost  # type: ignore[return-value]

    monkeypatch.setattr(HandlerProcessor, "join", join)
    async with engine_on(async_slots=1) as engine:

        @engine.task(batch=Batch(), retry=0)
        async def same(items: list[str]) -> list[str]:
            return items

        handles = await engine.map(same, ["bad", "a", "b"])
        with pytest.raises(ProcessingFailed, match="unhashable"):
            await handles[0].result(timeout=LIMIT_S)
        assert [await handle.result(timeout=LIMIT_S) for handle in handles[1:]] == ["a", "b"]


async def lengths(texts: list[str]) -> list[int]:
    return batched.lengths(texts)


@pytest.mark.parametrize("lane", ["async", "thread", "process"])
async def test_a_stored_item_that_can_not_be_read_fails_alone(tmp_path: Path, lane: Any) -> None:
    """Those beside it have their own results."""
    path = tmp_path / "work.db"
    function: Any = lengths if lane == "async" else batched.lengths
    async with engine_on(path, worker=False) as engine:
        engine.task(lane=lane, batch=Batch(), retry=0)(function)
        handles = await engine.map(function, ["a", "bb", "ccc"])
        ids = [handle.id for handle in handles]
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE task SET input = x'c1' WHERE id = ?", (ids[1].bytes,))
    async with engine_on(path) as engine:
        engine.task(lane=lane, batch=Batch(), retry=0)(function)
        first, bad, last = [engine.handle(id) for id in ids]
        assert [await handle.result(timeout=LIMIT_S) for handle in (first, last)] == [1, 3]
        with pytest.raises(InvalidInput, match="the stored input can't be read"):
            await bad.result(timeout=LIMIT_S)
