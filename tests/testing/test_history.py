"""A sound store breaks nothing; whatever is put wrong in it is found, by the check that is there for it."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from tests import postgres
from tests.store.fixtures.make import make, make_there

from mainspring.blobs.local import LocalBlobStore
from mainspring.errors import StoreForeign, StoreNewer, StoreUnavailable
from mainspring.store.postgres.session import Session
from mainspring.store.sqlite.connection import SCHEMA_VERSION
from mainspring.tasks import TaskId, TaskStatus
from mainspring.testing import Violation, check_history, readable
from mainspring.testing.events import (
    Acknowledged,
    CancelAnswered,
    Ended,
    Event,
    Refused,
    ResultSeen,
    Started,
    Submitted,
)
from mainspring.testing.history import ROWS
from mainspring.testing.rows import FILE_SQL, SERVER_SQL


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tasks in every state, whose process died."""
    return asyncio.run(make(tmp_path_factory.mktemp("sound")))


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sound.parent, tmp_path / "copy"), "work.db")


def spoil(store: Path, sql: str) -> None:
    """Run a statement in which {some text} is the number of the task with that text."""
    connection = apsw.Connection(str(store))
    connection.pragma("ignore_check_constraints", 1)
    found = {
        name: connection.execute("SELECT seq FROM task WHERE instr(input, CAST(? AS BLOB))", (name,)).get
        for name in re.findall(r"{([^}]*)}", sql)
    }
    before = connection.total_changes()
    connection.execute(sql.replace("NO_ID", "zeroblob(16)").format_map(found))
    assert connection.total_changes() > before
    connection.close()


def test_a_sound_store(sound: Path) -> None:
    """Tasks in every state, held by a process that died, break nothing; nor does looking change a byte."""
    before = {item: item.read_bytes() for item in sound.parent.rglob("*") if item.is_file()}
    assert check_history(sound, blobs=LocalBlobStore(f"{sound}-blobs")) == []
    assert {item: item.read_bytes() for item in sound.parent.rglob("*") if item.is_file()} == before


