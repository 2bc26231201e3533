"""`queue_size` holds across processes, and the parts of one call enter in order, as many as there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from tests.conformance.kit import Factory, Port, new, opened, submit

from mainspring.errors import QueueFull, TaskNotFound
from mainspring.store.base import Behind, Line
from mainspring.store.pace import Pace
from mainspring.store.postgres.store import PostgresStore
from mainspring.tasks import TaskId

pytestmark = pytest.mark.anyio


async def test_a_line_takes_what_there_is_room_for(factory: Factory) -> None:
    """The first ones of a part enter; what comes behind it does not, also when there is room for it by then."""
    async with opened(factory.make(queue_size=10)) as store:
        port, line = Port(store, 3), Line()
        await port.serve()
        assert len(await store.submit([new() for _ in range(8)], line)) == 8
        part = [new() for _ in range(5)]
        assert [accepted.id for accepted in await store.submit(part, line)] == [task.id for task in part[:2]]
        for claim in list(port.held.values()):
            port.end(claim)
        await port.settle()
        with pytest.raises(Behind):
            await store.submit([new()], line)
        assert [one.id for one in await store.submit(part[2:], Line())] == [task.id for task in part[2:]]
        with pytest.raises(QueueFull, match="queue_size = 10"):
            await store.submit([new(), new()], Line())
        assert factory.contents().tasks.keys().isdisjoint({bytes(16)})
        assert factory.contents().violations == []


async def test_a_line_in_one_commit(factory: Factory) -> None:
    """Parts that share a transaction are no exception, whatever keeps one of them out."""
    async with opened(factory.make(queue_size=10)) as store:
        line, lone = Line(), Line()
        async with factory.together(store, 5):
            lot = [new() for _ in range(8)], [new(after=[TaskId().bytes])], [new()], [new() for _ in range(3)], [new()]
            calls = [
                asyncio.ensure_future(store.submit(tasks, where))
                for tasks, where in zip(lot, (line, line, line, lone, lone), strict=True)
            ]
        first, second, third, other, last = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, list)
        assert len(first) == 8
        assert isinstance(second, TaskNotFound)
        assert isinstance(third, Behind)
        assert isinstance(other, list)
        assert len(other) == 2
        assert isinstance(last, Behind)
        assert line.is_broken
        assert lone.is_broken


async def test_two_processes_keep_within_the_limit_together(factory: Factory) -> None:
    """However their submits meet: what is stored is what was accepted, and never more than queue_size."""
    async with opened(factory.make(queue_size=40)) as one, opened(factory.make(queue_size=40)) as two:

        async def flood(store: Any) -> int:
            stored = 0
            for _ in range(60):
                with contextlib.suppress(QueueFull):
                    stored += len(await store.submit([new()]))
            return stored

        assert sum(await asyncio.gather(*(flood(store) for store in (one, one, two, two)))) == 40
        assert len(factory.states()) == 40


async def test_each_process_has_a_limit_of_its_own(factory: Factory) -> None:
    """It is held against what all have submitted: who has a lower one gives way, and keeps nobody else out."""
    async with opened(factory.make(queue_size=3)) as few, opened(factory.make(queue_size=10)) as many:
        await submit(few, new())
        await submit(many, *(new() for _ in range(6)))
        with pytest.raises(QueueFull, match="whoever submitted them, more than queue_size = 3 of this process"):
            await few.submit([new()])
        ids = await submit(many, *(new() for _ in range(3)))
        with pytest.raises(QueueFull, match="more than queue_size = 10 of this process"):
            await many.submit([new()])
        async with opened(factory.make()) as unbounded:
            ids += await submit(unbounded, *(new() for _ in range(5)))
        for id in ids:
            await many.cancel(id)
        with pytest.raises(QueueFull):
            await few.submit([new()])
        await submit(many, new())


async def test_a_submit_waits_for_one_that_may_fill_the_queue(factory: Factory) -> None:
    """Of two processes that together store too many the second one counts what the first one has not committed yet."""
    async with opened(factory.make(queue_size=10)) as one, opened(factory.make(queue_size=10)) as two:
        if not isinstance(one, PostgresStore):
            pytest.skip("a file has one writer at a time")
        reached, go = asyncio.Event(), threading.Event()
        loop, commit = asyncio.get_running_loop(), one._writer._commit

        def late(tx: Any) -> None:
            if tx.tally:
                loop.call_soon_threadsafe(reached.set)
                go.wait(60)
            commit(tx)

        one._writer._commit = late  # type: ignore[method-assign]
        for few, many in ((4, 7), (7, 4)):  # each of them is what may make it too many
            reached.clear()
            go.clear()
            going = [asyncio.ensure_future(submit(one, *(new() for _ in range(few))))]
            await reached.wait()
            going.append(asyncio.ensure_future(submit(two, *(new() for _ in range(many)))))
            await asyncio.wait(going[1:], timeout=0.3)
            go.set()
            ids = await going[0]
            assert len(ids) == few
            with pytest.raises(QueueFull, match="11 tasks would be unfinished"):
                await going[1]
            for id in ids:
                await two.cancel(id)


async def test_when_to_come_back(factory: Factory) -> None:
    """A refusal tells how long as many ends take as are missing, at the pace at which tasks end."""
    async with opened(factory.make(queue_size=4)) as store:
        port = Port(store, 10)
        await port.serve()
        with pytest.raises(QueueFull) as caught:
            await store.submit([new() for _ in range(5)])
        assert caught.value.retry_after == 1.0  # nothing is known: when the next look is due
        factory.clock.advance(2)
        await submit(store, new(), new(), new(), new())
        await port.run_all()
        with pytest.raises(QueueFull) as caught:
            await store.submit([new() for _ in range(10)])
        assert caught.value.retry_after == pytest.approx(3.0)  # 4 in 2 s: 6 in 3
        assert (caught.value.field, caught.value.value) == ("queue_size", 4)


async def test_ends_are_told_wherever_they_come(factory: Factory) -> None:
    """To the process that ends tasks, and to the others."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        told: dict[str, list[int]] = {"one": [], "two": []}
        heard = asyncio.Event()
        one.when_ended(told["one"].append)

        def hear(ended: int) -> None:
            told["two"].append(ended)
            if ended:
                heard.set()

        two.when_ended(hear)
        ids = await submit(one, new(), new())
        async with factory.together(one, 2):
            ends = [asyncio.ensure_future(one.cancel(id)) for id in ids]
        await asyncio.gather(*ends)
        async with asyncio.timeout(60):
            await heard.wait()
        assert 2 in told["one"]
        assert 2 in told["two"]


def test_the_pace() -> None:
    """Ends a second, of the last seconds; after a while without any nothing is known."""
    pace = Pace(100.0, 1.0)
    assert pace.seconds_for(7, 100.0) == 1.0
    assert Pace(100.0, 3600.0).seconds_for(7, 100.0) == 30.0  # whoever looks once an hour need not wait so long
    pace.add(10, 100.2)
    assert pace.rate(100.2) == 10  # at most as if they had taken a second
    assert pace.rate(102.0) == 5
    pace.add(10, 104.0)
    assert pace.rate(104.0) == 5
    pace.add(0, 105.0)  # a new window
    assert pace.rate(105.0) == pytest.approx(4)
    assert pace.rate(107.5) == pytest.approx(2)
    assert pace.rate(120.0) == 0
    assert pace.seconds_for(7, 120.0) == 1.0
