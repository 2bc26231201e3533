"""Running alone: whoever must not have company waits until nobody runs, and keeps others out meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any


class Exclusion:
    """Counts who runs. `async with` waits for quiet and lets nobody else begin; entering oneself is not waited for."""

    def __init__(self) -> None:
        self._inside = 0
        self._quiet: list[asyncio.Future[None]] = []
        self._open: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def is_taken(self) -> bool:
        return self._open is not None

    def enter(self) -> None:
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        if self._inside == 0 and self._quiet:
            for waiting in self._quiet:
                if not waiting.done():
                    waiting.set_result(None)
            self._quiet.clear()

    async def wait(self) -> None:
        """Wait until nobody is alone any more."""
        while self._open is not None:
            await asyncio.shield(self._open)

    async def quiet(self) -> None:
        """Wait until nobody runs."""
        while self._inside:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._quiet.append(waiting)
            await waiting

    async def __aenter__(self) -> None:
        await self._turn.acquire()
        self._open = asyncio.get_running_loop().create_future()
        await self.quiet()

    async def __aexit__(self, *exc: Any) -> None:
        assert self._open is not None
        self._open.set_result(None)
        self._open = None
        self._turn.release()