SPOILT = [
    ("states", "no state", "UPDATE task SET status = 7 WHERE seq = {plain}"),
    ("states", "no state", "UPDATE task SET reason = 6 WHERE seq = {ready}"),
    ("states", "lacks", "UPDATE task SET ended_ms = NULL WHERE seq = {plain}"),
    ("states", "lacks", "UPDATE task SET due_ms = NULL WHERE seq = {delayed}"),
    ("states", "lacks", "UPDATE task SET owner = NULL WHERE seq = {running}"),
    ("states", "lacks", "UPDATE task SET output = NULL WHERE seq = {plain}"),
    ("states", "lacks", "UPDATE task SET waits_at = NULL WHERE seq = {waits}"),
    ("states", "lacks", "UPDATE task SET attempt = 0 WHERE seq = {running}"),
    ("states", "priority", "UPDATE task SET priority = 77 WHERE seq = {ready}"),
    ("states", "has an error", "UPDATE task SET error = input WHERE seq = {plain}"),
    ("states", "says why", "UPDATE task SET error = NULL WHERE seq = {broken}"),
    ("states", "says why", "UPDATE task SET error = NULL WHERE seq = {cancelled early}"),
    ("states", "says why", "UPDATE task SET error = NULL WHERE seq = {overdue}"),
    ("states", "not failed yet", "UPDATE task SET error = input WHERE seq = {ready}"),
    ("states", "not failed yet", "UPDATE task SET error = input WHERE seq = {running}"),
    ("states", "tried again", "UPDATE task SET error = NULL WHERE seq = {lost}"),
    ("states", "lacks", "UPDATE task SET output = input WHERE seq = {ready}"),
    ("states", "lacks", "UPDATE task SET output = input WHERE seq = {broken}"),
    ("states", "before it could be", "UPDATE task SET attempt = 1 WHERE seq = {delayed}"),
    ("states", "before it could be", "UPDATE task SET attempt = -1 WHERE seq = {ready}"),
    ("states", "goes on", "UPDATE task SET flags = flags | 1 WHERE seq = {ready}"),
    ("states", "ended otherwise", "UPDATE task SET flags = flags | 1 WHERE seq = {broken}"),
    ("states", "equal work", "UPDATE task SET flags = flags | 256 WHERE seq = {ready}"),
    ("states", "there are not", "UPDATE task SET flags = -1 WHERE seq = {ready}"),
    ("states", "lost that", "UPDATE task SET flags = flags | 4096 WHERE seq = {ready}"),
    ("states", "kind", "UPDATE edge SET policy = 3 WHERE child = {waits}"),
    (
        "identity",
        "several times",
        "DROP INDEX task_id; UPDATE task SET id = (SELECT id FROM task WHERE seq = {plain}) WHERE seq = {ready}",
    ),
    ("identity", "of no task", "UPDATE task SET id = NO_ID WHERE seq = {plain}"),
    ("numbers", "may have", "UPDATE task SET seq = -seq WHERE seq = {ready}"),
    ("numbers", "is to get", "UPDATE task SET seq = 999999 WHERE seq = {ready}"),
    ("delays", "not_before", "UPDATE task SET due_ms = due_ms + 1 WHERE seq = {delayed}"),
    ("delays", "not_before", "UPDATE task SET not_before_ms = NULL WHERE seq = {delayed}"),
    ("delays", "after its deadline", "UPDATE task SET deadline_ms = due_ms - 1 WHERE seq = {lost}"),
    ("delays", "did not end so", "DELETE FROM attempt WHERE task = {lost} AND number = 2"),
    ("delays", "did not end so", "UPDATE attempt SET outcome = 5 WHERE task = {lost} AND number = 2"),
    ("delays", "before its last attempt", "UPDATE task SET due_ms = 1 WHERE seq = {lost}"),
    ("delays", "many years", "UPDATE task SET due_ms = 9000000000000000 WHERE seq = {lost}"),
    ("delays", "went on before", "UPDATE task SET not_before_ms = ready_ms + 2000 WHERE seq = {running}"),
    ("delays", "went on before", "UPDATE task SET not_before_ms = ready_ms + 2000 WHERE seq = {ready}"),
    ("delays", "time limit", "UPDATE task SET deadline_ms = -1 WHERE seq = {ready}"),
    ("delays", "time limit", "UPDATE task SET timeout_ms = -1 WHERE seq = {ready}"),
    ("outcomes", "otherwise", "UPDATE attempt SET outcome = 4 WHERE task = {plain}"),
    ("outcomes", "otherwise", "DELETE FROM attempt WHERE task = {plain}"),
    ("outcomes", "otherwise", "UPDATE task SET attempt = 2 WHERE seq = {plain}"),
    ("outcomes", "otherwise", "UPDATE attempt SET outcome = 0 WHERE task = {stopped}"),
    ("outcomes", "otherwise", "UPDATE attempt SET outcome = 1 WHERE task = {late}"),
    ("outcomes", "otherwise", "DELETE FROM attempt WHERE task = {broken} AND number = 2"),
    ("outcomes", "otherwise", "UPDATE attempt SET outcome = 6 WHERE task = {broken} AND number = 2"),
    ("outcomes", "otherwise", "UPDATE attempt SET outcome = 5 WHERE task = {broken} AND number = 2"),
    ("outcomes", "another time", "UPDATE task SET ended_ms = ended_ms + 1 WHERE seq = {plain}"),
    ("one_outcome", "went on", "UPDATE attempt SET outcome = 0 WHERE task = {lost} AND number = 2"),
    ("one_outcome", "went on", "UPDATE attempt SET outcome = 0 WHERE task = {broken} AND number = 1"),
    ("attempts", "never claimed", "INSERT INTO attempt (task, number, outcome, ended_ms) VALUES ({ready}, 1, 4, 1)"),
    ("attempts", "not over", "INSERT INTO attempt (task, number, outcome, ended_ms) VALUES ({running}, 1, 4, 1)"),
    ("attempts", "never claimed", "UPDATE attempt SET number = 0 WHERE task = {lost} AND number = 1"),
    ("attempts", "never claimed", "UPDATE attempt SET outcome = 7 WHERE task = {lost} AND number = 1"),
    ("attempts", "before it started", "UPDATE attempt SET started_ms = ended_ms + 1 WHERE task = {plain}"),
    (
        "attempts",
        "with an error",
        "UPDATE attempt SET error = (SELECT input FROM task WHERE seq = {plain}) WHERE task = {plain}",
    ),
    ("attempts", "without one", "UPDATE attempt SET error = NULL WHERE task = {broken}"),
    ("attempts", "figures", "UPDATE attempt SET batch = 0 WHERE task = {plain}"),
    ("attempts", "figures", "UPDATE attempt SET cpu_us = -1 WHERE task = {plain}"),
    ("charges", "beyond", "UPDATE task SET max_retries = 0 WHERE seq = {broken}"),
    ("charges", "beyond", "UPDATE task SET crashes = -1 WHERE seq = {ready}"),
    ("charges", "beyond", "UPDATE task SET releases = -1 WHERE seq = {ready}"),
    ("charges", "record", "UPDATE task SET retry_count = 2 WHERE seq = {lost}"),
    ("charges", "record", "DELETE FROM attempt WHERE task = {lost} AND number = 1"),
    ("charges", "record", "UPDATE task SET crashes = 2 WHERE seq = {lost}"),
    ("charges", "beyond", "UPDATE task SET crashes = 3 WHERE seq = {lost}"),
    ("charges", "beyond", "UPDATE task SET releases = 11 WHERE seq = {handed back}"),
    (
        "dependencies",
        "went on",
        "UPDATE task SET reason = 0, waits_for = NULL, waits_at = NULL WHERE seq = {waits}",
    ),
    ("dependencies", "went on", "UPDATE edge SET policy = 0 WHERE child = {allows it}"),
    ("dependencies", "not there", "DELETE FROM task WHERE seq = {broken}"),
    ("dependencies", "went on", "INSERT INTO edge (child, n, parent, policy) VALUES ({plain}, 0, {ready}, 0)"),
    ("dependencies", "depends on a task", "UPDATE edge SET parent = 999 WHERE child = {joins} AND n = 1"),
    ("dependencies", "depends on a task", "UPDATE edge SET parent = 999999 WHERE child = {needs it}"),
    ("dependencies", "not marked so", "UPDATE task SET flags = flags - 4 WHERE seq = {made of it}"),
    ("dependencies", "lost a dependency", "DELETE FROM edge WHERE child = {held by three} AND n = 1"),
    ("dependencies", "depends on none", "UPDATE task SET flags = flags | 4 WHERE seq = {ready}"),
    ("dependencies", "does not depend on", "UPDATE edge SET parent = {plain} WHERE child = {made of it}"),
    ("waiting", "for nothing", "UPDATE task SET waits_for = {plain} WHERE seq = {waits}"),
    ("waiting", "for nothing", "UPDATE task SET waits_at = 9 WHERE seq = {waits}"),
    ("waiting", "for nothing", "DELETE FROM task WHERE seq = {running}"),
    (
        "waiting",
        "for nothing",
        "UPDATE task SET waits_for = {splits}, waits_at = 0 WHERE seq = {joins}",
    ),
    ("waiting", "passed over", "UPDATE task SET waits_for = {part two}, waits_at = 2 WHERE seq = {joins}"),
    ("waiting", "did not complete", "INSERT INTO edge (child, n, parent, policy) VALUES ({waits}, 1, {broken}, 0)"),
    ("unmet", "without a reason", "DELETE FROM edge WHERE child = {needs it}"),
    ("unmet", "without a reason", "UPDATE edge SET parent = {plain} WHERE child = {needs it}"),
    ("acyclic", "itself", "INSERT INTO edge (child, n, parent, policy) VALUES ({running}, 0, {running}, 0)"),
    ("acyclic", "itself", "INSERT INTO edge (child, n, parent, policy) VALUES ({running}, 0, {waits}, 0)"),
    ("acyclic", "itself", "INSERT INTO edge (child, n, parent, policy) VALUES ({part one}, 0, {joins}, 0)"),
    ("stands_for", "not there", "DELETE FROM task WHERE seq = {part two}"),
    ("stands_for", "not flagged", "UPDATE task SET flags = 0 WHERE seq = {splits}"),
    ("stands_for", "has none", "UPDATE task SET flags = 8 WHERE seq = {plain}"),
    ("stands_for", "for itself", "INSERT INTO stands_for (task, n, ref) VALUES ({splits}, 9, {splits})"),
    ("stands_for", "for itself", "INSERT INTO stands_for (task, n, ref) VALUES ({part one}, 0, {splits})"),
    ("stands_for", "not noted", "DELETE FROM stands_for WHERE n = 1"),
    ("owners", "before it started", "UPDATE worker SET ended_ms = started_ms - 2000"),
    ("owners", "by nobody", "UPDATE task SET owner = 77 WHERE seq = {running}"),
    ("owners", "by nobody", "UPDATE worker SET ended_ms = 1"),
    ("owners", "served by nobody", "INSERT INTO serves VALUES (77, 'custom:work')"),
    ("tallies", "not the count", "UPDATE tally SET n = n + 1 WHERE class = 0 AND status = 2"),
    ("tallies", "not the count", "DELETE FROM tally WHERE class > 0 AND status = 0"),
    ("classes", "no class", "UPDATE task SET class = 99 WHERE seq = {plain}"),
    ("classes", "no type", "UPDATE class SET namespace = '' WHERE type = 'custom:paused'"),
    ("news", "not there", "INSERT INTO news (class) VALUES (777)"),
    ("outcomes", "as equal work did", "UPDATE task SET flags = flags | 256 WHERE seq = {plain}"),
    ("flights", "nobody does", "UPDATE task SET reason = 5 WHERE seq = {ready}"),
    ("flights", "nobody does", "DELETE FROM flight WHERE leads = 1"),
    ("flights", "still listed", "UPDATE flight SET task = {plain} WHERE leads = 1"),
    ("flights", "does not know", "UPDATE task SET flags = 0 WHERE seq = (SELECT task FROM flight WHERE leads = 1)"),
    (
        "flights",
        "nobody knows",
        "UPDATE task SET flags = flags | 192 WHERE seq = {running}",
    ),
    ("flights", "there is not", "UPDATE flight SET leads = 2 WHERE leads = 1"),
    ("flights", "there is not", "UPDATE flight SET keep_ms = -1"),
    ("cache", "wrongly", "UPDATE cache SET used_ms = made_ms - 1"),
    ("cache", "wrongly", "UPDATE cache SET expires_ms = 0"),
    ("cache", "wrongly", "UPDATE cache SET digest = 'x'"),
    ("kept_size", "wrongly", "DELETE FROM kept_size"),
    ("kept_size", "wrongly", "UPDATE kept_size SET bytes = bytes + 1"),
    ("groups", "wrongly", "UPDATE task SET flags = flags | 512 WHERE seq = {ready}"),
    (
        "limits",
        "more than its limit",
        "UPDATE class SET grp = 'red' WHERE type = 'custom:work'; UPDATE group_limit SET concurrency = 1",
    ),
    ("limit_values", "can not be", "UPDATE group_limit SET concurrency = 0"),
    ("limit_values", "can not be", "UPDATE group_limit SET rate = 1, rate_ms = NULL"),
    ("limit_values", "can not be", "UPDATE group_limit SET weight = -1"),
    ("limit_values", "can not be", "UPDATE group_limit SET cost_rate = 0, cost_ms = 1"),
    ("limit_values", "can not be", "UPDATE group_limit SET full_us = -1"),
    ("limit_values", "can not be", "UPDATE group_limit SET held_then = -9"),
    ("keys", "no task", "UPDATE idempotency SET task = 1 WHERE key = 'plain'"),
    ("keys", "of namespace", "UPDATE idempotency SET namespace = 'other' WHERE key = 'plain'"),
    ("keys", "2 idempotency", "INSERT INTO idempotency VALUES ('default', 'second', {plain})"),
    ("keys", "leads to no task", "DELETE FROM idempotency WHERE key = 'plain'"),
    ("keys", "leads to no task", "DELETE FROM idempotency WHERE key = 'running'"),
    ("keys", "another task", "UPDATE idempotency SET task = {ready} WHERE key = 'broken'"),
    ("keys", "another task", "UPDATE idempotency SET task = {ready} WHERE key = 'running'"),
    ("keys", "of another task", "UPDATE idempotency SET key = 'x' WHERE key = 'running'"),
    ("retried", "another kind", "UPDATE retried SET again = {joins}"),
    ("retried", "another one was", "INSERT INTO retried (task, again) SELECT {broken}, again FROM retried"),
    ("retried", "not there", "UPDATE retried SET again = 999"),
    ("retried", "not there", "UPDATE retried SET again = {plain}"),
    ("retried", "not there", "UPDATE retried SET task = {plain}"),
    ("orphans", "attempt", "UPDATE attempt SET task = 999 WHERE task = {plain}"),
    ("orphans", "dependency", "UPDATE edge SET child = 999 WHERE child = {needs it}"),
    ("orphans", "blob", "INSERT INTO payload_blob VALUES ('00', 999)"),
    ("orphans", "progress", "UPDATE progress SET attempt = 9"),
    ("orphans", "progress", "UPDATE progress SET task = 999"),
    ("orphans", "pass on", "INSERT INTO cascade (task) VALUES ({ready})"),
    ("ranks", "before", "UPDATE task SET rank = 0 WHERE seq = {ready}"),
    ("ranks", "before", "UPDATE task SET rank = -9000000000000000000 WHERE seq = {delayed}"),
    ("ranks", "behind", "UPDATE task SET rank = 9000000000000000000 WHERE seq = {ready}"),
    ("tombstones", "is back", "UPDATE tombstone SET id = substr(id, 1, 15)"),
    ("tombstones", "had not ended", "UPDATE tombstone SET status = 1"),
    (
        "tombstones",
        "is back",
        "INSERT INTO tombstone (id, status, ended_ms) SELECT id, 2, 1 FROM task WHERE seq = {plain}",
    ),
    ("payloads", "of its input", "DELETE FROM payload_blob WHERE task IN (SELECT seq FROM task WHERE flags & 16 <> 0)"),
    ("payloads", "of its output", "DELETE FROM payload_blob WHERE task = {large}"),
    ("times", "not_before", "UPDATE task SET not_before_ms = ended_ms + 2000 WHERE seq = {plain}"),
    ("times", "deadline", "UPDATE task SET deadline_ms = ended_ms - 2000 WHERE seq = {plain}"),
    ("times", "before it was submitted", "UPDATE task SET submitted_ms = ended_ms + 2000 WHERE seq = {plain}"),
    ("times", "became ready", "UPDATE task SET ready_ms = 0 WHERE seq = {ready}"),
    ("times", "became ready", "UPDATE task SET submitted_ms = 0 WHERE seq = {delayed}"),
    ("times", "timeout", "UPDATE task SET timeout_ms = 1 WHERE seq = {plain}"),
    ("vectors", "counts other", "UPDATE vector_collection SET records = 9"),
    ("vectors", "no collection", "UPDATE vector_record SET collection = 9 WHERE id = 'a'"),
]
SPOILT_FILE = [
    ("keys", "leads to no task", "DELETE FROM idempotency WHERE key = 'last'"),
    ("identity", "another length", "UPDATE task SET id = x'0102' WHERE seq = {plain}"),
    ("tallies", "not the count", "INSERT INTO tally (class, status, n) VALUES (99, 3, 1)"),
    ("vectors", "dimension", "UPDATE vector_record SET vector = x'00000000' WHERE id = 'a'"),
    ("vectors", "without its record", "DELETE FROM vector_record WHERE id = 'a'"),
    ("vectors", "still there", "UPDATE vector_tombstone SET row = (SELECT row FROM vector_record WHERE id = 'a')"),
    ("vectors", "other labels", "DELETE FROM vector_label WHERE row = (SELECT row FROM vector_record WHERE id = 'a')"),
    ("vectors", "other labels", "UPDATE vector_record SET metadata = 'garbage' WHERE id = 'a'"),
    ("vectors", "newest version", "UPDATE vector_tombstone SET version = 99"),
]


