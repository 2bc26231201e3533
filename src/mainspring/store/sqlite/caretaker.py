"""The loop that looks after the file: who died, what grew old, what was not told. One process leads, all look."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mainspring.blobs.base import BlobStore
from mainspring.errors import StoreUnavailable
from mainspring.store.base import CrashEvidence
from mainspring.store.sqlite import graph, reads, upkeep
from mainspring.store.sqlite.liveness import LeaderLock, if_dead, revoke, running_in, turns_of
from mainspring.store.sqlite.transaction import Transaction
from mainspring.store.sqlite.vigil import Vigil

if TYPE_CHECKING:
    from mainspring.store.sqlite.store import SqliteStore

logger = logging.getLogger("mainspring.store")

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


class Caretaker:
    def __init__(self, store: SqliteStore, look_s: float) -> None:
        self._store = store
        self._look_ticks = max(1, round(look_s / TICK_S))
        self._lock: LeaderLock | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._over_all = Vigil(store.env.monotonic())
        self._over_leader = Vigil(store.env.monotonic())
        self._missed = ""  # the leader that this process stands in for
        self._cursor = 0
        self._ticks = 0

    async def start(self) -> None:
        self._lock = LeaderLock(self._store.folder, self._store.worker_id, self._store.env)
        if self._lock.hold():
            await self.rescue_dead()
            await self._go_on()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._run(), name="caretaker"),
            loop.create_task(self._beat(), name="heartbeat"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._ticks += 1
            for duty in (self._look, self._note_progress, self._lead):
                try:
                    await duty()
                except StoreUnavailable as exc:
                    logger.warning("upkeep waits: %s", exc)
                except Exception:  # the boundary: one duty that fails must not end the others; it is logged
                    logger.exception("upkeep failed; it is tried again")

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

    async def _note_progress(self) -> None:
        if progress := self._store.take_progress():
            await self._store.write(lambda tx: _write_progress(tx, progress))

    async def _lead(self) -> None:
        """What one process does for all."""
        assert self._lock is not None
        if not self._lock.hold() and not self._stands_in(self._lock.holder()):
            return
        await self.rescue_dead()
        await self._rescue_stalled()
        await self._go_on()
        if self._cursor or self._ticks % _SWEEP_TICKS == 0:
            await self._sweep()
        if await self._store.read(upkeep.can_shrink):
            await self._store.write(upkeep.shrink)
        if self._ticks % _COLLECT_TICKS == 0:
            await self._collect_blobs()

    async def _go_on(self) -> None:
        """Let ends travel on that somebody left half way: the writer does the rest."""
        if await self._store.read(_has_cascade):
            await self._store.write(graph.go_on)

    def _stands_in(self, leader: str) -> bool:
        """Whether the leader is silent: what it does for all can be done twice, but not left undone."""
        turns = turns_of(self._life_file(leader))
        silent_s = 0.0 if turns is None else self._watch(self._over_leader, {leader: turns})[leader]
        if silent_s < self._patience_s():
            self._missed = ""
            return False
        if self._missed != leader:
            logger.warning("worker %s leads and has been silent for %.0f s; others stand in for it", leader, silent_s)
            self._missed = leader
        return True

    def _watch(self, vigil: Vigil, turns: dict[str, int]) -> dict[str, float]:
        return vigil.look(self._store.env.monotonic(), turns)

    def _patience_s(self) -> float:
        return min(SURELY_S, self._store.config.stall_s)

    def _life_file(self, name: str) -> Path:
        return Path(self._store.folder, f"{name}.life")

    async def _sweep(self) -> None:
        """Prune some steps; the next tick goes on where this one ended."""
        store = self._store
        for _ in range(_SWEEP_STEPS):
            self._cursor = await store.write(lambda tx: upkeep.prune(tx, self._cursor, store.config))
            if not self._cursor:
                return

    async def _collect_blobs(self) -> None:
        """Remove blobs that nothing refers to. A young one may belong to a task that is being submitted: it stays."""
        store = self._store
        old = await store.env.to_thread(_old_blobs, store.blobs)
        for at in range(0, len(old), upkeep.STEP):
            some = old[at : at + upkeep.STEP]
            for digest in await store.read(partial(store.unused_blobs, digests=some)):
                await store.env.to_thread(partial(store.blobs.delete, digest, older_than_s=_BLOB_AGE_S))

    async def rescue_dead(self) -> None:
        """Take back at once what workers held that live no more."""
        for owner, name, pid in await self._store.read(reads.open_workers):
            if name != self._store.worker_id:
                with if_dead(self._life_file(name), self._store.env) as started:
                    if started is not None:
                        await self._rescue(owner, CrashEvidence(name, pid, started))

    async def _rescue(self, owner: int, evidence: CrashEvidence) -> None:
        total, n = 0, upkeep.STEP
        while n == upkeep.STEP:
            n = await self._store.write(lambda tx: upkeep.rescue(tx, owner, evidence))
            total += n
        await self._store.write(lambda tx: _bury(tx, owner))
        logger.warning(
            "worker %s (pid %d) is gone; %d of its claims were taken back", evidence.worker, evidence.pid, total
        )

    async def _rescue_stalled(self) -> None:
        """Take back what processes hold that live and do nothing, once they have been silent for long enough."""
        store = self._store
        others = {name: (owner, pid) for owner, name, pid in await store.read(reads.open_workers)}
        others.pop(store.worker_id, None)
        turns = {name: n for name in others if (n := turns_of(self._life_file(name))) is not None}
        for name, silent_s in self._watch(self._over_all, turns).items():
            if silent_s >= self._patience_s():
                await self._take_back(*others[name], name, silent_s)

    async def _take_back(self, owner: int, pid: int, name: str, silent_s: float) -> None:
        store, life = self._store, self._life_file(name)
        limit_ms = None if silent_s >= store.config.stall_s else int((silent_s - store.grace_s) * 1000)
        running = running_in(life)
        due = await store.read(lambda connection: reads.overstayed(connection, owner, limit_ms, running))
        if not due:
            return
        stall = upkeep.Stall(owner, name, pid, silent_s, running)

        def take(tx: Transaction) -> int:
            revoke(life)  # in the transaction: whoever sees it and reads the rows then sees them as they will be
            return upkeep.take_back(tx, due[: upkeep.STEP], stall)

        taken = await store.write(take)
        logger.warning(
            "worker %s (pid %d) lives, and has been silent for %.0f s; %d of its claims were taken back",
            name, pid, silent_s, taken,
        )  # fmt: skip


def _old_blobs(blobs: BlobStore) -> list[str]:
    return [digest for digest, age_s in blobs.digests() if age_s > _BLOB_AGE_S]


def _has_cascade(connection: apsw.Connection) -> bool:
    return connection.execute("SELECT 1 FROM cascade LIMIT 1").fetchone() is not None


def _bury(tx: Transaction, owner: int) -> None:
    tx.run("clear_serves", owner)
    tx.run("end_worker", tx.now_ms, owner)


def _write_progress(tx: Transaction, progress: list) -> None:  # type: ignore[type-arg]
    for claim, done, total in progress:
        tx.run("put_progress", done, total, tx.now_ms, claim.seq, claim.attempt, claim.owner)
