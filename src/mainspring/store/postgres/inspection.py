"""A store on a server seen from outside: the server, its tables, who works there, what waits and why. Facts only;
`doctor` judges them.

Rows are read in one snapshot. Nothing is written: processes are asked for a sign by the word that a new one greets them
with.
"""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b85encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM
from mainspring.errors import TaskError
from mainspring.store.bell import HELLO
from mainspring.store.moving.marks import READ, Mark
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.connection import UPKEEP, connect, connect_pooler, our_errors
from mainspring.store.postgres.line import channel_of
from mainspring.store.postgres.session import Session
from mainspring.store.postgres.wanted import as_settings
from mainspring.store.sql.inspection import COUNT_LIMIT, Facts, WorkerFacts, look_at_queue
from mainspring.store.sql.statements import named

SQL: Final = named(__package__, "inspection.sql")
BEATS_S: Final = 5.0
"""A living process's helper beats each second; on a busy machine it may be late."""
_AGAIN_S: Final = 0.1


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """The server, as a session finds it."""

    version: str
    schema: int  # version of the tables
    is_replica: bool
    user: str
    database: str
    vacuums: bool  # by itself
    fsync: bool
    full_page_writes: bool
    connections: int
    max_connections: int  # for users who are none of the server's admins
    pgvector: str | None  # installed here
    pgvector_there: str | None  # could be
    database_bytes: int
    identity: str  # of the store


class Lack(msgspec.Struct, frozen=True):
    """A right that this user does not have."""

    table: str
    right: str


class Holder(msgspec.Struct, frozen=True):
    """What keeps the server from removing dead rows that are younger."""

    kind: str  # session, prepared transaction or slot
    pid: int | None
    application: str
    user: str
    state: str
    name: str  # of a prepared transaction or a slot
    age_s: float | None
    transactions: int  # that began since


class TableFacts(msgspec.Struct, frozen=True):
    name: str
    estimated: int  # rows when it was last analysed
    rows: int
    dead: int
    bytes: int  # with its indexes
    vacuumed_ms: int | None
    settings: dict[str, str]


class IndexFacts(msgspec.Struct, frozen=True):
    name: str
    table: str
    bytes: int
    scans: int
    is_valid: bool
    is_constraint: bool


class PoolerFacts(msgspec.Struct, frozen=True, kw_only=True):
    why: str | None  # it can't be used
    is_replica: bool = False
    is_same: bool = True  # it leads to the same store as the direct way


class ServerWorkerFacts(WorkerFacts, frozen=True, kw_only=True):
    """It is alive where its helper beats."""

    is_lost: bool  # its helper saw it die


class ServerFacts(Facts, frozen=True, kw_only=True):
    server: ServerState
    is_read_only: bool  # transactions of engines are, by a setting of the server, the database or the user
    pooler: PoolerFacts | None  # None where the address names none
    workers: tuple[ServerWorkerFacts, ...]
    lacks: tuple[Lack, ...]
    holders: tuple[Holder, ...]  # the oldest first
    hidden: int  # sessions of others that don't tell this user what they do
    tables: tuple[TableFacts, ...]
    indexes: tuple[IndexFacts, ...]
    inbox: int  # tasks of users' transactions that nobody has taken in, up to COUNT_LIMIT
    inbox_stands: bool  # the oldest of them was there all the time


def is_led_elsewhere(session: Session, server: Server) -> bool:
    """Whether the names of tables in this session are not the store's: somebody between dropped what was asked for."""
    return bool(session.execute("SHOW search_path")[0][0] != server.schema)


def marks(session: Session) -> list[Mark]:
    """Return what the store keeps of moves."""
    if not session.execute(SQL["moves"])[0][0]:
        return []
    return [Mark(*row) for row in session.execute(READ)]


def _state(session: Session) -> ServerState:
    row = session.execute(SQL["server"])[0]
    return ServerState(**dict(zip(ServerState.__struct_fields__, row, strict=True)))


