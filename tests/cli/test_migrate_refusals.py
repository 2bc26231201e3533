"""Moving whole stores: what is refused, what comes in between, and that nobody runs a task on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from tests import postgres
from tests.cli.conftest import Answer
from tests.cli.moved import (
    WAYS,
    At,
    Home,
    Stopped,
    filled,
    half_moved,
    make_some,
    moved,
    opening,
    statement,
    stop,
)

from mainspring import Engine, VectorRecord
from mainspring.cli.moving import Place, move
from mainspring.cli.stages import Stages
from mainspring.errors import (
    InvalidInput,
    StoreForeign,
    StoreMoved,
    StoreNewer,
    StoreRefused,
    StoreUnavailable,
)
from mainspring.store.moving import marks
from mainspring.store.moving.file import FileEnd
from mainspring.store.moving.server import ServerEnd
from mainspring.store.moving.tables import plan
from mainspring.tasks import texts
from mainspring.vectors import checks

pytestmark = pytest.mark.anyio
LONG = "".join(chr(0x4E00 + n * 7_919 % 20_000) for n in range(1_000))
ID = "decode('00112233445566778899aabbccddeeff', 'hex')"


@pytest.mark.parametrize("kind", ["file", "server"])
@pytest.mark.parametrize("end", ["source", "target"])
async def test_an_end_that_is_in_use(homes: Any, kind: str, end: str) -> None:
    """Who has it open is named, nothing is written, and it works when that one has stopped."""
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    await make_some(source)
    ends = {"source": source, "target": target}
    async with ends[end].engine() as engine:
        name = engine.manager.store.worker_id
        with pytest.raises(StoreUnavailable, match=f"{name}.*stop"):
            await asyncio.to_thread(moved, source, target)
    assert target.marks() == []
    report = await asyncio.to_thread(moved, source, target)
    assert report.tasks == {"pending": 3}


@pytest.mark.parametrize("kind", ["file", "server"])
def test_nobody_comes_in_meanwhile(homes: Any, kind: str) -> None:
    """While a move is under way both ends are closed, whatever it is doing; afterwards the target is open."""
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    asyncio.run(make_some(source))
    refused: list[str] = []

    def come_in() -> None:
        for home in (source, target):
            with pytest.raises(StoreUnavailable) as exc:
                opening(home, lock_timeout_s=0.2)
            refused.append(str(exc.value))

    moved(source, target, stages=At("rows compared", come_in))
    assert len(refused) == 2
    opening(target)


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_target_that_is_half_there_stays_closed(homes: Any, kind: str) -> None:
    """The source is open all the time; when it was opened, what is in the target is older, and is copied anew."""
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    asyncio.run(make_some(source))
    half_moved(source, target)
    with pytest.raises(StoreUnavailable, match=r"is being filled from .* run it again"):
        opening(target)
    asyncio.run(make_some(source, 2))
    assert not moved(source, target).is_resumed
    assert target.dump() == source.dump()
    assert len(target.dump()["task"]) == 5


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_source_that_was_moved_says_where_to(homes: Any, kind: str) -> None:
    """Nobody opens it, not to look either; and nothing is moved into it, or out of it once more."""
    source, target, other = homes(kind), homes("server" if kind == "file" else "file"), homes("file")
    asyncio.run(make_some(source))
    moved(source, target)
    with pytest.raises(StoreMoved, match=re.escape(f"was moved to {target.place.shown}")) as exc:
        opening(source)
    assert exc.value.value == target.place.shown
    assert Place(exc.value.value, target.blobs).shown == target.place.shown  # an address that can be read
    with pytest.raises(StoreMoved, match=re.escape(target.place.shown)):
        moved(source, other)
    assert other.place.peek(lambda end: True) is None
    asyncio.run(make_some(other))
    with pytest.raises(StoreMoved, match=re.escape(target.place.shown)):
        moved(other, source)
    assert moved(source, target).was_over


@pytest.mark.parametrize(("here", "there"), [("file", "file"), ("file", "server"), ("server", "file")])
def test_doctor_tells_why_nobody_opens_a_store(call: Callable[..., Answer], homes: Any, here: str, there: str) -> None:
    """And nothing else about what waits there; once the target is whole, it is a store as any other."""
    source, target = homes(here), homes(there)
    asyncio.run(make_some(source))

    def told(home: Home) -> list[Any]:
        return [
            (item["about"], item["what"])
            for item in call("doctor", "--store", home.name, "--json").json["findings"]
            if item["about"] != "durability"  # of the tests' server
        ]

    half_moved(source, target)
    assert told(target) == [("move", f"it is being filled from {source.place.shown} and is not whole yet")]
    assert [about for about, _ in told(source)] == ["queue"]
    moved(source, target)
    assert told(source) == [("move", f"its tasks were moved to {target.place.shown}")]
    assert [about for about, _ in told(target)] == ["queue"]


@pytest.mark.parametrize("kind", ["file", "server"])
def test_both_are_closed_in_between(homes: Any, kind: str) -> None:
    """Killed when the source is closed and the target not open yet: neither can run anything; the next run opens it."""
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    asyncio.run(make_some(source))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerEnd if kind == "file" else FileEnd, "end", lambda *args: stop())
        with pytest.raises(Stopped):
            moved(source, target)
    with pytest.raises(StoreMoved):
        opening(source)
    with pytest.raises(StoreUnavailable):
        opening(target)
    report = moved(source, target)
    assert (report.is_resumed, report.was_over) == (True, False)
    opening(target)


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_target_that_holds_something(homes: Any, kind: str) -> None:
    """Tasks, pauses and collections of others stay as they are; what was only opened makes way."""
    source = homes("file")
    asyncio.run(make_some(source))
    for fill in (
        "INSERT INTO {}pause (namespace, type, grp, since_ms) VALUES ('a', '', '', 1)",
        "INSERT INTO {}vector_collection (name, dim, updated_ms) VALUES ('a', 3, 1)",
        "INSERT INTO {}idempotency (namespace, key, task) VALUES ('a', 'b', 1)",
    ):
        target = homes(kind)
        opening(target)
        statement(target, fill)
        before = target.dump()
        with pytest.raises(InvalidInput, match=r"is not empty \(1 rows in .*name a new file, or another"):
            moved(source, target)
        assert target.dump() == before
        assert target.marks() == []
    busy, opened = homes(kind), homes(kind)
    asyncio.run(make_some(busy))
    with pytest.raises(InvalidInput, match="3 rows in task"):
        moved(source, busy)
    opening(opened)
    moved(source, opened)
    assert opened.dump() == source.dump()


def test_a_part_of_another_store(homes: Any) -> None:
    """A target that another source has half filled is that one's, unless it is thrown away."""
    one, two, target = homes("file"), homes("file"), homes("server")
    asyncio.run(make_some(one))
    asyncio.run(make_some(two, 2))
    half_moved(one, target)
    with pytest.raises(InvalidInput, match=f"a part of {one.name}.*--anew"):
        moved(two, target)
    assert not moved(two, target, anew=True).is_resumed
    assert target.dump() == two.dump()


