"""Whoever waits is told, whenever the end comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mainspring.errors import StoreDamaged
from mainspring.results.waiters import Waiters
from mainspring.store.base import Ended

pytestmark = pytest.mark.anyio
KEY = bytes(16)


class SlowStore:
    """Its looks take until the test lets them."""

    def __init__(self) -> None:
        self.looks = asyncio.Event()
        self.may_answer = asyncio.Event()

    def listen(self, listener: Any) -> None:
        """The test tells it."""

    async def ended(self, ids: Any) -> list[Ended]:
        self.looks.set()
        await self.may_answer.wait()
        return []

    async def require(self, ids: Any) -> None:
        """It is there."""


async def test_an_end_between_the_look_and_the_wait_is_not_missed() -> None:
    """While somebody looks whether a task has ended already, the safety look asks for that task before all others."""
    store: Any = SlowStore()
    waiters = Waiters(store)
    others = [waiters.find(n.to_bytes(16, "big")) for n in range(1, 100)]
    waiting = waiters.find(KEY)
    told = asyncio.ensure_future(waiters.wait(waiting))
    await store.looks.wait()
    assert waiters.awaited(1) == [KEY]
    assert len(waiters.awaited(10)) == 10 < len(others)
    waiters.ended([Ended(KEY, 2, b"", 0, None)])
    store.may_answer.set()
    assert (await told).status == 2


async def test_who_waits_is_told_that_no_end_may_come() -> None:
    """A store that can't say any more how tasks end says so; a task that ends all the same is told to those who ask
    again."""
    waiters = Waiters(SlowStore())  # type: ignore[arg-type]
    waiting = waiters.expect(KEY)
    told = asyncio.ensure_future(waiters.wait(waiting))
    await asyncio.sleep(0)
    waiters.give_up(StoreDamaged("it is"))
    with pytest.raises(StoreDamaged):
        await told
    again = asyncio.ensure_future(waiters.wait(waiting))
    await asyncio.sleep(0)
    waiters.ended([Ended(KEY, 2, b"", 0, None)])
    assert (await again).status == 2
