"""The store on a server: assembles sessions, writer, reader, line, heartbeat and caretaker."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from mainspring.blobs.base import BlobStore
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.store.liveness import LifeFile
from mainspring.store.moving import marks
from mainspring.store.moving.marks import Mark, refuse_moved
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.caretaker import PostgresCaretaker
from mainspring.store.postgres.connection import (
    OUTAGES,
    connect,
    connect_pooler,
    for_a_transaction,
    is_lost,
    our_errors,
    prepare,
)
from mainspring.store.postgres.inbox import InboxStore
from mainspring.store.postgres.line import Line, channel_of
from mainspring.store.postgres.lookers import PLANS, Lookers
from mainspring.store.postgres.pulse import HelperPulse, Pulse
from mainspring.store.postgres.session import PooledSession, Session
from mainspring.store.postgres.writer import PostgresWriter
from mainspring.store.sql import reads
from mainspring.store.sql.caretaker import write_offer
from mainspring.store.sql.commands import note_slots
from mainspring.store.sql.futures import fail, outlasted, resolve
from mainspring.store.sql.reader import Reader
from mainspring.store.sql.reads import View
from mainspring.store.sql.transaction import Applier, Crowded, Transaction

logger = logging.getLogger("mainspring.store")
T = TypeVar("T")
_SILENT_S = 30.0
"""Three times what workers repeat themselves within that have nothing new to tell."""
_LENT_WITHIN_S = 5.0
"""How long a pooler may take to lend a session."""


class PostgresStore(InboxStore):
    """Tasks in a schema of a Postgres database, for any number of processes on any number of machines.

    See `store.base.Store` for the contract.
    """

    def __init__(
        self,
        url: str,
        config: StoreConfig | None = None,
        *,
        blobs: BlobStore,
        schema: str = "mainspring",
        env: Environment = SYSTEM,
        queue_size: int | None = None,
        batch_size: int = 512,
        look_s: float = 1.0,
        grace_s: float = 2.0,
        extra_schema: str = "",
        appliers: Mapping[type, Applier] | None = None,
        named_blobs: Callable[[Session, Sequence[str]], set[str]] | None = None,
        pulse: Callable[[PostgresStore], Pulse] = HelperPulse,
    ) -> None:
        super().__init__(
            config or StoreConfig(), env, queue_size=queue_size, look_s=look_s, grace_s=grace_s, appliers=appliers
        )
        self.server = parse(url, schema)
        self.blobs = blobs
        self._memory.blob_fault = blobs.fault
        self._extra_schema = extra_schema
        self._named_blobs = named_blobs
        self._writer: PostgresWriter = PostgresWriter(
            self._session, self._memory, self.now_ms, env, batch_size, self._committed_soon, self._retry_soon,
            self._rejoin, self.server, self.outage,
        )  # fmt: skip
        self._reader = Reader(self._session, env, OUTAGES, self.outage, is_lost)
        self._lookers = Lookers(self._looking_session, self.server)
        self.line = Line(self._connect, channel_of(self.server.schema), self.worker_id, self._heard, env)
        self._bell = self.line
        self._caretaker = PostgresCaretaker(self, look_s)
        self._pulse = pulse(self)
        self._sure_until = 0.0
        self._awake_at = env.monotonic()
        self._has_slept = False
        self._has_left = False
        self._folder: Path | None = None
        self._life: LifeFile | None = None

    @property
    def owner(self) -> int:
        """This process's row in `worker`."""
        return self._memory.owner

    @property
    def life(self) -> LifeFile:
        assert self._life is not None
        return self._life

    # Opening and closing

    async def _connect(self) -> asyncpg.Connection:
        return await connect(self.server, self.worker_id, self.config)

    def _session(self) -> Session:
        with our_errors(self.server):
            return self._made_session({})

    def _looking_session(self) -> Session:
        return self._made_session(PLANS)

    def _made_session(self, settings: Mapping[str, str]) -> Session:
        def direct() -> Session:
            return Session(lambda: connect(self.server, self.worker_id, self.config, settings))

        if self.server.pooler is None:
            return direct()
        first = for_a_transaction(self.server, self.config, settings)
        patience_s = self.config.lock_timeout_s + _LENT_WITHIN_S
        return PooledSession(lambda: connect_pooler(self.server), first, direct, patience_s)

    async def open(self) -> None:
        self._opens()
        self._writer.number = await prepare(self.server, self.config, self._extra_schema)
        self._folder = Path(tempfile.mkdtemp(prefix="mainspring-"))
        self._life = LifeFile(self._folder, self.worker_id, self.env)
        opened: asyncio.Future[None] = self._loop.create_future()
        self._strand = self.env.start_strand("mainspring-writer", self._write(opened), self._writer.signal)
        try:
            is_cancelled = await outlasted(opened)
        except BaseException:
            self._drop_life()
            raise
        self._reader.start(self._loop)
        try:
            if is_cancelled:
                raise asyncio.CancelledError
            with our_errors(self.server):
                await self.line.open(self._writer.number)
            self.identity = await self.view(lambda view: str(view.one("identity")[0]))
            await self.env.to_thread(self.blobs.note_user, self.identity)  # before anybody collects
            await self._pulse.start()
            await self._caretaker.start()
        except (Exception, asyncio.CancelledError):
            await self.close()
            raise

    def _write(self, opened: asyncio.Future[None]) -> Iterator[None]:
        try:
            with our_errors(self.server):
                self._writer.open()
                tx = self._writer.begin(alone=True)
                self._set_clock(tx)
                self._join(tx)
                tx.cursor.command("COMMIT")
        except BaseException as exc:  # noqa: BLE001 - whoever opens the store gets it
            self._writer.close()
            self._loop.call_soon_threadsafe(fail, opened, exc)
            return
        self._loop.call_soon_threadsafe(resolve, opened)
        for _ in self._writer.run():
            self.life.turn()
            yield

    def _set_clock(self, tx: Transaction) -> None:
        """All machines go by the server's clock."""
        wall_ms = tx.one("server_ms")[0] if self.env is SYSTEM else self.env.wall_ms()
        self.clock.set(wall_ms, max(ms or 0 for ms in tx.one("newest_times")))

    def _join(self, tx: Transaction) -> None:
        if tx.cursor.execute("SELECT to_regclass('migration') IS NOT NULL")[0][0]:
            refuse_moved(self.server.named, [Mark(*row) for row in tx.cursor.execute(marks.READ)])
        tx.run("lower_news_floor")
        tx.run("drop_foreign_news")
        row = tx.one("add_worker", self.worker_id, self.env.pid(), self.env.host(), self.now_ms())
        self._memory.owner = int(row[0])

    def _rejoin(self, tx: Transaction) -> None:
        """Others have not heard of this process for long and took back what it held: it begins anew, with nothing."""
        if self._has_left:
            return
        if not tx.is_alone:
            raise Crowded
        logger.warning("worker %s was taken for dead; it goes on with what it is given from now on", self.worker_id)
        tx.run("rename_worker", self.owner)
        self._join(tx)
        note_slots(tx)
        tx.run_many("add_serves", [(self.owner, kind) for kind in self._memory.lane_of_type])
        write_offer(tx, self.offered)
        tx.held = (self.life.revoked, frozenset())

    async def close(self) -> None:
        """Sign off. Whatever is still held is handed back first."""
        self.stop_serving()
        await self._caretaker.stop()
        if self._timer is not None:
            self._timer.cancel()
        await self._leave()
        await self._pulse.stop()
        await self.line.close()
        await self._reader.stop()
        await self.env.to_thread(self._lookers.close)
        self._writer.stop()
        await self._strand.ended()
        self._drop_life()

    def _sign_off(self, tx: Transaction) -> None:
        self._has_left = True
        super()._sign_off(tx)

    def _drop_life(self) -> None:
        if self._life is not None:
            self._life.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # What others took back

    def is_revoked(self) -> bool:
        """Also where others may have taken back what the helper has not heard of yet: this process has not been heard,
        or has done nothing, for half the time that it takes."""
        if super().is_revoked():
            return True
        now = self.env.monotonic()
        self._has_slept |= now - self._awake_at > self.config.stall_s / 2  # the caretaker asks more often than that
        self._awake_at = now
        if not self._has_slept and (not self._pulse.is_stale() or now < self._sure_until):
            return False
        return self._ask_what_is_held()

    def _tell_worker(self, port: Any, tx: Transaction) -> None:
        if tx.held is not None:
            self._has_slept = False
            self._sure_until = self.env.monotonic() + self.config.dead_s / 2
        super()._tell_worker(port, tx)

    # Looking

    async def view(self, run: Callable[[View], T]) -> T:
        self._refuse_closed()
        with our_errors(self.server):
            return await self._reader.run(run)

    def silences(self, view: View, workers: Collection[str]) -> dict[str, float]:
        """By the server's clock, which all go by: a worker repeats what it tells of its machine."""
        now_s, others = self.now_ms() / 1000, {*workers} - {self.worker_id}
        told = {one.worker: one.at_ms / 1000 for one in reads.usages(view) if one.worker in others}
        return {name: now_s - told_s for name, told_s in told.items() if told_s <= now_s - _SILENT_S}

    async def survey(self, run: Callable[[View], T]) -> T:
        return await self.env.to_thread(self.look_aside, run)

    def view_soon(self, run: Callable[[View], T], then: Callable[[T], None]) -> None:
        self._reader.put(run, then)

    def look_aside(self, run: Callable[[Session], T]) -> T:
        """Run a function that may look for long, beside all else; blocks. For the rooms that own other tables."""
        self._refuse_closed()
        return self._lookers.run(run)

    def unused_blobs(self, view: Any, digests: Sequence[str]) -> list[str]:
        """Return those blobs that neither a task's payload nor a name refers to."""
        unused = reads.without_payload(view, digests)
        named = self._named_blobs(view, unused) if self._named_blobs is not None else set()
        return [digest for digest in unused if digest not in named]
