"""Copies: one moment, all blobs, and nothing half done."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.store.fixtures.make import make

from mainspring import Engine
from mainspring.blobs.local import LocalBlobStore
from mainspring.environment import SYSTEM
from mainspring.errors import InvalidInput, StoreForeign, StoreUnavailable
from mainspring.store.liveness import LifeFile
from mainspring.store.sqlite import backup
from mainspring.store.sqlite.connection import look
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(make(tmp_path_factory.mktemp("died")))


@pytest.fixture
def store(died: Path, tmp_path: Path) -> Path:
    shutil.copytree(died.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "work.db"


def quiet(done: int, total: int) -> None:
    """Nobody looks."""


async def test_a_copy_is_of_one_moment_and_takes_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits between its steps neither begin it anew nor get into it."""
    monkeypatch.setattr(backup, "STEP_PAGES", 4)
    told: list[tuple[int, int]] = []
    engine = Engine(tmp_path / "work.db", worker=False)

    @engine.task
    async def step(n: int) -> int:
        return n

    async with engine:
        handles = await engine.map(step, range(500))
        before = {handle.id.bytes async for handle in _all(handles)}
        loop = asyncio.get_running_loop()

        def commit(done: int, total: int) -> None:
            told.append((done, total))
            assert len(told) * 4 < total + 4
            asyncio.run_coroutine_threadsafe(engine.submit(step, done), loop).result(20)

        await asyncio.to_thread(backup.copy_rows, engine.path, tmp_path / "draft", commit)
    assert len(told) == math.ceil(told[-1][1] / 4) > 3
    assert told[-1][0] == told[-1][1]
    connection = apsw.Connection(str(tmp_path / "draft"), flags=apsw.SQLITE_OPEN_READONLY)
    assert {row[0] for row in connection.execute("SELECT id FROM task")} == before
    connection.close()
    assert check_history(tmp_path / "draft") == []


async def _all(handles: Any) -> Any:
    for handle in handles:
        yield handle


