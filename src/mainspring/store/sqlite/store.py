"""The embedded store: assembles connection, writer, reader, liveness, bell and caretaker."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from mainspring.blobs.base import BlobStore
from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM, Environment
from mainspring.errors import StoreDamaged, StoreUnavailable
from mainspring.store import liveness
from mainspring.store.liveness import LifeFile
from mainspring.store.moving import marks
from mainspring.store.moving.marks import Mark, refuse_moved
from mainspring.store.sql import reads
from mainspring.store.sql.caretaker import SURELY_S
from mainspring.store.sql.futures import fail, outlasted, resolve
from mainspring.store.sql.reader import Reader
from mainspring.store.sql.reads import View
from mainspring.store.sql.store import SqlStore
from mainspring.store.sql.transaction import Applier
from mainspring.store.sqlite.bell import FileBell
from mainspring.store.sqlite.caretaker import SqliteCaretaker
from mainspring.store.sqlite.connection import (
    DAMAGES,
    damaged,
    open_reader,
    open_writer,
    our_errors,
    refuse_unreachable,
)
from mainspring.store.sqlite.log import Log
from mainspring.store.sqlite.statements import SQL
from mainspring.store.sqlite.transaction import SqliteTransaction
from mainspring.store.sqlite.view import FileView
from mainspring.store.sqlite.writer import SqliteWriter

logger = logging.getLogger("mainspring.store")
T = TypeVar("T")


class SqliteStore(SqlStore):
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
        super().__init__(
            config or StoreConfig(), env, queue_size=queue_size, look_s=look_s, grace_s=grace_s, appliers=appliers
        )
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
        self._memory.blob_fault = self.blobs.fault
        self._extra_schema = extra_schema
        self._named_blobs = named_blobs
        self.folder = self.path.with_name(self.path.name + "-live")
        log = Log(self.path, self.config.wal_limit_bytes, self.config.lock_timeout_s)
        self._writer: SqliteWriter = SqliteWriter(
            self._connect, self._memory, self.now_ms, env, log, batch_size, self._committed_soon, self._retry_soon,
            self._damage_of, self.outage,
        )  # fmt: skip
        self._reader = self._make_reader()
        self._bell: FileBell = FileBell(self.folder, self.worker_id, self._heard, env)
        self._caretaker = SqliteCaretaker(self, look_s)
        self._life: LifeFile | None = None

    def _set_clock(self, connection: apsw.Connection) -> None:
        newest = connection.execute(SQL["newest_times"]).fetchone() or ()
        self.clock.set(self.env.wall_ms(), max((ms or 0 for ms in newest), default=0))

    # Opening and closing

    def _connect(self) -> apsw.Connection:
        return open_writer(self.path, self.config, extra_schema=self._extra_schema, volatile=self._private is not None)

    def _make_reader(self) -> Reader[apsw.Connection]:
        return Reader(lambda: open_reader(self.path), self.env, (apsw.Error,), self.outage)

    async def open(self) -> None:
        self._opens()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._strand = self.env.start_strand("mainspring-writer", self._write(opened), self._writer.signal)
        try:
            is_cancelled = await outlasted(opened)
        except BaseException:
            self._remove_private()
            raise
        self._reader.start(self._loop)
        try:
            if is_cancelled:
                raise asyncio.CancelledError
            self._bell.open(self._loop)
            if self.config.blobs is not None and self._private is None:  # the folder beside a file is its own
                await self.env.to_thread(self.blobs.note_user, self.identity)  # before anybody collects
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
            self._loop.call_soon_threadsafe(fail, opened, exc)
            return
        self._loop.call_soon_threadsafe(resolve, opened)
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
        if connection.table_exists("main", "migration"):
            refuse_moved(str(self.path), [Mark(*row) for row in cursor.execute(marks.READ)])
        tx = SqliteTransaction(cursor, self._memory, self.now_ms())
        row = tx.one("add_worker", self.worker_id, self.env.pid(), self.env.host(), tx.now_ms)
        self._memory.owner = int(row[0])
        self.identity = str(tx.one("identity")[0])
        cursor.execute("COMMIT")

    async def close(self) -> None:
        """Sign off and release the file. Whatever is still held is handed back first."""
        self.stop_serving()
        await self._caretaker.stop()
        if self._timer is not None:
            self._timer.cancel()
        await self._leave()
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
        unused = reads.without_payload(FileView(connection), digests)
        named = self._named_blobs(connection, unused) if self._named_blobs is not None else set()
        return [digest for digest in unused if digest not in named]

    # Looking

    async def read(self, run: Callable[[apsw.Connection], T]) -> T:
        """Run a function on the reading connection, in its thread."""
        self._refuse_closed()
        with our_errors(self.path):
            return await self._reader.run(run)

    async def view(self, run: Callable[[View], T]) -> T:
        return await self.read(lambda connection: run(FileView(connection)))

    def silences(self, view: View, workers: Collection[str]) -> dict[str, float]:
        """By the machine's clock: that of a process depends on how the wall clock was set when it began."""
        now_s = self.env.monotonic()
        turned = {name: liveness.turned_s(self.folder / f"{name}.life") for name in workers if name != self.worker_id}
        return {name: now_s - turned_s for name, turned_s in turned.items() if 0 < turned_s <= now_s - SURELY_S}

    async def survey(self, run: Callable[[View], T]) -> T:
        self._refuse_closed()
        reader = self._make_reader()
        reader.start(self._loop)
        try:
            with our_errors(self.path):
                return await reader.run(lambda connection: run(FileView(connection)))
        finally:
            await reader.stop()

    def view_soon(self, run: Callable[[View], T], then: Callable[[T], None]) -> None:
        def look(connection: apsw.Connection) -> T:
            try:
                return run(FileView(connection))
            except DAMAGES as exc:
                self._damage_of(exc)
                raise

        self._reader.put(look, then)

    def _damage_of(self, exc: BaseException) -> StoreDamaged | None:
        """Return what an error says of damage, if it does; whoever waits for results is told: none may ever come."""
        if isinstance(exc, DAMAGES):
            exc = damaged(self.path, exc)
        if not isinstance(exc, StoreDamaged):
            return None
        if self._listener is not None:
            self._loop.call_soon_threadsafe(self._listener.give_up, exc)
        return exc


def _memory_folder() -> str | None:
    """Shared memory where the system has it: nothing is kept anyway."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
