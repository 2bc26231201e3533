"""A worker and a caller on a real store, that note what they were told: the promises a fault must not break.

What an attempt does is written in its task's text, so that the worker that comes after a fault does the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
from tests.conformance.kit import AGEING_MS, NOBODY, OTHER, WORK, Clock, Note, Port, SqliteFactory, error, new

from mainspring.blobs import keys
from mainspring.blobs.local import LocalBlobStore
from mainspring.config import StoreConfig
from mainspring.errors import StoreUnavailable, SubmitIndeterminate, TaskError
from mainspring.store.base import COMPLETED, CRASHED, FAILED, RELEASED, RETRY, TIMEOUT, Claimed, Ended, Finish, NewTask
from mainspring.store.sql import upkeep
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import BlobRef, TextOutput, VectorRecord, VectorUpsert
from mainspring.tasks.codec import decode_input, encode
from mainspring.tasks.lifecycle import CANCELLED
from mainspring.vectors import appliers

PATIENCE_S = 20.0
"""An answer that takes longer will never come."""
KEEP_S = 3600.0
DIGEST = "d" * 64
_LARGE = encode(TextOutput("done" * 100))[0]


class Trying(msgspec.Struct, frozen=True, tag=True):
    """These were handed in: whether they are stored is open until somebody is told."""

    ids: tuple[bytes, ...]


class Stored(msgspec.Struct, frozen=True, tag=True):
    ids: tuple[bytes, ...]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Nothing was stored, it was said."""

    ids: tuple[bytes, ...]


class Final(msgspec.Struct, frozen=True, tag=True):
    """Somebody was told that a task ended so."""

    id: bytes
    status: int


class Paused(msgspec.Struct, frozen=True, tag=True):
    kind: str
    is_paused: bool | None  # None: it was asked for a change


class Wrong(msgspec.Struct, frozen=True, tag=True):
    """What never came, or not as it should."""

    what: str


Told = Trying | Stored | Refused | Final | Paused | Wrong


