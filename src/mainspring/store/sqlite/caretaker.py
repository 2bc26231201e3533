"""The loop that looks after the file: who died, what grew old, what was not told. One process leads, all look."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from mainspring.errors import StoreUnavailable
from mainspring.store.base import CrashEvidence
from mainspring.store.sqlite import graph, upkeep
from mainspring.store.sqlite.liveness import LeaderLock, if_dead
from mainspring.store.sqlite.transaction import Transaction

if TYPE_CHECKING:
    from mainspring.store.sqlite.store import SqliteStore

logger = logging.getLogger("mainspring.store")

TICK_S = 0.25
"""How soon a dead worker is noticed."""
_SWEEP_TICKS = 40
"""Retention takes a step this often while there is something to look at."""


class Caretaker:
    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._lock: LeaderLock | None = None
        self._task: asyncio.Task[None] | None = None
        self._cursor = 0
        self._ticks = 0

    async def start(self) -> None:
        self._lock = LeaderLock(self._store._folder)
        if self._lock.hold():
            await self.rescue_dead()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="caretaker")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._ticks += 1
            try:
                await self._tick()
            except StoreUnavailable as exc:
                logger.warning("upkeep waits: %s", exc)

    async def _tick(self) -> None:
        store = self._store
        if self._ticks % 4 == 0:
            store.look()
        if progress := store.take_progress():
            await store.write(lambda tx: _write_progress(tx, progress))
        assert self._lock is not None
        if not self._lock.hold():
            return
        await self.rescue_dead()
        while await store.read(_has_cascade):
            await store.write(graph.go_on)
        if self._ticks % _SWEEP_TICKS == 0:
            self._cursor = await store.write(lambda tx: upkeep.prune(tx, self._cursor, store.config))

    async def rescue_dead(self) -> None:
        """Take back at once what workers held that live no more."""
        store = self._store
        others = await store.write(_open_workers) if self._ticks == 0 else await store.read(_open_workers_read)
        for owner, name, pid in others:
            if name == store.worker_id:
                continue
            with if_dead(Path(store._folder, f"{name}.life")) as started:
                if started is None:
                    continue
                evidence = CrashEvidence(name, pid, started)
                n = total = await store.write(lambda tx, o=owner, e=evidence: upkeep.rescue(tx, o, e, frozenset()))
                while n == upkeep.STEP:
                    n = await store.write(lambda tx, o=owner, e=evidence: upkeep.rescue(tx, o, e, frozenset()))
                    total += n
                await store.write(lambda tx, o=owner: _bury(tx, o))
                logger.warning("worker %s (pid %d) is gone; %d of its claims were taken back", name, pid, total)


def _open_workers(tx: Transaction) -> list[tuple[int, str, int]]:
    return [(row[0], row[1], row[2]) for row in tx.run("open_workers")]


def _open_workers_read(connection: apsw.Connection) -> list[tuple[int, str, int]]:
    return connection.execute("SELECT id, name, pid FROM worker WHERE ended_ms IS NULL").fetchall()


def _has_cascade(connection: apsw.Connection) -> bool:
    return connection.execute("SELECT 1 FROM cascade LIMIT 1").fetchone() is not None


def _bury(tx: Transaction, owner: int) -> None:
    tx.run("clear_serves", owner)
    tx.run("end_worker", tx.now_ms, owner)


def _write_progress(tx: Transaction, progress: list) -> None:  # type: ignore[type-arg]
    for claim, done, total in progress:
        tx.run("put_progress", done, total, tx.now_ms, claim.seq, claim.attempt, claim.owner)
