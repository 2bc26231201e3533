"""The SQL of a server: it fits the tables, and no statement that runs for each task looks at all rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from tests import postgres

from mainspring.config import StoreConfig
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import PLANNED_ONCE, connect, for_a_transaction
from mainspring.store.postgres.statements import BESIDE_OTHERS, SCHEMA, SQL, WIDE, WITHIN
from mainspring.store.sqlite.statements import SQL as SQL_OF_FILES

HERE_ALONE = {  # named differently, or of no use to the other
    "last_seq", "next_ready_class", "known_id", "news_after", "span_of_news", "another_worker", "ask_cancel", "reasons",
    "buried_id", "add_tally", "add_news", "complete_many", "newest_limit",
}  # fmt: skip
LOOKS = {
    "held_by_status": "counts what is held now: an index of those alone, asked for by a person",
    "page": "a person's list in order of age; what the filters leave out is walked over",
    "ids_by_end": "a person who types the end of an id, in the index of ids alone",
    "unfinished_specs": "which models unfinished tasks name: asked for by a person, and no ended task is walked over",
    "kept_kinds": "a person's list of kept results",
    "attempts_since": "a person's ledger: all attempts since a moment",
    "unfinished_by_reason": "a person's look at what waits: so many of each index at most",
    "held_by_workers": "counts what is held now, as held_by_status does",
    "running_since": "adds up what runs now, as held_by_workers does",
    "ledger": "the same, summed up, on a connection of its own",
    "ledger_hits": "goes with it",
    "purge_kept": "a person takes kept results away",
}
"""What goes through whole tables or indexes, and why that is right. Every other statement stands on keys."""
TABLES = (
    "task edge attempt idempotency tombstone stands_for retried payload_blob news inbox cache flight cascade progress "
    "audit"
).split()
"""What grows with tasks."""
SMALL = "store kept_size class tally worker serves usage offer handler pause group_limit".split()
"""They hold rows for each process, class, group or handler."""
SORTED = {
    "inbox_of_key": "what has come under one key and is not taken in yet",
    "best_follower": "who waits for one piece of work, when its leader is lost",
    "ended_by_type": "so many of the newest attempts, to be added up",
    "newest_handler": "the versions of one type",
    "specs_before": "as many ready tasks as are counted at most, when a person asks why one waits",
    "root_of": "what one task waits for, one after the other, when a person asks why",
    "first_of_class": "as many ready tasks as a look may take, when metrics are asked for",
}
"""What finds all rows of a key and keeps the first ones, and why they are few."""
SETTINGS = "; ".join(f"SET {name} = {value}" for name, value in PLANNED_ONCE.items())
MANY = 20_000
QUEUED = 100_000
ENDS_OF_INDEXES = {
    "next_due": "task_due", "next_deadline": "task_deadline", "next_events": "task_due task_deadline",
    "any_waiting": "task_waits", "catch_up": "task_due task_deadline inbox_pkey", "complete_and_note": "task_waits",
    "complete_alike": "task_waits",
    "next_cascade": "cascade_pkey", "ready_classes": "task_ready", "line": "task_ready", "take_inbox": "inbox_pkey",
    "arrivals": "inbox_pkey inbox_id_key", "newest_times": "task_pkey", "drop_audit": "audit_pkey",
    "drop_unused": "cache_used",
}  # fmt: skip
"""They take the first entries of these, whatever the key."""

_ID = f"'{'5'.zfill(32)}'"
_STORE = "00000000-0000-0000-0000-000000000001"
IN_USERS_SESSIONS = {
    "look": "",
    "put": f"('{_STORE}', ARRAY[decode({_ID}, 'hex')], ARRAY['a'], ARRAY['5'], ARRAY[''::bytea], 'channel', 'word')",
    "of_ids": f"('{_STORE}', ARRAY[decode({_ID}, 'hex')])",
    "of_keys": f"('{_STORE}', ARRAY['a'], ARRAY['5'])",
}
"""Values for what runs there."""


@pytest.fixture(scope="module", params=[0, MANY])
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A schema without tasks, as it is when plans are made first, and one with many."""
    schema = postgres.schema_of(Path(tmp_path_factory.mktemp("plans")))
    postgres.command(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {SCHEMA}; {SETTINGS}")
    postgres.command("INSERT INTO store (version) VALUES (1)")
    if request.param:
        _fill(request.param)
    yield schema
    postgres.command("RESET ALL")
    postgres.drop(schema)


def _fill(n: int) -> None:
    """Tasks in every status and for every reason to wait, of 50 classes; each depends on the one before it."""
    postgres.command(f"""
        INSERT INTO task (seq, id, class, rank, status, reason, owner, attempt, priority, max_retries, submitted_ms,
            ready_ms, input, due_ms, deadline_ms, waits_for, waits_at, ended_ms, output)
        SELECT n, decode(lpad(to_hex(n), 32, '0'), 'hex'), n / 20 % 50 + 1, n, status, reason,
            CASE WHEN status = 1 OR reason = 4 THEN 1 + n / 20 % 3 END, 1, 1, 3, n, n, '',
            CASE WHEN reason IN (2, 3) THEN n END, CASE WHEN n % 3 = 0 THEN n END, CASE WHEN reason = 1 THEN n - 1 END,
            CASE WHEN reason = 1 THEN 0 END, CASE WHEN status > 1 THEN n END, CASE WHEN status = 2 THEN ''::bytea END
        FROM generate_series(1, {n}) AS n,
            LATERAL (SELECT ('{{0,0,0,0,0,0,0,0,0,0,0,1,2,2,2,2,2,3,4,5}}'::integer[])[n % 20 + 1],
                ('{{0,0,0,0,0,0,1,2,3,4,5}}'::integer[])[n % 20 + 1]) AS state (status, reason);
        INSERT INTO edge (child, n, parent, policy) SELECT n + 1, 0, n, 0 FROM generate_series(1, {n}) AS n;
        INSERT INTO attempt (task, number, outcome, ended_ms) SELECT n, 1, 0, n FROM generate_series(1, {n}) AS n;
        INSERT INTO inbox (id, namespace, key, task) SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), 'a', n::text, ''
            FROM generate_series(1, {n}) AS n;
        INSERT INTO retried (task, again) SELECT n, n + {n} FROM generate_series(1, {n}) AS n;
        INSERT INTO idempotency (namespace, key, task) SELECT 'a', n::text, n FROM generate_series(1, {n}) AS n;
        INSERT INTO tombstone (id, ended_ms, status)
            SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), n, 2 FROM generate_series(1, {n}) AS n;
        INSERT INTO stands_for (task, ref, n) SELECT n, n + 1, 0 FROM generate_series(1, {n}) AS n;
        INSERT INTO payload_blob (digest, task) SELECT md5(n::text), n FROM generate_series(1, {n}) AS n;
        INSERT INTO news (class) SELECT n % 100 FROM generate_series(1, {n}) AS n;
        INSERT INTO cascade (task) SELECT n FROM generate_series(1, {n}) AS n;
        INSERT INTO progress (task, done, total, at_ms, attempt)
            SELECT n, 1, 2, n, 1 FROM generate_series(1, {n}) AS n;
        INSERT INTO audit (at_ms, action, detail) SELECT n, 'a', '{{}}' FROM generate_series(1, {n}) AS n;
        INSERT INTO cache (key, namespace, type, version, output, flags, bytes, made_ms, expires_ms, used_ms)
            SELECT n::text::bytea, 'a', 't', '1', '', 0, n, n, n, n FROM generate_series(1, {n}) AS n;
        INSERT INTO flight (task, key, leads, keep_ms)
            SELECT n, (n / 4)::text::bytea, CASE WHEN n % 4 = 0 THEN 1 ELSE 0 END, 0 FROM generate_series(1, {n}) AS n;
        ANALYZE""")


_numbers = itertools.count()


def plan(sql: str, values: str = "") -> list[str]:
    """Return the steps of a prepared statement. `values` matter where it is not planned once for all of them."""
    prepared = f"examined_{next(_numbers)}"
    postgres.command(f"PREPARE {prepared} AS {sql}")
    numbers = {int(number) for number in re.findall(r"\$(\d+)", sql)}
    if numbers and not values:
        values = f"({', '.join(['NULL'] * max(numbers))})"
    return [row[0] for row in postgres.ask(f"EXPLAIN EXECUTE {prepared}{values}")]


def indexes(schema: str) -> dict[str, str]:
    """Return the column of each index that leads to few rows: the first one, or what comes after the namespace."""
    rows: Any = postgres.ask(
        """SELECT index.relname, (SELECT attname FROM unnest(indkey) WITH ORDINALITY AS key (n, at)
               JOIN pg_attribute ON attrelid = indrelid AND attnum = key.n
               WHERE attname <> 'namespace' ORDER BY key.at LIMIT 1)
           FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
           JOIN pg_namespace AS space ON space.oid = relnamespace WHERE nspname = $1""",
        schema,
    )
    return dict(rows)


def _is_detail(line: str) -> bool:
    """Whether a line speaks of the step above it."""
    return re.match(r"\s*[A-Z][A-Za-z ]*: ", line) is not None


def looks_at_all(steps: list[str], first: dict[str, str]) -> list[str]:
    """Return the steps that go through a whole table, or through an index whose key they don't use."""
    found = []
    for at, step in enumerate(steps):
        on = re.search(r"Seq Scan on (\w+)", step)
        if on and on[1] in TABLES:
            found.append(step)
        using = re.search(r"(?:Index Scan|Index Only Scan)(?: Backward)? (?:using|on) (\w+)", step)
        if using and using[1].startswith(tuple(TABLES)):
            details = [line.strip() for line in itertools.takewhile(_is_detail, steps[at + 1 :])]
            condition = next((line for line in details if line.startswith("Index Cond:")), "")
            if re.search(rf"\b{first[using[1]]}\b", condition) is None:
                found.append(step)
    return found


def excesses(name: str, steps: list[str], first: dict[str, str]) -> list[str]:
    """The same for a named statement, without those that take the first entries of an index."""
    ends = ENDS_OF_INDEXES.get(name, "").split()
    return [step for step in looks_at_all(steps, first) if not any(f" {end} " in step for end in ends)]


@pytest.mark.parametrize("name", SQL)
def test_every_statement_fits_the_tables(tables: str, name: str) -> None:
    """Each named statement can be prepared."""
    plan(SQL[name])


@pytest.mark.parametrize("name", sorted(SQL.keys() - LOOKS.keys()))
def test_statements_stand_on_indexes(tables: str, name: str) -> None:
    """With plans made for empty tables, and with plans made for full ones: a row is reached by the key of an index, or
    as the first of one. A new statement has to, or to be listed with the reason why it does not."""
    steps = plan(SQL[name])
    assert excesses(name, steps, indexes(tables)) == [], "\n".join(steps)
    if name not in SORTED and "LIMIT" in SQL[name]:
        assert not [step for step in steps if "Sort" in step], "\n".join(steps)


def test_each_index_is_missed(tables: str) -> None:
    """Without any one of the indexes, some statement looks at all rows, and the examination tells: it sees what a
    change of the schema would cost, and no index is kept up to date for nothing."""
    first = indexes(tables)
    plans = {name: plan(SQL[name]) for name in SQL.keys() - LOOKS.keys() if "ON CONFLICT" not in SQL[name]}
    rows: Any = postgres.ask(
        """SELECT conname, conrelid::regclass::text FROM pg_constraint
           WHERE connamespace = $1::text::regnamespace AND contype IN ('p', 'u')""",
        tables,
    )
    homes: dict[str, str] = dict(rows)
    not_missed = []
    for index in (index for index in first if index.startswith(tuple(TABLES))):
        users = [name for name, steps in plans.items() if any(re.search(rf"\b{index}\b", step) for step in steps)]
        table = homes.get(index)
        drop = f"DROP INDEX {index}" if table is None else f"ALTER TABLE {table} DROP CONSTRAINT {index}"
        postgres.command(f"BEGIN; {drop}")
        try:
            if not any(excesses(name, plan(SQL[name]), first) for name in users):
                not_missed.append(index)
        finally:
            postgres.command("ROLLBACK")
    assert not_missed == []


def test_all_tables_are_known(tables: str) -> None:
    """A new table is examined, or known to be small."""
    rows = postgres.ask(
        "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'r'", tables
    )
    assert {name for (name,) in rows} == {*TABLES, *SMALL}


def test_all_big_tables_are_filled(tables: str) -> None:
    """What has no rows says nothing of plans for many."""
    rows = postgres.ask(" UNION ALL ".join(f"SELECT '{table}', EXISTS (SELECT 1 FROM {table})" for table in TABLES))
    assert len({is_filled for _, is_filled in rows}) == 1


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("tables", [MANY], indirect=True)
def test_statements_of_users_sessions_stand_on_indexes(tables: str, name: str, mode: str) -> None:
    """Our settings do not hold there, and their driver may keep a plan or make one each time."""
    postgres.command("; ".join([*(f"RESET {setting}" for setting in PLANNED_ONCE), f"SET plan_cache_mode = {mode}"]))
    try:
        steps = plan(WITHIN[name].replace("STORE", tables), IN_USERS_SESSIONS[name])
    finally:
        postgres.command(SETTINGS)
    assert looks_at_all(steps, indexes(tables)) == [], "\n".join(steps)


@pytest.mark.anyio
@pytest.mark.parametrize("name", WITHIN)
async def test_a_plan_of_a_users_session_for_an_empty_inbox_does_for_a_full_one(tmp_path: Path, name: str) -> None:
    """Their sessions keep plans that were made while nothing waited to be taken in: these must not read all that waits
    later. Counted in rows that are read, also within functions."""
    schema = postgres.schema_of(tmp_path)
    postgres.command(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {SCHEMA}")
    user = await asyncpg.connect(postgres.url())
    try:
        await user.execute("SET plan_cache_mode = force_generic_plan")
        filling = await asyncpg.connect(postgres.url())
        await filling.execute(f"ALTER TABLE {schema}.inbox SET (autovacuum_enabled = false)")  # it would plan anew
        await filling.execute(f"INSERT INTO {schema}.store (version, identity) VALUES (1, '{_STORE}')")
        await filling.execute(f"VACUUM ANALYZE {schema}.inbox")
        await user.execute(f"PREPARE kept AS {WITHIN[name].replace('STORE', schema)}")
        values = IN_USERS_SESSIONS[name]
        await user.execute(f"BEGIN; EXECUTE kept{values}; ROLLBACK")
        await filling.execute(
            f"INSERT INTO {schema}.inbox (id, namespace, key, task) SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), "
            f"'a', n::text, '' FROM generate_series(1, {MANY}) AS n"
        )
        await filling.close()
        async with user.transaction():
            await user.execute(f"EXECUTE kept{values}")
            read = await user.fetchval(
                "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::integer "
                "FROM pg_stat_xact_user_tables WHERE relname = 'inbox' AND schemaname = $1",
                schema,
            )
            assert read < 10
    finally:
        await user.close()
        postgres.command("RESET ALL")
        postgres.drop(schema)


@pytest.mark.anyio
async def test_connections_plan_as_it_is_examined_here() -> None:
    """What these tests set is what the store sets, on a connection of its own and in a transaction behind a pooler."""
    server, config = parse(postgres.url()), StoreConfig()
    own = await connect(server, "tests", config)
    other = await asyncpg.connect(postgres.url())
    try:
        async with other.transaction():
            await other.execute(for_a_transaction(server, config))
            for connection in (own, other):
                found = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in PLANNED_ONCE}
                assert found == PLANNED_ONCE
    finally:
        await own.close()
        await other.close()


@pytest.mark.parametrize("tables", [MANY], indirect=True)
@pytest.mark.parametrize("name", LOOKS)
def test_no_statement_is_excused_for_nothing(tables: str, name: str) -> None:
    """What is listed as going through whole tables does so where they are full; else it belongs among the others."""
    assert looks_at_all(plan(SQL[name]), indexes(tables))


@pytest.mark.parametrize("name", ENDS_OF_INDEXES)
def test_the_first_entries_are_taken_in_order_or_one_alone(name: str) -> None:
    """What begins at the end of an index stops after a few rows."""
    assert re.search(r"\b(LIMIT|min\(|max\()|EXISTS", SQL[name])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM task WHERE timeout_ms = $1",
        "SELECT 1 FROM task WHERE reason = 0 AND rank = $1 AND class IS NOT NULL",
        "UPDATE task SET flags = 0 FROM unnest($1::bigint[]) AS v WHERE seq + 0 = v",
        "SELECT 1 FROM task JOIN attempt ON attempt.task = task.seq WHERE attempt.started_ms >= $1",
        "SELECT task FROM idempotency WHERE namespace = $1",
    ],
)
def test_a_whole_look_is_found(tables: str, sql: str) -> None:
    """The examination sees a scan of a table, and one of an index that does not lead to the row."""
    assert looks_at_all(plan(sql), indexes(tables))


