"""The caretaker of a store on a server: who beats lives, and a lock of the server tells who leads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mainspring.store.base import CrashEvidence
from mainspring.store.sql import reads, upkeep
from mainspring.store.sql.caretaker import Caretaker
from mainspring.store.sql.reads import View
from mainspring.store.sql.transaction import Transaction
from mainspring.store.vigil import Vigil

if TYPE_CHECKING:
    from mainspring.store.postgres.store import PostgresStore

logger = logging.getLogger("mainspring.store")
_FOLLOWER_TICKS = 4
"""How often those that don't lead look whether somebody does."""
_NEWS_TICKS = 1_200


class Sign(NamedTuple):
    """What is known of a process that has not signed off."""

    owner: int
    name: str
    pid: int
    beat: int
    turns: int
    is_lost: bool  # its helper saw it die,
    running: tuple[tuple[int, int], ...]  # and what ran then


class PostgresCaretaker(Caretaker):
    _store: PostgresStore

    def __init__(self, store: PostgresStore, look_s: float) -> None:
        super().__init__(store, look_s)
        self._over_beats = Vigil(store.env.monotonic())
        self._silent: dict[str, float] = {}  # for how long a heartbeat has not been heard
        self._leads = False
        self._old_news = "0"

    async def start(self) -> None:
        if await self._store.line.lead():
            await self._take_over()
            await self.rescue_dead()
            await self._go_on()
        self._begin()

    async def _take_over(self) -> None:
        self._leads = True
        owner = self._store.owner
        await self._store.write(lambda tx: tx.run("lead", owner))

    async def _lead(self) -> None:
        leads = await self._store.line.lead()
        if leads and not self._leads:
            await self._take_over()
        self._leads = leads
        if not leads and self._ticks % _FOLLOWER_TICKS:
            return
        signs = await self._store.view(_signs)
        self._listen(signs)
        if not leads and not await self._stands_in(signs):
            return
        await self._rescue_lost(signs)
        await self._rescue_stalled(signs)
        await self._keep()
        if await self._store.view(lambda view: view.one("stray_tallies")):
            await self._store.write(lambda tx: tx.run("gather_tallies"))
        if self._ticks % _NEWS_TICKS == 0:
            await self._forget_news()

    def _listen(self, signs: Sequence[Sign]) -> None:
        beats = {sign.name: sign.beat for sign in signs}
        self._silent = self._over_beats.look(self._store.env.monotonic(), beats)

    async def _stands_in(self, signs: Sequence[Sign]) -> bool:
        """Whether the leader is silent: what it does for all can be done twice, but not left undone."""
        row = await self._store.view(lambda view: view.one("leader"))
        leader = next((sign for sign in signs if sign.owner == row[0]), None)
        if leader is None:
            return False  # it is gone, and its lock with it: this process or another has it next time
        silent_s = self._watch(self._over_leader, {leader.name: leader.turns})[leader.name]
        if silent_s < self._patience_s():
            self._missed = ""
            return False
        if self._missed != leader.name:
            logger.warning("worker %s leads and has been silent for %.0f s; others stand in", leader.name, silent_s)
            self._missed = leader.name
        return True

    async def rescue_dead(self) -> None:
        await self._rescue_lost(await self._store.view(_signs))

    async def _rescue_lost(self, signs: Sequence[Sign]) -> None:
        """A worker is dead when its helper says so, or when neither has been heard of for long enough."""
        for sign in signs:
            if sign.name == self._store.worker_id:
                continue
            if sign.is_lost or self._silent.get(sign.name, 0.0) >= self._store.config.dead_s:
                await self._rescue(sign.owner, CrashEvidence(sign.name, sign.pid, frozenset(sign.running)))
                self._store.line.forget(sign.name)

    async def _rescue_stalled(self, signs: Sequence[Sign]) -> None:
        """Take back what processes hold that live and do nothing, once they have been silent for long enough."""
        others = {sign.name: sign for sign in signs if sign.name != self._store.worker_id and not sign.is_lost}
        turns = {name: sign.turns for name, sign in others.items()}
        for name, silent_s in self._watch(self._over_all, turns).items():
            heard_s = silent_s - self._silent.get(name, 0.0)  # its helper has said so for as long
            if heard_s >= self._patience_s():
                await self._take_back(others[name], heard_s)

    async def _take_back(self, sign: Sign, silent_s: float) -> None:
        store = self._store
        limit_ms = None if silent_s >= store.config.stall_s else int((silent_s - store.grace_s) * 1000)
        due = await store.view(lambda view: reads.overstayed(view, sign.owner, limit_ms, frozenset()))
        if not due:
            return
        stall = upkeep.Stall(sign.owner, sign.name, sign.pid, silent_s, frozenset())

        def take(tx: Transaction) -> int:
            tx.run("revoke", sign.owner)
            return upkeep.take_back(tx, due[: upkeep.STEP], stall)

        taken = await store.write(take)
        logger.warning(
            "worker %s (pid %d) lives, and has been silent for %.0f s; %d of its claims were taken back",
            sign.name, sign.pid, silent_s, taken,
        )  # fmt: skip

    async def _forget_news(self) -> None:
        """What is older than the time between two of these calls, all that live have seen."""
        old, (self._old_news,) = self._old_news, await self._store.view(lambda view: view.one("newest_transaction"))

        def drop(tx: Transaction) -> None:
            tx.run("raise_news_floor", old)
            tx.run("drop_news", old)

        await self._store.write(drop)

    async def _unused(self, digests: Sequence[str]) -> list[str]:
        return await self._store.view(lambda view: self._store.unused_blobs(view, digests))


def _signs(view: View) -> list[Sign]:
    return [
        Sign(owner, name, pid, beat, turns, is_lost, tuple(zip(running[::2], running[1::2], strict=True)))
        for owner, name, pid, beat, turns, is_lost, running in view.rows("signs_of_life")
    ]
