"""What attempts have used, as the next ones of their like are expected to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.dispatch.test_reservations import says
from tests.engine import process_work
from tests.engine.support import engine_on, until

from mainspring.dispatch.peaks import Peaks
from mainspring.store.base import BLOB_INPUT, HAS_REFS, Claimed

pytestmark = pytest.mark.anyio
MIB = 1 << 20


def test_what_is_expected() -> None:
    """The most of late for inputs of that size, else for the next smaller ones; what is not large is not kept."""
    peaks = Peaks()
    peaks.add("a", 100, 99, large=100)
    assert (peaks.of("a", 100), peaks.types) == (0, set())
    peaks.add("a", 100, 200, large=100)
    peaks.add("a", 10_000, 900, large=100)
    assert [peaks.of("a", size) for size in (1, 100, 127, 5_000, 10_000, 1 << 30)] == [0, 200, 200, 200, 900, 900]
    assert peaks.of("b", 100) == 0
    peaks.add("a", 100, 300, large=100)
    peaks.add("a", 100, 140, large=100)
    assert peaks.of("a", 100) == 280
    for _ in range(100):
        peaks.add("a", 100, 10, large=100)
    assert peaks.of("a", 100) == 0
    assert peaks.types == {"a"}
    peaks.add("a", 1_000, 10, large=100)
    assert [peaks.of("a", size) for size in (1_000, 5_000, 10_000)] == [0, 0, 900], "also where smaller ones are large"
    for _ in range(100):
        peaks.add("a", 10_000, 10, large=100)
    assert (peaks.types, peaks._peaks) == (set(), {})


def test_small_ones_of_a_large_type_are_not_touched() -> None:
    """Once a size was seen to be small nothing is expected of it, though smaller inputs need much; unknown sizes are
    known by themselves."""
    peaks = Peaks()
    peaks.add("a", 0, 3_000, large=1_000)
    assert [peaks.of("a", size) for size in (0, 500, None)] == [3_000, 3_000, 0]
    peaks.add("a", 500, 10, large=1_000)
    assert [peaks.of("a", size) for size in (0, 500, 50_000, None)] == [3_000, 0, 0, 0]
    peaks.add("a", None, 2_000, large=1_000)
    assert [peaks.of("a", size) for size in (0, 500, None)] == [3_000, 0, 2_000]
    peaks.add("a", 500, 5_000, large=1_000)
    assert [peaks.of("a", size) for size in (0, 500, None)] == [3_000, 5_000, 2_000]


@pytest.mark.parametrize("flag", [BLOB_INPUT, HAS_REFS])
async def test_an_input_that_is_not_there_yet_says_nothing_of_small_ones(flag: int) -> None:
    """What one in a blob, or with other tasks' results, needs is expected of its like alone."""
    async with engine_on(memory_capacity=600 * MIB) as engine:
        engine.task(lane="process")(process_work.fill)
        reservations = engine.manager.reservations

        def claim(flags: int, size: int) -> Claimed:
            return Claimed(bytes(16), 1, "custom:fill", bytes(size), flags=flags)

        reservations.serve()
        reservations.learn(claim(flag, 64), 500 * MIB)
        assert [reservations.need(claim(0, size), "process") for size in (0, 64, 60_000)] == [None] * 3
        need = reservations.need(claim(flag, 64), "process")
        assert need is not None
        assert need["memory"] > 0


def test_few_are_kept() -> None:
    """Those that have not been seen for longest are forgotten."""
    peaks = Peaks()
    for n in range(3_000):
        peaks.add(f"{n}", 1, 500, large=100)
        peaks.add("often", 1, 500, large=100)
    assert len(peaks.types) == 1_000
    assert {"often", "2999"} <= peaks.types


async def test_the_next_ones_reserve_what_the_first_one_used(tmp_path: Path) -> None:
    """Nothing is declared: once one was large no more of its type run than there is memory for; others are free."""
    folder = tmp_path / "held"
    folder.mkdir()
    go = folder.with_name("held.go")
    async with engine_on(tmp_path / "work.db", process_slots=4, memory_capacity=600 * MIB) as engine:
        fill = engine.task(lane="process")(process_work.fill)
        double = engine.task(lane="process")(process_work.double)
        go.touch()
        await (await engine.submit(fill, str(folder / "first"))).result()
        go.unlink()
        assert engine.manager.reservations.types == {"custom:fill"}
        handles = await engine.map(fill, [str(folder / f"{n}") for n in range(5)])
        await until(lambda: len(list(folder.iterdir())) == 3)
        for handle in handles[2:]:
            await says(handle, "It waits for resources: it needs ")
            figures = re.search(r"needs ([\d.]+) MB and ([\d.]+) MB is free, of 629.1 MB", await handle.explain())
            assert figures is not None
            assert float(figures[1]) > float(figures[2])
        assert await engine.gather(await engine.map(double, range(20))) == [2 * n for n in range(20)]
        assert len(list(folder.iterdir())) == 3
        go.touch()
        await engine.gather(handles)


async def test_what_was_learned_keeps_nobody_waiting_for_strangers(tmp_path: Path) -> None:
    """Where nothing else is reserved it begins with what there is, as if nothing had been learned."""
    folder = tmp_path / "held"
    folder.mkdir()
    folder.with_name("held.go").touch()
    async with engine_on(tmp_path / "work.db", memory_capacity=600 * MIB) as engine:
        fill = engine.task(lane="process")(process_work.fill)
        await (await engine.submit(fill, str(folder / "first"))).result()
        reservations = engine.manager.reservations
        free, reservations.free = reservations.free, lambda kind: min(1.0, free(kind))  # type: ignore[method-assign]
        await engine.gather(await engine.map(fill, [str(folder / f"{n}") for n in range(3)]))