SPOILT_SERVER = [
    ("tallies", "not the count", "INSERT INTO tally (class, status, worker, n) VALUES (99, 3, 1, 1)"),
    ("tallies", "not the count", "INSERT INTO tally (class, status, worker, n) VALUES (0, 2, 77, -1)"),
    ("vectors", "dimension", "UPDATE vector_collection SET dim = 9"),
    ("vectors", "counts other", "DELETE FROM vector_record WHERE id = 'a'"),
]


@pytest.mark.parametrize(("invariant", "says", "sql"), [*SPOILT, *SPOILT_FILE])
def test_a_spoilt_store(store: Path, invariant: str, says: str, sql: str) -> None:
    """One row that is wrong is found, with its task and the figures."""
    spoil(store, sql)
    found = [item for item in check_history(store) if item.invariant == invariant and says in item.what]
    assert found
    assert all(item.figures for item in found)


@pytest.mark.parametrize(
    ("says", "sql"),
    [
        ("its input", "UPDATE task SET input = x'c1c1' WHERE seq = {ready}"),
        ("its input", "UPDATE task SET input = x'01' WHERE seq = {plain}"),
        ("its spec", "UPDATE task SET spec = x'c1c1' WHERE seq = {ready}"),
        ("its output", "UPDATE task SET output = x'01' WHERE seq = {plain}"),
        ("its error", "UPDATE task SET error = x'c1c1' WHERE seq = {broken}"),
        ("the error of an attempt", "UPDATE attempt SET error = x'c1c1' WHERE task = {broken}"),
        ("a kept result", "UPDATE cache SET output = x'c1c1' WHERE digest IS NULL"),
        ("what handler", "UPDATE handler SET options = '{{'"),
        ("what handler", "UPDATE handler SET schema = '[]'"),
        ("the type of class", "UPDATE class SET type = 'garbage' WHERE type = 'custom:other'"),
        ("what a process tells", "UPDATE worker SET slots = '{{' WHERE ended_ms IS NULL"),
    ],
)
def test_what_can_not_be_read(store: Path, says: str, sql: str) -> None:
    """A value that nobody can decode is found, wherever it is, and named."""
    spoil(store, sql)
    found = [item for item in check_history(store) if item.invariant == "readable"]
    assert found
    assert all(item.what.startswith(says) and item.figures["why"] for item in found)
    assert all((item.task is not None) is ("its" in says or "attempt" in says) for item in found)


