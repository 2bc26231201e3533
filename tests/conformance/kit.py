"""What the conformance tests stand on: a clock that stands still, a worker that is the test itself, builders of tasks.

Nothing in here knows a particular store but the factories at the end: what they add to the contract (dying, pruning,
counting afresh) every store can do, each in its own way.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import apsw
import msgspec
from tests import postgres

from mainspring.blobs import keys, server_keys
from mainspring.blobs.local import LocalBlobStore
from mainspring.config import StoreConfig
from mainspring.environment import Environment
from mainspring.errors import InvalidInput, TaskError, TaskNotFound
from mainspring.store.base import (
    CANCEL_ASKED,
    COMPLETED,
    FAILED,
    OUTCOMES,
    SHARED,
    SUSPECT,
    Claimed,
    Ended,
    Finish,
    NewTask,
    Spec,
    Store,
)
from mainspring.store.lane import Lane
from mainspring.store.liveness import running_in
from mainspring.store.postgres.session import Found, Session
from mainspring.store.postgres.store import PostgresStore
from mainspring.store.sql import graph, upkeep
from mainspring.store.sql.operations import Operation
from mainspring.store.sql.transaction import Applier, Transaction
from mainspring.store.sqlite.statements import SCHEMA
from mainspring.store.sqlite.store import SqliteStore
from mainspring.tasks import BlobRef, ErrorInfo, TaskId, TaskStatus, Text, TextOutput
from mainspring.tasks.codec import encode
from mainspring.tasks.lifecycle import STATUS_OF, STORED_REASONS, State
from mainspring.tasks.needs import Need
from mainspring.testing import Violation, check_history

WORK, OTHER = "custom:work", "custom:other"
AGEING_MS = 60_000
OUTPUT = encode(TextOutput("done"))[0]
NOBODY = Claimed(bytes(16), 1, WORK, b"", seq=-1, owner=-1, class_key=("default", WORK, ""))


class Clock(Environment):
    """Time stands still until the test moves it."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0
        self._wall_ahead = 0.0
        self._slept = 0.0
        self.jumped_s = 0.0  # how far processes may be apart

    def monotonic(self) -> float:
        return self._now

    def since_boot(self) -> float:
        return self._now + self._slept

    def wall_ms(self) -> int:
        return round((self._now + self._slept + self._wall_ahead) * 1000)

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def sleep_through(self, seconds: float) -> None:
        """Let the machine sleep: the monotonic clock stands still meanwhile."""
        self._slept += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone."""
        self._wall_ahead += seconds
        self.jumped_s += abs(seconds)


class Note(msgspec.Struct, frozen=True):
    """An effect of the tests: one line in a table beside the tasks."""

    text: str
    then: str = "keep"  # or "refuse", or "break": written first, then the applier raises


def new(text: str = "", *, type: str = WORK, namespace: str = "default", group: str = "", **options: Any) -> NewTask:
    """A task as the store gets it."""
    id = options.pop("id", None) or TaskId().bytes
    if options.get("key") is not None and "spec" not in options:
        options["spec"] = msgspec.msgpack.encode(Spec(idempotency_key=options["key"]))
    return NewTask(id, (namespace, type, group), encode(Text(text))[0], **options)


def error(message: str = "no", type: str = "ValueError") -> bytes:
    return msgspec.msgpack.encode(ErrorInfo(type=type, message=message))


class PortLane(Lane):
    """A lane that says by itself what is free beside it."""

    spare: Need = {"seat": 2.0}


class Port:
    """A worker and a listener: holds what it is handed until the test ends it by hand."""

    def __init__(self, store: Store, room: int = 0, *types: str, **lanes: Sequence[str]) -> None:
        self.store = store
        self.lanes: Mapping[str, Lane] = {name: PortLane(name, room) for name in (lanes or {"async": ()})}
        for name, kinds in (lanes or {"async": types or (WORK, OTHER)}).items():
            self.lanes[name].types = frozenset(kinds)
        self.held: dict[bytes, Claimed] = {}
        self.order: list[Claimed] = []
        self.missed: list[Finish] = []
        self.asked: list[bytes] = []
        self.urgent: list[tuple[bytes, int]] = []  # of what is held here or elsewhere, with their ranks
        self.shares: list[Callable[[Claimed], bool]] = []  # what others would run, at each time they asked
        self.spare: Need = {}  # what is free where they asked last
        self.ends: list[Ended] = []
        self.overdrawn: list[str] = []  # lanes that were handed more than they had room for
        self.given_up: TaskError | None = None
        self._news = asyncio.Event()
        store.listen(self)

    # What the store tells

    def claimed(self, claims: list[Claimed]) -> None:
        self.order += sorted(claims, key=lambda claim: (claim.rank, claim.seq))  # one hand-over has no order of its own
        self.held.update((claim.id, claim) for claim in claims)
        self.overdrawn += [name for name, lane in self.lanes.items() if lane.limit >= 0 and lane.room() < 0]
        self._news.set()

    def lost(self, finishes: list[Finish]) -> None:
        self.missed += finishes
        self._news.set()

    def asked_to_stop(self, ids: list[bytes]) -> None:
        self.asked += ids
        self._news.set()

    def hastened(self, tasks: list[tuple[bytes, int]]) -> None:
        self.urgent += tasks
        self._news.set()

    def revoked(self, held: frozenset[tuple[int, int]]) -> None:
        self.held = {id: claim for id, claim in self.held.items() if (claim.seq, claim.attempt) in held}
        self._news.set()

    def paused(self, is_paused: Callable[[tuple[str, str, str]], bool]) -> None:
        """Nothing waits here: claims are held until the test finishes them."""

    def asked_to_share(self, is_wanted: Callable[[Claimed], bool], spare: Need) -> None:
        self.shares.append(is_wanted)
        self.spare = spare
        self._news.set()

    def ended(self, tasks: list[Ended]) -> None:
        self.ends += tasks
        self._news.set()

    def pruned(self, tasks: list[tuple[bytes, TaskNotFound]]) -> None:
        """Nothing waits here."""

    def wants(self, id: bytes) -> bool:
        return True

    def awaited(self, most: int) -> list[bytes]:
        return []

    def give_up(self, error: TaskError) -> None:
        self.given_up = error
        self._news.set()

    # What the test does

    async def serve(self) -> None:
        await self.store.register([kind for lane in self.lanes.values() for kind in lane.types], [])
        self.store.serve(self)
        await self.settle()

    async def settle(self) -> None:
        """Return when all that was given to the store before is committed and told."""
        await self.store.withdraw(NOBODY)

    async def until(self, done: Callable[[], object]) -> None:
        """Wait for the store to tell what makes this true."""
        async with asyncio.timeout(60):
            while not done():
                self._news.clear()
                await self._news.wait()

    def ask(self) -> None:
        """Ask the other processes for work."""
        lane = self.lanes["async"]
        assert isinstance(lane, PortLane)
        self.store.ask(lane)

    async def room(self, n: int, lane: str = "async") -> list[Claimed]:
        """Have room for n more; returns what is handed over for it."""
        before = len(self.order)
        self.lanes[lane].limit += n
        self.store.demand()
        await self.settle()
        return self.order[before:]

    async def take(self) -> Claimed:
        """Have room for one more, and return it."""
        claims = await self.room(1)
        assert len(claims) == 1
        return claims[0]

    def end(
        self, claim: Claimed, outcome: int = COMPLETED, *, lane: str = "async", is_pressing: bool = True, **fields: Any
    ) -> Finish:
        """End an attempt; its room is free from then on."""
        self.held.pop(claim.id, None)
        self.lanes[lane].released += 1
        if outcome == COMPLETED:
            fields.setdefault("output", OUTPUT)
        elif outcome == FAILED:
            fields.setdefault("error", error())
        finish = Finish(claim, outcome, self.store.now_ms(), lane=lane, **fields)
        self.store.finish(finish, is_pressing=is_pressing)
        return finish

    async def finish(self, claim: Claimed, outcome: int = COMPLETED, **fields: Any) -> None:
        """End an attempt and take no other for it."""
        self.lanes["async"].limit -= 1
        self.end(claim, outcome, **fields)
        await self.settle()

    async def run_all(self) -> list[Claimed]:
        """Complete whatever is handed over until nothing is; returns it in that order."""
        before = len(self.order)
        await self.settle()
        while self.held:
            for claim in list(self.held.values()):
                self.end(claim)
            await self.settle()
        return self.order[before:]

    def ended_as(self) -> dict[bytes, int]:
        return {ended.id: ended.status for ended in self.ends}


async def submit(store: Store, *tasks: NewTask) -> list[bytes]:
    return [accepted.id for accepted in await store.submit(tasks)]


async def state(store: Store, id: bytes) -> State:
    info = await store.info(id)
    return State(info.status, info.reason)


async def status(store: Store, id: bytes) -> TaskStatus:
    return (await store.info(id)).status


async def statuses(store: Store, ids: Iterable[bytes]) -> list[str]:
    return [(await status(store, id)).value for id in ids]


class Contents(NamedTuple):
    """All that a store has written, by task id and in words."""

    tasks: dict[bytes, dict[str, Any]]  # in order of submission
    keys: dict[tuple[str, str], bytes]
    retried: dict[bytes, bytes]
    tombstones: dict[bytes, tuple[str, int]]
    notes: list[str]
    violations: list[Violation]  # what it breaks of its invariants
    flights: dict[bytes, tuple[bytes, bool, int]]  # tasks that lead or wait: the key of their work, whether they lead
    kept: dict[bytes, tuple[Any, ...]]  # results for equal work by its key: namespace, type, version, output, times
    limits: dict[tuple[str, str], tuple[int, float, int]]  # by namespace and group: what is used of rate and cost


class Factory(Protocol):
    """Opens stores on one and the same place, and does to them what no contract offers."""

    clock: Clock

    def make(self, *, queue_size: int | None = None, **config: Any) -> Any:
        """Return a store that is not yet open."""

    async def die(self, store: Any) -> None:
        """End a store as a killed process would: nothing is signed off."""

    async def die_with(self, store: Any, act: Callable[[], object]) -> None:
        """Let the transaction that takes what `act` gives to the store be its last one, and end it as killed."""

    async def prune(self, store: Any) -> None:
        """Let retention go over the whole store once."""

    async def hold_upkeep(self, store: Any, *, hears: bool = False) -> None:
        """From now on what a store does by itself, at intervals or because others rang, the test has to ask for; one
        that still hears does what others ring for."""

    async def rescue(self, store: Any) -> None:
        """Take back at once what dead processes hold."""

    async def go_on(self, store: Any) -> None:
        """Let ends travel on that have not reached all descendants yet."""

    def together(self, store: Any, n: int) -> AbstractAsyncContextManager[None]:
        """What is given to the store inside goes into one commit, as soon as n operations are."""

    def contents(self) -> Contents:
        """Return all that is in the store now."""

    def recount(self) -> Counter[tuple[str, str]]:
        """Count tasks afresh by (type, status)."""

    def notes(self) -> list[str]:
        """Return the lines that effects have left."""

    def durable_status(self, id: bytes) -> int:
        """Return what another connection reads now."""

    def states(self) -> dict[bytes, State]:
        """Return the state of every task."""

    def drop(self) -> None:
        """Take away what no folder takes along. All stores are closed."""


def _write_note(cursor: apsw.Cursor, note: Note, namespace: str, now_ms: int) -> None:
    cursor.execute("INSERT INTO note VALUES (?)", (note.text,))
    _then(note)


def _then(note: Note) -> None:
    if note.then == "refuse":
        raise InvalidInput("note = 'x': is refused; leave it out", field="note")
    if note.then == "break":
        raise KeyError("a mistake of the applier")


class _SqlFactory:
    """What is the same for stores whose rules are those of `store.sql`."""

    async def die_with(self, store: Any, act: Callable[[], object]) -> None:
        def last(tx: Transaction) -> None:
            act()
            store._writer.stop()

        await store.write(last)
        await self.die(store)

    async def die(self, store: Any) -> None:
        raise NotImplementedError

    async def prune(self, store: Any) -> None:
        def step(tx: Transaction) -> int:
            return upkeep.prune(tx, cursor, store.config)

        cursor = 0
        while cursor := await store.write(step):
            pass
        while await store.write(upkeep.prune_kept):
            pass

    async def hold_upkeep(self, store: Any, *, hears: bool = False) -> None:
        await store._caretaker.stop()
        store._arm = lambda next_event_ms: None
        if not hears:
            store._bell._heard = lambda kind, payload: None

    async def rescue(self, store: Any) -> None:
        await store._caretaker.rescue_dead()

    @asynccontextmanager
    async def together(self, store: Any, n: int) -> AsyncIterator[None]:
        given: list[Operation] = []
        store._writer.put = given.append
        try:
            yield
            async with asyncio.timeout(60):
                while len(given) < n:  # noqa: ASYNC110 - each turn of the loop brings the calls further
                    await asyncio.sleep(0)
        finally:
            del store._writer.put
            store._writer._inbox.extend(given)
            store._writer.kick()


class SqliteFactory(_SqlFactory):
    """Stores on one file."""

    appliers: dict[type, Applier] = {Note: _write_note, BlobRef: keys.apply_ref}

    def __init__(self, folder: Path) -> None:
        self.path = folder / "work.db"
        self.clock = Clock()

    def make(self, *, queue_size: int | None = None, **config: Any) -> SqliteStore:
        return SqliteStore(
            self.path,
            StoreConfig(ageing_s=AGEING_MS / 1000, **config),
            blobs=lambda file: LocalBlobStore(
                config.get("blobs") or file.with_name(file.name + "-blobs"), env=self.clock
            ),
            env=self.clock,
            queue_size=queue_size,
            extra_schema="CREATE TABLE IF NOT EXISTS note (text TEXT NOT NULL) STRICT;" + keys.SCHEMA,
            appliers=self.appliers,
            named_blobs=keys.named,
        )

    async def die(self, store: SqliteStore) -> None:
        await store._caretaker.stop()
        store._bell.close()
        store._writer.stop()
        await store._strand.ended()
        await store._reader.stop()
        assert store._life is not None
        store._life._unmap()
        os.close(store._life._fd)
        store._life._fd = -1
        store._caretaker.release()

    async def go_on(self, store: SqliteStore) -> None:
        while self._rows("SELECT 1 FROM cascade LIMIT 1"):
            await store.write(graph.go_on)

    def contents(self) -> Contents:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.execute("BEGIN")  # one snapshot for all
            slack_ms = 1_000 + int(self.clock.jumped_s * 1000)
            return _contents(connection, check_history(connection, slack_ms=slack_ms))
        finally:
            connection.close()

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def recount(self) -> Counter[tuple[str, str]]:
        rows = self._rows(
            "SELECT type, status, count(*) FROM task JOIN class ON class.id = task.class GROUP BY type, status"
        )
        return Counter({(kind, STATUS_OF[code].value): n for kind, code, n in rows})

    def notes(self) -> list[str]:
        return [row[0] for row in self._rows("SELECT text FROM note ORDER BY rowid")]

    def durable_status(self, id: bytes) -> int:
        return int(self._rows("SELECT status FROM task WHERE id = ?", id)[0][0])

    def states(self) -> dict[bytes, State]:
        rows = self._rows("SELECT id, status, reason FROM task")
        reasons = (*STORED_REASONS, None)
        return {id: State(STATUS_OF[code], reasons[-1 if at is None else at]) for id, code, at in rows}

    def drop(self) -> None:
        """It goes with its folder."""


class StillPulse:
    """A heartbeat that is not judged by time: a store of the tests dies when the test says so."""

    def __init__(self, store: PostgresStore) -> None:
        pass

    async def start(self) -> None: ...

    def is_stale(self) -> bool:
        return False

    async def stop(self) -> None: ...


def _write_note_there(cursor: Session, note: Note, namespace: str, now_ms: int) -> None:
    cursor.execute("INSERT INTO note (text) VALUES ($1)", (note.text,))
    _then(note)


class PostgresFactory(_SqlFactory):
    """Stores in one schema of the tests' server."""

    appliers: dict[type, Applier] = {Note: _write_note_there, BlobRef: server_keys.apply_ref}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schema = postgres.schema_of(folder)
        self.clock = Clock()

    def make(self, *, queue_size: int | None = None, **config: Any) -> PostgresStore:
        return PostgresStore(
            postgres.store_url(),
            StoreConfig(ageing_s=AGEING_MS / 1000, **config),
            schema=self.schema,
            blobs=LocalBlobStore(config.get("blobs") or self.folder / "blobs", env=self.clock),
            env=self.clock,
            queue_size=queue_size,
            extra_schema="CREATE TABLE note (n bigserial PRIMARY KEY, text text NOT NULL);" + server_keys.SCHEMA,
            appliers=self.appliers,
            named_blobs=server_keys.named,
            pulse=StillPulse,
        )

    async def die(self, store: PostgresStore) -> None:
        await store._caretaker.stop()
        store.line.hang_up()
        store._writer.stop()
        await store._strand.ended()
        await store._reader.stop()
        marks = [number for mark in running_in(store.life.path) for number in mark]
        self._ask("UPDATE worker SET is_lost = true, running = $1::bigint[] WHERE name = $2", marks, store.worker_id)
        store._drop_life()

    async def go_on(self, store: PostgresStore) -> None:
        while self._ask("SELECT 1 FROM cascade LIMIT 1"):
            await store.write(graph.go_on)

    def _ask(self, sql: str, *values: Any) -> Found:
        postgres.command(f"SET search_path = {self.schema}")
        return postgres.ask(sql, *values)

    def contents(self) -> Contents:
        slack_ms = 1_000 + int(self.clock.jumped_s * 1000)

        def check(session: Session) -> list[Violation]:
            with session.snapshot() as moment:
                return check_history(moment, slack_ms=slack_ms)

        broken = postgres.look(self.schema, check)
        with self.copied() as connection:
            return _contents(connection, broken)

    @contextmanager
    def copied(self, without: Sequence[str] = ()) -> Iterator[apsw.Connection]:
        """Give a file in memory with all that is in the store, as of one moment."""
        with closing(apsw.Connection(":memory:")) as connection:
            made_with_it = {"news", "sqlite_sequence", "kept_size", "store"}  # or counted by itself
            self._copy(connection, {*made_with_it, *without})
            yield connection

    def _copy(self, connection: apsw.Connection, without: set[str]) -> None:
        connection.execute(SCHEMA + "CREATE TABLE note (text TEXT NOT NULL) STRICT;")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        postgres.command(f"SET search_path = {self.schema}; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            for table in tables:
                if table in without:
                    continue
                names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                columns, ending = ", ".join(names), ""
                if table == "tally":
                    columns, ending = "class, status, sum(n)::bigint", "GROUP BY class, status HAVING sum(n) <> 0"
                if table == "note":
                    ending = "ORDER BY n"
                rows = postgres.ask(f"SELECT {columns} FROM {table} {ending}")
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", rows
                )
        finally:
            postgres.command("COMMIT")

    def recount(self) -> Counter[tuple[str, str]]:
        rows = self._ask(
            "SELECT type, status, count(*) FROM task JOIN class ON class.id = task.class GROUP BY type, status"
        )
        return Counter({(kind, STATUS_OF[code].value): n for kind, code, n in rows})

    def notes(self) -> list[str]:
        return [row[0] for row in self._ask("SELECT text FROM note ORDER BY n")]

    def durable_status(self, id: bytes) -> int:
        return int(self._ask("SELECT status FROM task WHERE id = $1", id)[0][0])

    def states(self) -> dict[bytes, State]:
        rows = self._ask("SELECT id, status, reason FROM task ORDER BY seq")
        reasons = (*STORED_REASONS, None)
        return {id: State(STATUS_OF[code], reasons[-1 if at is None else at]) for id, code, at in rows}

    def drop(self) -> None:
        postgres.drop(self.schema)


