"""The heartbeat of this process, which a helper process beats: no handler can keep that one from it."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Protocol

import msgspec

from mainspring.children.child import Child, Exit, Spawner
from mainspring.errors import StoreUnavailable
from mainspring.store.postgres.address import Server

if TYPE_CHECKING:
    from mainspring.store.postgres.store import PostgresStore

logger = logging.getLogger("mainspring.store")
BEAT_S = 1.0
_AGAIN_S = 0.5
_GRACE_S = 2.0


class Orders(msgspec.Struct, frozen=True):
    """What the helper has to know. It goes through a pipe: the address may hold a password."""

    server: Server
    name: str  # of the worker
    life: str  # path of its life file
    every_s: float


class Pulse(Protocol):
    async def start(self) -> None: ...

    def is_stale(self) -> bool:
        """Whether others may have reason to take this process for dead, or soon have."""

    async def stop(self) -> None: ...


class HelperPulse:
    """Keeps a helper running. When this process dies, the helper tells the others at once, and what ran then."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._spawner = Spawner()
        self._child: Child | None = None
        self._again: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._is_over = False
        config = store.config
        self._every_s = min(BEAT_S, config.stall_s / 4, config.dead_s / 4)

    async def start(self) -> None:
        """Raises StoreUnavailable: no process can be started."""
        try:
            await self._spawn()
        except OSError as exc:
            raise StoreUnavailable(f"the process that tells others of this one can't be started: {exc}") from exc

    async def _spawn(self) -> None:
        store = self._store
        command = [sys.executable, "-m", "mainspring.store.postgres.beat"]
        self._child = await self._spawner.spawn(
            command, on_frame=lambda frame: None, on_exit=self._ended, keep_output=4096
        )
        orders = Orders(store.server, store.worker_id, str(store.life.path), self._every_s)
        self._child.send(msgspec.msgpack.encode(orders))

    def _ended(self, how: Exit) -> None:
        if self._is_over:
            return
        logger.warning("the helper of worker %s %s; another one is started\n%s", self._store.worker_id, how, how.output)
        self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._start_again)

    def _start_again(self) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._try_again(), name="pulse")

    async def _try_again(self) -> None:
        try:
            await self._spawn()
        except OSError as exc:
            logger.warning("a helper can't be started: %s", exc)
            self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._start_again)

    def is_stale(self) -> bool:
        heard_s = self._store.life.heard_ns / 1e9
        return heard_s > 0 and self._store.env.monotonic() - heard_s > self._store.config.dead_s / 2

    async def stop(self) -> None:
        self._is_over = True
        if self._again is not None:
            self._again.cancel()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._child is not None:
            await self._child.end(_GRACE_S)
        self._spawner.close()