def test_every_value_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of later pages."""
    for name in ("_TASKS", "_ATTEMPTS", "_KEPT"):
        monkeypatch.setattr(readable, name, getattr(readable, name).replace("1000", "2"))
    spoil(store, "UPDATE task SET input = x'c1'; UPDATE attempt SET error = x'c1'; UPDATE cache SET output = x'c1'")
    connection = apsw.Connection(str(store))
    rows = connection.execute(
        "SELECT (SELECT count(*) FROM task WHERE flags & 16 = 0), (SELECT count(*) FROM attempt), "
        "(SELECT count(*) FROM cache WHERE flags & 32 = 0)"
    ).fetchall()
    connection.close()
    whats = [item.what for item in check_history(store, limit=10_000) if item.invariant == "readable"]
    starts = ("its input", "the error of", "a kept result")
    assert [tuple(sum(what.startswith(start) for what in whats) for start in starts)] == rows


def test_whatever_is_wrong_can_be_looked_at(store: Path) -> None:
    """A value of any kind in any column, or a row that is gone, keeps no check from coming to its end."""
    connection = apsw.Connection(str(store))
    connection.pragma("ignore_check_constraints", 1)
    blobs, seen = LocalBlobStore(f"{store}-blobs"), 0
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (table,) in tables.fetchall():
        wrong = {"INTEGER": "-9000000000000000", "REAL": "-1e300", "TEXT": "'garbage'", "BLOB": "x'c1c1'"}
        columns = [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")]
        changes = [f"DELETE FROM {table}"]
        for column, kind in columns:
            values = ("NULL", wrong.get(kind.upper(), "-1"))
            changes += [f"UPDATE OR IGNORE {table} SET {column} = {value}" for value in values]
        for sql in changes:
            connection.execute("SAVEPOINT damage")
            try:
                connection.execute(sql)
            except (apsw.ConstraintError, apsw.MismatchError):  # this not even a file that is damaged can hold
                pass
            else:
                seen += bool(check_history(connection, blobs=blobs))
            connection.execute("ROLLBACK TO damage; RELEASE damage")
    connection.close()
    assert seen > 100


def test_every_check_has_its_control() -> None:
    """No statement is there that was never seen to find anything, and none is missing on a server."""
    assert {invariant for invariant, *_ in SPOILT} == set(ROWS)
    assert FILE_SQL.keys() == SERVER_SQL.keys()


def test_a_finding_names_its_task(store: Path) -> None:
    spoil(store, "UPDATE attempt SET outcome = 4 WHERE task = {plain}")
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    id = connection.execute("SELECT id FROM task WHERE instr(input, CAST('plain' AS BLOB))").get
    connection.close()
    (found,) = [item for item in check_history(store) if item.invariant == "outcomes"]
    assert found.task == str(TaskId(id))
    assert found.task in str(found)
    assert (found.figures["status"], found.figures["outcome"]) == (2, 4)


def test_findings_are_limited(store: Path) -> None:
    """However much is wrong, the answer stays small."""
    spoil(store, "UPDATE task SET class = 99")
    assert len([item for item in check_history(store, limit=3) if item.invariant == "classes"]) == 3


def test_a_travelling_end_is_no_fault(store: Path) -> None:
    """Where ends go on as a work list, children may still wait for what has ended."""
    spoil(
        store,
        "INSERT INTO edge (child, n, parent, policy) VALUES ({waits}, 1, {broken}, 0); "
        "INSERT INTO cascade (task) VALUES ({broken})",
    )
    assert check_history(store) == []


@pytest.mark.parametrize("name", ["", "garbage", "../../etc/passwd"])
def test_what_names_no_blob(store: Path, name: str) -> None:
    """A digest that is none is told, and not looked for in the folder."""
    spoil(store, f"UPDATE blob_key SET digest = '{name}'")
    (found,) = check_history(store, blobs=LocalBlobStore(f"{store}-blobs"))
    assert (found.invariant, found.figures) == ("blobs", {"digest": name})
    assert "is no blake3 hash" in found.what


@pytest.mark.parametrize("keep", ["payload_blob", "blob_key"])
@pytest.mark.parametrize("how", ["is missing", "has another hash", "was cut off"])
def test_unsound_blobs(store: Path, keep: str, how: str) -> None:
    """A blob that a payload or a name refers to must be there, and whole."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    digest = str(connection.execute(f"SELECT digest FROM {keep} LIMIT 1").get)
    connection.close()
    blobs = LocalBlobStore(f"{store}-blobs")
    (file,) = Path(f"{store}-blobs").rglob(f"*{digest[4:]}")
    data = file.read_bytes()
    if how == "is missing":
        blobs.delete(digest)
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if how == "has another hash" else b"")
    (found,) = check_history(store, blobs=blobs)
    assert (found.invariant, found.figures) == ("blobs", {"digest": digest})
    assert ("is missing" if how == "is missing" else "has another hash") in found.what


