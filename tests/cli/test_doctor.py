"""`doctor` sees who works on a store, what keeps tasks waiting and what is broken, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.cli.conftest import SHOP, Worker, finished, started
from tests.store.fixtures.make import make, unpack

from mainspring import Engine, EngineConfig, StoreConfig
from mainspring.blobs import LocalBlobStore
from mainspring.store.sqlite.connection import SCHEMA_VERSION

BLOCKING = Path(__file__).with_name("blocking.py")


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tasks in every state, whose process died."""
    return asyncio.run(make(tmp_path_factory.mktemp("died")))


@pytest.fixture
def store(died: Path, tmp_path: Path) -> Path:
    shutil.copytree(died.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "work.db"


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path, f"{BLOCKING}:engine")
    yield found
    found.process.kill()
    found.process.communicate()


def files(folder: Path) -> dict[Path, bytes]:
    return {item: item.read_bytes() for item in folder.rglob("*") if item.is_file()}


def whats(answer: Any, about: str | None = None) -> list[str]:
    return [item["what"] for item in answer.json["findings"] if about in (None, item["about"])]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_store_that_nobody_has_open(call, store: Path) -> None:
    """Held claims of a dead worker and waiting tasks are warnings; nothing on the disk changes, also with --check."""
    before = files(store.parent)
    for extra in ((), ("--check",)):
        answer = call("doctor", "--store", str(store), "--json", *extra)
        assert answer.code == answer.json["exit_code"] == 1
        assert [(item["level"], item["about"]) for item in answer.json["findings"]] == [
            ("warning", "workers"),
            ("warning", "queue"),
            ("note", "upkeep"),
        ]
        (worker,) = answer.json["facts"]["workers"]
        assert (worker["held"], worker["is_alive"]) == (3, False)
        assert answer.json["blobs"]["count"] == 3
    told = call("doctor", "--store", str(store))
    assert told.code == 1
    assert "died and holds 3 claims" in told.out
    assert files(store.parent) == before


@pytest.mark.parametrize("moment", ["started_ms", "ended_ms"])
def test_a_time_that_no_clock_has_told(call, store: Path, moment: str) -> None:
    """The store's clock never goes back behind what is noted: a moment far ahead would end every delay and deadline."""
    connection = apsw.Connection(str(store))
    connection.execute(f"UPDATE worker SET {moment} = 4000000000000")
    connection.close()
    answer = call("doctor", "--store", str(store), "--json")
    (what,) = whats(answer, "clock")
    assert "ahead of this machine's clock" in what


def test_a_renamed_file(call, store: Path) -> None:
    """Blobs that were left under the name that it had are one finding, which says what to do; --blobs helps."""
    renamed, folder = store.with_name("other.db"), f"{store}-blobs"
    store.rename(renamed)
    answer = call("doctor", "--check", "--store", str(renamed), "--json")
    (what,) = whats(answer, "blobs")
    assert f"no folder {renamed}-blobs" in what
    assert answer.code == 4
    assert [item for item in whats(answer) if "blob" in item] == [what]
    named = call("doctor", "--check", "--store", str(renamed), "--blobs", folder, "--json")
    assert not whats(named, "blobs")
    assert named.code == 1


def test_a_folder_of_two_stores(call, store: Path) -> None:
    """A file that is told where to keep its blobs notes itself there; a second store is told."""
    blobs = LocalBlobStore(store.with_name("named"))

    async def opened() -> None:
        async with Engine(store, EngineConfig(store=StoreConfig(blobs=blobs.folder)), worker=False):
            pass

    asyncio.run(opened())
    assert len(blobs.users()) == 1
    assert whats(call("doctor", "--json", "--store", str(store), "--blobs", str(blobs.folder)), "blobs") == []
    blobs.note_user("another")
    (what,) = whats(call("doctor", "--json", "--store", str(store), "--blobs", str(blobs.folder)), "blobs")
    assert "another store keeps its blobs" in what


def test_a_healthy_store(call, worker: Worker) -> None:
    """With a worker at work there is nothing to attend to."""
    call("submit", "custom:resize", '{"width": 3}', "--wait")
    answer = call("doctor", "--check", "--json")
    assert (answer.code, whats(answer, "workers"), whats(answer, "queue")) == (0, [], [])
    (found,) = answer.json["facts"]["workers"]
    assert (found["pid"], found["turns"], found["has_file"]) == (worker.process.pid, True, True)
    assert answer.json["facts"]["is_led"]
    assert "sound" in call("doctor", "--check").out


def test_what_nobody_serves_and_what_is_paused(call, worker: Worker) -> None:
    """Each kind of task that waits has its reason."""
    call("submit", "custom:nobody", "{}", "--task-id", "0197a9f0-0000-7000-8000-000000000001")
    call("pause", "--type", "custom:resize")
    call("submit", "custom:resize", '{"width": 3}')
    answer = call("doctor", "--json")
    assert whats(answer, "queue") == ["custom:resize: 1 unfinished, paused (custom:resize)"]
    connection = apsw.Connection("mainspring.db")
    connection.set_busy_timeout(20_000)  # the worker writes too
    connection.execute("UPDATE class SET type = 'custom:gone'")  # the worker knows it by its old name, as paused
    connection.close()
    answer = call("doctor", "--json")
    assert (answer.code, whats(answer, "queue")) == (
        1,
        ["custom:gone: 1 unfinished, and no living worker serves that type"],
    )


