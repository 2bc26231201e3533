"""Moving whole stores: everything arrives, whenever it is interrupted, and the work goes on there."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from tests.cli.conftest import SHOP, Answer, Worker
from tests.cli.moved import (
    WAYS,
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
from tests.conformance.kit import OTHER, WORK
from tests.store.fixtures.make import PAUSED

from mainspring import TaskId, TaskStatus, VectorRecord
from mainspring.blobs.local import LocalBlobStore
from mainspring.cli import moving
from mainspring.environment import SYSTEM
from mainspring.errors import (
    InternalError,
    StoreUnavailable,
)
from mainspring.store.moving.end import End
from mainspring.store.moving.marks import arriving, moved_away

pytestmark = pytest.mark.anyio
MOVER = Path(__file__).with_name("mover.py")


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


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_page_and_its_place_are_one(homes: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the place of a page can't be noted, the page is not there either."""
    source, target = filled(homes("file")), homes(kind)
    turn, turns = End.turn_page, 0

    def turn_some(*given: Any) -> None:
        nonlocal turns
        turns += 1
        if turns == 8:
            stop()
        turn(*given)

    monkeypatch.setattr(End, "turn_page", turn_some)
    with pytest.raises(Stopped):
        moved(source, target)
    assert moved(source, target).is_resumed
    assert target.dump() == source.dump()


def test_blobs_of_kept_results_come_along(homes: Any) -> None:
    """Also where the task that made one is gone."""
    source, target = homes("file"), homes("server")
    asyncio.run(make_some(source))
    digest = LocalBlobStore(source.blobs).put(b"large").digest
    columns = "key, namespace, type, version, output, flags, digest, bytes, made_ms, expires_ms, used_ms"
    statement(
        source, f"INSERT INTO cache ({columns}) VALUES (x'00', 'a', 'b', '1', x'00', 2, '{digest}', 5, 1, 1e15, 1)"
    )
    moved(source, target)
    assert LocalBlobStore(target.blobs).get(digest) == b"large"


