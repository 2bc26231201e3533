"""A process without work asks for what others hold and have not begun; what they release is anybody's, uncharged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from unittest import mock

import msgspec
import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, PortLane, new, opened, state, submit

from mainspring.store.base import MAX_RELEASES, RELEASED, RESERVES, Finish, Spec
from mainspring.store.ready import ANYWHERE
from mainspring.store.sql import outcomes
from mainspring.tasks import Resources
from mainspring.tasks.needs import Passes

pytestmark = pytest.mark.anyio


@pytest.fixture
async def idle(factory: Factory, store: Any, port: Port) -> AsyncIterator[Port]:
    """Another process, which runs one of the two types and knows the first process."""
    async with opened(factory.make()) as other:
        idle = Port(other, 0, WORK)
        await idle.serve()
        while not (other._bell.has_peers and store._bell.has_peers):  # noqa: ASYNC110 - no event tells of a bell
            await asyncio.sleep(0.001)
        yield idle


async def asks(idle: Port) -> None:
    """It has room for one that it does not get, and has asked, if it asks at all: its look at the others is over."""
    assert await idle.room(1) == []
    idle.ask()
    store: Any = idle.store
    await store.view(lambda view: None)
    idle.lanes["async"].limit -= 1


async def hears_no_more(port: Port, idle: Port) -> None:
    """What the idle process has said up to now has come: a cancel that it says last has."""
    (id,) = await submit(port.store, new(type=OTHER, priority=3))
    (claim,) = await port.room(1)
    await idle.store.cancel(id)
    await port.until(lambda: id in port.asked)
    await port.finish(claim)


async def test_the_holder_is_asked_for_what_the_idle_one_runs(store: Any, port: Port, idle: Port) -> None:
    """It hears which classes are wanted: those that the idle one serves and that it holds."""
    await submit(store, new(), new(type=OTHER), new(group="a"))
    claims = await port.room(3)
    assert len(claims) == 3
    await asks(idle)
    await port.until(lambda: port.shares)
    (is_wanted,) = port.shares
    assert [is_wanted(claim) for claim in claims] == [True, False, True]
    assert port.spare == PortLane.spare
    assert not idle.shares


def asked(port: Port, times: int) -> bool:
    return len(port.shares) == times


async def test_a_process_of_an_earlier_version(
    store: Any, port: Port, idle: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks by a kind of message of its own, in another form, and knows none of ours: neither is an error."""
    other: Any = idle.store
    await submit(store, new())
    await port.room(1)
    with mock.patch.object(other._bell, "ring", wraps=other._bell.ring) as rung:
        await asks(idle)
        await port.until(lambda: port.shares)
    theirs = b"a"
    assert theirs not in [call.args[0] for call in rung.call_args_list]
    other._bell.ring(theirs, msgspec.msgpack.encode([(store._memory.owner, 1)]))
    await hears_no_more(port, idle)
    assert len(port.shares) == 1
    assert not caplog.records


async def test_nobody_gives_what_can_not_run_there(store: Any, port: Port, idle: Port) -> None:
    """What the idle one passes over is of no use to it, whether the task says itself what it needs or its handler."""
    five, two = (Spec(resources=Resources(cpu=0, custom={"seat": seats})) for seats in (5, 2))
    specs: list[Any] = [{"spec": msgspec.msgpack.encode(spec), "flags": RESERVES} for spec in (five, two)]
    await submit(store, new(**specs[0]), new(**specs[1]), new())
    claims = await port.room(3)
    for n, (declared, given) in enumerate((({}, [False, True, True]), ({"seat": 3.0}, [False, True, False])), 1):
        idle.lanes["async"].passing.passes = Passes({"seat": 2.0}, {WORK: declared})
        await asks(idle)
        await port.until(partial(asked, port, n))
        assert [port.shares[-1](claim) for claim in claims] == given


async def test_nobody_is_asked_for_what_can_not_be_shared(store: Any, port: Port, idle: Port) -> None:
    """Not where nothing is held, it has begun, is of another type or paused, nor where it is one's own."""
    await asks(idle)
    await submit(store, new(type=OTHER))
    await port.room(1)
    await asks(idle)
    await submit(store, new())
    (began,) = await port.room(1)
    store.started(began, store.now_ms())
    await port.settle()
    await asks(idle)
    await submit(store, new(group="a"))
    await port.room(1)
    await idle.store.pause(group="a")
    await idle.settle()
    await asks(idle)
    await submit(store, new())
    await idle.room(1)
    await asks(idle)
    await hears_no_more(port, idle)
    assert not port.shares


