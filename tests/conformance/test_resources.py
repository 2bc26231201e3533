"""What a worker takes no more of, and what it says of tasks that lack resources."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, error, new, opened, submit

from mainspring.store.base import RETRY, SHORT
from mainspring.tasks import TaskId

pytestmark = pytest.mark.anyio
LIMIT_S = 30.0


async def test_withheld_types_are_not_claimed(store: Any, port: Port) -> None:
    """Neither those that are stored already nor new ones; others are, whatever stands before them."""
    (first,) = await submit(store, new())
    lane = port.lanes["async"]
    lane.withheld = frozenset({WORK})
    (second,) = await submit(store, new(type=OTHER))
    assert [claim.id for claim in await port.room(10)] == [second]
    (third,) = await submit(store, new())
    lane.withheld = frozenset()
    store.look_anew()
    await port.until(lambda: {first, third} <= port.held.keys())


async def test_what_is_said_of_tasks(factory: Factory, store: Any, port: Port) -> None:
    """Of claims by whoever holds them; of ready ones where all that could take them have said why they don't."""
    await store.register([WORK], [])
    (claimed,) = await submit(store, new())
    await port.room(1)
    port.lanes["async"].limit = 0
    (ready,) = await submit(store, new())
    text = {"waits": {str_of(claimed): "needs more"}, "withheld": {WORK: 3}}
    await says(store, claimed, [("waits", "needs more")], text)
    assert (await store.standing(claimed)).reason == "resources"
    await says(store, ready, [("withheld", "3")], text)
    await says(store, ready, [("never", "needs too much")], {"never": {str_of(ready): "needs too much"}})
    await says(store, ready, [("closed", "it is full")], {"closed": "it is full"})
    async with opened(factory.make()) as beside:
        await beside.register([WORK], [])
        assert (await store.standing(ready)).reason == "ready"  # that one may take it
        await says(beside, ready, [("closed", "it is full"), ("never", "no")], {"never": {str_of(ready): "no"}})
    assert [one.how for one in (await store.standing(ready)).shortages] == ["closed"]  # it has gone
    await says(store, ready, [], None)
    assert (await store.standing(ready)).reason == "ready"


async def test_who_was_short_of_memory_is_known_by_it(store: Any, port: Port) -> None:
    """The flag comes with the next claim, in whatever worker."""
    await submit(store, new())
    claim = await port.take()
    assert not claim.flags & SHORT
    port.end(claim, RETRY, error=error(), flags=SHORT)
    await port.until(lambda: len(port.order) == 2)
    assert port.order[1].flags & SHORT
    await port.finish(port.order[1])


def str_of(id: bytes) -> str:
    return str(TaskId(id))


async def says(store: Any, id: bytes, wanted: list[tuple[str, str]], text: Any) -> None:
    """Leave word, and wait until it is read so."""
    store.offer(b"" if text is None else msgspec.json.encode(text))
    async with asyncio.timeout(LIMIT_S):
        while [(one.how, one.why) for one in (await store.standing(id)).shortages] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
