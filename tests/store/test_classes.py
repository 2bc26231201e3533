"""Classes without tasks are removed: a program with a group for each of its users must not grow for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import WORK, Port, SqliteFactory, new, opened, submit

from mainspring.store.sql import upkeep

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0


@pytest.fixture
def factory(tmp_path: Path) -> SqliteFactory:
    return SqliteFactory(tmp_path)


@pytest.fixture
async def pair(factory: SqliteFactory) -> AsyncIterator[tuple[Any, Any]]:
    """Two stores on one file, as two processes have them; nobody looks but when the test says so."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        for store in (one, two):
            await store._caretaker.stop()
        yield one, two


async def run(store: Any, *groups: str) -> None:
    """Let a task of each group come and go, and be pruned; numbers of its class stay in memory."""
    port = Port(store, len(groups))
    await port.serve()
    await submit(store, *(new(group=group) for group in groups))
    while len(port.ends) < len(groups):
        await port.run_all()
    store.stop_serving()


async def forget(store: Any) -> int:
    return await store.write(lambda tx: upkeep.forget_classes(tx, 0))  # type: ignore[no-any-return]


def groups(factory: SqliteFactory) -> list[str]:
    return [row[0] for row in factory._rows("SELECT grp FROM class ORDER BY grp")]


async def test_they_go_when_their_last_task_is_pruned(factory: SqliteFactory) -> None:
    """The sweep of retention removes them and their counts, and leaves those that have tasks of any kind."""
    async with opened(factory.make()) as store:
        await store._caretaker.stop()
        left = [f"waits {n:03}" for n in range(upkeep.STEP)]
        await submit(store, *(new(group=group, not_before_ms=store.now_ms() + 10**10) for group in left))
        await run(store, *(str(n) for n in range(upkeep.STEP)))
        await store._caretaker._sweep()
        assert len(groups(factory)) == 2 * upkeep.STEP
        factory.clock.advance(10 * DAY_S)
        for _ in range(2):
            await store._caretaker._sweep()
        assert groups(factory) == left
        assert factory._rows("SELECT DISTINCT class FROM tally") == [
            (0,), *factory._rows("SELECT id FROM class ORDER BY id")
        ]  # fmt: skip


async def test_they_come_again(factory: SqliteFactory) -> None:
    """The process that removed a class makes it anew for the next task, and claims that."""
    async with opened(factory.make()) as store:
        await run(store, "a", "b")
        factory.clock.advance(10 * DAY_S)
        await factory.prune(store)
        await forget(store)
        assert groups(factory) == []
        port = Port(store)
        await port.serve()
        sent = await submit(store, new(group="b"), new(group="a"))
        assert [(claim.id, claim.class_key[2]) for claim in await port.room(2)] == list(zip(sent, "ba", strict=True))
        assert groups(factory) == ["a", "b"]


async def test_numbers_in_another_process_are_void(pair: tuple[Any, Any], factory: SqliteFactory) -> None:
    """It had the classes in memory, they were removed, and their numbers went to others: what it submits is stored
    under what it said, and what it claims is what it serves."""
    one, two = pair
    await run(two, "a", "b")
    factory.clock.advance(10 * DAY_S)
    await factory.prune(one)
    await forget(one)
    (other,) = await submit(one, new(group="b", type="custom:unserved"))
    sent = await submit(two, new(group="a"), new(group="b"))
    stored = factory.contents().tasks
    assert [stored[id]["kind"][1:] for id in (other, *sent)] == [("custom:unserved", "b"), (WORK, "a"), (WORK, "b")]
    port = Port(two)
    await port.serve()
    assert [claim.id for claim in await port.room(3)] == sent


@pytest.mark.parametrize("who", [0, 1])
async def test_a_number_is_not_in_the_way_of_claims(
    pair: tuple[Any, Any], who: int, factory: SqliteFactory, caplog: Any
) -> None:
    """A lane that remembers a class as one with ready tasks goes on when it is gone."""
    one, two = pair
    port = Port(two)
    await port.serve()
    await submit(two, new(group="a"), new(group="b"))
    other = Port(one)
    await other.serve()
    for claim in await other.room(2):
        await other.finish(claim)
    factory.clock.advance(10 * DAY_S)
    await factory.prune(pair[who])
    await forget(pair[who])
    sent = await submit(two, new(group="c"))
    assert [claim.id for claim in await port.room(3)] == sent
    assert caplog.text == ""


async def test_what_comes_in_the_same_commit_keeps_its_class(factory: SqliteFactory, caplog: Any) -> None:
    """A task that is submitted in the transaction that removes classes has one; so has the next of its group."""
    async with opened(factory.make()) as store:
        await store._caretaker.stop()
        await run(store, "a", "b")
        factory.clock.advance(10 * DAY_S)
        await factory.prune(store)
        async with factory.together(store):
            calls = [submit(store, new(group="a")), submit(store, new(group="new")), forget(store)]
            given = asyncio.gather(*calls)
            await asyncio.sleep(0)
        await given
        assert caplog.text == ""
        assert groups(factory) == ["a", "new"]
        await submit(store, new(group="a"), new(group="new"), new(group="b"))
        assert sorted(task["kind"][2] for task in factory.contents().tasks.values()) == ["a", "a", "b", "new", "new"]