def _contents(connection: apsw.Connection, broken: list[Violation]) -> Contents:
    attempts: dict[int, list[tuple[int, str]]] = {}
    for seq, number, outcome in connection.execute("SELECT task, number, outcome FROM attempt ORDER BY task, number"):
        attempts.setdefault(seq, []).append((number, OUTCOMES[outcome]))
    parents: dict[int, list[bytes]] = {}
    for seq, id in connection.execute("SELECT child, id FROM edge JOIN task ON seq = parent ORDER BY child, n"):
        parents.setdefault(seq, []).append(id)
    tasks = {}
    for row in connection.execute(
        "SELECT seq, task.id, namespace, type, grp, rank, status, reason, due_ms, attempt, name, flags, retry_count, "
        "crashes, releases, submitted_ms, task.ended_ms, output, error "
        "FROM task JOIN class ON class.id = class LEFT JOIN worker ON worker.id = owner ORDER BY seq"
    ):
        seq, id, *kind, rank, status, reason, due, attempt, holder, flags = row[:12]
        retries, crashes, releases, submitted, ended, output, raw = row[12:]
        tasks[id] = {
            "kind": tuple(kind), "rank": rank, "status": STATUS_OF[status].value,
            "reason": None if reason is None else STORED_REASONS[reason], "due": due, "attempt": attempt,
            "holder": holder, "is_asked": bool(flags & CANCEL_ASKED), "is_suspect": bool(flags & SUSPECT),
            "retries": retries, "crashes": crashes, "releases": releases, "submitted": submitted, "ended": ended,
            "output": output, "error": None if raw is None else msgspec.msgpack.decode(raw, type=ErrorInfo).type,
            "parents": tuple(parents.get(seq, ())), "attempts": tuple(attempts.get(seq, ())),
            "is_shared": bool(flags & SHARED),
        }  # fmt: skip
    return Contents(
        tasks,
        {(row[0], row[1]): row[2] for row in connection.execute(
            "SELECT namespace, key, id FROM idempotency JOIN task ON seq = task")},
        dict(connection.execute(
            "SELECT old.id, new.id FROM retried JOIN task old ON old.seq = task JOIN task new ON new.seq = again")),
        {row[0]: (STATUS_OF[row[1]].value, row[2]) for row in connection.execute("SELECT * FROM tombstone")},
        [row[0] for row in connection.execute("SELECT text FROM note ORDER BY rowid")],
        broken,
        {row[0]: (row[1], bool(row[2]), row[3]) for row in connection.execute(
            "SELECT id, key, leads, keep_ms FROM flight JOIN task ON seq = task")},
        {row[0]: row[1:] for row in connection.execute(
            "SELECT key, namespace, type, version, output, made_ms, expires_ms FROM cache")},
        {(row[0], row[1]): row[2:] for row in connection.execute(
            "SELECT namespace, grp, full_us, cost_used, cost_at_ms FROM group_limit")},
    )  # fmt: skip


FACTORIES: dict[str, Any] = {"sqlite": SqliteFactory, "postgres": PostgresFactory}


@asynccontextmanager
async def opened(store: Any) -> AsyncIterator[Any]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()