def test_a_silent_worker(call, tmp_path: Path, blocking: Worker) -> None:
    """A process whose loop is blocked lives, and is told from one that works; no lock tells the two apart."""
    began, until = tmp_path / "began", tmp_path / "until"
    call("submit", "custom:block", f'{{"started": "{began}", "until": "{until}"}}', "--max-retries", "0")
    wait_for(began)
    answer = call("doctor", "--json")
    (what,) = whats(answer, "workers")
    assert answer.code == 1
    assert f"(pid {blocking.process.pid}) lives and is silent" in what
    assert "holds 1 claims" in what
    until.touch()
    call("wait", call("ps", "--json").json[0]["id"])
    assert whats(call("doctor", "--json"), "workers") == []


def test_a_killed_worker(call, tmp_path: Path, worker: Worker) -> None:
    """Its lock is free, its claims are still its own: nobody was there to take them back."""
    call("submit", "custom:hold", f'{{"until": "{tmp_path / "never"}"}}')
    while not call("ps", "--status", "running", "--json").json:
        time.sleep(0.01)
    worker.signal(signal.SIGKILL)
    worker.process.wait()
    assert "died and holds 1 claims" in "".join(whats(call("doctor", "--json"), "workers"))
    looked = finished(started("stats", "--json", folder=tmp_path))  # opens the store, and takes them back
    assert (looked.code, looked.err) == (0, "")