async def test_what_is_ready_is_taken_and_not_asked_for(store: Any, port: Port, idle: Port) -> None:
    """Where the store has something for the lane nobody is disturbed: it is handed over instead."""
    await submit(store, new(), new())
    await port.room(1)
    idle.lanes["async"].limit = 1
    idle.lanes["async"].ready.lower(1, ANYWHERE)
    idle.ask()
    await idle.until(lambda: idle.held)
    await hears_no_more(port, idle)
    assert not port.shares


async def test_what_is_released_goes_to_who_asked(store: Any, port: Port, idle: Port) -> None:
    """The holder has no room for it, the idle one takes it at once; nothing shows in the tasks but a new attempt."""
    sent = await submit(store, *(new() for _ in range(4)))
    held = await port.room(4)
    await asks(idle)
    await port.until(lambda: port.shares)
    idle.lanes["async"].limit = 4
    port.lanes["async"].limit = 2
    for claim in held[2:]:
        port.end(claim, RELEASED, is_counted=False)
    await idle.until(lambda: len(idle.held) == 2)
    assert [(claim.id, claim.attempt, claim.retry_count, claim.releases) for claim in idle.order] == [
        (id, 2, 0, 0) for id in sent[2:]
    ]
    assert [str(await state(store, id)) for id in sent] == ["PENDING (claimed)"] * 4
    assert [len((await store.info(id)).attempts) for id in sent] == [0] * 4
    assert len(port.order) == 4


async def test_sharing_has_no_limit(store: Any, port: Port, idle: Port) -> None:
    """Unlike a drain's, these releases say nothing of the task, however many there are."""
    (id,) = await submit(store, new())
    for n in range(MAX_RELEASES + 2):
        holder = (port, idle)[n % 2]
        (claim,) = await holder.room(1)
        holder.lanes["async"].limit -= 1
        holder.end(claim, RELEASED, is_counted=False)
        await holder.settle()
    (claim,) = await port.room(1)
    assert (claim.attempt, claim.releases, claim.retry_count) == (MAX_RELEASES + 3, 0, 0)
    await port.finish(claim)
    assert port.ended_as() == {id: 2}


async def test_a_holder_that_dies_in_its_release(factory: Factory, store: Any, port: Port) -> None:
    """Its last commit gave one of two away: both are there for others, and nothing is charged."""
    dying = factory.make()
    await dying.open()
    holder = Port(dying, 2)
    await holder.serve()
    sent = await submit(store, new(), new())
    await holder.until(lambda: len(holder.held) == 2)
    released = holder.order[1]
    holder.lanes["async"].limit = 1
    await factory.die_with(dying, lambda: holder.end(released, RELEASED, is_counted=False))
    port.lanes["async"].limit = 2
    await factory.rescue(store)
    await port.until(lambda: len(port.held) == 2)
    assert {(claim.id, claim.attempt, claim.retry_count, claim.crashes) for claim in port.order} == {
        (id, 2, 0, 0) for id in sent
    }


async def test_what_has_not_begun_is_released_together(store: Any, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are handed back in a commit, nobody looks at each: a server is asked once."""
    ids = await submit(store, *(new() for _ in range(40)))
    claims = await port.room(40)
    looked_at: list[Any] = []
    monkeypatch.setattr(outcomes, "finish_one", lambda tx, finish: looked_at.append(finish))
    port.lanes["async"].limit -= 40
    for claim in claims:
        port.end(claim, RELEASED, is_counted=False)
    await port.settle()
    assert looked_at == []
    assert {(await state(store, id)).reason for id in ids} == {"ready"}
    assert [claim.id for claim in await port.room(40)] == ids


async def test_a_cancel_among_what_is_released_together(store: Any, port: Port) -> None:
    """What somebody has asked to cancel ends so, and the others are ready again; what was lost meanwhile is told."""
    first, second, third = await submit(store, *(new() for _ in range(3)))
    claims = await port.room(3)
    await store.cancel(second)
    port.lanes["async"].limit -= 3
    for claim in claims:
        port.end(claim, RELEASED, is_counted=False)
    await port.settle()
    assert [(await store.info(id)).status.value for id in (first, second, third)] == ["pending", "cancelled", "pending"]
    assert [claim.id for claim in await port.room(3)] == [first, third]
    store.finish(Finish(claims[0], RELEASED, store.now_ms(), is_counted=False))
    await port.settle()
    assert [finish.claim.id for finish in port.missed] == [first]
    assert (await state(store, first)).reason == "claimed"
