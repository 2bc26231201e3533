"""Stores of every version there has been: they open, become stores of this version once, and their work goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conformance.kit import OTHER, WORK
from tests.store.fixtures.make import FOLDER, PAUSED, unpack

from mainspring import Engine, EngineConfig, StoreConfig, TaskId, TaskStatus
from mainspring.dispatch.parts import FILE_SCHEMA
from mainspring.environment import SYSTEM
from mainspring.errors import StoreDamaged, StoreNewer, StoreUnavailable
from mainspring.store.liveness import LifeFile
from mainspring.store.sqlite import backup, connection
from mainspring.store.sqlite.shape import differences
from mainspring.store.sqlite.statements import MIGRATIONS
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
VERSIONS = range(1, connection.SCHEMA_VERSION + 1)
NEXT = connection.SCHEMA_VERSION + 1
FOR_EVER = EngineConfig(store=StoreConfig(keep_completed_s=3e8, keep_failed_s=3e8, keep_tombstones_s=3e8))


def at_rest(path: Path) -> apsw.Connection:
    """Read a file that nobody has open; leaves nothing beside it."""
    return apsw.Connection(f"file:{path}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


def rows(path: Path, sql: str) -> list[Any]:
    with contextlib.closing(at_rest(path)) as reader:
        return reader.execute(sql).fetchall()


def version_of(path: Path) -> int:
    return int(rows(path, "PRAGMA user_version")[0][0])


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}


def sound(path: Path) -> bool:
    return check_history(path, blobs=backup.blobs_beside(path)) == []


def test_every_version_has_its_fixture() -> None:
    """A change of the schema comes with a file of the version before it, its blobs and no more; none is large."""
    kept = [FOLDER / f"version{version}" for version in VERSIONS]
    assert sorted(FOLDER.glob("version*")) == kept
    for folder in kept:
        files = [item for item in folder.rglob("*") if item.is_file()]
        names = [item.relative_to(folder).as_posix() for item in files]
        assert not [name for name in names if not re.fullmatch("store|blobs/[0-9a-f]{2}/[0-9a-f]{62}", name)]
        assert sum(item.stat().st_size for item in files) < 384 * 1024


@pytest.mark.parametrize("version", VERSIONS)
async def test_work_goes_on(version: int, tmp_path: Path) -> None:
    """What had not ended ends, what had ended reads as before, vectors and blobs are there."""
    path = unpack(version, tmp_path)
    assert version_of(path) == version
    assert sound(path)
    before = dict(rows(path, "SELECT id, status FROM task"))
    assert {0, 1, 2, 3, 4, 5} <= set(before.values())
    engine = Engine(path, FOR_EVER)
    for kind in (WORK, OTHER, PAUSED):

        @engine.task(name=kind.removeprefix("custom:"))
        async def work(text: Any, what: Any = None) -> Any:
            return text

    async with engine:
        await engine.manager.resume(type=PAUSED)
        for id, status in before.items():
            result = await engine.manager.get_task_result(TaskId(id), timeout=60)
            if status > 1:
                assert list(TaskStatus)[status] is result.status
            else:
                assert result.status is not TaskStatus.FAILED, result.error
        assert engine.vectors.collections()[0].count == 2
        assert (await engine.retrieve("reports/first"))[:4] == b"kept"
        if version >= 5:
            limits = {limit.group: limit for limit in await engine.limits()}
            assert (limits["red"].concurrency, limits["red"].cost_rate) == (3, None)
            await engine.limit("red", cost_rate="100/m")
            assert (await engine.limits())[-1].cost_left == 100
    assert version_of(path) == connection.SCHEMA_VERSION
    assert rows(path, "SELECT count(*) FROM task WHERE status < 2") == [(0,)]
    assert sound(path)
    found = connection.look(path, lambda reader: differences(reader, FILE_SCHEMA))
    assert [item for item in found if item.kind != "foreign"] == []


@pytest.mark.parametrize("version", VERSIONS[:-1])
async def test_a_look_at_an_older_store_leaves_it_as_it_is(version: int, tmp_path: Path) -> None:
    """Checks and backups read what they find; only a worker, or whoever else opens it to write, changes it."""
    path = unpack(version, tmp_path)
    before = contents(tmp_path)
    assert sound(path)
    backup.copy_rows(path, tmp_path / "copy", lambda done, total: None)
    assert version_of(tmp_path / "copy") == version
    (tmp_path / "copy").unlink()
    assert contents(tmp_path) == before


# The machinery, with a next version that only these tests have

MARK = "ALTER TABLE task ADD COLUMN mark TEXT; CREATE TABLE marks (pid INTEGER); INSERT INTO marks VALUES (1);"


def with_next_version(monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.setattr(connection, "SCHEMA_VERSION", NEXT)
    monkeypatch.setitem(MIGRATIONS, f"to_{NEXT}", sql)


def open_and_close(path: Path) -> None:
    connection.open_writer(path, StoreConfig()).close()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_becomes_one_of_the_next_version(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it was, through every step between; once."""
    path = unpack(version, tmp_path)
    with_next_version(monkeypatch, MARK)
    for _ in range(2):
        open_and_close(path)
        assert version_of(path) == NEXT
        assert rows(path, "SELECT count(*), count(mark) FROM task, marks") == rows(path, "SELECT count(*), 0 FROM task")
    assert sound(path)


