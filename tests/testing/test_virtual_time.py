"""Times that are promised, in virtual time: what they come to, whatever the machine of the tests is doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest

from mainspring import Context
from mainspring.testing import SimulatedEngine
from mainspring.testing.stage import loop
from mainspring.testing.stage.stage import Stage


@pytest.mark.parametrize("first", ["the dying", "the other"])
def test_what_the_dead_held_begins_again_within_half_a_second(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick of a quarter, and what it takes to run it; whether the one that dies leads, or one that lives."""
    monkeypatch.setattr(loop, "_UPKEEP", frozenset())  # the stage would let ticks wait for what else comes
    stage = Stage()
    begun: list[tuple[int, float]] = []

    async def play() -> float:
        dying, other = (SimulatedEngine(stage, tmp_path / "work.db") for _ in range(2))
        again = asyncio.Event()

        async def work(ctx: Context) -> None:
            begun.append((ctx.attempt, stage.loop.now))
            if ctx.attempt > 1:
                again.set()
            else:
                await asyncio.sleep(3_600)

        for engine in (dying, other):
            engine.task(work)
        for engine in (dying, other) if first == "the dying" else (other, dying):
            await engine.start()
        await dying.submit(work)
        await asyncio.sleep(10.1)  # in the middle between two ticks
        assert len(begun) == 1
        died = stage.loop.now
        dying.end()
        stage.engines.remove(dying)  # nobody is left to close it
        await again.wait()
        return died

    with stage.open():
        died = stage.run(play())
    assert 0 < begun[1][1] - died <= 0.5


@pytest.mark.parametrize("broken_s", [1, 20])
def test_a_healed_disk_is_found_within_3_2_s(broken_s: int, tmp_path: Path) -> None:
    """However long it was broken: what a handler has returned meanwhile is recorded, and waited for no longer."""
    stage = Stage()
    is_broken = False

    def sees(connection: apsw.Connection, sql: str) -> bool:
        if is_broken and sql.startswith("BEGIN IMMEDIATE"):
            raise apsw.FullError("no room")
        return True

    async def play() -> float:
        nonlocal is_broken
        engine = SimulatedEngine(stage, tmp_path / "work.db", traced=sees)

        @engine.task
        async def work() -> int:
            nonlocal is_broken
            is_broken = True
            return 7

        await engine.start()
        handle = await engine.submit(work)
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(broken_s)
        assert not waiting.done()
        is_broken, healed = False, stage.loop.now
        assert await waiting == 7
        return stage.loop.now - healed

    with stage.open():
        assert stage.run(play()) <= 3.3