def test_blobs_are_links_or_copies(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link costs nothing; where none can be made, the content is copied, and checked on the way."""
    digests, blobs = backup.digests_of(store), backup.blobs_beside(store)
    assert len(digests) == 3
    backup.copy_blobs(digests, blobs, tmp_path / "linked", quiet)

    def other_device(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    backup.copy_blobs(digests, blobs, tmp_path / "copied", quiet)
    for name, links in (("linked", 2), ("copied", 1)):
        found = backup.blobs_beside(tmp_path / name)
        assert list(backup.blob_faults(digests, found, blobs, quiet)) == []
        files = [item for item in found.folder.rglob("*") if item.is_file()]
        assert {item.stat().st_nlink for item in files} == {links}
        assert len(files) == 3


def test_what_is_wrong_with_blobs(store: Path, tmp_path: Path) -> None:
    """One that is missing is left out and named; one whose content changed is named."""
    blobs = backup.blobs_beside(store)
    missing, garbled, _ = digests = backup.digests_of(store)
    blobs.delete(missing)
    (blobs.folder / garbled[:2] / garbled[2:]).write_bytes(b"other")
    backup.copy_blobs(digests, blobs, tmp_path / "copy", quiet)
    faults = list(backup.blob_faults(digests, backup.blobs_beside(tmp_path / "copy"), blobs, quiet))
    assert [missing in faults[0], garbled in faults[1], len(faults)] == [True, True, 2]
    assert f"{blobs.folder}:" in faults[0]  # not in the copy's folder, which never had it


def test_a_damaged_blob_of_an_earlier_copy_is_replaced(store: Path, tmp_path: Path) -> None:
    """Where the source has a whole one."""
    digests, blobs = backup.digests_of(store), backup.blobs_beside(store)
    backup.copy_blobs(digests, blobs, tmp_path / "copy", quiet)
    copies = backup.blobs_beside(tmp_path / "copy")
    copies.delete(digests[0])
    (copies.folder / digests[0][:2] / digests[0][2:]).write_bytes(b"rotten")
    backup.copy_blobs(digests, blobs, tmp_path / "copy", quiet)
    assert list(backup.blob_faults(digests, copies, blobs, quiet)) == []
    assert copies.get(digests[0]) == blobs.get(digests[0])


def test_a_store_without_blobs_gets_no_folder(tmp_path: Path) -> None:
    backup.copy_blobs([], LocalBlobStore(tmp_path / "from"), tmp_path / "copy", quiet)
    assert not (tmp_path / "copy-blobs").exists()


def test_a_compact_copy(store: Path) -> None:
    """What is free inside the file is given back; the copy is a store like any other."""
    connection = apsw.Connection(str(store))
    connection.execute("CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(1000000)); DROP TABLE filler")
    connection.close()
    draft = store.with_name("draft")
    backup.copy_rows(store, draft, quiet)
    before = draft.stat().st_size
    backup.compact(draft)
    assert draft.stat().st_size < before - 900_000
    assert draft.read_bytes()[18:20] == b"\2\2"  # keeps to a write-ahead log
    assert check_history(draft) == []


async def test_what_is_open_is_not_replaced(store: Path) -> None:
    """Neither by an engine, nor by anybody else who reads it with SQLite."""
    async with Engine(store, worker=False):
        with pytest.raises(StoreUnavailable, match="is open in some process"):
            backup.refuse_taken(store, is_forced=True)
    shell = apsw.Connection(str(store))
    shell.execute("SELECT count(*) FROM task").fetchall()
    with pytest.raises(StoreUnavailable, match="is open in some process"):
        backup.refuse_taken(store, is_forced=True)
    shell.close()
    backup.refuse_taken(store, is_forced=True)
    with pytest.raises(InvalidInput, match="exists already"):
        backup.refuse_taken(store, is_forced=False)


def test_a_process_that_lives_beside_a_store_keeps_it(store: Path) -> None:
    """Also while it has no connection: its store may be unwritable for a moment."""
    life = LifeFile(store.with_name("work.db-live"), "a1", SYSTEM)
    with pytest.raises(StoreUnavailable, match="is open in some process"):
        backup.refuse_taken(store, is_forced=True)
    life.close()
    backup.refuse_taken(store, is_forced=True)


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 200)
    with pytest.raises(StoreForeign):
        backup.refuse_taken(path, is_forced=True)


def test_a_damaged_store_may_be_replaced(store: Path) -> None:
    with store.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    backup.refuse_taken(store, is_forced=True)


def test_no_log_of_the_file_before_gets_into_the_new_one(store: Path) -> None:
    """SQLite would take it for the new file's own, and write it in."""
    draft = store.with_name("draft")
    shutil.copy(store, draft)
    changing = apsw.Connection(str(store))
    changing.pragma("wal_autocheckpoint", 0)
    changing.execute("DELETE FROM tally")
    log = store.with_name("work.db-wal").read_bytes()
    changing.close()
    store.with_name("work.db-wal").write_bytes(log)
    backup.publish(draft, store)
    assert check_history(store) == []


def with_log(store: Path, sql: str) -> None:
    """Leave a store as a killed process does: its last change stands in the log alone."""
    changing = apsw.Connection(str(store))
    changing.pragma("wal_autocheckpoint", 0)
    changing.execute(sql)
    kept = {name: store.with_name(name).read_bytes() for name in ("work.db", "work.db-wal")}
    changing.close()
    for name, content in kept.items():
        store.with_name(name).write_bytes(content)


def has_mark(path: Path) -> bool:
    return look(path, lambda connection: connection.table_exists("main", "mark"))


def drafted(store: Path) -> Path:
    return Path(shutil.copy(store, store.with_name("draft")))


def test_a_store_that_is_replaced_stays_whole(store: Path) -> None:
    """With what stood in its log, under another name; what an earlier one left is never touched."""
    draft = drafted(store)
    with_log(store, "CREATE TABLE mark (x)")
    for name in ("work.db-replaced", "work.db-replaced-3-wal"):
        store.with_name(name).write_text("of an earlier one")
    assert backup.replace(draft, store) == store.with_name("work.db-replaced-2")
    assert has_mark(store.with_name("work.db-replaced-2"))
    assert not has_mark(store)
    assert store.stat().st_nlink == 1
    assert backup.replace(drafted(store), store) == store.with_name("work.db-replaced-4")
    assert store.with_name("work.db-replaced").read_text() == "of an earlier one"
    assert backup.replace(drafted(store), store.with_name("new.db")) is None
    assert not has_mark(store.with_name("new.db"))


@pytest.mark.parametrize("has_links", [True, False])
def test_there_is_a_store_at_every_moment(store: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    """Until the draft has the name the old one has it, with all that stood in its log, and has another name too."""
    draft, rename = drafted(store), Path.rename
    with_log(store, "CREATE TABLE mark (x)")
    seen: list[tuple[bool, bool]] = []

    def look(self: Path, target: Path) -> Path:
        seen.append((has_mark(store), has_mark(store.with_name("work.db-replaced"))))
        return rename(self, target)

    def no_links(old: Path, new: Path) -> None:
        raise PermissionError(errno.EPERM, "the file system has no links")

    monkeypatch.setattr(Path, "rename", look)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    backup.replace(draft, store)
    assert set(seen) == {(True, True)}
    assert (has_mark(store), has_mark(store.with_name("work.db-replaced"))) == (False, True)


def test_what_breaks_off_replaces_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails: the old store is where it was, under its one name."""
    draft = drafted(store)
    with_log(store, "CREATE TABLE mark (x)")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreUnavailable, match="can't be written"):
        backup.replace(draft, store)
    assert has_mark(store)
    assert [item.name for item in store.parent.glob("*-replaced*")] == []


def test_a_log_that_stays_goes_along(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where damage keeps SQLite from folding it in: the file without it would be less than there was."""
    draft = drafted(store)
    with_log(store, "CREATE TABLE mark (x)")

    def damage(path: Path) -> None:
        """Leaves the log where it is."""

    monkeypatch.setattr(backup, "_fold", damage)
    assert backup.replace(draft, store) == store.with_name("work.db-replaced")
    assert has_mark(store.with_name("work.db-replaced"))
    assert check_history(store) == []
    assert not has_mark(store)
