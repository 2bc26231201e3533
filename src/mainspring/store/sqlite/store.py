"""The embedded store: assembles connection, writer, reader, liveness, bell and caretaker."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw

from mainspring.blobs.base import BlobStore
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import StoreUnavailable, TaskError, TaskNotFound
from mainspring.store.base import (
    CANCEL_ASKED,
    Accepted,
    Claimed,
    Ended,
    Finish,
    HandlerRecord,
    Listener,
    NewTask,
    Standing,
    WorkerPort,
)
from mainspring.store.sqlite import commands, reads
from mainspring.store.sqlite.bell import ENDED, HELLO, LOOK, STOP, WELCOME, Bell, split_ids
from mainspring.store.sqlite.caretaker import Caretaker
from mainspring.store.sqlite.connection import open_reader, open_writer, our_errors, refuse_unreachable
from mainspring.store.sqlite.liveness import LifeFile
from mainspring.store.sqlite.log import Log
from mainspring.store.sqlite.reader import Reader
from mainspring.store.sqlite.statements import SQL
from mainspring.store.sqlite.transaction import Applier, Memory, Transaction
from mainspring.store.sqlite.writer import Command, Group, Started, Submission, Writer
from mainspring.tasks import TaskId, TaskInfo, TaskResult, TaskStatus

logger = logging.getLogger("mainspring.store")
T = TypeVar("T")
_LOOK_IDS = 2_000
RETRY_S, MOST_RETRY_S = 0.1, 3.2
"""How long after a failed write the next try comes by itself: each time twice as long, up to the second."""


class SqliteStore:
    """Tasks in one file; any number of processes may have it open. See `store.base.Store` for the contract.

    `path` ":memory:" is a file in a private temporary folder that goes when the store closes.
    """

    def __init__(
        self,
        path: str | Path,
        config: StoreConfig | None = None,
        *,
        blobs: Callable[[Path], BlobStore],
        env: Environment = SYSTEM,
        queue_size: int | None = None,
        batch_size: int = 512,
        look_s: float = 1.0,
        grace_s: float = 2.0,
        extra_schema: str = "",
        appliers: Mapping[type, Applier] | None = None,
        named_blobs: Callable[[apsw.Connection, Sequence[str]], set[str]] | None = None,
    ) -> None:
        self.config = config or StoreConfig()
        self.env = env
        self.grace_s = grace_s
        self._private = (
            tempfile.mkdtemp(prefix="mainspring-", dir=_memory_folder()) if str(path) == ":memory:" else None
        )
        if self._private is not None:  # goes with the store, opened or not
            weakref.finalize(self, shutil.rmtree, self._private, ignore_errors=True)
        self.path = (
            Path(self._private or "", "work.db") if self._private else Path(path).resolve()
        )  # one store has one name, however it is reached
        refuse_unreachable(self.path)  # before the blobs make folders beside it
        self.blobs = blobs(self.path)
        self.worker_id = env.random_bytes(6).hex()
        self._extra_schema = extra_schema
        self._named_blobs = named_blobs
        self._memory = Memory(self.config)
        self._memory.queue_size = queue_size
        self._memory.appliers = dict(appliers or {})
        self.folder = self.path.with_name(self.path.name + "-live")
        log = Log(self.path, self.config.wal_limit_bytes, self.config.lock_timeout_s)
        self._writer = Writer(
            self._connect, self._memory, self.now_ms, env, log, batch_size, self._committed_soon, self._retry_soon
        )
        self._reader = Reader(lambda: open_reader(self.path), env)
        self._bell = Bell(self.folder, self.worker_id, self._heard, env)
        self._caretaker = Caretaker(self, look_s)
        self._life: LifeFile | None = None
        self._revoked = 0  # how often others took claims back, as far as the worker has been told
        self._recounting: asyncio.Future[None] | None = None
        self._port: WorkerPort | None = None
        self._closed = False
        self._told_pauses: frozenset[tuple[str, str, str]] = frozenset()
        self._listener: Listener | None = None
        self._progress: dict[int, tuple[Claimed, float, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._wall_ms = 0
        self._started = 0.0

    # Time

    def now_ms(self) -> int:
        return self._wall_ms + int((self.env.monotonic() - self._started) * 1000)

    def ms_at(self, monotonic: float) -> int:
        return self._wall_ms + int((monotonic - self._started) * 1000)

    def _set_clock(self, connection: apsw.Connection) -> None:
        newest = connection.execute(SQL["newest_times"]).fetchone() or ()
        self._started = self.env.monotonic()
        self._wall_ms = max(self.env.wall_ms(), *(ms or 0 for ms in newest))

    # Opening and closing

    def _connect(self) -> apsw.Connection:
        return open_writer(self.path, self.config, extra_schema=self._extra_schema, volatile=self._private is not None)

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._strand = self.env.start_strand("mainspring-writer", self._write(opened), self._writer.signal)
        try:
            await opened
        except BaseException:
            self._remove_private()
            raise
        self._reader.start(self._loop)
        try:
            self._bell.open(self._loop)
            await self._caretaker.start()
        except (Exception, asyncio.CancelledError):
            await self.close()  # its locks, kept by nobody, would stop every later store of this process from leading
            raise

    def _write(self, opened: asyncio.Future[None]) -> Iterator[None]:
        try:
            with our_errors(self.path):
                self._writer.open()
                connection = self._writer.connection
                assert connection is not None
                self._set_clock(connection)
                self._join(connection)
        except BaseException as exc:  # noqa: BLE001 - whoever opens the store gets it
            self._writer.close()
            if self._life is not None:
                self._life.close()
            self._loop.call_soon_threadsafe(_fail, opened, exc)
            return
        self._loop.call_soon_threadsafe(_resolve, opened)
        assert self._life is not None
        for _ in self._writer.run():
            self._life.turn()
            yield

    def _join(self, connection: apsw.Connection) -> None:
        """Register this process."""
        try:
            self._life = LifeFile(self.folder, self.worker_id, self.env)
        except OSError as exc:
            raise StoreUnavailable(f"{self.folder} can't be written ({exc}); free space, or check its rights") from exc
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        tx = Transaction(cursor, self._memory, self.now_ms())
        row = tx.one("add_worker", self.worker_id, self.env.pid(), self.env.host(), tx.now_ms)
        self._memory.owner = int(row[0])
        cursor.execute("COMMIT")

    async def close(self) -> None:
        """Sign off and release the file. Whatever is still held is handed back first."""
        self.stop_serving()
        await self._caretaker.stop()
        if self._timer is not None:
            self._timer.cancel()
        owner = self._memory.owner
        try:
            await self.write(lambda tx: _sign_off(tx, owner, has_served=self._port is not None))
        except TaskError as exc:  # whoever has the file open next finds the lock free and takes back what was held
            logger.warning("worker %s could not sign off: %s", self.worker_id, exc)
        self._closed = True
        self._bell.close()
        await self._reader.stop()
        self._writer.stop()  # last: only a writing connection can fold the log into the file when it closes
        await self._strand.ended()
        if self._life is not None:
            self._life.close()
        self._caretaker.release()
        self._remove_private()

    def _remove_private(self) -> None:
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def unused_blobs(self, connection: apsw.Connection, digests: Sequence[str]) -> list[str]:
        """Return those blobs that neither a task's payload nor a name refers to."""
        unused = reads.without_payload(connection, digests)
        named = self._named_blobs(connection, unused) if self._named_blobs is not None else set()
        return [digest for digest in unused if digest not in named]

    # Calls

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed; open it again with a new engine")

    async def submit(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        self._refuse_closed()
        submission = Submission(tasks, self._loop.create_future())
        self._writer.put(submission)
        return await submission.future

    async def write(self, run: Callable[[Transaction], T]) -> T:
        """Run a function in the next transaction; for the rooms that own tables beside the tasks'."""
        self._refuse_closed()
        command = Command(run, self._loop.create_future())
        self._writer.put(command)
        return await command.future  # type: ignore[no-any-return]

    def write_from_thread(self, run: Callable[[apsw.Cursor], T]) -> T:
        """Like `write`, blocking, for threads other than the loop's."""
        return self.env.on_loop(self._loop, self.write(lambda tx: run(tx.cursor)))

    async def read(self, run: Callable[[apsw.Connection], T]) -> T:
        """Run a function on the reading connection, in its thread."""
        self._refuse_closed()
        with our_errors(self.path):
            return await self._reader.run(run)

    async def cancel(self, id: bytes) -> str:
        return await self.write(lambda tx: commands.cancel(tx, id))

    async def withdraw(self, claim: Claimed) -> bool:
        return await self.write(lambda tx: commands.withdraw(tx, claim))

    async def retry(self, id: bytes) -> bytes:
        new_id = self.env.new_id()
        return await self.write(lambda tx: commands.retry(tx, id, new_id))

    async def pause(self, *, namespace: str = "", type: str = "", group: str = "") -> None:
        await self._change_pauses(lambda tx: commands.pause(tx, namespace, type, group))

    async def resume(self, *, namespace: str = "", type: str = "", group: str = "") -> int:
        return await self._change_pauses(lambda tx: commands.resume(tx, namespace, type, group))

    async def _change_pauses(self, run: Callable[[Transaction], T]) -> T:
        changing = self._loop.create_task(self.write(run), name="pauses")
        changing.add_done_callback(self._reload_pauses)
        return await asyncio.shield(changing)  # who asked may leave; the change is acted on all the same

    def _reload_pauses(self, _changed: asyncio.Task[Any]) -> None:
        self._writer.look_anew()
        self._bell.ring(LOOK)

    async def register(self, types: Sequence[str], handlers: Sequence[HandlerRecord]) -> None:
        await self.write(lambda tx: commands.register(tx, types, handlers))

    async def registered_types(self) -> list[str]:
        return await self.read(reads.registered_types)

    # The worker's side

    def serve(self, port: WorkerPort) -> None:
        self._port = port
        self._memory.lane_of_type = {kind: lane for lane in port.lanes.values() for kind in lane.types}
        self._memory.lanes = dict(port.lanes)
        self._writer.look_anew()

    def stop_serving(self) -> None:
        self._memory.lanes = {}
        self._memory.lane_of_type = {}

    def demand(self) -> None:
        self._writer.kick()

    def finish(self, finish: Finish) -> None:
        self._writer.put(finish)

    def started(self, claim: Claimed, started_ms: int) -> None:
        self._writer.put(Started(claim, started_ms))

    @property
    def mark(self) -> Callable[[int, int, int], None]:
        assert self._life is not None
        return self._life.mark

    def is_revoked(self) -> bool:
        assert self._life is not None
        if self._life.revoked == self._revoked:
            return False
        if self._recounting is None or self._recounting.done():
            self._recounting = self._loop.create_future()
            self._recounting.add_done_callback(asyncio.Future.exception)  # an outage: the next call tries again
            self._writer.put(Command(self._recount, self._recounting))
        return True

    def _recount(self, tx: Transaction) -> None:
        assert self._life is not None
        tx.held = (self._life.revoked, frozenset(tx.run("claims_of", tx.memory.owner).fetchall()))

    def progress(self, claim: Claimed, done: float, total: float) -> None:
        """Keep the newest value; the caretaker writes it with the next tick."""
        self._progress[claim.seq] = (claim, done, total)

    def take_progress(self) -> list[tuple[Claimed, float, float]]:
        taken, self._progress = list(self._progress.values()), {}
        return taken

    # News

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def _committed_soon(self, tx: Transaction, group: Group, next_event_ms: int | None) -> None:
        self._loop.call_soon_threadsafe(self._committed, tx, group, next_event_ms)

    def _committed(self, tx: Transaction, group: Group, next_event_ms: int | None) -> None:
        for call in group.calls:
            if call.future.done():
                continue
            if call.error is not None:
                call.future.set_exception(call.error)
            else:
                call.future.set_result(call.result)
        if self._port is not None:
            self._tell_worker(self._port, tx)
        if tx.ended and self._listener is not None:
            self._listener.ended(tx.ended)
        if self._bell.has_peers:
            self._ring(tx)
        self._arm(next_event_ms)

    def _tell_worker(self, port: WorkerPort, tx: Transaction) -> None:
        if tx.held is not None:  # the claims of earlier commits have been handed over by now, those of this one follow
            self._revoked, held = tx.held
            port.revoked(held)
        if tx.claims:
            port.claimed(tx.claims)
        if tx.lost:
            port.lost(tx.lost)
        if tx.stop_asked:
            port.asked_to_stop(tx.stop_asked)
        if self._memory.pauses is not self._told_pauses:
            self._told_pauses = self._memory.pauses
            if self._told_pauses:
                port.paused(self._memory.is_paused)

    def _ring(self, tx: Transaction) -> None:
        if tx.ready:
            self._bell.ring(LOOK)
        if tx.ended:
            self._bell.ring_ids(ENDED, (ended.id for ended in tx.ended))
        if tx.stop_asked:
            self._bell.ring_ids(STOP, tx.stop_asked)

    def _heard(self, kind: bytes, payload: bytes) -> None:
        if kind in (LOOK, HELLO):
            self._writer.kick()
        elif kind == WELCOME:
            self.look()
        elif kind == STOP and self._port is not None:
            self._port.asked_to_stop(split_ids(payload))
        elif kind == ENDED and self._listener is not None:
            wants = self._listener.wants
            self._tell_of([id for id in split_ids(payload) if wants(id)])

    def _tell_of(self, ids: list[bytes]) -> None:
        """Look up tasks that others ended, and tell the listener."""
        listener = self._listener
        if ids and listener is not None:
            self._reader.put(lambda connection: reads.ended(connection, ids), listener.ended)

    def look(self) -> None:
        """The safety look beside the wake-ups: for claims, for awaited tasks that others ended, for cancels."""
        self._writer.kick()
        if self._listener is not None:
            self._tell_of(self._listener.awaited(_LOOK_IDS))
        if self._port is not None:
            owner = self._memory.owner
            self._reader.put(lambda connection: reads.asked_to_stop(connection, owner), self._port.asked_to_stop)

    def _arm(self, next_event_ms: int | None) -> None:
        """Wake the writer when the next delay ends or deadline passes."""
        if next_event_ms == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms, self._timer = next_event_ms, None
        if next_event_ms is not None:
            delay = max(0.0, (next_event_ms - self.now_ms()) / 1000) + 0.001
            self._timer = self._loop.call_later(min(delay, 3600.0), self._due)

    def _due(self) -> None:
        self._timer = self._timer_ms = None
        self._writer.kick()

    def _retry_soon(self, before: int) -> None:
        delay = min(RETRY_S * 2 ** min(before, 16), MOST_RETRY_S)
        self._loop.call_soon_threadsafe(self._loop.call_later, delay, self._writer.kick)

    # Looking

    async def info(self, id: bytes) -> TaskInfo:
        return await self.read(lambda connection: reads.info(connection, self.blobs, id))

    async def standing(self, id: bytes) -> Standing:
        return await self.read(lambda connection: reads.standing(connection, id))

    async def stats(self) -> dict[str, Any]:
        return await self.read(reads.stats)

    async def result(self, id: bytes) -> TaskResult | None:
        return await self.read(lambda connection: reads.result(connection, self.blobs, id))

    async def ended(self, ids: Sequence[bytes]) -> list[Ended]:
        return await self.read(lambda connection: reads.ended(connection, ids))

    async def require(self, ids: Sequence[bytes]) -> None:
        """Raises TaskNotFound for the first id that the store does not know."""
        unknown = await self.read(lambda connection: reads.missing(connection, ids))
        if unknown:
            raise TaskNotFound(
                f"there is no task {TaskId(unknown[0])} in this store; check the id and the store's path"
            )

    async def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        type: str | None = None,
        namespace: str | None = None,
        limit: int = 50,
        before: TaskId | None = None,
    ) -> list[TaskInfo]:
        return await self.read(
            lambda connection: reads.page(
                connection, self.blobs, status=status, type=type, namespace=namespace, limit=limit, before=before
            )
        )


def _sign_off(tx: Transaction, owner: int, *, has_served: bool) -> None:
    """Hand back what is held. A process that only looked or submitted is forgotten: no attempt names it."""
    rows: list[Any]
    while rows := tx.run("held_by", owner, 500).fetchall():
        for seq, id, _, _, class_id, _, _, flags in rows:
            if flags & CANCEL_ASKED:
                commands.cancel_held(tx, seq, class_id, id)
            else:
                tx.must_change("give_back", 0, 0, 0, seq)
                tx.ready.add(class_id)
    tx.run("clear_serves", owner)
    if has_served:
        tx.run("end_worker", tx.now_ms, owner)
    else:
        tx.run("forget_worker", owner)


def _memory_folder() -> str | None:
    """Shared memory where the system has it: nothing is kept anyway."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def _resolve(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[Any], exc: BaseException) -> None:
    if not future.done():
        future.set_exception(exc)


__all__ = ["SqliteStore", "StoreUnavailable"]
