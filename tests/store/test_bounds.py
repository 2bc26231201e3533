"""What a store takes up stays bounded: its log under readers, its file when retention keeps up, its own records."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conformance.kit import Port, SqliteFactory, new, opened, submit

from mainspring.config import MIB, StoreConfig
from mainspring.store.sql.upkeep import STEP
from mainspring.store.sqlite import space
from mainspring.store.sqlite.connection import open_reader, open_writer
from mainspring.store.sqlite.log import Log
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
LIMIT = MIB
DAY_S = 86_400.0


def log_size(path: Path) -> int:
    log = path.with_name(path.name + "-wal")
    return log.stat().st_size if log.exists() else 0


class Reader:
    """Somebody who reads from one snapshot until told to let go."""

    def __init__(self, path: Path) -> None:
        self.connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)

    def begin(self) -> None:
        self.connection.execute("BEGIN; SELECT count(*) FROM worker").fetchall()

    def end(self) -> None:
        self.connection.execute("COMMIT")


@contextmanager
def overlapping_readers(path: Path) -> Iterator[None]:
    """Two that read for a few milliseconds, each beginning before the other one ends: there is always a reader."""
    done = threading.Event()

    def read() -> None:
        one, other = Reader(path), Reader(path)
        one.begin()
        while not done.wait(0.003):
            other.begin()
            one.end()
            one, other = other, one
        one.end()
        one.connection.close()
        other.connection.close()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def write(store: Any, bytes: int) -> int:
    """Commit so much, a hundred KiB at a time; returns the largest size that the log had."""
    largest = 0
    for _ in range(bytes // 100_000):
        await submit(store, *(new("x" * 1_000) for _ in range(100)))
        largest = max(largest, log_size(store.path))
    return largest


def store_with_a_short_log(tmp_path: Path) -> Any:
    return SqliteFactory(tmp_path).make(durability="relaxed", wal_limit_bytes=LIMIT)


async def test_the_log_stays_short(tmp_path: Path) -> None:
    async with opened(store_with_a_short_log(tmp_path)) as store:
        assert await write(store, 8 * MIB) < 2 * LIMIT


async def test_overlapping_readers_do_not_keep_the_log_growing(tmp_path: Path) -> None:
    """Nobody reads for long, yet somebody always does: the log gets its moment without readers all the same."""
    async with opened(store_with_a_short_log(tmp_path)) as store:
        with overlapping_readers(store.path):
            assert await write(store, 12 * MIB) < 4 * LIMIT


async def test_a_long_reader_keeps_nobody_from_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log grows while one snapshot is read, that can't be helped; it is short again soon after. Commits are held
    back for the reader only now and then."""
    waits: list[bool] = []
    cut = Log._cut

    def counted(self: Log, connection: apsw.Connection) -> bool:
        waits.append(cut(self, connection))
        return waits[-1]

    monkeypatch.setattr(Log, "_cut", counted)
    async with opened(store_with_a_short_log(tmp_path)) as store:
        reader = Reader(store.path)
        reader.begin()
        largest = await write(store, 4 * MIB)
        assert largest > 3 * LIMIT
        assert 1 <= len(waits) <= largest // LIMIT
        assert not any(waits)
        reader.end()
        reader.connection.close()
        await write(store, 2 * LIMIT)
        assert log_size(store.path) < 2 * LIMIT