def test_what_is_no_store(homes: Any, tmp_path: Path) -> None:
    source, target, nothing = homes("file"), homes("server"), homes("file")
    with pytest.raises(StoreUnavailable, match="there is no store at"):
        moved(nothing, target)
    assert not Path(nothing.name).exists()
    asyncio.run(make_some(source))
    with pytest.raises(InvalidInput, match="is the source itself"):
        moved(source, source)
    with pytest.raises(InvalidInput, match="is gone when this command ends"):
        Place(":memory:", None)
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(apsw.Connection(str(foreign))) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreForeign):
        moved(source, Home(str(foreign), tmp_path / "blobs"))
    newer = homes("file")
    opening(newer)
    statement(newer, "PRAGMA user_version = 99")
    with pytest.raises(StoreNewer):
        moved(source, newer)
    opening(source)


def test_tables_of_others_are_not_left_behind(homes: Any) -> None:
    source, target = homes("file"), homes("server")
    asyncio.run(make_some(source))
    statement(source, "CREATE TABLE theirs (x)")
    with pytest.raises(StoreRefused, match=r"table theirs .* nothing was moved"):
        moved(source, target)
    opening(source)


def test_a_row_that_a_server_cannot_take(homes: Any) -> None:
    """Text there can't hold the character 0: the table is named, and the source stays open."""
    source, target = homes("file"), homes("server")
    asyncio.run(make_some(source))
    statement(source, "INSERT INTO idempotency (namespace, key, task) VALUES ('a', 'b' || char(0), 1)")
    with pytest.raises(StoreRefused, match=r"can't take a row of table idempotency, namespace 'a', key 'b\\x00' \("):
        moved(source, target)
    opening(source)