# On a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same store on the tests' server; gives the folder that it belongs to. It takes rows that can't be."""
    folder = tmp_path_factory.mktemp("server")
    asyncio.run(make_there(folder, postgres.address_of(folder)))
    schema = postgres.schema_of(folder)
    found = postgres.ask(
        "SELECT $1 || '.' || relname, conname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid "
        "WHERE contype = 'c' AND connamespace = $1::text::regnamespace",
        schema,
    )
    postgres.command("; ".join(f"ALTER TABLE {table} DROP CONSTRAINT {name}" for table, name in found))
    yield folder
    postgres.drop(schema)


def test_a_sound_store_on_a_server(server: Path) -> None:
    """The checks read what a server's tables hold as they read a file."""
    assert check_history(postgres.address_of(server), blobs=LocalBlobStore(server / "blobs")) == []


@pytest.mark.parametrize(("invariant", "says", "sql"), [*SPOILT, *SPOILT_SERVER])
def test_a_spoilt_store_on_a_server(server: Path, invariant: str, says: str, sql: str) -> None:
    """One row that is wrong is found there too, with its task and the figures."""

    def seq(session: Session, name: str) -> int | None:
        found = "SELECT seq FROM task WHERE position(convert_to($1, 'UTF8') IN input) > 0 ORDER BY seq LIMIT 1"
        return next((row[0] for row in session.execute(found, (name,))), None)

    def spoilt(session: Session) -> list[Violation]:
        session.command("BEGIN")
        try:
            said = sql.replace("NO_ID", "decode(repeat('00', 16), 'hex')")
            session.command(said.format_map({name: seq(session, name) for name in re.findall(r"{([^}]*)}", said)}))
            return check_history(session)
        finally:
            session.command("ROLLBACK")

    broken = postgres.look(postgres.schema_of(server), spoilt)
    found = [item for item in broken if item.invariant == invariant and says in item.what]
    assert found
    assert all(item.figures for item in found)


