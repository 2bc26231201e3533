"""What is done to the server under a crew: it dies, one of its processes dies, or it ends a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import asyncpg

from proof.server import OwnServer

ON_SERVER = {"server": "kill of the server", "backend": "kill of a backend", "cut": "cut of a connection"}
SCHEMA = "kills"
_LONGEST_PAUSE_S = 1.0
_LOOK_S = 0.1
_ENDS_BETWEEN = 25
_WAITS_S = 10.0


class Outages:
    """One at a time: the next one waits until the crew is at work again."""

    def __init__(self, server: OwnServer, done: Counter[str]) -> None:
        self._server = server
        self._done = done
        self._free = asyncio.Lock()
        self._ended = 0

    async def do(self, what: str, how_long: float, which: float) -> None:
        async with self._free:
            await self._under_load()
            if what == "server":
                await asyncio.to_thread(self._server.kill)
                await asyncio.sleep(_LONGEST_PAUSE_S * how_long)
            else:
                pid = await self._one_of_ours(which)
                await asyncio.to_thread(self._server.kill_backend if what == "backend" else self._server.cut, pid)
            self._done[ON_SERVER[what]] += 1
            await asyncio.to_thread(self._server.start)

    async def _under_load(self) -> None:
        """Wait until some more attempts have ended, or for as long as that takes where little is left to do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAITS_S):
                while (ended := await asyncio.to_thread(self._attempts)) < self._ended + _ENDS_BETWEEN:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
                self._ended = ended

    def _attempts(self) -> int:
        with contextlib.suppress(asyncpg.UndefinedTableError):  # the first engine makes it
            return int(self._server.ask(f"SELECT count(*) FROM {SCHEMA}.attempt")[0][0])
        return 0

    async def _one_of_ours(self, chance: float) -> int:
        while True:
            if pids := await asyncio.to_thread(self._server.backends):
                return pids[int(chance * len(pids))]
            await asyncio.sleep(_LOOK_S)  # those that were cut come again