def test_the_version_before_refuses_it_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way back but a backup: an older program says so and touches nothing."""
    path = unpack(1, tmp_path)
    with monkeypatch.context() as later:
        with_next_version(later, MARK)
        open_and_close(path)
    before = contents(tmp_path)
    with pytest.raises(StoreNewer, match="update mainspring"):
        open_and_close(path)
    with pytest.raises(StoreNewer, match="update mainspring"):
        check_history(path)
    assert contents(tmp_path) == before


def test_nobody_migrates_under_an_older_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that live beside an older file must stop first: they would go on with tables they don't know."""
    path = unpack(1, tmp_path)
    life = LifeFile(backup.live_folder(path), "old", SYSTEM)
    before = contents(tmp_path)
    with_next_version(monkeypatch, MARK)
    with pytest.raises(StoreUnavailable, match="stop them"):
        open_and_close(path)
    assert version_of(path) == 1
    assert contents(tmp_path) == before
    life.close()
    open_and_close(path)
    assert version_of(path) == NEXT


def test_a_file_that_becomes_newer_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may migrate it after the look at it: it's refused all the same."""
    path = unpack(1, tmp_path)
    with monkeypatch.context() as later:
        with_next_version(later, MARK)
        open_and_close(path)
    monkeypatch.setattr(connection, "refuse_unfit", lambda path: None)
    with pytest.raises(StoreNewer):
        open_and_close(path)
    assert version_of(path) == NEXT


def test_a_step_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction: all steps or none."""
    path = unpack(1, tmp_path)
    with_next_version(monkeypatch, MARK + "INSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreDamaged, match="nowhere"):
        open_and_close(path)
    assert version_of(path) == 1
    assert rows(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'marks'") == [(0,)]
    assert sound(path)


_OPEN = """
import os, signal, sys, time
from pathlib import Path
import apsw
from mainspring.config import StoreConfig
from mainspring.store.sqlite import connection

path, mode, sql = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def step():
    if mode == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while not list(path.parent.glob("*.waits")):  # until the other process is at the door too
        time.sleep(0.005)
    return os.getpid()

def patience(limit_s):
    def wait(calls):
        path.with_name(f"{os.getpid()}.waits").touch()
        return as_before(calls)
    as_before = connection_patience(limit_s)
    return wait

connection_patience, connection.patience = connection.patience, patience

apsw.connection_hooks.append(lambda made: made.create_scalar_function("step", step))
number = connection.SCHEMA_VERSION + 1
connection.SCHEMA_VERSION = number
connection.MIGRATIONS[f"to_{number}"] = sql
connection.open_writer(path, StoreConfig()).close()
print(os.getpid())
"""
_STEPS = "CREATE TABLE marks (pid INTEGER); INSERT INTO marks VALUES (step()); ALTER TABLE task ADD COLUMN mark TEXT;"


def opening(path: Path, mode: str) -> subprocess.Popen[str]:
    """Another process that opens a store with the next version's program."""
    return subprocess.Popen(
        [sys.executable, "-c", _OPEN, str(path), mode, _STEPS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_crash_in_the_middle_leaves_the_version_before(version: int, tmp_path: Path) -> None:
    """A process that is killed between two statements of a migration has changed nothing; the next one migrates."""
    path = unpack(version, tmp_path)
    process = opening(path, "die")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert version_of(path) == version
    assert sound(path)
    open_and_close(path)
    assert version_of(path) == connection.SCHEMA_VERSION


def test_two_processes_migrate_once(tmp_path: Path) -> None:
    """They open it at the same moment: one migrates while the other waits, and both have a store of the new version."""
    path = unpack(1, tmp_path)
    both = [opening(path, "meet"), opening(path, "meet")]
    pids = {int(process.communicate(timeout=60)[0]) for process in both}
    assert {process.returncode for process in both} == {0}
    assert len(pids) == 2
    ((migrated,),) = rows(path, "SELECT pid FROM marks")
    assert migrated in pids
    assert version_of(path) == NEXT
    with contextlib.closing(at_rest(path)) as reader:
        assert check_history(reader) == []