class World(Port):
    """One process's worth of work on a store; every call may fail and is noted as what it was told."""

    def __init__(self, store: SqliteStore, clock: Clock, tell: Callable[[Told], None], room: int = 0) -> None:
        super().__init__(store, room)
        self.store: SqliteStore = store
        self.clock = clock
        self.tell = tell
        self.unsent: list[tuple[NewTask, ...]] = []
        self.refusals = 0
        self.doubts = 0
        self.owed: set[bytes] = set()  # tasks whose outcome was given to the store, and nothing heard since

    # What the store tells

    def ended(self, tasks: list[Ended]) -> None:
        for task in tasks:
            self.tell(Final(task.id, task.status))
            self.owed.discard(task.id)
        super().ended(tasks)

    def lost(self, finishes: list[Finish]) -> None:
        self.owed -= {finish.claim.id for finish in finishes}
        super().lost(finishes)

    # Calls

    async def call(self, work: Awaitable[Any]) -> Any:
        """The answer, or the error that is one."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await work
        except TimeoutError:
            self.tell(Wrong(f"no answer from {work!r}"))
            raise
        except TaskError as exc:
            return exc

    async def submit(self, *tasks: NewTask) -> None:
        ids = tuple(task.id for task in tasks)
        self.tell(Trying(ids))
        answer = await self.call(self.store.submit(tasks))
        if isinstance(answer, list):
            self.tell(Stored(tuple(accepted.id for accepted in answer)))
            return
        self.unsent.append(tasks)
        if isinstance(answer, SubmitIndeterminate):
            self.doubts += 1
        elif isinstance(answer, StoreUnavailable):
            self.refusals += 1
            self.tell(Refused(ids))
        else:
            raise answer

    async def cancel(self, id: bytes) -> None:
        answer = await self.call(self.store.cancel(id))
        if answer == "cancelled":
            self.tell(Final(id, CANCELLED))

    async def retry(self, id: bytes) -> None:
        answer = await self.call(self.store.retry(id))
        if isinstance(answer, bytes):
            self.tell(Stored((answer,)))

    async def pause(self, type: str) -> None:
        self.tell(Paused(type, None))
        if not isinstance(await self.call(self.store.pause(type=type)), TaskError):
            self.tell(Paused(type, True))

    async def resume(self, type: str) -> None:
        self.tell(Paused(type, None))
        if not isinstance(await self.call(self.store.resume(type=type)), TaskError):
            self.tell(Paused(type, False))

    async def settle(self) -> None:
        await self.call(self.store.withdraw(NOBODY))

    async def begin(self, room: int) -> None:
        await self.call(self.store.register([WORK, OTHER], []))
        self.lanes["async"].limit = room
        self.store.serve(self)
        await self.settle()

    async def prune(self) -> None:
        cursor: Any = 0

        def step(tx: Transaction) -> int:
            return upkeep.prune(tx, cursor, self.store.config)

        while cursor := await self.call(self.store.write(step)):
            if isinstance(cursor, TaskError):
                return

    # The worker

    def end(self, claim: Claimed, outcome: int = COMPLETED, **fields: Any) -> Finish:
        if outcome in (COMPLETED, FAILED, TIMEOUT):
            self.owed.add(claim.id)
        if outcome in (TIMEOUT, RETRY, CRASHED):  # with a failure the kit does so
            fields.setdefault("error", error())
        return super().end(claim, outcome, **fields)

    def start(self, most: int) -> None:
        """Let the handlers of some held tasks begin."""
        for claim in list(self.held.values())[:most]:
            self.store.started(claim, self.store.now_ms())

    def work(self, most: int = 1_000_000) -> None:
        """End what is held as its text says."""
        for claim in list(self.held.values())[:most]:
            self.end_by_plan(claim)

    def end_by_plan(self, claim: Claimed) -> None:
        text = str(decode_input(claim.input).as_text()).split()[0]
        if text == "fail":
            self.end(claim, FAILED)
        elif text == "late":
            self.end(claim, TIMEOUT)
        elif text == "retry" and claim.retry_count == 0:
            self.end(claim, RETRY, delay_ms=50, started_ms=self.store.now_ms())
        elif text == "release" and claim.releases == 0:
            self.end(claim, RELEASED)
        elif text == "crash" and claim.crashes == 0:
            self.end(claim, CRASHED, started_ms=self.store.now_ms())
        elif text == "join":
            child = self.child(claim)
            self.end(claim, children=(child,), refs=(child.id,))
        elif claim.class_key[1] == OTHER:
            self.end(claim, effects=effects(claim.id, text), children=(self.child(claim),), blobs=(DIGEST,))
        else:
            self.end(claim, output=_LARGE)

    def child(self, claim: Claimed) -> NewTask:
        return new("ok", id=child_of(claim.id))

    async def rest(self) -> None:
        """Work until there is nothing left to do, delays included."""
        await self.settle()
        for _ in range(200):
            if not self.held:
                self.clock.advance(1.0)
                self.store.demand()
                await self.settle()
                if not self.held:
                    return
            self.work()
            await self.settle()
        self.tell(Wrong("the work never ends"))

    async def heard_of_all(self) -> None:
        """Wait until the store has told of every outcome that it was given; nobody asks it to."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.until(lambda: not self.owed)
        except TimeoutError:
            self.tell(Wrong(f"nothing was heard of {len(self.owed)} outcomes"))

    async def send_again(self) -> None:
        """What was not acknowledged is handed in anew, under the same ids."""
        unsent, self.unsent = self.unsent, []
        for tasks in unsent:
            await self.submit(*tasks)


def child_of(id: bytes) -> bytes:
    return hashlib.blake2b(id, digest_size=16).digest()


def effects(id: bytes, text: str) -> tuple[Any, ...]:
    """One of each kind, all named for the task."""
    name = id.hex()
    record = VectorRecord(name, np.array([1.0, 2.0, 3.0, 4.0], np.float32), "text", {"of": name})
    last = (Note("never", "refuse"),) if text == "refused" else ()
    return (Note(name), VectorUpsert("c", (record,)), BlobRef(name, DIGEST, 1), *last)


class Maker:
    """Makes stores on a file, with the appliers of vectors, blobs and notes."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.path = path
        self.clock = Clock()
        self.config = StoreConfig(
            ageing_s=AGEING_MS / 1000, keep_completed_s=KEEP_S, keep_failed_s=KEEP_S, lock_timeout_s=1.0, **config
        )

    def __call__(self) -> SqliteStore:
        return SqliteStore(
            self.path,
            self.config,
            blobs=lambda file: LocalBlobStore(file.with_name(file.name + "-blobs")),
            env=self.clock,
            look_s=3600.0,
            extra_schema=appliers.SCHEMA + keys.SCHEMA + "CREATE TABLE IF NOT EXISTS note (text TEXT NOT NULL) STRICT;",
            appliers={**SqliteFactory.appliers, VectorUpsert: _upsert, BlobRef: keys.apply_ref},
            named_blobs=keys.named,
        )


def _upsert(cursor: apsw.Cursor, effect: Any, namespace: str, now_ms: int) -> None:
    appliers.apply_upsert(cursor, effect, now_ms)
