"""A task whose workers are all silent is not said to be about to start."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.engine.programs import Programs, call, serves
from tests.engine.support import value
from tests.scheduling.test_hosts import eventually, told
from tests.store.peers import stop_between_commits

from mainspring.config import is_server
from mainspring.scheduling.explain import sentence
from mainspring.store.postgres import store as servers
from mainspring.store.sqlite import store as files
from mainspring.store.standing import Silent

pytestmark = pytest.mark.anyio
WHY = "its event loop is blocked or its process stopped; see its log, and `mainspring doctor`"


@pytest.fixture
def programs(place: str, tmp_path: Path) -> Iterator[Programs]:
    where = postgres.address_of(tmp_path) if is_server(place) else str(tmp_path / "work.db")
    programs = Programs(tmp_path, where)
    yield programs
    programs.end()
    if is_server(place):
        postgres.drop(postgres.schema_of(tmp_path))


async def test_a_worker_that_stands_still(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and for how long, also where it has claimed the task or is one of several."""
    program = await programs.running()
    async with programs.looking() as engine:
        await serves(engine, "custom:step")
        await told(engine, 1)
        stop_between_commits(programs.store, program.pid)
        handle = await engine.submit(call("step", n=1))
        first = "It is ready and the next one in the async lane; "
        assert await handle.explain() == f"{first}a slot is free, so it is about to start."
        monkeypatch.setattr(files, "SURELY_S", 0.5)
        monkeypatch.setattr(servers, "_SILENT_S", 0.5)

        async def is_silent() -> bool:
            return "has not been heard of" in await handle.explain()

        await eventually(is_silent)
        assert re.fullmatch(rf"{first}worker \w+ has not been heard of for \d+ m?s: {WHY}\.", await handle.explain())

        standing = await engine.manager.standing(handle.id.bytes)
        assert len(standing.silent) == 1
        both = standing._replace(silent=(Silent("5f0c", 17.0), Silent("a1b2", 12.0)))
        assert sentence(both, 0).endswith(
            f"{first}worker 5f0c has not been heard of for 17 s: {WHY}, nor does another worker speak."
        )
        claimed = standing._replace(reason="claimed", worker="5f0c", silent=(Silent("5f0c", 200.0),))
        assert sentence(claimed, 0) == f"Worker 5f0c has claimed it, and has not been heard of for 3 min: {WHY}."

        monkeypatch.undo()
        program.send_signal(signal.SIGCONT)
        assert await value(handle) == 2
