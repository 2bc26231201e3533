"""The caretaker of a file: locks tell who lives and who leads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mainspring.store.base import CrashEvidence
from mainspring.store.liveness import LeaderLock, if_dead, revoke, running_in, turns_of
from mainspring.store.sql import reads, upkeep
from mainspring.store.sql.caretaker import Caretaker
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sqlite import space

if TYPE_CHECKING:
    from mainspring.store.sqlite.store import SqliteStore

logger = logging.getLogger("mainspring.store")


class SqliteCaretaker(Caretaker):
    _store: SqliteStore
    _lock: LeaderLock | None = None

    async def start(self) -> None:
        self._lock = LeaderLock(self._store.folder, self._store.worker_id, self._store.env)
        if self._lock.hold():
            await self.rescue_dead()
            await self._go_on()
        self._begin()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()

    async def _lead(self) -> None:
        assert self._lock is not None
        if not self._lock.hold() and not self._stands_in(self._lock.holder()):
            return
        await self.rescue_dead()
        await self._rescue_stalled()
        await self._keep()
        if await self._store.read(space.can_shrink):
            await self._store.write(space.shrink)

    async def _unused(self, digests: Sequence[str]) -> list[str]:
        return await self._store.read(partial(self._store.unused_blobs, digests=digests))

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

    def _life_file(self, name: str) -> Path:
        return Path(self._store.folder, f"{name}.life")

    async def rescue_dead(self) -> None:
        """Take back at once what workers held that live no more."""
        for owner, name, pid in await self._store.view(reads.open_workers):
            if name != self._store.worker_id:
                with if_dead(self._life_file(name), self._store.env) as started:
                    if started is not None:
                        await self._rescue(owner, CrashEvidence(name, pid, started))

    async def _rescue_stalled(self) -> None:
        """Take back what processes hold that live and do nothing, once they have been silent for long enough."""
        store = self._store
        others = {name: (owner, pid) for owner, name, pid in await store.view(reads.open_workers)}
        others.pop(store.worker_id, None)
        turns = {name: n for name in others if (n := turns_of(self._life_file(name))) is not None}
        for name, silent_s in self._watch(self._over_all, turns).items():
            if silent_s >= self._patience_s():
                await self._take_back(*others[name], name, silent_s)

    async def _take_back(self, owner: int, pid: int, name: str, silent_s: float) -> None:
        store, life = self._store, self._life_file(name)
        limit_ms = None if silent_s >= store.config.stall_s else int((silent_s - store.grace_s) * 1000)
        running = running_in(life)
        due = await store.view(lambda view: reads.overstayed(view, owner, limit_ms, running))
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
