"""Calls that raised and are made again with halves: what one half came to waits for no other, nor goes with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch import batched
from tests.dispatch.batched import noted
from tests.dispatch.test_call_stops import LANES, four
from tests.dispatch.test_process_lane import outcomes
from tests.engine.support import LIMIT_S, engine_on, shows, until, value

from mainspring import Batch, Context, Engine, ProcessingFailed, Resources, Retry, TaskHandle, TaskStatus, TaskTimeout
from mainspring.store.base import Finish

pytestmark = pytest.mark.anyio
HALVES = ["01.1", "0123.1", "23.1"]


async def last_waits(items: list[int], how: str, folder: str, contexts: list[Context]) -> list[Any]:
    """As that of the other lanes."""
    batched.note(folder, items, contexts)
    batched.raise_for(items, how, contexts[0].attempt)
    while batched.waits(items, how, folder):
        try:
            await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            if "deaf" not in how:
                raise
    return batched.results(items, how)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


def let_go(folder: Path) -> None:
    folder.with_name("go").touch()


async def joined(engine: Engine, lane: str, how: str, folder: Path, **options: Any) -> list[TaskHandle]:
    """Submit four tasks whose call raises, and of which the last two then wait."""
    function = last_waits if lane == "async" else batched.last_waits
    return await four(engine, function, lane, how, folder, **options)


@pytest.mark.parametrize("how", ["small", "large"])
@pytest.mark.parametrize("lane", LANES)
async def test_what_is_done_is_told_while_others_go_on(folder: Path, lane: str, how: str) -> None:
    """Results of a half are there when it ends, also those for whose size a place must be found."""
    async with engine_on() as engine:
        handles = await joined(engine, lane, how, folder)
        try:
            found = [await value(handle) for handle in handles[:2]]
            await until((folder / "23.1").exists)
            for handle in handles[2:]:
                await shows(handle, status=TaskStatus.RUNNING)
        finally:
            let_go(folder)
        found += [await value(handle) for handle in handles[2:]]
        assert found == batched.results([0, 1, 2, 3], how)
    assert noted(folder) == HALVES


@pytest.mark.parametrize("lane", LANES)
async def test_who_is_done_in_time_is_done(folder: Path, lane: str) -> None:
    """The time of a call passes in its last half: only that comes again, uncharged; who is too slow alone times out."""
    async with engine_on(grace_s=LIMIT_S) as engine:
        *others, slow = await joined(engine, lane, "listens", folder, timeout=1)
        assert [await value(handle) for handle in others] == [0, 1, 2]
        with pytest.raises(TaskTimeout, match="attempt 2 ran longer than 1") as caught:
            await value(slow)
        assert caught.value.attempts == 1  # the first one was not charged
        assert [await outcomes(handle) for handle in (*others, slow)] == [
            ["completed"], ["completed"], ["released", "completed"], ["released", "timeout"],
        ]  # fmt: skip
        first, _, third, _ = [(await handle.info()).attempts[0] for handle in (*others, slow)]
        assert first.duration is not None
        assert third.duration is not None
        assert first.duration < 1 <= third.duration + 0.01
    assert sorted([*HALVES, "2.2", "3.2"]) == noted(folder)


@pytest.mark.parametrize("lane", LANES)
async def test_who_failed_alone_has_failed_as_it_did(folder: Path, lane: str) -> None:
    """Whatever becomes of the others of its call."""
    async with engine_on(grace_s=LIMIT_S) as engine:
        handles = await joined(engine, lane, "bad", folder, timeout=1)
        with pytest.raises(ProcessingFailed, match="not all at once"):
            await value(handles[0])
        assert [await value(handle) for handle in handles[1:3]] == [1, 2]
        with pytest.raises(TaskTimeout):
            await value(handles[3])
        assert [await outcomes(handle) for handle in handles[:2]] == [["failed"], ["completed"]]


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_slot_that_is_given_up_costs_nobody_who_is_done(folder: Path, lane: str) -> None:
    """The deaf half of a call has its tasks time out; the other one is done."""
    async with engine_on(grace_s=0.1) as engine:
        handles = await joined(engine, lane, "deaf", folder, timeout=0.5)
        try:
            assert [await value(handle) for handle in handles[:2]] == [0, 1]
            for handle in handles[2:]:
                with pytest.raises(TaskTimeout):
                    await value(handle)
        finally:
            let_go(folder)
        assert [await outcomes(handle) for handle in handles[:2]] == [["completed"]] * 2


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_call_is_given_up_once(folder: Path, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are deaf were cancelled while the first half ran: each ends once, and nothing counts them any more."""
    async with engine_on(grace_s=0.1) as engine:

        @engine.task(timeout=0.3, retry=0)
        async def beside() -> None:
            await asyncio.sleep(LIMIT_S)

        handles = await joined(engine, lane, "both wait, deaf", folder)
        try:
            await until((folder / "01.1").exists)
            for handle in handles[2:]:
                assert await handle.cancel() == "requested"
            await shows(await engine.submit(beside), status=TaskStatus.TIMEOUT)  # by then they were pressed
            ended: list[bytes] = []
            finish = engine.manager.store.finish

            def seen(finished: Finish, **how: Any) -> None:
                ended.append(finished.claim.id)
                finish(finished, **how)

            monkeypatch.setattr(engine.manager.store, "finish", seen)
            let_go(folder)
            for handle, status in zip(handles, [TaskStatus.COMPLETED] * 2 + [TaskStatus.CANCELLED] * 2, strict=True):
                await shows(handle, status=status)
            assert sorted(ended) == sorted(handle.id.bytes for handle in handles)
            assert (engine.manager._alone._running, engine.manager._alone._inside) == (0, 0)
        finally:
            folder.with_name("stop").touch()


