"""How a store opens, whatever it lies on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.conformance.kit import Factory, new, opened

from mainspring.store.sql.reads import open_workers

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("cancels", [1, 3])
async def test_an_opening_that_is_cancelled_leaves_nothing(factory: Factory, cancels: int) -> None:
    """It is over only when the thread is that opens the store; nobody is registered, and the next one opens."""
    store = factory.make()
    join = store._join
    began, goes_on = threading.Event(), threading.Event()

    def held(*args: Any) -> None:
        began.set()
        assert goes_on.wait(60)
        join(*args)

    store._join = held
    opening = asyncio.ensure_future(store.open())
    assert await asyncio.to_thread(began.wait, 60)
    for _ in range(cancels):
        opening.cancel()
        done, _ = await asyncio.wait((opening,), timeout=0)
        assert not done
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not store._strand._thread.is_alive()
    async with opened(factory.make()) as other:
        assert [name for _, name, _ in await other.view(open_workers)] == [other.worker_id]
        (accepted,) = await other.submit([new()])
        assert not accepted.existed