@pytest.mark.parametrize("kind", ["file", "server"])
@pytest.mark.parametrize("at", [1, 36, 99])
def test_the_row_that_an_end_cannot_take_is_named(homes: Any, kind: str, at: int) -> None:
    """Of a page: here one that is there twice, wherever the first of the two stands."""
    rows: list[tuple[Any, ...]] = [("custom:a", n) for n in range(100)]
    rows.insert(at, ("custom:a", at // 2))
    with contextlib.closing(homes(kind).place.open()) as end:
        columns = end.columns()
        (table,) = [table for table in plan(columns, columns) if table.name == "serves"]
        again = rf"table serves, worker {at // 2}, type 'custom:a' \("
        with pytest.raises(StoreRefused, match=again), end.transaction():
            end.put(table, rows)
        assert end.count("serves") == 0


async def _with_a_long_key(engine: Engine) -> None:
    for n in range(5):
        await engine.store(b"x", key=f"\u9fff{n}", namespace="others")  # after it in the page
    await engine.store(b"x", key=LONG)


async def _with_a_long_id(engine: Engine) -> None:
    records = [VectorRecord(id, [1.0, 2.0]) for id in ("a", LONG, "b")]
    await asyncio.to_thread(engine.vectors.upsert, "docs", records)


async def _with_a_long_vector(engine: Engine) -> None:
    await asyncio.to_thread(engine.vectors.upsert, "docs", [VectorRecord("a", [1.0] * 16_001)])


async def _without_large_ones(engine: Engine) -> None:
    await engine.delete(LONG)
    await asyncio.to_thread(engine.vectors.delete, "docs", [LONG, "a"])


@pytest.mark.parametrize(
    ("fill", "row"),
    [
        (_with_a_long_key, f"table blob_key, namespace 'default', key '{LONG[:20]}"),
        (_with_a_long_id, f"record '{LONG[:20]}"),
        (_with_a_long_vector, "record 'a' of collection 'docs'"),
    ],
    ids=["key", "id", "vector"],
)
def test_a_row_that_is_larger_than_a_server_takes(
    homes: Any, monkeypatch: pytest.MonkeyPatch, fill: Callable[[Engine], Awaitable[None]], row: str
) -> None:
    """A file that was written before there were limits: the row is named, and without it the move goes on."""
    source, target = homes("file"), homes("server")

    async def on_source(run: Callable[[Engine], Awaitable[None]]) -> None:
        async with source.engine(worker=True) as engine:
            await run(engine)

    with monkeypatch.context() as without:
        without.setattr(texts, "MAX_KEY_BYTES", 1 << 20)
        without.setattr(checks, "MAX_DIMENSIONS", 1 << 20)
        asyncio.run(on_source(fill))
    with pytest.raises(StoreRefused, match=re.escape(row)):
        moved(source, target)
    asyncio.run(on_source(_without_large_ones))
    moved(source, target)


class Late(Place):
    """Something comes between the look and the lock."""

    def __init__(self, home: Home, sql: str) -> None:
        super().__init__(home.name, home.blobs)
        self._home, self._sql = home, sql

    def settle(self) -> None:
        super().settle()
        statement(self._home, self._sql)


@pytest.mark.parametrize("kind", ["file", "server"])
def test_who_comes_at_the_last_moment(homes: Any, kind: str) -> None:
    """A worker that opens the source between the look and the lock is named too."""
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    asyncio.run(make_some(source))
    late = Late(source, "INSERT INTO {}worker (name, pid, host, started_ms) VALUES ('quick', 1, 'there', 1)")
    with pytest.raises(StoreUnavailable, match=r"in use by quick \(pid 1 on there\)"):
        move(late, target.place, Stages(), lambda text: None, anew=False)
    statement(source, "UPDATE {}worker SET ended_ms = 1")
    assert moved(source, target).tasks == {"pending": 3}


def test_users_wait_meanwhile(homes: Any) -> None:
    """What users write in transactions of their own waits for the end of a move."""
    source, target = homes("server"), homes("file")
    asyncio.run(make_some(source))
    errors: list[type[Exception]] = []

    async def write() -> None:
        async with connected() as mine:
            await mine.execute("SET lock_timeout = '200ms'")
            try:
                await mine.execute(f"INSERT INTO {source.schema}.inbox (id, task) VALUES ({ID}, {ID})")
            except asyncpg.PostgresError as exc:
                errors.append(type(exc))

    moved(source, target, stages=At("rows compared", lambda: asyncio.run(write())))
    asyncio.run(write())
    assert errors == [asyncpg.LockNotAvailableError, asyncpg.CheckViolationError]


def test_what_users_submitted_comes_along(homes: Any) -> None:
    """Tasks that wait to be taken in are tasks of the target; those that come after the look are waited for."""
    source, target = homes("server"), homes("file")

    async def submit_and_leave(n: int) -> None:
        engine = source.engine()

        @engine.task(name="work")
        async def work(text: Any) -> Any:
            return text

        async with connected() as mine, mine.transaction(), engine:
            await engine.map(work, ["a"] * n, connection=mine)

    asyncio.run(submit_and_leave(600))
    assert len(source.dump()["task"]) == 0

    late = Late(source, f"INSERT INTO {{}}inbox (id, task) SELECT {ID}, {ID} FROM {{}}store")
    with pytest.raises(StoreUnavailable, match=r"1 tasks have just come .* run the same command again"):
        move(late, target.place, Stages(), lambda text: None, anew=False)
    statement(source, f"DELETE FROM {{}}inbox WHERE id = {ID}")
    assert moved(source, target).tasks == {"pending": 600}


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[asyncpg.Connection]:
    """The user's connection."""
    connection = await asyncpg.connect(postgres.url())
    try:
        yield connection
    finally:
        await connection.close()


async def test_who_was_taken_for_dead_learns_of_it(homes: Any) -> None:
    """A process that was silent for so long that it counted as dead can't write into a source that was moved since."""
    source = homes("server")
    engine = source.engine()

    @engine.task(name="work")
    async def work(text: Any) -> Any:
        return text

    def move_away() -> None:
        with contextlib.closing(source.place.open()) as end, end.hold():
            end.ask("UPDATE worker SET ended_ms = 1, revoked = 1")
            end.ask(marks.SCHEMA)
            end.put_mark(marks.Mark("a", "source", "elsewhere", "", 1, 2))
            end.part()

    async with engine, connected() as mine, mine.transaction(isolation="repeatable_read"):
        assert await mine.fetchval("SELECT 1") == 1  # what it sees is what there was before
        await asyncio.to_thread(move_away)
        with pytest.raises(StoreMoved, match="was moved to elsewhere"):
            await engine.submit(work, "late")
        with pytest.raises(asyncpg.CheckViolationError, match="this_store_was_moved"):
            async with mine.transaction():
                await engine.submit(work, "late", connection=mine)
    assert source.dump()["task"] == []


@pytest.mark.parametrize("way", WAYS[:2], ids="-to-".join)
def test_a_server_that_dies(homes: Any, way: tuple[str, str]) -> None:
    """The move ends with what to do; done, it goes on, or begins anew where the source itself was there."""
    source, target = filled(homes(way[0])), homes(way[1])
    with pytest.raises(StoreUnavailable, match="nothing is lost: run the same command again to go on"):
        moved(source, target, stages=At("vectors", postgres.restart))
    assert moved(source, target).is_resumed or source.schema is not None
    assert target.dump() == source.dump()
