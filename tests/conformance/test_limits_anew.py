"""Limits that are taken off and set again: what was used of rates and costs is forgotten, and earlier claims have to do
with none of what is set then. What is held is counted all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conformance.kit import OTHER, Factory, Port, new, opened, submit
from tests.conformance.test_costs import MINUTE, RATE, costing, end, look

from mainspring.store.base import RELEASED
from mainspring.tasks import GroupLimit, Rate

pytestmark = pytest.mark.anyio

WRONG = 1e12
PER_MINUTE = Rate(5, MINUTE)


async def only(store: Any) -> GroupLimit:
    (limit,) = await store.limits()
    assert isinstance(limit, GroupLimit)
    return limit


async def set_anew(store: Any, **rest: Any) -> None:
    """Take all off but the rest, and set it again, in one commit: nobody sees the time between."""
    limit = {"cost_rate": RATE, "rate": PER_MINUTE, "concurrency": 5}
    await asyncio.gather(store.limit("a", **rest), store.limit("a", **limit))


@pytest.mark.parametrize("rest", [{}, {"concurrency": 5}, {"concurrency": 5, "rate": PER_MINUTE}])
async def test_a_wrong_cost_is_forgiven(store: Any, port: Port, rest: dict[str, Any]) -> None:
    """A debt is forgotten once the cost rate is taken off, whatever else stays; what waits begins at once. A rate that
    stays knows what it let begin."""
    await store.limit("a", cost_rate=RATE, rate=PER_MINUTE, concurrency=5)
    await submit(store, costing(1_000))
    await end(port, await port.take(), WRONG)
    await submit(store, costing(1_500))
    assert await port.room(1) == []
    assert (await only(store)).cost_left == RATE.n - WRONG
    await set_anew(store, **rest)
    await port.until(lambda: len(port.order) == 2)
    limit = await only(store)
    assert (limit.cost_left, limit.left) == (4_500, 3 if "rate" in rest else 4)


async def test_setting_it_again_forgives_nothing(store: Any, port: Port) -> None:
    """As long as it was not taken off."""
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(1_000))
    await end(port, await port.take(), 9_000)
    await store.limit("a", cost_rate=RATE, concurrency=3)
    assert (await only(store)).cost_left == -3_000


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another process", "this process"])
async def test_earlier_claims_have_to_do_with_nothing_anew(factory: Factory, elsewhere: bool) -> None:
    """What was claimed before neither gives back to the new limit nor is charged to it, whatever it says and however
    it ends, also where its process never saw the limit off; what is claimed since does both."""
    async with opened(factory.make()) as store, opened(factory.make()) as other:
        port = Port(store, 0)
        await port.serve()
        await store.limit("a", cost_rate=RATE, rate=PER_MINUTE, concurrency=5)
        await submit(store, *(costing(1_000) for _ in range(4)))
        early = await port.room(4)
        await set_anew(other if elsewhere else store)
        await submit(store, costing(2_000))
        (late,) = await port.room(1)
        for claim, cost in zip(early, (0, WRONG), strict=False):
            await end(port, claim, cost)
        assert await store.withdraw(early[2])
        await store.pause()  # or it is claimed again
        await port.finish(early[3], RELEASED, is_counted=False)
        limit = await only(store)
        assert (limit.cost_left, limit.left, limit.held) == (4_000, 4, 1)
        await port.finish(late, RELEASED, is_counted=False)
        limit = await only(store)
        assert (limit.cost_left, limit.left, limit.held) == (6_000, 5, 0)
        assert store._memory.limits.reserved == {}
        assert factory.contents().violations == []


async def test_a_cost_rate_that_stays_settles_what_it_reserved(store: Any, port: Port) -> None:
    """Taking the other rate off changes nothing of it."""
    await store.limit("a", cost_rate=RATE, rate=PER_MINUTE)
    await submit(store, *(costing(1_000) for _ in range(2)))
    one, two = await port.room(2)
    await store.limit("a", cost_rate=RATE)
    await end(port, one, 4_000)
    assert (await only(store)).cost_left == 1_000
    await store.limit("a", cost_rate=RATE, rate=PER_MINUTE)
    await end(port, two, 0)
    limit = await only(store)
    assert (limit.cost_left, limit.left) == (2_000, 3)


async def test_what_runs_keeps_its_place(store: Any, port: Port) -> None:
    """Who is held is counted over the tasks themselves: rates that come and go forget none of them."""
    limit = {"concurrency": 2, "cost_rate": RATE, "rate": PER_MINUTE}
    await store.limit("a", **limit)
    await submit(store, *(costing(1) for _ in range(4)))
    assert len(await port.room(4)) == 2
    for rates in ({"concurrency": 2}, limit, {}, limit):
        await store.limit("a", **rates)
        await look(store, port)
        begun = 2 if rates else 4
        assert (await store.stats())["running"] == 0
        assert len(port.order) >= begun
    assert (await only(store)).held == len(port.order) == 4


@pytest.mark.parametrize("forgets", [True, False], ids=["after an outage", "at once"])
@pytest.mark.parametrize("by", ["cost_rate", "rate", "concurrency"])
async def test_whoever_waited_hears_of_it(factory: Factory, by: str, forgets: bool) -> None:
    """What waits for a limit that another process takes off and sets anew begins as soon as that lets it, whatever it
    waited for; also where its process has had to read all limits anew since."""
    async with opened(factory.make()) as one, opened(factory.make()) as other:
        port = Port(one, 0)
        await port.serve()
        small: Any = {"cost_rate": RATE, "rate": Rate(2, 3_600_000), "concurrency": 2, by: None}
        small[by] = {"cost_rate": RATE, "rate": Rate(1, 3_600_000), "concurrency": 1}[by]
        await one.limit("a", **small)
        await submit(one, costing(6_000 if by == "cost_rate" else 1), costing(1))
        assert len(await port.room(2)) == 1
        assert await port.room(1) == []  # what is left waits for the limit now
        if forgets:
            one._memory.limits.forget()
        await set_anew(other)
        await port.until(lambda: len(port.order) == 2)


async def test_a_share_keeps_its_turns(store: Any, port: Port) -> None:
    """A group whose rates come and go has no turn more than others for it."""
    await store.share(group="a", weight=1.0)
    await store.share(group="b", weight=1.0)
    await submit(store, *(new(group=group) for _ in range(20) for group in "ab"))
    for _ in range(10):
        for rate in (PER_MINUTE, None):
            await store.limit("a", rate=rate)
        await port.finish(await port.take())
    taken = [claim.class_key[2] for claim in port.order]
    assert taken.count("a") == taken.count("b") == 5


async def test_a_number_is_nobody_elses(store: Any, port: Port) -> None:
    """The newest limit that is set anew gets a number that none had before it, as those have that come after it."""
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(1_000))
    claim = await port.take()
    await store.limit("a")
    await store.limit("b", cost_rate=RATE)
    await store.limit("a", cost_rate=RATE)
    await submit(store, costing(2_000, group="b", type=OTHER), costing(2_000))
    await end(port, claim, WRONG)
    assert sorted(limit.cost_left or 0 for limit in await store.limits()) == [6_000, 6_000]
