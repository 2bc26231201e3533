"""Moving whole stores: nothing is lost, whenever it is interrupted, and nobody runs a task on both sides."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from tests import postgres
from tests.cli.moved import Dump, dump_file, dump_server, vectors_of
from tests.conformance.kit import OTHER, WORK
from tests.store.fixtures.make import PAUSED, make, make_there

from mainspring import Engine, EngineConfig, StoreConfig, TaskId, TaskStatus
from mainspring.blobs.local import LocalBlobStore
from mainspring.cli.moving import Place, Report, move
from mainspring.cli.stages import Stages
from mainspring.store.moving.marks import arriving, moved_away
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
FOR_EVER = StoreConfig(keep_completed_s=3e8, keep_failed_s=3e8, keep_tombstones_s=3e8)
MOVER = Path(__file__).with_name("mover.py")


class Home(NamedTuple):
    """A store of a test, made or not."""

    name: str
    blobs: Path
    schema: str | None = None

    @property
    def place(self) -> Place:
        return Place(self.name, self.blobs)

    @property
    def config(self) -> EngineConfig:
        import msgspec

        return EngineConfig(store=msgspec.structs.replace(FOR_EVER, blobs=self.blobs))

    def engine(self, *, worker: bool = False) -> Engine:
        return Engine(self.name, self.config, worker=worker)

    def dump(self) -> Dump:
        return dump_file(Path(self.name)) if self.schema is None else dump_server(self.schema)

    def marks(self) -> list[Any]:
        return self.place.peek(lambda end: end.marks()) or []

    def vectors(self) -> Any:
        return asyncio.run(vectors_of(self.name, self.blobs))

    def check(self) -> list[Any]:
        return list(check_history(self.name, blobs=LocalBlobStore(self.blobs, make=False)))


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Callable[[str], Home]]:
    """Make homes of a kind, `file` or `server`; each is another one, with nothing in it yet."""
    schemas: list[str] = []

    def home(kind: str) -> Home:
        folder = tmp_path / f"home{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if kind == "file":
            return Home(str(folder / "work.db"), folder / "work.db-blobs")
        schemas.append(postgres.schema_of(folder))
        return Home(postgres.address_of(folder), folder / "blobs", schemas[-1])

    yield home
    for schema in schemas:
        postgres.drop(schema)


def filled(home: Home) -> Home:
    """Fill it with tasks in every state, held by a process that died."""
    folder = home.blobs.parent
    asyncio.run(make(folder) if home.schema is None else make_there(folder, home.name))
    return home


def moved(source: Home, target: Home, *, anew: bool = False) -> Report:
    return move(source.place, target.place, Stages(), lambda text: None, anew=anew)


WAYS = [("file", "server"), ("server", "file"), ("file", "file"), ("server", "server")]


@pytest.mark.parametrize("way", WAYS, ids="-to-".join)
def test_everything_arrives(homes: Any, way: tuple[str, str]) -> None:
    """Rows, numbers, vectors and blobs are the same, to the last one; what a dead process held was taken back."""
    source, target = filled(homes(way[0])), homes(way[1])
    report = moved(source, target)
    pending = sum(row["status"] == 0 for row in source.dump()["task"])
    assert (report.is_resumed, report.broken, report.tasks["pending"]) == (False, (), pending)
    assert target.dump() == source.dump()
    assert target.check() == []
    assert [row for row in target.dump()["task"] if row["owner"] is not None] == []
    before = source.place.peek(lambda end: end.numbers())
    after = target.place.peek(lambda end: end.numbers())
    assert before is not None
    assert after == before
    assert not source.blobs.samefile(target.blobs)


def test_there_and_back_again(homes: Any) -> None:
    """From a file to a server and into a file once more: as if nothing had been, collections without records too."""
    source, there, back = filled(homes("file")), homes("server"), homes("file")
    connection = apsw.Connection(source.name)
    connection.execute("INSERT INTO vector_collection (name, dim, model_id, updated_ms) VALUES ('empty', 7, 'm', 5)")
    connection.execute("INSERT INTO audit VALUES (1, 'a', '{}'), (2, 'b', '{}'); DELETE FROM audit WHERE at_ms = 1")
    connection.close()
    vectors = source.vectors()
    assert vectors["empty"][:4] == (7, "m", 0, 5)
    moved(source, there)
    moved(there, back)
    assert back.dump() == source.dump()
    assert back.vectors() == vectors
    assert len(back.dump()) >= 18


class Mover:
    """Moves between two homes in processes that die at a commit."""

    def __init__(self, source: Home, target: Home) -> None:
        self._order = {"source": (source.name, str(source.blobs)), "target": (target.name, str(target.blobs))}
        self._process = subprocess.Popen(
            [sys.executable, str(MOVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, **death: Any) -> str:
        """Begin a move, or go on with it; returns how that ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._order | death) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize("way", WAYS[:2], ids="-to-".join)