def pages(path: Path) -> tuple[int, int]:
    """How many there are, and how many of them are free."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = int(connection.pragma("page_count") or 0), int(connection.pragma("freelist_count") or 0)
    connection.close()
    return found


async def test_a_file_stays_as_it_is_when_retention_keeps_up(tmp_path: Path) -> None:
    """Day after day the same work, kept for a day: rows, tombstones, audit, the file itself, all stay as many."""
    factory = SqliteFactory(tmp_path)
    keep: dict[str, Any] = {"keep_completed_s": DAY_S, "keep_failed_s": DAY_S, "keep_tombstones_s": 2 * DAY_S}
    sizes = []
    async with opened(factory.make(durability="relaxed", **keep)) as store:
        port = Port(store, 2_000)
        await port.serve()
        for _ in range(9):
            for cancelled in await submit(store, *(new(not_before_ms=store.now_ms() + 10**6) for _ in range(50))):
                await store.cancel(cancelled)
            await submit(store, *(new("x" * 200, key=f"{store.now_ms()}-{n}") for n in range(1_500)))
            await port.run_all()
            factory.clock.advance(DAY_S)
            await factory.prune(store)
            total, free = pages(factory.path)
            sizes.append(total - free)
    assert sizes[-1] <= 1.1 * sizes[3], sizes
    assert check_history(factory.path) == []


async def test_what_was_freed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a peak the file shrinks in short steps, and keeps a reserve; nobody has to stop for it."""
    monkeypatch.setattr(space, "SPARE_PAGES", 200)
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make(durability="relaxed", keep_completed_s=DAY_S)) as store:
        port = Port(store, 10_000)
        await port.serve()
        await submit(store, *(new("x" * 1_000) for _ in range(5_000)))
        await port.run_all()
        before, _ = pages(factory.path)
        factory.clock.advance(2 * DAY_S)
        await factory.prune(store)
        async with asyncio.timeout(60):
            while await store.read(space.can_shrink):  # noqa: ASYNC110 - nobody tells of upkeep
                await asyncio.sleep(0.01)
    after, free = pages(factory.path)
    assert after < before / 2
    assert free <= max(200, after // 4)
    assert check_history(factory.path) == []


async def test_a_look_leaves_no_record(tmp_path: Path) -> None:
    """A process that only looks or submits is forgotten when it signs off; one that worked is remembered by name."""
    factory = SqliteFactory(tmp_path)
    for has_served in (False, False, True, False):
        async with opened(factory.make()) as store:
            if has_served:
                await Port(store).serve()
                worked = store.worker_id
    connection = apsw.Connection(str(factory.path), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT name FROM worker").fetchall() == [(worked,)]
    connection.close()


async def test_old_records_go(tmp_path: Path) -> None:
    """Names of workers and notes of what operators did go with the tombstones of that time."""
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make()) as store:
        await Port(store).serve()
        await store.pause(type="custom:work")
    factory.clock.advance(60 * DAY_S)
    async with opened(factory.make()) as store:
        await store.pause(type="custom:other")
        factory.clock.advance(40 * DAY_S)
        await factory.prune(store)
        counts = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM worker WHERE ended_ms IS NOT NULL)"
        assert await store.read(lambda rows: rows.execute(counts).fetchall()) == [(1, 0)]


async def test_as_many_notes_go_as_are_made(tmp_path: Path) -> None:
    """A note for every task that was cancelled, more of them than one step of retention takes away."""
    factory = SqliteFactory(tmp_path)
    async with opened(factory.make(keep_failed_s=DAY_S, keep_tombstones_s=DAY_S)) as store:
        waiting = await submit(store, *(new(not_before_ms=store.now_ms() + 10**6) for _ in range(2 * STEP)))
        await asyncio.gather(*map(store.cancel, waiting))
        factory.clock.advance(2 * DAY_S)
        await factory.prune(store)
        assert await store.read(lambda rows: rows.execute("SELECT count(*) FROM audit").fetchall()) == [(0,)]


def test_new_files_can_give_back(tmp_path: Path) -> None:
    """Incremental vacuum is settled when a file is made: later only a whole new copy could change it."""
    connection = open_writer(tmp_path / "work.db", StoreConfig())
    assert connection.pragma("auto_vacuum") == 2
    connection.close()


def test_pages_in_memory_are_bounded(tmp_path: Path) -> None:
    """However much is written and read, all connections of a store keep less than its process may grow by."""
    path, pages = tmp_path / "work.db", 48 * MIB // 4096
    writer = open_writer(path, StoreConfig(), volatile=True)
    writer.execute("CREATE TABLE much (one_page)")
    with writer:
        writer.executemany("INSERT INTO much VALUES (zeroblob(4000))", [()] * pages)
    reader = open_reader(path)
    kept = []
    for connection in (writer, reader):
        assert connection.execute("SELECT count(*) FROM much").get == pages  # it looks at all of them
        kept.append(connection.status(apsw.SQLITE_DBSTATUS_CACHE_USED)[0])
        connection.close()
    assert min(kept) > 8 * MIB  # they were full
    assert sum(kept) < 56 * MIB


async def test_a_commit_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """However many there were, also where the loop lets go of one while the next one runs."""
    async with opened(SqliteFactory(tmp_path).make()) as store:

        async def commits(n: int) -> None:
            under_way = []
            for turn in range(n):
                under_way.append(asyncio.ensure_future(submit(store, new())))
                await asyncio.sleep(0.0002 if turn % 3 else 0)
            await asyncio.gather(*under_way)

        await commits(100)
        tracemalloc.start()
        try:
            before = tracemalloc.take_snapshot()
            await commits(2_000)
            gc.collect()
            after = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    ours = [tracemalloc.Filter(True, "*/store/sqlite/writer.py")]
    kept = after.filter_traces(ours).compare_to(before.filter_traces(ours), "lineno")
    assert sum(line.count_diff for line in kept) < 200, "\n".join(map(str, kept[:5]))
