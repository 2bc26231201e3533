"""What attempts have used, as the next ones of their like are expected to."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.dispatch.test_reservations import says
from tests.engine import process_work
from tests.engine.support import engine_on, until

from mainspring.dispatch.peaks import Peaks

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
            await says(handle, "It waits for resources: it needs 0.2 GB and 0.2 GB is free, of 0.6 GB")
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