def test_killed_at_every_commit(homes: Any, way: tuple[str, str]) -> None:
    """Killed before and after each commit of a move, it goes on where it was; what comes out is what would have been.

    Until the end the target is closed to engines, and there is no moment when both are open.
    """
    source, target = filled(homes(way[0])), homes(way[1])
    source.place.settle()  # what engines commit on the way is theirs
    expected = source.dump()
    mover = Mover(source, target)
    deaths, at, rows = 0, 1, [0]
    try:
        while (ended := mover.run(at=at, when="before")) == "killed":
            before = _state(source, target)
            assert mover.run(at=at, when="after") == "killed"
            deaths += 2
            after = _state(source, target)
            rows.append(sum(map(len, target.dump().values())))
            assert not (after.source_is_open and after.target_is_open)
            at += after == before  # this one is made by every run
    finally:
        mover.end()
    assert ended == "done"
    assert deaths > 60
    assert rows == sorted(rows)  # nothing is written a second time, or lost again
    assert source.dump() == expected
    assert target.dump() == expected
    assert target.check() == []
    assert moved(source, target).was_over


class State(NamedTuple):
    source_is_open: bool
    target_is_open: bool
    marks: list[Any]
    rows: int


def _state(source: Home, target: Home) -> State:
    marks = target.marks()
    rows = sum(map(len, target.dump().values())) if marks else 0
    is_open = bool(marks) and arriving(marks) is None
    return State(moved_away(source.marks()) is None, is_open, marks, rows)


@pytest.mark.parametrize("way", WAYS[:2], ids="-to-".join)
def test_the_work_goes_on(homes: Any, way: tuple[str, str]) -> None:
    """An engine on the target ends what had not ended, once each, also what waited for others or was delayed.

    What had ended reads as before.
    """
    source, target = filled(homes(way[0])), homes(way[1])
    moved(source, target)
    before = {row["id"]: row["status"] for row in target.dump()["task"]}
    assert {0, 2, 3, 4, 5} == set(before.values())
    ran: list[str] = []

    async def work() -> None:
        engine = target.engine(worker=True)

        async def work(text: Any) -> Any:
            ran.append(text)
            return text

        works = {kind: engine.task(name=kind.removeprefix("custom:"))(work) for kind in (WORK, OTHER, PAUSED)}
        async with engine:
            await engine.manager.resume(type=PAUSED)
            for id, status in before.items():
                result = await engine.manager.get_task_result(TaskId(id), timeout=60)
                assert status < 2 or list(TaskStatus)[status] is result.status
            blob = await engine.retrieve("reports/first")
            assert blob[:4] == b"kept"
            handle = await engine.submit(works[WORK], "new")
            assert await handle.result(timeout=60) == "new"

    asyncio.run(work())
    rows = target.dump()
    assert all(row["status"] > 1 for row in rows["task"])
    assert "new" in ran
    completed = [row["task"] for row in rows["attempt"] if row["outcome"] == 0]
    assert len(completed) == len(set(completed))
    assert max(row["seq"] for row in rows["task"]) > max(row["seq"] for row in source.dump()["task"])
    assert target.check() == []
