"""Only what is ours, whole and not newer is opened; anything else is refused by name and left as it is."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from tests.conformance.kit import Port, SqliteFactory, new, opened, state, submit

from mainspring import Engine
from mainspring.errors import (
    StoreDamaged,
    StoreForeign,
    StoreNewer,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
    TaskError,
    TaskNotFound,
)
from mainspring.store.sqlite.connection import APPLICATION_ID, SCHEMA_VERSION, look, refuse_unfit, refuse_unreachable

pytestmark = pytest.mark.anyio


async def made(folder: Path, tasks: int = 200) -> Path:
    """A store with some tasks, closed well."""
    factory = SqliteFactory(folder)
    async with opened(factory.make()) as store:
        await submit(store, *(new("x" * 500) for _ in range(tasks)))
    return factory.path


async def died(folder: Path, tasks: int = 200) -> Path:
    """A store whose process died; its log is folded into the file, as it would be by the next one to open it."""
    factory = SqliteFactory(folder)
    store = factory.make()
    await store.open()
    await submit(store, *(new("x" * 500) for _ in range(tasks)))
    await factory.die(store)
    connection = apsw.Connection(str(factory.path))
    connection.execute("SELECT count(*) FROM task").fetchall()
    connection.close()
    return factory.path


def contents(path: Path) -> dict[str, bytes]:
    """All there is beside the file, but the places of live processes."""
    return {item.name: item.read_bytes() for item in path.parent.iterdir() if item.is_file()}


async def refused(path: Path, error: type[TaskError]) -> str:
    """Opening raises this error and changes nothing on the disk; returns what it says."""
    before = contents(path)
    with pytest.raises(error) as caught:
        await SqliteFactory(path.parent).make().open()
    assert contents(path) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


async def test_a_newer_file(tmp_path: Path) -> None:
    """A schema that this version does not know is left alone."""
    path = await made(tmp_path)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", SCHEMA_VERSION + 1)
    connection.close()
    assert "update mainspring" in await refused(path, StoreNewer)


def another_database(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
    connection.close()


def another_database_in_wal_mode(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
    connection.close()


def an_empty_database_of_another_program(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("application_id", 4711)
    connection.close()


def an_empty_database_with_a_version(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 1)
    connection.close()


def a_text(path: Path) -> None:
    path.write_text("not a database\n" * 10)


def a_long_text(path: Path) -> None:
    path.write_text("not a database\n" * 1000)


def a_picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)


@pytest.mark.parametrize(
    "make",
    [
        another_database,
        another_database_in_wal_mode,
        an_empty_database_of_another_program,
        an_empty_database_with_a_version,
        a_text,
        a_long_text,
        a_picture,
    ],
)
async def test_a_foreign_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Whatever is not ours is named as such, and stays byte for byte as it was."""
    path = tmp_path / "work.db"
    make(path)
    await refused(path, StoreForeign)


async def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    """A folder is no store."""
    (tmp_path / "work.db").mkdir()
    with pytest.raises(StoreForeign, match="folder"):
        await SqliteFactory(tmp_path).make().open()


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    """A file without a byte in it, as `mktemp` leaves, may be used."""
    factory = SqliteFactory(tmp_path)
    factory.path.touch()
    async with opened(factory.make()) as store:
        await submit(store, new())
    assert len(factory.states()) == 1


async def test_a_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is not made: a slip of the keyboard makes no store."""
    factory = SqliteFactory(tmp_path / "missing")
    with pytest.raises(StoreUnavailable, match="missing"):
        async with opened(factory.make()):
            pass
    assert not (tmp_path / "missing").exists()


def flip(path: Path, at: int, n: int = 2000) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + n] = bytes(byte ^ 0xFF for byte in raw[at : at + n])
    path.write_bytes(raw)


@pytest.mark.parametrize("stop", [made, died])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
async def test_damage_is_found_before_anything_is_written(
    tmp_path: Path, stop: Callable[..., object], share: float
) -> None:
    """The file is checked, however the last process ended; damage is told, and nothing is written."""
    path: Path = await stop(tmp_path)  # type: ignore[misc]
    flip(path, int(len(contents(path)["work.db"]) * share) // 4096 * 4096)  # a page's head: payloads have no checksum
    assert "damaged" in await refused(path, StoreDamaged)


@pytest.mark.parametrize("stop", [made, died])
@pytest.mark.parametrize("left", [0.4, 0.9])
async def test_a_file_that_is_cut_short(tmp_path: Path, stop: Callable[..., object], left: float) -> None:
    """Missing pages are found at once, however the last process ended."""
    path: Path = await stop(tmp_path)  # type: ignore[misc]
    os.truncate(path, int(len(contents(path)["work.db"]) * left))
    await refused(path, StoreDamaged)


async def test_a_file_whose_maker_died_half_way(tmp_path: Path) -> None:
    """What a process that was killed while it made the file has left there is rolled back: it was no store yet."""
    empty = apsw.Connection(os.fspath(tmp_path / "work.db"))
    empty.pragma("auto_vacuum", 2)
    empty.execute("VACUUM")
    empty.close()
    maker = apsw.Connection(os.fspath(tmp_path / "other.db"))
    maker.pragma("cache_size", 1)  # pages go to the file before the transaction ends, and the journal before them
    maker.execute("BEGIN; CREATE TABLE t (x)")
    maker.executemany("INSERT INTO t VALUES (randomblob(?))", [(1000,)] * 500)
    shutil.copy(tmp_path / "other.db-journal", tmp_path / "work.db-journal")
    os.truncate(tmp_path / "work.db", 2048)
    maker.close(True)
    async with opened(SqliteFactory(tmp_path).make()) as store:
        await submit(store, new())


@pytest.mark.parametrize("at", [0, 20, 100])
async def test_a_damaged_first_page(tmp_path: Path, at: int) -> None:
    """Without its first page a file can't be told from somebody else's; it's refused either way and not touched."""
    path = await made(tmp_path)
    flip(path, at, 60)
    await refused(path, StoreRefused)