async def test_marks_of_who_is_done_are_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half whose large result takes long to store is over when its call is: the marks are those of the next call."""
    async with engine_on(thread_slots=1) as engine:
        held, marked = asyncio.Event(), dict[int, int]()
        course = engine.manager._course
        put = course._values.put

        async def slow(data: bytes, what: str) -> bytes:
            await held.wait()
            return await put(data, what)

        monkeypatch.setattr(course._values, "put", slow)
        first = await joined(engine, "thread", "large first", folder)
        desk = engine.manager._gatherings["custom:four"]
        mark = desk.mark
        assert mark is not None

        def seen(slot: int, seq: int, attempt: int) -> None:
            marked[slot] = seq
            mark(slot, seq, attempt)

        monkeypatch.setattr(desk, "mark", seen)
        let_go(folder)
        assert [await value(handle) for handle in first[2:]] == [2, 3]
        folder.with_name("go").unlink()
        second = await engine.map(
            engine.executor.handlers["custom:four"].function, [4, 3, 5, 6], how="waits", folder=str(folder)
        )
        await until((folder / "43.1").exists)
        held.set()
        for handle in first[:2]:
            await value(handle)
        assert sum(seq > 4 for seq in marked.values()) == 4
        let_go(folder)
        await engine.gather(second)


async def test_what_is_not_stored_when_the_engine_stops_comes_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The place for a large result of a done half does not answer: nothing goes on once the engine has stopped."""
    async with engine_on(drain_s=0.1, grace_s=0.1) as engine:
        course = engine.manager._course

        async def silent(data: bytes, what: str) -> bytes:
            await asyncio.sleep(LIMIT_S)
            return data

        monkeypatch.setattr(course._values, "put", silent)
        handles = await joined(engine, "thread", "large first", folder)
        let_go(folder)
        assert [await value(handle) for handle in handles[2:]] == [2, 3]
        assert len(course._recording) == 2
    assert not course._recording
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_child_that_dies_takes_nothing_along_that_was_done(folder: Path) -> None:
    """Only those go into other children that were in the call of which it died, or had still to come."""
    async with engine_on(process_slots=1) as engine:
        *others, guilty = await joined(engine, "process", "dies", folder)
        assert [await value(handle) for handle in others] == [0, 1, 2]
        with pytest.raises(ProcessingFailed, match="exited with code 3"):
            await value(guilty)
        assert [await outcomes(handle) for handle in others] == [["completed"]] * 3


@pytest.mark.parametrize("lane", LANES)
async def test_a_call_that_only_those_want_who_are_done_is_stopped(folder: Path, lane: str) -> None:
    """All others of it were cancelled while the first half ran."""
    async with engine_on(grace_s=LIMIT_S) as engine:
        handles = await joined(engine, lane, "both wait", folder)
        await until((folder / "01.1").exists)
        for handle in handles[2:]:
            assert await handle.cancel() == "requested"
        let_go(folder)
        assert [await value(handle) for handle in handles[:2]] == [0, 1]
        for handle in handles[2:]:
            await shows(handle, status=TaskStatus.CANCELLED)


async def test_one_that_comes_again_while_its_call_goes_on(folder: Path) -> None:
    """It failed alone and is retried beside what is left of its call, with a place and resources of its own."""
    async with engine_on(custom_capacity={"seat": 2}) as engine:
        need = Resources(cpu=0, custom={"seat": 1})
        handles = await joined(
            engine,
            "thread",
            "bad once",
            folder,
            resources=need,
            retry=Retry(max_retries=1, delay=0),
            batch=Batch(max_size=4, max_wait=0.5),
        )
        try:
            assert [await value(handle) for handle in handles[:2]] == [0, 1]
            assert await outcomes(handles[0]) == ["retry", "completed"]
            await until(lambda: engine.manager.reservations.stats()["seat"]["reserved"] == 1)
        finally:
            let_go(folder)
        assert [await value(handle) for handle in handles[2:]] == [2, 3]
        await until(lambda: engine.manager.reservations.stats()["seat"]["reserved"] == 0)


@pytest.mark.parametrize("lane", LANES)
async def test_the_ledger_has_what_a_call_with_halves_has_used(folder: Path, lane: str) -> None:
    """Each task has its share of the calls up to its end, so that they come to what all of it took."""
    async with engine_on() as engine:
        handles = await joined(engine, lane, "burns", folder)
        let_go(folder)
        for handle in handles:
            await value(handle)
        (row,) = (await engine.ledger("type")).rows
        assert row.cpu_time.known == 4
        assert row.cpu_time.total is not None
        assert 0.6 <= row.cpu_time.total < 0.8  # 0.2 s in each of three calls
        used = [(await handle.info()).attempts[0].cpu_time for handle in handles]
        assert used[0] == used[1]
        assert used[2] == used[3]