def test_missing_blobs_on_a_server(server: Path, tmp_path: Path) -> None:
    """A blob that a payload or a name refers to must be there."""
    broken = check_history(postgres.address_of(server), blobs=LocalBlobStore(tmp_path / "empty", make=False))
    assert {item.what for item in broken} == {
        f"blob that {table} refers to is missing" for table in ("payload_blob", "blob_key")
    }
    assert {item.invariant for item in broken} == {"blobs"}


def test_what_was_seen_of_a_server(server: Path) -> None:
    """Events are held against its rows."""
    history: list[Event] = [Acknowledged(str(TaskId()), 1), Refused(str(TaskId()), 2)]
    (found,) = check_history(postgres.address_of(server), history=history)
    assert found.invariant == "durability"


def test_no_store_on_a_server(tmp_path: Path) -> None:
    """An address that leads to none is a typed error, and makes none."""
    with pytest.raises(StoreUnavailable, match="no store in schema"):
        check_history(postgres.address_of(tmp_path))
    assert postgres.ask("SELECT 1 FROM pg_namespace WHERE nspname = $1", postgres.schema_of(tmp_path)) == []


def test_an_unfit_schema(tmp_path: Path) -> None:
    """A foreign or newer one is told as such."""
    schema = postgres.schema_of(tmp_path)
    postgres.command(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.other (n integer)")
    try:
        with pytest.raises(StoreForeign, match=schema):
            check_history(postgres.address_of(tmp_path))
        postgres.command(
            f"CREATE TABLE {schema}.store (version integer, identity uuid); INSERT INTO {schema}.store VALUES (99)"
        )
        with pytest.raises(StoreNewer, match="99"):
            check_history(postgres.address_of(tmp_path))
    finally:
        postgres.drop(schema)


# Files that are none


def newer(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", SCHEMA_VERSION + 1)
    connection.close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), StoreUnavailable),
        (lambda path: path.write_text("no database" * 100), StoreForeign),
        (lambda path: path.write_bytes(b""), StoreForeign),
        (newer, StoreNewer),
    ],
)
def test_an_unfit_file(store: Path, change: Callable[[Path], object], error: type[Exception]) -> None:
    """What can't be checked is a typed error."""
    change(store)
    with pytest.raises(error, match=re.escape(str(store))):
        check_history(store)


