"""Whoever waits is told, whenever the end comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

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
    """While somebody looks whether a task has ended already, the safety look asks for that task too."""
    store: Any = SlowStore()
    waiters = Waiters(store)
    waiting = waiters.find(KEY)
    assert waiters.awaited(10) == []
    told = asyncio.ensure_future(waiters.wait(waiting))
    await store.looks.wait()
    assert waiters.awaited(10) == [KEY]
    waiters.ended([Ended(KEY, 2, b"", 0, None)])
    store.may_answer.set()
    assert (await told).status == 2