async def test_nothing_is_left_beside_a_refused_file(tmp_path: Path) -> None:
    """An engine makes no folder for the blobs of a file that it does not open."""
    path = await made(tmp_path)
    flip(path, len(contents(path)["work.db"]) // 2 // 4096 * 4096)
    shutil.rmtree(path.with_name("work.db-blobs"))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StoreDamaged):
        await Engine(path).start()
    assert sorted(os.listdir(tmp_path)) == before


async def test_damage_that_shows_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in a file that is too large to be checked is met only at work: whoever asks is told what it is, and does
    not hang."""
    monkeypatch.setattr("mainspring.store.sqlite.connection._CLEAN_CHECK_LIMIT", 0)
    path = await made(tmp_path, tasks=2000)
    size = path.stat().st_size
    flip(path, size // 5, size)  # what is read and written last lies at the end
    async with asyncio.timeout(60):
        with pytest.raises(StoreDamaged):
            async with opened(SqliteFactory(tmp_path).make()) as store:
                await store.list_tasks(limit=2000)
        with pytest.raises(StoreDamaged):
            async with opened(SqliteFactory(tmp_path).make()) as store:
                await store.submit([new() for _ in range(2000)])


AS_SOMEBODY_ELSE = """
import asyncio, os, sys, tempfile
from pathlib import Path
from tests.conformance.kit import SqliteFactory

async def opens(folder):
    store = SqliteFactory(Path(folder)).make()
    await store.open()
    await store.close()

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(opens(folder))  # loads all there is to load while it may still be read
os.setgid(65534), os.setuid(65534)
try:
    asyncio.run(opens(sys.argv[1]))
except Exception as exc:
    print(type(exc).__name__, exc)
else:
    print("opened")
