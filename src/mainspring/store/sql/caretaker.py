"""The loop that looks after a store: who died, what grew old, what was not told. One process leads, all look."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from mainspring.blobs.base import BlobStore
from mainspring.errors import StoreRefused, StoreUnavailable
from mainspring.store.base import Claimed, CrashEvidence
from mainspring.store.sql import graph, upkeep
from mainspring.store.sql.reads import View
from mainspring.store.sql.store import SqlStore
from mainspring.store.sql.transaction import Transaction
from mainspring.store.vigil import Vigil

logger = logging.getLogger("mainspring.store")
_PART = "upkeep"

TICK_S = 0.25
"""How soon a dead worker is noticed."""
_SWEEP_TICKS = 40
"""Retention begins a sweep through the tasks this often,"""
_SWEEP_STEPS = 8
"""and takes at most this many steps of it a tick."""
_COLLECT_TICKS = 2_400
_BLOB_AGE_S = 86_400.0
_HEARTBEAT_S = 1.0
SURELY_S = 10.0
"""Silence that no slow disk and no busy interpreter explains."""


class Caretaker(ABC):
    """A store brings who lives, and who leads."""

    def __init__(self, store: SqlStore, look_s: float) -> None:
        self._store = store
        self._look_ticks = max(1, round(look_s / TICK_S))
        self._tasks: list[asyncio.Task[None]] = []
        self._over_all = Vigil(store.env.monotonic())
        self._over_leader = Vigil(store.env.monotonic())
        self._missed = ""  # the leader that this process stands in for
        self._cursor = 0
        self._ticks = 0

    @abstractmethod
    async def start(self) -> None:
        """Take what falls to this process, and begin."""

    @abstractmethod
    async def rescue_dead(self) -> None:
        """Take back at once what workers held that live no more."""

    @abstractmethod
    async def _lead(self) -> None:
        """What one process does for all."""

    @abstractmethod
    async def _unused(self, digests: Sequence[str]) -> list[str]:
        """Return those blobs that neither a task's payload nor a name refers to."""

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        offered = asyncio.Event()
        self._store.tell_soon = offered.set
        self._tasks = [
            loop.create_task(self._run(), name="caretaker"),
            loop.create_task(self._beat(), name="heartbeat"),
            loop.create_task(self._tell(offered), name="offers"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._ticks += 1
            duties = (self._look, self._note_progress, self._tell_usage, self._lead)
            if all([await self._is_done(duty) for duty in duties]):
                self._store.outage.back(_PART)

    async def _is_done(self, duty: Callable[[], Awaitable[None]]) -> bool:
        """Do what is to be done; false where that failed."""
        try:
            await duty()
        except (StoreUnavailable, StoreRefused) as exc:
            self._store.outage.lost(_PART, exc)
        except Exception:  # the boundary: one duty that fails must not end the others; it is logged
            logger.exception("upkeep failed; it is tried again")
        else:
            return True
        return False

    async def _tell(self, offered: asyncio.Event) -> None:
        """Write what the worker says of tasks that it does not start: at once, then no more often than each tick."""
        while True:
            await offered.wait()
            offered.clear()
            if not await self._is_done(self._note_offer):
                offered.set()
            await asyncio.sleep(TICK_S)

    async def _beat(self) -> None:
        """Have the writer take turns where there is nothing to write, so that others see that this loop turns."""
        every_s = min(_HEARTBEAT_S, self._store.config.stall_s / 4)
        while True:
            await asyncio.sleep(every_s)
            self._store.is_revoked()
            self._store.demand()

    async def _look(self) -> None:
        if self._ticks % self._look_ticks == 0:
            self._store.look()
            self._store.clock.look()

    async def _note_progress(self) -> None:
        if progress := self._store.take_progress():
            await self._store.write(lambda tx: _write_progress(tx, progress), is_light=True)

    async def _tell_usage(self) -> None:
        if (figures := self._store.take_usage()) is not None:
            await self._store.write(lambda tx: tx.run("put_usage", tx.memory.owner, tx.now_ms, figures), is_light=True)

    async def _note_offer(self) -> None:
        offer = self._store.offered
        await self._store.write(lambda tx: write_offer(tx, offer), is_light=True)

    async def _keep(self) -> None:
        """What needs no look at who lives."""
        await self._go_on()
        if self._cursor or self._ticks % _SWEEP_TICKS == 0:
            await self._sweep()
        if self._ticks % _SWEEP_TICKS == 0:
            while await self._store.write(upkeep.prune_kept):
                pass
        if self._ticks % _COLLECT_TICKS == 0:
            await self._collect_blobs()

    async def _go_on(self) -> None:
        """Let ends travel on that somebody left half way: the writer does the rest."""
        if await self._store.view(_has_cascade):
            await self._store.write(graph.go_on)

    def _watch(self, vigil: Vigil, turns: dict[str, int]) -> dict[str, float]:
        return vigil.look(self._store.env.monotonic(), turns)

    def _patience_s(self) -> float:
        return min(SURELY_S, self._store.config.stall_s)

    async def _sweep(self) -> None:
        """Go some steps through the tasks; the next tick goes on where this one ended.

        A step is written where there is something to remove, and once a sweep for what else grows old: on a server it
        runs alone, while the writers of all processes wait.
        """
        store = self._store
        for _ in range(_SWEEP_STEPS):
            found = await store.view(
                lambda view: upkeep.look_for_old(view, self._cursor, store.now_ms(), store.fresh_ms, store.config)
            )
            if found.has_old or not self._cursor:
                self._cursor = await store.write(lambda tx: upkeep.prune(tx, self._cursor, store.config))
            else:
                self._cursor = found.next
            if not self._cursor:
                return

    async def _collect_blobs(self) -> None:
        """Remove blobs that nothing refers to. A young one may belong to a task that is being submitted: it stays.

        So do all where another store keeps its own beside them: what that refers to is not known here.
        """
        store = self._store
        if others := await store.env.to_thread(store.blobs.users) - {store.identity}:
            logger.warning("blobs are not collected: %d other stores keep theirs in the same folder", len(others))
            return
        old = await store.env.to_thread(_old_blobs, store.blobs)
        for at in range(0, len(old), upkeep.STEP):
            some = old[at : at + upkeep.STEP]
            for digest in await self._unused(some):
                await store.env.to_thread(partial(store.blobs.delete, digest, older_than_s=_BLOB_AGE_S))

    async def _rescue(self, owner: int, evidence: CrashEvidence) -> None:
        total, n = 0, upkeep.STEP
        while n == upkeep.STEP:
            n = await self._store.write(lambda tx: upkeep.rescue(tx, owner, evidence))
            total += n
        await self._store.write(lambda tx: bury(tx, owner))
        self._store.counts.rescued += total
        self._store.counts.buried += 1
        self._store.missed()
        logger.warning(
            "worker %s (pid %d) is gone; %d of its claims were taken back", evidence.worker, evidence.pid, total
        )


def _old_blobs(blobs: BlobStore) -> list[str]:
    return [digest for digest, age_s in blobs.digests() if age_s > _BLOB_AGE_S]


def _has_cascade(view: View) -> bool:
    return view.one("next_cascade", 1) is not None


def bury(tx: Transaction, owner: int) -> None:
    tx.run("clear_serves", owner)
    tx.run("drop_usage", owner)
    tx.run("drop_offer", owner)
    tx.run("end_worker", tx.now_ms, owner)


def _write_progress(tx: Transaction, progress: Sequence[tuple[Claimed, float, float]]) -> None:
    for claim, done, total in progress:
        tx.run("put_progress", done, total, tx.now_ms, claim.seq, claim.attempt, claim.owner)


def write_offer(tx: Transaction, offer: bytes) -> None:
    """Keep what the worker says of tasks that it does not start."""
    if offer:
        tx.run("put_offer", tx.memory.owner, tx.now_ms, offer.decode())
    else:
        tx.run("drop_offer", tx.memory.owner)
