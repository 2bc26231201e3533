"""Memory that children hold beyond what their tasks have reserved of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from tests.dispatch.test_highwater import GB, Gauge
from tests.dispatch.test_reservations import says
from tests.engine import process_work
from tests.engine.support import engine_on, until, value

from mainspring import Resources
from mainspring.dispatch import reservations

pytestmark = pytest.mark.anyio
MIB = 1 << 20
NONE, LESS = Resources(cpu=1), Resources(cpu=0, memory=50 * MIB)  # than the 200 MiB that are held
RESTING = 100 * MIB
"""More than a child holds that has done nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "held"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("declared", [NONE, LESS], ids=["none", "less"])
async def test_it_is_there_for_nobody_else(declared: Resources, folder: Path) -> None:
    """It is in use like any other, whether the task has reserved less or none."""
    gauge = Gauge()
    async with engine_on(folder.with_name("work.db"), process_slots=1) as engine:
        engine.manager.reservations._monitor = gauge
        fill = engine.task(lane="process", resources=declared)(process_work.fill)
        handle = await engine.submit(fill, str(folder / "one"))
        await until((folder / "one").exists)
        gauge.show(memory_bytes=4 * GB)
        assert engine.manager.reservations.free("memory") < 5 * GB + RESTING
        folder.with_name("held.go").touch()
        await value(handle)


@pytest.mark.parametrize("lane", ["process", "thread"])
async def test_a_program_of_its_own(lane: Literal["process", "thread"], folder: Path) -> None:
    """What that holds is what the task has reserved: it counts once."""
    gauge = Gauge()
    async with engine_on(folder.with_name("work.db"), process_slots=1) as engine:
        reservations = engine.manager.reservations
        reservations._monitor = gauge
        reserved = 500 * MIB
        assert reservations.free("memory") <= 8 * GB
        fill = engine.task(lane=lane, resources=Resources(cpu=0, memory=reserved))(process_work.fill_in_program)
        handle = await engine.submit(fill, str(folder / "one"))
        await until((folder / "one").exists)
        gauge.show(memory_bytes=GB)
        assert reservations.free("memory") > 8 * GB - reserved + 200 * MIB
        folder.with_name("held.go").touch()
        await value(handle)


async def test_it_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no stranger's: when the task ends there is enough for one that waits, so that is set aside."""
    monkeypatch.setattr(reservations, "PATIENCE_S", 0.0)
    gauge = Gauge()
    gauge.show(memory_bytes=GB, max_memory_bytes=2 * GB)
    async with engine_on(folder.with_name("work.db"), process_slots=1) as engine:
        engine.manager.reservations._monitor = gauge

        @engine.task
        async def work() -> None: ...

        fill = engine.task(lane="process", resources=LESS)(process_work.fill)
        first = await engine.submit(fill, str(folder / "one"))
        await until((folder / "one").exists)
        gauge.show(memory_bytes=GB, max_memory_bytes=2 * GB)
        large = await engine.submit(work, resources=Resources(cpu=0, memory=GB + 200 * MIB))
        small = await engine.submit(work, resources=Resources(cpu=0, memory=100 * MIB))
        await says(small, f"and kept for task {large.id} (custom:work), which needs 1.2 GB")
        gauge.show(memory_bytes=GB // 2, max_memory_bytes=2 * GB)
        folder.with_name("held.go").touch()
        await engine.gather([first, large, small])
