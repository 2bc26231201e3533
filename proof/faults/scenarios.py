"""The main scenarios: everything that writes, through the real writer with its group commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.conformance.kit import OTHER, WORK, Clock, SqliteFactory, new

from mainspring.store.base import POLICY_CODE, NewTask
from mainspring.store.sqlite.store import SqliteStore
from proof.faults.world import KEEP_S, Maker, Told, World

Run = Callable[[World], Awaitable[None]]


async def small(world: World) -> None:
    """A group of submits, and their ends."""
    await world.begin(4)
    await asyncio.gather(*(world.submit(new(f"ok {n}", key=f"k{n}")) for n in range(3)), world.submit(new("retry")))
    world.work()
    await world.rest()


async def mixed(world: World) -> None:
    """Each way in, each way to end, and what people ask for between them."""
    await world.begin(6)
    await _ways_in(world)
    world.start(4)
    await world.settle()
    world.work(3)
    await asyncio.gather(world.pause(WORK), world.submit(new("ok", group="g")))
    world.work()
    await world.settle()
    await world.resume(WORK)
    await _ways_out(world)
    world.clock.advance(KEEP_S * 2)
    await world.prune()
    await world.submit(new("ok after"))
    await world.rest()


async def _ways_in(world: World) -> None:
    """One by one, by the dozen, large, with effects, with parents: all at once, so that they share commits."""
    parent, broken, joined = new("ok parent"), new("fail"), new("join", type=OTHER)
    family = (
        parent,
        broken,
        joined,
        new("ok", after=(parent.id, joined.id)),
        new("ok", after=(broken.id,), policy=POLICY_CODE["skip"]),
        new("ok", after=(broken.id, parent.id), policy=POLICY_CODE["allow_failure"]),
        *_chain(broken, 4),
    )
    await asyncio.gather(
        *(world.submit(new(f"ok {n}", priority=n % 4)) for n in range(6)),
        world.submit(*(new(f"ok {n} " + "x" * 300) for n in range(20))),
        world.submit(*family),
        world.submit(*(new("effects", type=OTHER) for _ in range(4)), new("refused", type=OTHER)),
        *(world.submit(new(how)) for how in ("retry", "release", "crash", "late", "fail")),
        world.submit(new("ok", key="once"), new("ok large " + "y" * 20_000)),
        world.submit(new("ok", not_before_ms=world.store.now_ms() + 60_000)),
    )


def _chain(first: NewTask, n: int) -> list[NewTask]:
    links = [first]
    for _ in range(n):
        links.append(new("ok", after=(links[-1].id,)))
    return links[1:]


async def _ways_out(world: World) -> None:
    """Cancelled before and while held, retried by hand, and the rest worked off."""
    waiting, failed = new("ok", not_before_ms=world.store.now_ms() + 3_000_000), new("fail", key="again")
    held = new("ok", priority=3)
    await world.submit(waiting, failed, held)
    await world.cancel(waiting.id)
    if held.id in world.held:
        await world.cancel(held.id)
    world.work()
    await world.rest()
    await world.retry(failed.id)
    await world.rest()


async def recovery(world: World) -> None:
    """What the next process does with whatever the last one left."""
    await world.begin(8)
    await world.resume(WORK)
    await world.rest()
    world.clock.advance(KEEP_S * 2)
    await world.rest()


async def recover(path: Path, tell: Callable[[Told], None]) -> None:
    """Open a file, do what the last process left, and close."""
    maker = Maker(path)
    store = maker()
    await store.open()
    await recovery(World(store, maker.clock, tell))
    await store.close()


async def leave_behind(store: SqliteStore, clock: Clock, tell: Callable[[Told], None]) -> None:
    """Bring work of every kind under way, for a process that dies then."""
    world = World(store, clock, tell)
    await world.begin(12)
    await _ways_in(world)
    world.work(4)
    await world.settle()
    world.start(5)
    await world.settle()
    for slot, claim in enumerate(list(world.held.values())[:2]):
        store.mark(slot, claim.seq, claim.attempt)
    await world.cancel(next(iter(world.held)))


async def die(store: SqliteStore) -> None:
    await SqliteFactory.die(SqliteFactory(Path()), store)
