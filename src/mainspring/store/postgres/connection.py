"""Reaching a server: its errors in our words, and the tables."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import asyncpg

from mainspring.config import StoreConfig
from mainspring.errors import (
    StoreForeign,
    StoreNewer,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
    TaskError,
    invalid,
)
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.statements import MIGRATIONS, SCHEMA

SCHEMA_VERSION: Final = 4
OLDEST_SERVER: Final = 14
WRITING: Final = 0x4D535052  # "MSPR": locks of this number are ours; the second number is the schema's
UPKEEP: Final = 0x4D535055
MIGRATING: Final = 0x4D53504D
QUEUEING: Final = 0x4D535051
"""Advisory locks: who writes beside others or alone, who looks after the store, who makes its tables, who stores new
tasks beside others or alone among those that do."""
_PATIENCE_S = 60.0
"""Longer than anything takes that waits for nobody."""
_MOST_MS = (1 << 31) - 1
_STOPPED_S = 15
"""A transaction whose process does nothing for so long is ended by the server: others wait for it."""
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
PLANNED_ONCE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "plan_cache_mode": "force_generic_plan",
    }
)
"""Statements are prepared when tables may be empty and planned once: that plan must do for a million rows."""

LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has said why it hangs up, and has not hung up yet
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.exceptions.InvalidSQLStatementNameError,
)
"""The connection is of no use any more."""
OUTAGES: Final = (
    *LOST,
    asyncpg.exceptions.InsufficientResourcesError,  # a full disk, too many connections
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,  # the primary has become a replica
    asyncpg.exceptions.PostgresSystemError,
    asyncpg.exceptions.InternalServerError,
    asyncpg.exceptions.InsufficientPrivilegeError,
    asyncpg.exceptions.UndefinedTableError,
    asyncpg.exceptions.InvalidCachedStatementError,
)
NOT_LET_IN: Final = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
"""At the next try it may be otherwise: passwords change, and a server comes back as another."""
_REFUSED_SETTINGS: Final = (
    asyncpg.UndefinedObjectError,
    asyncpg.PostgresSyntaxError,
    asyncpg.DataError,
    asyncpg.CantChangeRuntimeParamError,
)
CONFLICTS: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.exceptions.TransactionRollbackError,  # a deadlock: who writes without us, or the same keys in another order
    asyncpg.exceptions.DataError,
    asyncpg.exceptions.ProgramLimitExceededError,  # a value is larger than an index or a type takes
)

_TAKEN: Final = (
    asyncpg.exceptions.DuplicateTableError,
    asyncpg.exceptions.DuplicateObjectError,
    asyncpg.exceptions.DuplicateFunctionError,
)
_TABLES: Final = """
SELECT relname::text, ARRAY(SELECT attname || ' ' || format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)
"""
_COLUMNS: Final = frozenset(("version integer", "identity uuid"))
"""By these `store` is known as ours: it has had them since its first version."""


@contextmanager
def our_errors(server: Server) -> Iterator[None]:
    """Turn the driver's errors into ours, at the store's edge. None of them names a password."""
    try:
        yield
    except TaskError:
        raise
    except Exception as exc:
        found = translated(server, exc)
        if found is None:
            raise
        raise found from exc


def translated(server: Server, exc: BaseException) -> TaskError | None:
    """Return what an error of the driver means to whoever uses the store; None for one that is nobody's fault."""
    where, why = server.shown, server.veiled(str(exc) or type(exc).__name__)
    if (refused := _refused(where, why, exc)) is not None:
        return refused
    if isinstance(exc, asyncpg.exceptions.ReadOnlySQLTransactionError):
        return StoreReadOnly(f"{where} takes no writes ({why}); name the primary server, not a replica")
    if isinstance(exc, asyncpg.InsufficientPrivilegeError):
        return StoreReadOnly(
            f"{where}: this user lacks rights ({why}); GRANT CREATE ON DATABASE for the first start, and all rights on "
            f"schema {server.schema} for every other"
        )
    if isinstance(exc, asyncpg.exceptions.TooManyConnectionsError):
        return StoreUnavailable(f"{where} has no connection left ({why}); raise max_connections, or try again")
    if isinstance(exc, asyncpg.exceptions.DiskFullError):
        return StoreUnavailable(f"the disk of {where} is full ({why}); free space and try again")
    if isinstance(exc, (asyncpg.exceptions.LockNotAvailableError, asyncpg.exceptions.DeadlockDetectedError)):
        return StoreUnavailable(f"{where} is locked by another process ({why}); try again")
    if isinstance(exc, asyncpg.exceptions.ClientConfigurationError):
        return invalid("store", where, f"can't be used ({why})", "change the address, or what the environment sets")
    if isinstance(exc, OUTAGES):
        return StoreUnavailable(f"{where} can't be reached ({why}); check that the server runs, and try again")
    return None