# What was seen from outside


def seen(store: Path, text: str, *events: Callable[[str], Event]) -> list[Violation]:
    """Check events of the task with this text."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    id = connection.execute("SELECT id FROM task WHERE instr(input, CAST(? AS BLOB))", (text,)).get
    connection.close()
    task = str(TaskId(id) if id is not None else TaskId())
    return check_history(store, history=[event(task) for event in events])


def test_what_was_seen_agrees(sound: Path) -> None:
    """A true history of the store is no fault."""
    assert not seen(
        sound,
        "plain",
        lambda id: Submitted(id, 1),
        lambda id: Acknowledged(id, 2),
        lambda id: Started(id, 3, 1),
        lambda id: Ended(id, 4, 1),
        lambda id: ResultSeen(id, 5, TaskStatus.COMPLETED),
        lambda id: CancelAnswered(id, 6, "already(completed)"),
    )
    assert not seen(
        sound,
        "stopped",
        lambda id: Started(id, 1, 1),
        lambda id: CancelAnswered(id, 2, "requested"),
        lambda id: ResultSeen(id, 3, TaskStatus.CANCELLED),
    )
    assert not seen(sound, "cancelled early", lambda id: CancelAnswered(id, 1, "cancelled"))
    assert not seen(sound, "never stored", lambda id: Submitted(id, 1))


def test_a_pruned_task_was_there(sound: Path) -> None:
    """Accepted and pruned since is not lost."""
    connection = apsw.Connection(str(sound), flags=apsw.SQLITE_OPEN_READONLY)
    id = TaskId(connection.execute("SELECT id FROM tombstone LIMIT 1").get)
    connection.close()
    pruned = str(id)
    history: list[Event] = [Acknowledged(pruned, 1), Started(pruned, 2, 1), ResultSeen(pruned, 3, TaskStatus.COMPLETED)]
    assert check_history(sound, history=history) == []


@pytest.mark.parametrize(
    ("invariant", "text", "events"),
    [
        ("durability", "never stored", [lambda id: Acknowledged(id, 1)]),
        ("durability", "never stored", [lambda id: Started(id, 1, 1)]),
        ("fencing", "plain", [lambda id: Started(id, 1, 2)]),
        ("fencing", "plain", [lambda id: Started(id, 1, 1), lambda id: Started(id, 2, 1)]),
        ("one_outcome", "plain", [lambda id: ResultSeen(id, 1, TaskStatus.FAILED)]),
        ("one_outcome", "running", [lambda id: ResultSeen(id, 1, TaskStatus.COMPLETED)]),
        ("cancel", "plain", [lambda id: CancelAnswered(id, 1, "cancelled")]),
        ("cancel", "plain", [lambda id: CancelAnswered(id, 1, "already(failed)")]),
        ("cancel", "stopped", [lambda id: Started(id, 2, 1), lambda id: CancelAnswered(id, 1, "cancelled")]),
    ],
)
def test_what_was_seen_differs(sound: Path, invariant: str, text: str, events: list[Callable[[str], Event]]) -> None:
    """The store must agree with whoever submitted, ran, cancelled or waited."""
    assert {item.invariant for item in seen(sound, text, *events)} == {invariant}