def inspect(session: Session, server: Server, *, grace_s: float, turn_s: float) -> ServerFacts:
    """Return what there is to know now. A process whose loop does not turn within `turn_s` is told as silent."""

    def ask(name: str, *values: Any) -> Sequence[Any]:
        return session.execute(SQL[name], values)

    with session.snapshot():
        state = _state(session)
        workers = ask("living")
        queue = look_at_queue(ask, ask("now")[0][0], grace_s)
        beats = ask("beats")
        inbox, oldest = ask("inbox", COUNT_LIMIT)[0]
        lacks, holders, hidden = ask("rights"), ask("held_back"), ask("hidden")[0][0]
        tables, indexes = ask("tables"), ask("indexes")
    names = [str(name) for name, _, is_lost in beats if not is_lost]
    turns, is_read_only = asyncio.run(_aside(server, names, turn_s, is_replica=state.is_replica))
    alive = _beating(session, {str(name): beat for name, beat, is_lost in beats if not is_lost})
    lost = {name for name, _, is_lost in beats if is_lost}
    return ServerFacts(
        **msgspec.structs.asdict(queue),
        server=state,
        is_read_only=is_read_only,
        pooler=None if server.pooler is None else asyncio.run(_behind(server, state.identity)),
        workers=tuple(_worker(row, row[0] in alive, row[0] in lost, turns.get(row[0])) for row in workers),
        is_led=None if state.is_replica else not alive or _is_led(session),
        lacks=tuple(Lack(*row) for row in lacks),
        holders=tuple(Holder(*row) for row in holders),
        hidden=hidden,
        tables=tuple(_table(row) for row in tables),
        indexes=tuple(IndexFacts(*row) for row in indexes),
        inbox=inbox,
        inbox_stands=inbox > 0 and _stands(session, oldest),
    )


def _worker(row: Any, is_alive: bool, is_lost: bool, turns: bool | None) -> ServerWorkerFacts:
    name, pid, host, started_ms, held, types = row
    return ServerWorkerFacts(
        name=name,
        pid=pid,
        host=host,
        started_ms=started_ms,
        held=held,
        types=tuple(sorted((types or "").split())),
        is_alive=is_alive,
        turns=turns if is_alive else None,
        is_lost=is_lost,
    )


def _table(row: Any) -> TableFacts:
    name, estimated, rows, dead, n_bytes, vacuumed_ms, settings = row
    return TableFacts(name, estimated, rows, dead, n_bytes, vacuumed_ms, as_settings(settings))


async def _aside(
    server: Server, names: Sequence[str], limit_s: float, *, is_replica: bool
) -> tuple[dict[str, bool | None], bool]:
    """Return which processes answer in time, and whether transactions of a session like theirs only read."""
    with our_errors(server):
        connection = await connect(server, "looks", StoreConfig())
        try:
            is_read_only = await connection.fetchval("SHOW default_transaction_read_only") == "on"
            if is_replica:  # which passes no words on
                return dict.fromkeys(names), is_read_only
            return await _answering(connection, channel_of(server.schema), names, limit_s), is_read_only
        finally:
            await connection.close(timeout=2.0)


async def _answering(
    connection: asyncpg.Connection, channel: str, names: Sequence[str], limit_s: float
) -> dict[str, bool | None]:
    """Greet the processes on the line, and tell which of them answer in time: that takes a turn of their event loop."""
    silent = set(names)
    all_answered = asyncio.Event()

    def hear(connection: Any, pid: int, channel: str, message: Any) -> None:
        silent.discard(message.partition(" ")[0])
        if not silent:
            all_answered.set()

    if not names:
        return {}
    await connection.add_listener(channel, hear)
    await connection.execute("SELECT pg_notify($1, $2)", channel, f" {b85encode(HELLO).decode()}")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await all_answered.wait()
    return {name: name not in silent for name in names}


def _beating(session: Session, before: Mapping[str, int]) -> set[str]:
    """Return those whose helper beats."""
    alive: set[str] = set()
    until = SYSTEM.monotonic() + BEATS_S
    while True:
        alive |= {name for name, beat, _ in session.execute(SQL["beats"]) if before.get(name, beat) != beat}
        if len(alive) == len(before) or SYSTEM.monotonic() > until:
            return alive
        SYSTEM.sleep(_AGAIN_S)


def _is_led(session: Session) -> bool:
    """Whether anybody looks after the store, now or a moment later: what passes is no fact."""
    until = SYSTEM.monotonic() + BEATS_S
    while not session.execute(SQL["leader"], (UPKEEP,))[0][0]:
        if SYSTEM.monotonic() > until:
            return False
        SYSTEM.sleep(_AGAIN_S)
    return True


def _stands(session: Session, oldest: int) -> bool:
    """Whether nobody takes in what has come."""
    until = SYSTEM.monotonic() + BEATS_S
    while session.execute("SELECT 1 FROM inbox WHERE n = $1", (oldest,)):
        if SYSTEM.monotonic() > until:
            return True
        SYSTEM.sleep(_AGAIN_S)
    return False


async def _behind(server: Server, identity: str) -> PoolerFacts:
    """Look where the pooler leads that an address names."""
    try:
        with our_errors(server):
            connection = await connect_pooler(server)
            try:
                there, is_replica = await connection.fetchrow(
                    f"SELECT (SELECT identity::text FROM {server.schema}.store), pg_is_in_recovery()"  # noqa: S608 - checked
                )
            finally:
                await connection.close(timeout=2.0)
    except (TaskError, asyncpg.UndefinedTableError) as exc:
        return PoolerFacts(why=str(exc))
    return PoolerFacts(why=None, is_replica=is_replica, is_same=there == identity)