def _refused(where: str, why: str, exc: BaseException) -> StoreRefused | None:
    """Return what keeps this address from leading to a store at all."""
    if isinstance(exc, (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        return StoreRefused(f"{where} lets this user not in ({why}); check user and password")
    if isinstance(exc, asyncpg.exceptions.ProtocolViolationError) and "startup parameter" in why:
        return StoreRefused(
            f"a pooler stands at {where} and takes no settings ({why}); name it and the server behind it: add "
            "?pooler=transaction&direct=HOST:PORT to the address"
        )
    if isinstance(exc, ssl.SSLCertVerificationError):
        return StoreRefused(f"{where} is not trusted ({why}); name who signs its certificate: add &sslrootcert=FILE")
    if isinstance(exc, asyncpg.InvalidCatalogNameError):
        return StoreRefused(f"{where} has no such database ({why}); create it with CREATE DATABASE")
    return None


def _settings(server: Server, config: StoreConfig) -> dict[str, str]:
    """Return what holds in each of our transactions."""
    return {
        "search_path": server.schema,
        "lock_timeout": str(min(max(int(config.lock_timeout_s * 1000), 1), _MOST_MS)),  # 0 would be for ever
        "idle_in_transaction_session_timeout": f"{_STOPPED_S}s",
        "tcp_user_timeout": f"{_STOPPED_S}s",  # the same for one that takes no more of what it is sent
        "jit": "off",
        **PLANNED_ONCE,
    }


def _unlimited(name: str, *, is_local: bool) -> str:
    return f"CASE WHEN current_setting('{name}', true) IS NOT NULL THEN set_config('{name}', '0', {is_local}) END"


_LIMITS: Final = ("statement_timeout", "transaction_timeout", "idle_session_timeout")
"""What role and database may set is for people who forget: each of our calls has its own patience, a transaction that
does nothing is ended anyway, and who listens is idle. Older servers don't know all of them."""
_AT_FIRST: Final = f"""
SELECT current_setting('synchronous_commit'), set_config('default_transaction_isolation', 'read committed', false),
    {", ".join(_unlimited(name, is_local=False) for name in _LIMITS)}
"""
"""Who waits for a lock has to see what is done meanwhile. Not at the start of a session: poolers may drop what is said
there."""


def seen(server: Server) -> str:
    """Return what a statement asks so that it is refused to whoever may not use the schema.

    Names of tables would not be found there, as if the tables were gone.
    """
    return f"to_regclass('{server.schema}.store')"


async def connect(
    server: Server,
    name: str,
    config: StoreConfig,
    settings: Mapping[str, str] = _NONE,
    patience_s: float | None = _PATIENCE_S,
) -> asyncpg.Connection:
    """Return a connection on which names of tables are the store's. `settings` go before those that are made here.

    `patience_s` is how long one statement may take; None: as long as it likes, whatever role and database say.
    """
    chosen = {
        "application_name": f"mainspring {name}",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        **_settings(server, config),
        **settings,
    }
    connection = await _reach(server, server.url, server_settings=chosen, command_timeout=patience_s)
    try:
        commits = await connection.fetchval(f"{_AT_FIRST}, {seen(server)}")
        wanted = "off" if config.durability == "relaxed" else "on"
        if "off" in (wanted, commits):
            await connection.execute(f"SET synchronous_commit = {wanted}")
    except BaseException:
        connection.terminate()
        raise
    return connection


async def connect_pooler(server: Server) -> asyncpg.Connection:
    """Return a connection to the pooler: nothing may be left in a session behind it, prepared statements neither."""
    assert server.pooler is not None
    return await _reach(
        server,
        server.pooler,
        server_settings={"application_name": "mainspring pooled"},  # one for all: another costs the pooler a round trip
        statement_cache_size=0,
        command_timeout=_PATIENCE_S,
    )


async def _reach(server: Server, url: str, **how: Any) -> asyncpg.Connection:
    try:
        connection: asyncpg.Connection = await asyncpg.connect(url, timeout=server.connect_s, **how)
    except _REFUSED_SETTINGS as exc:
        remedy = "change the options of the address"
        raise invalid("options", "...", f"are not taken by {server.shown} ({server.veiled(str(exc))})", remedy) from exc
    except ValueError as exc:
        if isinstance(exc, OSError):  # a certificate
            raise
        remedy = "check PGPORT and its like, and the file of passwords"
        why = f"can't be used with what stands beside it on this machine ({server.veiled(str(exc))})"
        raise invalid("store", server.shown, why, remedy) from exc
    return connection


def for_a_transaction(server: Server, config: StoreConfig, settings: Mapping[str, str] = _NONE) -> str:
    """Return the statement that makes a transaction behind a pooler one of ours: what `connect` does for a session."""
    chosen = _settings(server, config) | dict(settings)
    values = {name: f"'{value}'" for name, value in chosen.items()}
    now = "current_setting('synchronous_commit')"
    is_relaxed = config.durability == "relaxed"
    values["synchronous_commit"] = "'off'" if is_relaxed else f"CASE {now} WHEN 'off' THEN 'on' ELSE {now} END"
    made = [f"set_config('{name}', {value}, true)" for name, value in values.items()]
    return "SELECT " + ", ".join([*made, *(_unlimited(name, is_local=True) for name in _LIMITS[:2]), seen(server)])


async def prepare(server: Server, config: StoreConfig, extra_schema: str) -> int:
    """Make the tables, or take older ones through every step to this version; returns the schema's number.

    Raises: InvalidInput, StoreNewer, StoreForeign, StoreReadOnly, StoreRefused, StoreUnavailable.
    """
    with our_errors(server):
        connection = await connect(server, "opens", config, patience_s=None)  # a step may go through all tasks
        try:
            _refuse_old(server, connection)
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                raise StoreReadOnly(f"{server.shown} is a read-only replica; name the primary server")
            number = await _find(connection, server.schema)
            version = 0 if number is None else await _version(server, connection)
            if version == 0:
                await _refuse_encoding(server, connection)
            if version < SCHEMA_VERSION:
                await _make(server, connection, extra_schema)
                number = await _find(connection, server.schema)
            assert number is not None
            return number
        finally:
            await connection.close()


async def is_there(server: Server, connection: asyncpg.Connection) -> bool:
    """Whether a connection leads to a store; changes nothing. Raises: as `prepare` does."""
    _refuse_old(server, connection)
    return await _find(connection, server.schema) is not None and await _version(server, connection) > 0


def _refuse_old(server: Server, connection: asyncpg.Connection) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise StoreRefused(
            f"{server.shown} runs Postgres {version.major}, and {OLDEST_SERVER} is the oldest that works; update it"
        )


async def _refuse_encoding(server: Server, connection: asyncpg.Connection) -> None:
    """A store that is there already goes on: its tasks have been what the encoding can hold."""
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreRefused(
            f"the database of {server.shown} has the encoding {encoding}, which can't hold every text; create one WITH "
            "ENCODING 'UTF8' TEMPLATE template0 and name that"
        )


async def _find(connection: asyncpg.Connection, schema: str) -> int | None:
    number, is_reserved = await connection.fetchrow(
        "SELECT (SELECT oid::bigint % 2147483647 FROM pg_namespace WHERE nspname = $1), "
        "EXISTS (SELECT FROM pg_get_keywords() WHERE word = $1 AND catcode IN ('R', 'T'))",
        schema,
    )
    if is_reserved:  # statements name it as it is
        raise invalid("schema", schema, "is a word of SQL", "name another schema")
    return None if number is None else int(number)


async def _version(server: Server, connection: asyncpg.Connection) -> int:
    """Return the version of the tables; 0 where there are none. Raises: StoreForeign, StoreNewer."""
    tables = dict(await connection.fetch(_TABLES, server.schema))
    if not tables:
        return 0
    if not _COLUMNS.issubset(tables.get("store", ())):
        raise _foreign(server)
    version = await connection.fetchval(f"SELECT version FROM {server.schema}.store")  # noqa: S608 - checked
    if version is None:
        raise _foreign(server)
    if version > SCHEMA_VERSION:
        raise StoreNewer(
            f"schema {server.schema} of {server.shown} has version {version}, this version knows {SCHEMA_VERSION}; it "
            "was left as it is: update mainspring"
        )
    return int(version)


def _foreign(server: Server) -> StoreForeign:
    return StoreForeign(
        f"schema {server.schema} of {server.shown} holds what is another program's; it was left as it is: name another "
        "schema with ?schema="
    )


async def _make(server: Server, connection: asyncpg.Connection, extra_schema: str) -> None:
    """One process at a time, in one transaction."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", MIGRATING, server.schema)
        if await _find(connection, server.schema) is None:  # IF NOT EXISTS takes the right on the database all the same
            await connection.execute(f"CREATE SCHEMA {server.schema}")
        version = await _version(server, connection)
        if version == 0:
            try:
                await connection.execute(SCHEMA + extra_schema)
            except _TAKEN as exc:  # a view, a sequence, a type or a function
                raise _foreign(server) from exc
            await connection.execute("INSERT INTO store (version) VALUES ($1)", SCHEMA_VERSION)
            return
        if version == SCHEMA_VERSION:  # another process was first
            return
        number = await _find(connection, server.schema)
        await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", WRITING, number)  # a step locks whole tables
        while version < SCHEMA_VERSION:
            version += 1
            await connection.execute(MIGRATIONS[f"to_{version}"])
        await connection.execute("UPDATE store SET version = $1", version)


def is_lost(exc: BaseException) -> bool:
    """Whether a new connection may do, or is told why it may not: the right to see tables can be taken away."""
    return isinstance(exc, (*LOST, asyncpg.UndefinedTableError))


__all__ = [
    "CONFLICTS",
    "NOT_LET_IN",
    "OLDEST_SERVER",
    "OUTAGES",
    "SCHEMA_VERSION",
    "connect",
    "connect_pooler",
    "for_a_transaction",
    "is_lost",
    "is_there",
    "our_errors",
    "prepare",
    "seen",
    "translated",
]