def test_both_stores_have_the_statements_that_the_rules_use() -> None:
    """What the shared rules run has a text for each store."""
    assert SQL_OF_FILES.keys() - SQL.keys() - HERE_ALONE == set()
    assert SQL.keys() >= WIDE
    assert SQL.keys() >= BESIDE_OTHERS


def _queue(first: int, last: int) -> None:
    postgres.command(f"""
        INSERT INTO task (seq, id, class, rank, status, reason, priority, max_retries, submitted_ms, ready_ms, input)
        SELECT n, decode(lpad(to_hex(n), 32, '0'), 'hex'), 1, n, 0, 0, 1, 3, n, n, ''
        FROM generate_series({first}, {last}) AS n; ANALYZE task""")


def _pages_of_a_claim() -> int:
    """Return how many pages it takes to claim the best 100 tasks of a class; the claim itself is taken back."""
    name = f"examined_{next(_numbers)}"
    postgres.command(f"PREPARE {name} AS {SQL['claim_of_class']}; BEGIN")
    try:
        steps = postgres.ask(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}(1, 1, 100, 0, 0)")
    finally:
        postgres.command("ROLLBACK")
    top = msgspec.json.decode(steps[0][0])[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def test_a_claim_costs_the_same_however_many_are_queued(tmp_path: Path) -> None:
    """Counted in pages, so that neither the machine nor its load matters."""
    schema = postgres.schema_of(tmp_path)
    postgres.command(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {SCHEMA}; {SETTINGS}")
    try:
        _queue(1, 10_000)
        few = _pages_of_a_claim()
        _queue(10_001, QUEUED)
        assert _pages_of_a_claim() <= 1.5 * few
    finally:
        postgres.command("RESET ALL")
        postgres.drop(schema)