def test_a_file_that_was_moved_away_under_its_worker(call, tmp_path: Path, worker: Worker) -> None:
    """What the worker records does not reach the file that is here now."""
    path = tmp_path / "mainspring.db"
    shutil.copy(path, tmp_path / "copy")
    shutil.copy(tmp_path / "mainspring.db-wal", tmp_path / "copy-wal")
    connection = apsw.Connection(str(tmp_path / "copy"))
    connection.execute("SELECT * FROM worker").fetchall()
    connection.close()
    for name in ("mainspring.db", "mainspring.db-wal", "mainspring.db-shm"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    (tmp_path / "copy").rename(path)
    answer = call("doctor", "--json")
    assert answer.code == 4
    assert "has another file open" in "".join(whats(answer, "workers"))


def test_a_file_that_was_replaced_under_its_worker(call, tmp_path: Path) -> None:
    """A process that lives beside the store and does not stand in it."""
    assert call("submit", "text_processing", "--text", "a").code == 0
    shutil.copy(tmp_path / "mainspring.db", tmp_path / "early")
    worker = Worker(tmp_path, f"{SHOP}:engine")
    try:
        for name in ("mainspring.db-wal", "mainspring.db-shm"):
            (tmp_path / name).unlink()
        os.replace(tmp_path / "early", tmp_path / "mainspring.db")
        answer = call("doctor", "--json")
    finally:
        worker.process.kill()
        worker.process.communicate()
    assert answer.code == 4
    assert f"process {worker.ready['worker']} lives beside this store" in "".join(whats(answer, "workers"))


def test_broken_invariants_and_missing_blobs(call, store: Path) -> None:
    """`--check` finds what the quick look does not, and says so by its exit code."""
    connection = apsw.Connection(str(store))
    connection.execute("UPDATE tally SET n = n + 1")
    connection.close()
    for blob in [item for item in store.with_name("work.db-blobs").rglob("*") if item.is_file()]:
        blob.unlink()
    assert call("doctor", "--store", str(store)).code == 1
    answer = call("doctor", "--store", str(store), "--check", "--json")
    assert answer.code == 4
    assert {item["about"] for item in answer.json["findings"] if item["level"] == "problem"} == {
        "invariant tallies",
        "invariant blobs",
    }


def change(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(sql)
    connection.close()


def made_of(path: Path) -> list[Any]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = connection.execute("SELECT sql FROM sqlite_schema UNION ALL SELECT * FROM pragma_user_version").fetchall()
    connection.close()
    return found


OTHERWISE = [
    ("index task_id is missing", "DROP INDEX task_id"),
    ("index task_ready is missing", "DROP INDEX task_ready"),
    ("index task_due is another than ours", "DROP INDEX task_due; CREATE INDEX task_due ON task (due_ms)"),
    ("index mine on table task is none of ours", "CREATE INDEX mine ON task (priority)"),
    ("trigger cache_went is missing", "DROP TRIGGER cache_went"),
    ("trigger mine on table task is none", "CREATE TRIGGER mine AFTER DELETE ON task BEGIN DELETE FROM edge; END"),
    ("column task.mine is none of ours", "ALTER TABLE task ADD COLUMN mine INTEGER"),
    ("column offer.state is missing", "ALTER TABLE offer DROP COLUMN state"),
    ("table vector_label is missing", "DROP TABLE vector_label"),
    (
        "table task has 9 CHECKs, not 10",
        "PRAGMA writable_schema = 1; UPDATE sqlite_schema "
        "SET sql = replace(sql, 'CHECK (priority BETWEEN 0 AND 3)', '') WHERE name = 'task'",
    ),
]


@pytest.mark.parametrize(("says", "sql"), OTHERWISE)
def test_what_is_not_as_this_version_makes_it(call, store: Path, says: str, sql: str) -> None:
    """A table, column, index, trigger or CHECK that is gone, another or added; a backup has the same faults."""
    change(store, sql)
    answer = call("doctor", "--check", "--store", str(store), "--json")
    assert answer.code == 4
    assert [item["what"] for item in answer.json["findings"] if item["level"] == "problem"] == [
        what for what in whats(answer, "schema") if says in what
    ]
    told = call("backup", "copy.db", "--store", str(store))
    assert told.code == 4
    assert says in told.err


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_what_an_older_file_has_of_its_own(call, tmp_path: Path, version: int) -> None:
    """A file of each version has what that version made, and what is gone of it is named."""
    path = unpack(version, tmp_path)
    command = ("doctor", "--check", "--store", str(path), "--json")
    assert whats(call(*command), "schema") == []
    change(path, "DROP INDEX task_id; PRAGMA writable_schema = 1; UPDATE sqlite_schema "
        "SET sql = replace(sql, 'CHECK (priority BETWEEN 0 AND 3)', '') WHERE name = 'task'")  # fmt: skip
    answer = call(*command)
    assert answer.code == 4
    assert whats(answer, "schema") == ["table task has 9 CHECKs, not 10", "index task_id is missing"]
    change(path, "DROP TABLE progress")
    answer = call("submit", "custom:work", "--store", str(path), "--json")
    assert "lacks the tables progress" in answer.err


def test_a_table_before_its_time(call, tmp_path: Path) -> None:
    """The step to the version that makes it would fail, so it is not merely somebody else's."""
    path = unpack(5, tmp_path)
    change(path, "CREATE TABLE kept_size (only_one INTEGER)")
    answer = call("doctor", "--store", str(path), "--json")
    assert (answer.code, whats(answer, "schema")) == (4, ["table kept_size is one of a later version"])


def test_what_mends_it(call, store: Path) -> None:
    """A lost index is named with the statement that makes it."""
    change(store, "DROP INDEX task_ready")
    (item,) = [
        item for item in call("doctor", "--store", str(store), "--json").json["findings"] if item["about"] == "schema"
    ]
    change(store, item["remedy"].partition("sqlite3: ")[2])
    assert whats(call("doctor", "--check", "--store", str(store), "--json"), "schema") == []


def test_a_table_of_somebody_else(call, store: Path) -> None:
    """It does no harm but to a move, and keeps no backup from counting."""
    change(store, "CREATE TABLE mine (x); CREATE INDEX mine_x ON mine (x)")
    answer = call("doctor", "--check", "--store", str(store), "--json")
    assert (answer.code, whats(answer, "schema")) == (1, ["table mine is none of ours"])
    assert call("backup", "copy.db", "--store", str(store)).code == 0


@pytest.mark.parametrize(
    ("says", "sql"),
    [
        ("lacks the tables flight, tombstone", "DROP TABLE tombstone; DROP TABLE flight"),
        ("(user_version) is 0", "PRAGMA user_version = 0"),
        ("(user_version) is -3", "PRAGMA user_version = -3"),
        ("not those of schema 2", "PRAGMA user_version = 2"),
    ],
)
def test_a_store_whose_tables_are_not_its_own(call, store: Path, says: str, sql: str) -> None:
    """Whoever opens it is refused with the reason, and it stays as it is."""
    change(store, sql)
    before = made_of(store)
    answer = call("submit", "custom:work", "--store", str(store), "--json")
    assert (answer.code, answer.out) == (4, "")
    assert '"type":"StoreDamaged"' in answer.err
    assert says in answer.err
    assert made_of(store) == before


def garbled(path: Path) -> None:
    """Overwrite the page after the schema: quick_check sees it."""
    with path.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xff" * 4096 * 8)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [garbled, truncated])
def test_a_damaged_file(call, store: Path, spoil: Callable[[Path], None]) -> None:
    """Damage is a finding or a typed error, never a traceback, and never written to."""
    spoil(store)
    before = files(store.parent)
    answer = call("doctor", "--store", str(store), "--json")
    assert answer.code == 4
    assert "StoreDamaged" in answer.out + answer.err
    assert files(store.parent) == before


def newer(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", SCHEMA_VERSION + 1)
    connection.close()


def foreign(path: Path) -> None:
    path.write_text("not a database\n" * 1000)


@pytest.mark.parametrize(("spoil", "error"), [(newer, "StoreNewer"), (foreign, "StoreForeign")])
def test_a_file_that_is_not_ours(call, store: Path, spoil: Callable[[Path], None], error: str) -> None:
    spoil(store)
    before = files(store.parent)
    answer = call("doctor", "--store", str(store), "--json")
    assert (answer.code, answer.out) == (4, "")
    assert f'"type":"{error}"' in answer.err
    assert files(store.parent) == before
