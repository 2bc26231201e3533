"""Processes on one file whose wall clocks differ: they hand over by one order all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import AGEING_MS, Port, SqliteFactory, new, opened, submit

pytestmark = pytest.mark.anyio
DAY = 86_400.0


@pytest.fixture
def factory(tmp_path: Path) -> SqliteFactory:
    return SqliteFactory(tmp_path)


def ids(claims: list[Any]) -> list[bytes]:
    return [claim.id for claim in claims]


async def serving(store: Any) -> Port:
    port = Port(store)
    await port.serve()
    return port


async def test_two_clocks_at_once(factory: SqliteFactory) -> None:
    """While a process with a wrong clock works beside one with the right one, tasks go in the order of submission."""
    async with (
        opened(factory.make()) as right,
        opened(factory.make(env=factory.clock.beside(DAY))) as fast,
        opened(factory.make(env=factory.clock.beside(-DAY))) as slow,
    ):
        port = await serving(right)
        sent = []
        for store in (right, fast, right, slow, fast, slow, right, slow):
            factory.clock.advance(0.25)
            sent += await submit(store, new())
        assert ids(await port.room(len(sent))) == sent


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0004, 0.5, 30.0, 70.0, 300.0]),  # seconds since the one before
        st.sampled_from([0.0, 0.0, 0.0, DAY, -DAY, 90.0, -90.0, 0.05]),  # the wall clock steps by this
        st.integers(0, 1),  # in this process, which then submits
        st.integers(0, 3),  # with this priority
        st.booleans(),  # and starts anew before
    ),
    min_size=2,
    max_size=20,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=EVENTS, ahead=st.sampled_from([0.0, DAY, -DAY]))
async def test_one_order_whatever_the_clocks_do(
    events: list[Any], ahead: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two processes whose wall clocks differ and jump hand over by one rank: base - priority * A, where base is a clock
    that follows the wall clock forward and goes on by itself where that goes back; and it never runs ahead of what time
    and the most advanced wall clock can account for."""
    factory = SqliteFactory(Path(tmp_path_factory.mktemp("order")))
    clocks = [factory.clock, factory.clock.beside(ahead)]
    stores: list[Any] = [factory.make(env=clock) for clock in clocks]
    for store in stores:
        await store.open()
        await store._caretaker.stop()
    order_ms, at = float(max(clock.wall_ms() for clock in clocks)), factory.clock.monotonic()
    expected: list[tuple[float, int, bytes]] = []
    for n, (elapsed, step, who, priority, anew) in enumerate(events):
        factory.clock.advance(elapsed)
        clocks[who].jump(step)
        if anew:
            await stores[who].close()
            stores[who] = factory.make(env=clocks[who])
            await stores[who].open()
            await stores[who]._caretaker.stop()
        (id,) = await submit(stores[who], new(priority=priority))
        passed, at = (factory.clock.monotonic() - at) * 1000, factory.clock.monotonic()
        order_ms = max(order_ms + passed, clocks[who].wall_ms())
        expected.append((order_ms - priority * AGEING_MS, n, id))
    port = await serving(stores[0])
    claims = await port.room(len(events))
    by_id = {claim.id: claim for claim in claims}
    ranks = [by_id[id].rank for _, _, id in expected]
    assert ids(claims) == [id for _, _, id in sorted((by_id[id].rank, n, id) for _, n, id in expected)]
    bases = [rank + priority * AGEING_MS for rank, (*_, priority, _) in zip(ranks, events, strict=True)]
    assert bases == sorted(bases)
    assert all(rank <= most + 2 for rank, (most, _, _) in zip(ranks, expected, strict=True))
    for store in stores:
        await store.close()
