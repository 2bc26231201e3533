"""What there is to say of a store on a server: pure rules from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from mainspring.cli.doctor import work
from mainspring.cli.doctor.finding import Finding
from mainspring.cli.screen import size, span
from mainspring.config import StoreConfig
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.connection import SCHEMA_VERSION
from mainspring.store.postgres.inspection import BEATS_S, Holder, IndexFacts, ServerFacts, TableFacts
from mainspring.store.postgres.wanted import Wanted
from mainspring.store.sql.inspection import COUNT_LIMIT

LONG_S: Final = 300.0
"""A transaction that is open for so long holds vacuum back."""
UNVACUUMED_S: Final = 600.0
"""Vacuum comes each minute where there is work for it."""
_MANY_TRANSACTIONS: Final = 1_000_000
_OVERDUE: Final = 5
"""So many times what vacuum comes for."""
_FULL: Final = 0.9
_HNSW: Final = "vector_hnsw_"
_OLDEST_PGVECTOR: Final = (0, 8)


def elsewhere(server: Server) -> Finding:
    """What keeps the store from being read at all."""
    return Finding(
        level="problem",
        about="pooler",
        what=f"a pooler stands at {server.shown} and drops the settings of sessions; no engine can work through it so",
        remedy="name it and the server behind it: add ?pooler=transaction&direct=HOST:PORT to the address",
    )


def no_folder(folder: Path, referred: int) -> Iterator[Finding]:
    """Where this machine has no blobs of the store: another one may."""
    if referred:
        yield Finding(
            level="warning",
            about="blobs",
            what=f"rows refer to {referred:,} blobs, and there is no folder {folder} here: they were not looked at",
            remedy="name the folder that the engines use (StoreConfig.blobs) with --blobs, or run this where it is",
            figures={"referred": referred},
        )


def findings(facts: ServerFacts, server: Server, wanted: Wanted) -> Iterator[Finding]:
    """Yield all that the facts give reason to say."""
    yield from _access(facts, server)
    yield from _pooler(facts, server)
    yield from _server(facts)
    yield from _holders(facts)
    for table in facts.tables:
        yield from _vacuum(table, facts, server, wanted)
    yield from _indexes(facts, server, wanted)
    yield from _workers(facts)
    yield from _inbox(facts)
    yield from work.findings(facts, "the server's clock")


def _access(facts: ServerFacts, server: Server) -> Iterator[Finding]:
    if facts.server.is_replica:
        yield Finding(
            level="warning",
            about="access",
            what=f"{server.shown} is a replica: it takes no writes, and no engine opens it",
            remedy="name the primary server",
        )
    elif facts.is_read_only:
        yield Finding(
            level="warning",
            about="access",
            what=f"transactions of user {facts.server.user} only read (default_transaction_read_only is on)",
            remedy="some hosts set it when the disk is full: free space; else ALTER DATABASE or ALTER ROLE ... RESET "
            "default_transaction_read_only",
        )
    if facts.lacks:
        some = [
            f"{', '.join(lack.right for lack in lacks)} on {table}"
            for table, lacks in groupby(facts.lacks, lambda lack: lack.table)
        ]
        more = f" and {len(some) - 3} more tables" if len(some) > 3 else ""
        yield Finding(
            level="warning",
            about="access",
            what=f"user {facts.server.user} lacks rights: {'; '.join(some[:3])}{more}; an engine of this user fails",
            remedy=f"GRANT ALL ON ALL TABLES IN SCHEMA {server.schema} TO {facts.server.user}, and the same for ALL "
            "SEQUENCES",
            figures={"lacks": [f"{lack.right} on {lack.table}" for lack in facts.lacks]},
        )


def _pooler(facts: ServerFacts, server: Server) -> Iterator[Finding]:
    pooler = facts.pooler
    if pooler is None:
        return
    if pooler.why is not None:
        yield Finding(
            level="warning",
            about="pooler",
            what=f"the server answers, and the pooler before it does not: {pooler.why}",
            remedy="start the pooler and look at its log; without ?pooler= engines go to the server itself",
        )
    elif not pooler.is_same or pooler.is_replica != facts.server.is_replica:
        yield Finding(
            level="problem",
            about="pooler",
            what="the pooler leads to another server or store than `direct`",
            remedy="let both name the same: what is written through one must be seen through the other",
        )


def _server(facts: ServerFacts) -> Iterator[Finding]:
    state = facts.server
    if state.schema < SCHEMA_VERSION:
        yield Finding(
            level="note",
            about="schema",
            what=f"schema {state.schema} is that of an older version; the next opening makes it {SCHEMA_VERSION}",
            remedy="stop the workers of the older version and take a dump first: it can't open the store afterwards",
        )
    off = [name for name, is_on in (("fsync", state.fsync), ("full_page_writes", state.full_page_writes)) if not is_on]
    if off:
        yield Finding(
            level="warning",
            about="durability",
            what=f"switched off: {', '.join(off)}; a crash of its machine may lose accepted tasks or damage all",
            remedy=f"ALTER SYSTEM SET {off[0]} = on, and SELECT pg_reload_conf()",
        )
    if state.connections >= _FULL * state.max_connections:
        yield Finding(
            level="warning",
            about="connections",
            what=f"{state.connections} of {state.max_connections} connections are in use; a process takes four",
            remedy="raise max_connections, or put a pooler between (docs/postgres.md)",
            figures={"connections": state.connections, "max_connections": state.max_connections},
        )
    if state.pgvector is not None and tuple(map(int, state.pgvector.split(".")[:2])) < _OLDEST_PGVECTOR:
        yield Finding(
            level="note",
            about="vectors",
            what=f"pgvector {state.pgvector} searches exactly and builds no index; 0.8 does"
            + (f", and {state.pgvector_there} is installed on the server's machine" if state.pgvector_there else ""),
            remedy="let an admin run ALTER EXTENSION vector UPDATE",
        )


def _holders(facts: ServerFacts) -> Iterator[Finding]:
    dead = sum(table.dead for table in facts.tables)
    for holder in facts.holders:
        is_old = holder.transactions >= _MANY_TRANSACTIONS if holder.age_s is None else holder.age_s >= LONG_S
        if is_old:
            yield Finding(
                level="warning",
                about="transactions",
                what=f"{_named(holder)}: what is deleted or changed meanwhile can't be removed, {dead:,} dead rows in "
                "our tables so far, and claims have to step over them",
                remedy=_ending(holder),
                figures={"pid": holder.pid, "age_s": holder.age_s, "transactions": holder.transactions, "dead": dead},
            )
            break  # the others hold back less
    if facts.hidden:
        yield Finding(
            level="note",
            about="transactions",
            what=f"{facts.hidden} sessions of other users do not tell {facts.server.user} what they hold open",
            remedy=f"GRANT pg_read_all_stats TO {facts.server.user}",
        )


def _named(holder: Holder) -> str:
    if holder.kind == "slot":
        return f"replication slot {holder.name} ({holder.state}) keeps what {holder.transactions:,} transactions left"
    since = f"is open for {span(holder.age_s)}"
    if holder.kind == "prepared":
        return f"prepared transaction {holder.name} of user {holder.user} {since}"
    about = ", ".join(word for word in (holder.application, f"user {holder.user}", holder.state) if word)
    return f"the transaction of session {holder.pid} ({about}) {since}"


def _ending(holder: Holder) -> str:
    if holder.kind == "slot":
        return f"bring its replica back, or SELECT pg_drop_replication_slot('{holder.name}')"
    if holder.kind == "prepared":
        return f"COMMIT PREPARED or ROLLBACK PREPARED '{holder.name}'"
    return (
        f"end it there, or SELECT pg_terminate_backend({holder.pid}); idle_in_transaction_session_timeout ends such "
        "sessions by itself"
    )


def _vacuum(table: TableFacts, facts: ServerFacts, server: Server, wanted: Wanted) -> Iterator[Finding]:
    name = f"{server.schema}.{table.name}"
    settings = wanted.settings.get(table.name)
    if settings is None:
        return
    if not facts.server.vacuums or table.settings.get("autovacuum_enabled", "true") in ("false", "off", "no", "0"):
        if facts.server.vacuums or table.name == "task":
            where = f"for table {table.name}" if facts.server.vacuums else "on the whole server"
            mend = f"ALTER TABLE {name} RESET (autovacuum_enabled)" if facts.server.vacuums else "set autovacuum = on"
            yield Finding(
                level="warning",
                about="vacuum",
                what=f"autovacuum is off {where}: dead rows are never removed",
                remedy=mend,
            )
        return
    differing = {key: value for key, value in settings.items() if table.settings.get(key) != value}
    if differing:
        wish = ", ".join(f"{key} = {value}" for key, value in differing.items())
        yield Finding(
            level="note",
            about="vacuum",
            what=f"table {table.name} has lost settings that it was made with: {', '.join(differing)}",
            remedy=f"ALTER TABLE {name} SET ({wish})",
        )
    yield from _dead_rows(table, facts, name)


def _dead_rows(table: TableFacts, facts: ServerFacts, name: str) -> Iterator[Finding]:
    threshold = float(table.settings.get("autovacuum_vacuum_threshold", 50))
    scale = float(table.settings.get("autovacuum_vacuum_scale_factor", 0.2))
    since_ms = table.vacuumed_ms or min((worker.started_ms for worker in facts.workers), default=0)
    late_s = (facts.now_ms - since_ms) / 1000
    if table.dead > _OVERDUE * (threshold + scale * table.estimated) and late_s > UNVACUUMED_S:
        yield Finding(
            level="warning",
            about="vacuum",
            what=f"table {table.name} has {table.dead:,} dead rows beside {table.rows:,} living ones, and was "
            + ("never vacuumed" if table.vacuumed_ms is None else f"vacuumed {span(late_s)} ago"),
            remedy=f"VACUUM {name}; if it comes again, raise autovacuum_max_workers, and see that no transaction stays "
            "open",
            figures={"dead": table.dead, "rows": table.rows, "bytes": table.bytes},
        )


def _indexes(facts: ServerFacts, server: Server, wanted: Wanted) -> Iterator[Finding]:
    there = {index.name for index in facts.indexes}
    tables = {table.name for table in facts.tables}
    for name, index in wanted.indexes.items():
        if name not in there and index.table in tables:
            yield Finding(
                level="problem" if index.is_unique else "warning",
                about="indexes",
                what=f"index {name} is missing: "
                + ("nothing keeps the same entry from coming twice" if index.is_unique else "its table is read whole"),
                remedy=f"SET search_path = {server.schema}; {index.sql}",
            )
    for found in facts.indexes:
        yield from _index(found, server, wanted)


def _index(index: IndexFacts, server: Server, wanted: Wanted) -> Iterator[Finding]:
    if not index.is_valid:
        yield Finding(
            level="warning",
            about="indexes",
            what=f"index {index.name} is not whole: its making was broken off, and each write pays for it",
            remedy="`mainspring collections index NAME` builds it anew"
            if index.name.startswith(_HNSW)
            else f"REINDEX INDEX CONCURRENTLY {server.schema}.{index.name}",
        )
    elif index.scans == 0 and not index.is_constraint and index.name not in wanted.indexes:
        is_ours = index.name.startswith(_HNSW)
        yield Finding(
            level="note",
            about="indexes",
            what=f"index {index.name} on {index.table} ({size(index.bytes)}) "
            + ("" if is_ours else "is none of ours and ")
            + "was not used since statistics began; each write pays for it",
            remedy="`mainspring collections index NAME --drop` where that collection is searched exactly anyway"
            if is_ours
            else f"DROP INDEX {server.schema}.{index.name}",
            figures={"bytes": index.bytes},
        )


def _workers(facts: ServerFacts) -> Iterator[Finding]:
    for worker in facts.workers:
        who = f"worker {worker.name} (pid {worker.pid} on {worker.host})"
        if worker.is_lost:
            yield work.dead(who, worker)
        elif not worker.is_alive:
            yield Finding(
                level="warning",
                about="workers",
                what=f"{who} was not heard of for {BEATS_S:.0f} s; it holds {worker.held} claims",
                remedy=f"after {StoreConfig().dead_s:.0f} s (dead_s) any other process takes them back, and a start of "
                "one does; where it lives, look at its log and its connection",
                figures={"held": worker.held},
            )
        elif worker.turns is False:
            yield work.silent(who, worker, facts)


def _inbox(facts: ServerFacts) -> Iterator[Finding]:
    if not facts.inbox_stands:
        return
    count = f"{facts.inbox:,}{'+' if facts.inbox >= COUNT_LIMIT else ''}"
    is_open = any(worker.is_alive for worker in facts.workers)
    yield Finding(
        level="warning",
        about="inbox",
        what=f"{count} tasks that were submitted within transactions wait to be taken in"
        + (", and those who have the store open don't" if is_open else ", and nobody has the store open"),
        remedy="look at the logs of the workers"
        if is_open
        else "start a worker: whoever opens the store takes them in",
        figures={"inbox": facts.inbox},
    )


__all__ = ["elsewhere", "findings", "no_folder"]
