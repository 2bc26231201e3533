"""`backup` while workers go on, `restore`, and that what was accepted before is there, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.cli.conftest import Worker
from tests.store.fixtures.make import make

from mainspring import Engine, EngineConfig, StoreConfig, TaskId, TaskStatus
from mainspring.blobs.local import LocalBlobStore
from mainspring.store.sqlite import backup as copying
from mainspring.testing import check_history
from mainspring.testing.events import Acknowledged

LOAD = Path(__file__).with_name("load.py")


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(make(tmp_path_factory.mktemp("died")))


@pytest.fixture
def store(died: Path, tmp_path: Path) -> Path:
    shutil.copytree(died.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "work.db"


@pytest.fixture
def load(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that submits and works on load.db."""
    process = subprocess.Popen(
        [sys.executable, str(LOAD), str(tmp_path / "load.db")], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def accepted(load: subprocess.Popen[str], lines: int) -> list[str]:
    """Wait until so many more pairs of tasks were accepted; returns their ids."""
    assert load.stdout is not None
    return [id for _ in range(lines) for id in load.stdout.readline().split()]


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


async def finish(path: Path) -> None:
    """Run what is left in a store to its end."""
    engine = Engine(path, EngineConfig(store=StoreConfig(inline_bytes=1_000)))

    @engine.task
    async def step(text: str) -> str:
        return text

    async with engine:
        store: Any = engine.manager.store
        ids = await store.read(lambda rows: [TaskId(id) for (id,) in rows.execute("SELECT id FROM task")])
        for id in ids:
            await engine.manager.get_task_result(id, timeout=60)


def test_a_backup_under_load(call, tmp_path: Path, load: subprocess.Popen[str], monkeypatch) -> None:
    """What was accepted before a backup began is in it; it goes on after a restore, and is recorded once."""
    before = accepted(load, 150)
    monkeypatch.setattr(copying, "STEP_PAGES", 8)
    answer = call("backup", "copy.db", "--store", "load.db", "--json")
    assert answer.code == 0, answer.err
    accepted(load, 50)  # nobody had to stop for it
    load.kill()
    load.wait()
    assert answer.json["blobs"] > 5
    history = [Acknowledged(id, n) for n, id in enumerate(before)]
    assert check_history("copy.db", history=history, blobs=LocalBlobStore("copy.db-blobs")) == []

    restored = call("restore", "copy.db", "--store", "again.db", "--json")
    assert restored.code == 0, restored.err
    assert names(tmp_path) >= {"copy.db", "copy.db-blobs", "again.db", "again.db-blobs"}
    assert not {name for name in names(tmp_path) if "draft" in name or "again.db-live" in name}
    asyncio.run(finish(tmp_path / "again.db"))
    assert check_history("again.db", history=history, blobs=LocalBlobStore("again.db-blobs")) == []
    connection = apsw.Connection("again.db", flags=apsw.SQLITE_OPEN_READONLY)
    rows = connection.execute(
        "SELECT status, (SELECT count(*) FROM attempt WHERE task = seq AND outcome = 0) FROM task WHERE id IN "
        "(SELECT unhex(value, '-') FROM json_each(?))",
        (str(before).replace("'", '"'),),
    ).fetchall()
    connection.close()
    assert set(rows) == {(2, 1)}
    assert len(rows) == len(before)


def test_blobs_come_and_go_meanwhile(call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is new when the rows are copied is in the backup, and so is one that is collected right after."""
    blobs = LocalBlobStore(store.with_name("work.db-blobs"))
    copy_rows = copying.copy_rows
    old = copying.digests_of(store)[0]
    new = blobs.put(b"new").digest

    def copy(*arguments: Any) -> None:
        connection = apsw.Connection("work.db")
        connection.execute("INSERT INTO blob_key VALUES ('default', 'new', ?, 3, 1)", (new,))
        connection.close()
        copy_rows(*arguments)
        blobs.delete(old)

    monkeypatch.setattr(copying, "copy_rows", copy)
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    assert {digest for digest, _ in LocalBlobStore("copy.db-blobs").digests()} >= {old, new}


def test_what_a_killed_copy_left_is_swept_away(call, store: Path) -> None:
    """Its log too, which SQLite would take for the new draft's."""
    draft = store.with_name(".copy.db.draft")
    shutil.copy(store, draft)
    connection = apsw.Connection(str(draft))
    connection.execute("DELETE FROM tally")
    log = draft.with_name(draft.name + "-wal").read_bytes()
    connection.close()
    draft.with_name(draft.name + "-wal").write_bytes(log)
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    assert not {name for name in names(store.parent) if "draft" in name}


def test_what_ran_is_handed_back(call, store: Path) -> None:
    """Attempts that ran when the backup was made are ready again and charged nothing; nobody holds anything."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    assert call("restore", "copy.db", "--store", "new.db").code == 0
    connection = apsw.Connection("new.db", flags=apsw.SQLITE_OPEN_READONLY)
    running = (
        "SELECT status, reason, retry_count, crashes, releases FROM task WHERE instr(input, CAST('running' AS BLOB))"
    )
    assert connection.execute(running).fetchall() == [(0, 0, 0, 0, 0)]
    assert connection.execute("SELECT count(*) FROM worker WHERE ended_ms IS NULL").get == 0
    asked = "SELECT status FROM task WHERE instr(input, CAST('asked to stop' AS BLOB))"
    assert connection.execute(asked).get == 4  # somebody was told that it would end so
    connection.close()
    connection = apsw.Connection("copy.db", flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT count(*) FROM task WHERE owner IS NOT NULL").get == 3  # the backup itself stays
    connection.close()
    told = call("doctor", "--check", "--store", "new.db", "--json").json
    assert [item["about"] for item in told["findings"] if item["level"] != "note"] == ["queue"]


def test_nothing_is_overwritten_unasked(call, store: Path) -> None:
    """A file that exists needs --force, and stays as it was without it."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    before = Path("copy.db").read_bytes()
    assert call("backup", "copy.db", "--store", "work.db").code == 2
    assert call("restore", "copy.db", "--store", "work.db").code == 2
    assert call("backup", "work.db", "--store", "work.db", "--force").code == 2
    assert call("restore", "copy.db", "--store", "copy.db", "--force").code == 2
    assert Path("copy.db").read_bytes() == before
    assert call("backup", "nofolder/copy.db", "--store", "work.db").code == 4
    assert call("restore", "nothing.db", "--store", "new.db").code == 4
    assert not Path("new.db").exists()


def test_a_live_store_is_not_replaced(call, tmp_path: Path, worker: Worker) -> None:
    """Not even with --force, neither by a restore nor by a backup; the worker goes on."""
    assert call("backup", "copy.db").code == 0
    for arguments in (("restore", "copy.db"), ("backup", "mainspring.db", "--store", "copy.db")):
        answer = call(*arguments, "--force")
        assert answer.code == 4
        assert "is open in some process" in answer.err
    assert call("submit", "custom:resize", '{"width": 2}', "--wait").out.split() == ["{", '"area":', "6", "}"]


def test_whoever_comes_while_a_restore_copies_keeps_his_store(call, store: Path, monkeypatch) -> None:
    """Before the store gets its name it is looked again whether the name is taken."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    copied = copying.copy_rows

    def and_somebody_comes(*given: Any) -> None:
        copied(*given)
        with contextlib.closing(apsw.Connection("new.db")) as his:
            his.execute("CREATE TABLE mine (x); INSERT INTO mine VALUES (7)").fetchall()

    monkeypatch.setattr(copying, "copy_rows", and_somebody_comes)
    answer = call("restore", "copy.db", "--store", "new.db")
    assert answer.code == 2
    assert "exists already" in answer.err
    with contextlib.closing(apsw.Connection("new.db")) as his:
        assert his.execute("SELECT x FROM mine").get == 7


def test_a_backup_is_durable_when_it_is_told(call, store: Path, monkeypatch) -> None:
    """The file is synced after the last byte was written into it, and its folder after it got its name."""
    synced: dict[int, tuple[int, set[str]]] = {}  # by inode: when it was last changed, what it had in it
    sync = os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_mtime_ns, set(os.listdir(descriptor) if stat.S_ISDIR(found.st_mode) else ())

    monkeypatch.setattr(os, "fsync", noted)
    for arguments in ((), ("--force", "--compact")):
        synced.clear()
        assert call("backup", "copy.db", "--store", "work.db", *arguments).code == 0
        copy = Path("copy.db").stat()
        assert synced[copy.st_ino][0] == copy.st_mtime_ns
        assert "copy.db" in synced[Path().stat().st_ino][1]


def test_a_second_backup_takes_the_place_of_the_first(call, store: Path) -> None:
    """With --force; blobs that only the first one had go."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    connection = apsw.Connection("work.db")
    connection.execute("DELETE FROM blob_key")
    connection.close()
    assert call("backup", "copy.db", "--store", "work.db", "--force", "--compact").code == 0
    assert len(list(LocalBlobStore("copy.db-blobs", make=False).digests())) == 2
    assert check_history("copy.db", blobs=LocalBlobStore("copy.db-blobs", make=False)) == []


def test_a_restored_store_keeps_the_one_before(call, store: Path) -> None:
    """--force loses nothing: what was there has another name."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    connection = apsw.Connection("work.db")
    connection.execute("CREATE TABLE mark (x)")
    connection.close()
    answer = call("restore", "copy.db", "--store", "work.db", "--force")
    assert answer.code == 0
    assert "work.db-replaced" in answer.err
    for path, has_mark in (("work.db", False), ("work.db-replaced", True)):
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        assert connection.table_exists("main", "mark") is has_mark
        connection.close()


def test_a_second_restore_keeps_the_first_store_too(call, store: Path) -> None:
    """Each store that was replaced has a name of its own, and the command says which."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    connection = apsw.Connection("work.db")
    connection.execute("CREATE TABLE mark (x)")
    connection.close()
    for kept in ("work.db-replaced", "work.db-replaced-2"):
        answer = call("restore", "copy.db", "--store", "work.db", "--force")
        assert answer.code == 0
        assert f"{kept}\n" in answer.err
    connection = apsw.Connection("work.db-replaced", flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.table_exists("main", "mark")
    connection.close()
    assert check_history("work.db-replaced-2") == []


def test_a_store_that_was_replaced_keeps_its_blobs(call, store: Path) -> None:
    """It is whole by its new name: what the new one refers to no more is collected from the new one's folder alone."""
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    assert call("restore", "copy.db", "--store", "work.db", "--force").code == 0
    shutil.rmtree("work.db-blobs")
    assert check_history("work.db-replaced", blobs=copying.blobs_beside(Path("work.db-replaced"))) == []


def test_doctor_of_an_unsound_copy(call, store: Path) -> None:
    """It looks for the blobs where they are, and says the one thing that is wrong."""
    broken_rows(store)
    assert call("backup", "copy.db", "--store", "work.db").code == 4
    told = call("doctor", "--check", "--store", "copy.db.unsound", "--json")
    problems = [item["about"] for item in told.json["findings"] if item["level"] == "problem"]
    assert problems
    assert all(about.startswith("invariant") and about != "invariant blobs" for about in problems)
    assert told.json["blobs"]["count"] > 0


def broken_rows(store: Path) -> None:
    connection = apsw.Connection(str(store))
    connection.execute("UPDATE tally SET n = n + 1")
    connection.close()


def missing_blob(store: Path) -> None:
    shutil.rmtree(store.with_name("work.db-blobs"))


def garbled_blob(store: Path) -> None:
    blob = next(item for item in store.with_name("work.db-blobs").rglob("*") if item.is_file())
    blob.write_bytes(b"x")


def damaged_index(store: Path) -> None:
    """An entry that its row does not have, as a page that was not written leaves it: only the full check sees it."""
    connection = apsw.Connection(str(store))
    connection.execute("PRAGMA writable_schema = 1")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'reason = 0', 'reason = 3') WHERE name = 'task_ready'"
    )
    connection.close()


@pytest.mark.parametrize("spoil", [broken_rows, missing_blob, garbled_blob, damaged_index])
def test_an_unsound_store(call, store: Path, spoil: Callable[[Path], None]) -> None:
    """Its copy is kept under a name that says so, and no backup is claimed; an unsound backup is not restored."""
    spoil(store)
    answer = call("backup", "copy.db", "--store", "work.db", "--json")
    assert answer.code == 4
    assert '"type":"StoreDamaged"' in answer.err
    assert not Path("copy.db").exists()
    assert Path("copy.db.unsound").exists()
    assert {name for name in names(Path()) if "copy.db" in name} <= {"copy.db.unsound", "copy.db.unsound-blobs"}
    assert call("restore", "work.db", "--store", "new.db").code == 4
    assert not {name for name in names(Path()) if "new.db" in name or "draft" in name}


def test_a_copy_that_breaks_off_leaves_nothing(call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a half of it nor blobs nobody asked for."""
    before = names(store.parent)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copying, "_sync", full)
    answer = call("backup", "copy.db", "--store", "work.db")
    assert (answer.code, "No space left on device" in answer.err) == (4, True)
    assert names(store.parent) == before


def test_tasks_that_completed_since_run_again(call, tmp_path: Path) -> None:
    """A restore goes back in time: the ids are those of before, and so is what was left to do."""

    async def submit() -> TaskId:
        engine = Engine(tmp_path / "work.db", worker=False)

        @engine.task
        async def step(text: str) -> str:
            return text

        async with engine:
            return (await engine.submit(step, "x")).id

    async def status(path: Path, id: TaskId) -> TaskStatus:
        async with Engine(path, worker=False) as engine:
            return (await engine.manager.get_task(id)).status

    id = asyncio.run(submit())
    assert call("backup", "copy.db", "--store", "work.db").code == 0
    asyncio.run(finish(tmp_path / "work.db"))
    assert asyncio.run(status(tmp_path / "work.db", id)) is TaskStatus.COMPLETED
    assert call("restore", "copy.db", "--store", "work.db", "--force").code == 0
    assert asyncio.run(status(tmp_path / "work.db", id)) is TaskStatus.PENDING
    asyncio.run(finish(tmp_path / "work.db"))
    assert asyncio.run(status(tmp_path / "work.db", id)) is TaskStatus.COMPLETED