"""


def open_as_somebody_else(folder: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; root itself may write everything")
    done = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY_ELSE, str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others can get at, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("what", ["file", "folder", "way"])
async def test_a_file_that_may_not_be_written(folder: Path, what: str) -> None:
    """Without the right to write the file or beside it, or to get there, the store is refused and left as it is."""
    path = await made(folder)
    os.chmod(folder, {"file": 0o777, "folder": 0o555, "way": 0o700}[what])
    os.chmod(path, 0o444 if what == "file" else 0o666)
    before = contents(path)
    said = open_as_somebody_else(folder)
    assert said.startswith("StoreReadOnly"), said
    assert contents(path) == before


async def test_read_only_is_told_to_its_owner_too(tmp_path: Path) -> None:
    """The same for a user without special rights; root passes all such checks, so it's another test's."""
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    path = await made(tmp_path)
    path.chmod(0o444)
    await refused(path, StoreReadOnly)


def readable_by_others(folder: Path) -> list[str]:
    """Sockets lie in a folder of their owner; blobs look after themselves."""
    items = [item for item in folder.rglob("*") if not item.is_socket() and "blobs" not in item.parts[-1]]
    return [str(item) for item in items if item.parent.name != "work.db-blobs" and item.stat().st_mode & 0o077]


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Nobody else can read tasks or reach the places of live processes."""
    old = os.umask(0)
    try:
        path = await made(tmp_path)
        async with opened(SqliteFactory(tmp_path).make()):
            shared = readable_by_others(tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shared == []


async def test_a_good_file_opens_again(tmp_path: Path) -> None:
    """It is marked as ours, and what it holds is there the next time."""
    path = await made(tmp_path, tasks=3)
    connection = apsw.Connection(str(path))
    assert connection.pragma("application_id") == APPLICATION_ID
    assert connection.pragma("user_version") == SCHEMA_VERSION
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
    async with opened(SqliteFactory(tmp_path).make()) as store:
        assert len(await store.list_tasks()) == 3


async def test_a_memory_store_vanishes(tmp_path: Path) -> None:
    """What is put into ":memory:" is known to that store alone, and nothing is left of it."""
    from mainspring.blobs.local import LocalBlobStore
    from mainspring.store.sqlite.store import SqliteStore

    def make() -> SqliteStore:
        return SqliteStore(":memory:", blobs=lambda file: LocalBlobStore(file.with_name("blobs")))

    first = make()
    async with opened(first), opened(make()) as second:
        (id,) = await submit(first, new())
        assert (await first.info(id)).task.id.bytes == id
        with pytest.raises(TaskNotFound):
            await second.info(id)
        folder = first.path.parent
        assert folder.exists()
    assert not folder.exists()
    async with opened(make()) as third:
        with pytest.raises(TaskNotFound):
            await third.info(id)


_MAKE_MANY = """
import sys
from pathlib import Path
from mainspring.config import StoreConfig
from mainspring.store.sqlite.connection import open_writer
for n in range(int(sys.argv[2])):
    open_writer(Path(sys.argv[1], f"{n}.db"), StoreConfig()).close()
"""


def test_a_file_in_the_making_is_no_foreign_one(tmp_path: Path) -> None:
    """Whoever looks at a store that another process creates, opens or closes at that moment takes it for what it is."""
    many = 100
    looks, at = 0, 0
    with subprocess.Popen([sys.executable, "-c", _MAKE_MANY, str(tmp_path), str(many)]) as maker:
        while maker.poll() is None:
            path = tmp_path / f"{at}.db"
            if (tmp_path / f"{at + 1}.db").exists():
                at += 1
            elif path.exists():
                refuse_unfit(path)
                looks += 1
    assert maker.returncode == 0
    assert looks > many // 4  # in a busy moment several are made between two looks


async def test_a_look_is_repeated_when_somebody_opens_the_store_meanwhile(tmp_path: Path) -> None:
    """A look that took no locks, since nobody had the file open, can't be trusted once somebody writes."""
    path = await made(tmp_path)
    writers: list[apsw.Connection] = []

    def run(connection: apsw.Connection) -> object:
        if not writers:
            writers.append(apsw.Connection(str(path)))
            writers[0].execute("DELETE FROM task")
            raise apsw.CorruptError("half of it was seen")
        return connection.execute("SELECT count(*) FROM task").get

    assert look(path, run) == 0
    writers[0].close()


async def test_a_look_at_damage_is_not_repeated(tmp_path: Path) -> None:
    path = await made(tmp_path)
    looks = []

    def run(connection: apsw.Connection) -> None:
        looks.append(1)
        raise apsw.CorruptError("damaged")

    with pytest.raises(StoreDamaged):
        look(path, run)
    assert looks == [1]


async def test_a_store_has_one_name_however_it_is_reached(tmp_path: Path) -> None:
    """Through a link it has the same locks and blobs: else whoever comes that way takes its living workers for dead."""
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        (id,) = await submit(store, new())
        await port.take()
        other = SqliteFactory(tmp_path / "elsewhere")
        other.path.parent.mkdir()
        other.path.symlink_to(factory.path)
        async with opened(other.make()) as linked:
            assert (linked.path, linked.folder, linked.blobs.folder) == (store.path, store.folder, store.blobs.folder)
            assert (await state(linked, id)).reason == "claimed"
    assert {item.name for item in other.path.parent.iterdir()} == {"work.db"}


_RACE = """
import os, sys, time
from pathlib import Path
from mainspring.config import StoreConfig
from mainspring.store.sqlite.connection import open_writer

for turn in range(100):
    start, children = time.monotonic() + 0.01, []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            while time.monotonic() < start:
                pass
            open_writer(Path(sys.argv[1], f"{turn}.db"), StoreConfig()).close()
            os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(f"turn {turn}")
"""


def test_several_processes_may_make_it_at_once(tmp_path: Path) -> None:
    """Whoever comes in the middle of it waits, and is not told that the file is locked."""
    done = subprocess.run(
        [sys.executable, "-c", _RACE, str(tmp_path)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long(tmp_path: Path, length: int) -> None:
    """Also for what stands beside the file; nothing is made."""
    with pytest.raises(StoreUnavailable, match="name another file"):
        refuse_unreachable(tmp_path / ("x" * length))
    assert list(tmp_path.iterdir()) == []