@pytest.mark.parametrize("kind", ["file", "server"])
def test_nothing_is_pruned_on_the_way(homes: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever settles a store looks after it, and does not know for how long its engines keep what has ended."""
    source, target = homes(kind), homes("file")
    asyncio.run(make_some(source, 20))
    long_ago = SYSTEM.wall_ms() - 40 * 86_400_000
    statement(source, f"UPDATE {{}}task SET status = 2, reason = NULL, output = input, ended_ms = {long_ago}")
    statement(source, "UPDATE {}tally SET status = 2")
    settle = getattr(moving, f"_settle_{kind}")

    async def settle_for_long(engine: Any, *given: Any) -> None:
        await settle(engine, *given)
        await engine.manager.store._caretaker._sweep()

    monkeypatch.setattr(moving, f"_settle_{kind}", settle_for_long)
    assert moved(source, target).tasks == {"completed": 20}


def test_an_emptied_collection_comes_along(homes: Any) -> None:
    """Also where it is the only one, and no record was ever written on that server."""
    source, target = homes("file"), homes("server")

    async def empty() -> None:
        async with source.engine() as engine:
            await asyncio.to_thread(engine.vectors.upsert, "docs", [VectorRecord("a", [1.0, 2.0])])
            await asyncio.to_thread(engine.vectors.delete, "docs", ["a"])

    asyncio.run(empty())
    there = source.vectors()
    assert moved(source, target).records == 0
    assert target.vectors() == there


def spoil_a_row(target: Home) -> None:
    statement(target, "UPDATE {}task SET max_retries = max_retries + 1 WHERE seq = (SELECT min(seq) FROM {}task)")


def lose_a_row(target: Home) -> None:
    statement(target, "DELETE FROM {}tombstone WHERE id = (SELECT id FROM {}tombstone ORDER BY id LIMIT 1)")


def add_a_collection(target: Home) -> None:
    statement(target, "INSERT INTO {}vector_collection (name, dim, updated_ms) VALUES ('theirs', 3, 1)")


def spoil_a_blob(target: Home) -> None:
    blob = next(item for item in target.blobs.rglob("*") if item.is_file())
    blob.unlink()  # it may be a link to the source's
    blob.write_bytes(b"x")


SPOILT: dict[Callable[[Home], None], str] = {
    spoil_a_row: "table task",
    lose_a_row: "table tombstone",
    add_a_collection: "collections",
    spoil_a_blob: "blob",
}


@pytest.mark.parametrize("way", WAYS[:2], ids="-to-".join)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_difference_is_found(homes: Any, way: tuple[str, str], spoil: Callable[[Home], None]) -> None:
    """What is not the same in the end is named, and the source stays the one that is open; --anew puts it right."""
    source, target = filled(homes(way[0])), homes(way[1])
    half_moved(source, target)
    spoil(target)
    with pytest.raises(InternalError, match=f"is not what .*{SPOILT[spoil]}.*--anew"):
        moved(source, target)
    assert moved_away(source.marks()) is None
    with pytest.raises(StoreUnavailable):
        opening(target)
    if spoil is spoil_a_blob:
        shutil.rmtree(target.blobs)
    assert not moved(source, target, anew=True).is_resumed
    assert target.dump() == source.dump()
    assert target.check() == []


def test_what_was_broken_before_is_told(homes: Any) -> None:
    """A store that breaks an invariant is moved as it is, and the report says so."""
    source, target = filled(homes("file")), homes("server")
    statement(source, "UPDATE tally SET n = n + 1 WHERE class = 0 AND status = 2")
    broken = moved(source, target).broken
    assert len(broken) == 1
    assert "tallies" in broken[0]
    assert target.dump() == source.dump()


def test_numbers_are_never_given_again(homes: Any) -> None:
    """The target counts on, also past rows that are gone."""
    source, target = homes("file"), homes("server")
    asyncio.run(make_some(source, 9))
    statement(source, "DELETE FROM task WHERE seq > 2")
    statement(source, "UPDATE tally SET n = 2")
    moved(source, target)
    asyncio.run(make_some(target, 1))
    assert {row["seq"] for row in target.dump()["task"]} == {1, 2, 10}


@pytest.mark.parametrize("kind", ["file", "server"])
def test_the_command(call: Callable[..., Answer], homes: Any, kind: str) -> None:
    """It tells first what there is, then what it has done; a later run finds nothing left to do."""
    source, target = filled(homes(kind)), homes("server" if kind == "file" else "file")
    folders = ("--source-blobs", str(source.blobs), "--target-blobs", str(target.blobs))
    before = source.dump()
    told = call("migrate", source.name, target.name, *folders, "--dry-run", "--json").json
    assert told["source"]["tasks"]["pending"] > 0
    assert len(told["source"]["workers"]) == 1
    assert told["target"] is None
    assert "not signed off" in call("migrate", source.name, target.name, *folders, "--dry-run").out
    assert source.dump() == before
    answer = call("migrate", source.name, target.name, *folders, "--json")
    assert answer.code == 0, answer.err
    report = answer.json
    assert (report["source"], report["target"]) == (source.place.shown, target.place.shown)
    assert (report["records"], report["blobs"], report["was_over"]) == (2, 3, False)
    assert "nothing was left to do" in call("migrate", source.name, target.name, *folders).out
    refused = call("stats", "--store", source.name)
    assert (refused.code, "was moved to" in refused.err) == (4, True)
    assert call("stats", "--store", target.name).code == 0


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_worker_dies_and_another_goes_on_elsewhere(
    run: Callable[..., Answer], homes: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes: refused while it lives; what it ran when it was killed runs on the target, then what waits."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where large values would go
    source, target = homes(kind), homes("server" if kind == "file" else "file")
    go = tmp_path / "go"

    def submit(name: str, given: dict[str, Any], *options: str) -> str:
        answer = run("submit", "--store", source.name, f"custom:{name}", json.dumps(given), *options)
        assert answer.code == 0, answer.err
        return answer.out.strip()

    worker = Worker(tmp_path, f"{SHOP}:engine", "--store", source.name)
    try:
        held = submit("hold", {"until": str(go)})
        child = submit("resize", {"width": 2}, "--after", held)
        while run("show", "--store", source.name, held, "--json").json["status"] != "running":
            pass
        refused = run("migrate", source.name, target.name)
        assert (refused.code, f"pid {worker.process.pid}" in refused.err) == (4, True)
    finally:
        worker.process.kill()
        worker.process.communicate()
    answer = run("migrate", source.name, target.name, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["tasks"] == {"pending": 2}
    go.touch()
    worker = Worker(tmp_path, f"{SHOP}:engine", "--store", target.name)
    try:
        ended = run("wait", "--store", target.name, held, child, "--timeout", "60", "--json").lines
        assert [(end["id"], end["status"]) for end in ended] == [(held, "completed"), (child, "completed")]
    finally:
        worker.signal(signal.SIGTERM)
        assert worker.end().code == 0
