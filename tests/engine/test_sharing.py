"""Real processes that share their work, on a file and on a server, and deaths of either side in between."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.engine.programs import Programs, call, serves
from tests.engine.support import LIMIT_S, until

from mainspring import Engine, TaskHandle, TaskStatus

pytestmark = pytest.mark.anyio
STEPS = 12


@pytest.fixture(params=["sqlite", "postgres"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Programs]:
    is_file = request.param == "sqlite"
    store = str(tmp_path / "work.db") if is_file else postgres.address_of(tmp_path)
    programs = Programs(tmp_path, store, Path(__file__).with_name("sharer.py"))
    yield programs
    programs.end()
    if not is_file:
        postgres.drop(postgres.schema_of(tmp_path))


@pytest.fixture
async def client(programs: Programs, anyio_backend: str) -> AsyncIterator[Engine]:
    async with programs.looking() as engine:
        yield engine


def ledger(programs: Programs) -> list[list[str]]:
    """Return what began: task, attempt and process."""
    path = programs.mark("ledger")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


async def hoard(client: Engine, programs: Programs, kind: str, *dies: str, **arguments: int) -> list[TaskHandle]:
    """Start a process that holds one task in its slot and has claimed all others."""
    owner = await programs.running(1 + STEPS, *dies)
    await serves(client, "custom:hold")
    held = await client.submit(call("hold"))
    await until(lambda: len(ledger(programs)) == 1)
    steps = await client.submit_all([call(kind, n=n, **arguments) for n in range(STEPS)])
    async with asyncio.timeout(LIMIT_S):
        while {(await handle.info()).reason for handle in steps} != {"claimed"}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert ledger(programs) == [["hold", "1", str(owner.pid)]]
    return [held, *steps]


@pytest.mark.parametrize("idle", [1, 2])
async def test_idle_processes_run_what_another_can_not_begin(client: Engine, programs: Programs, idle: int) -> None:
    """One or two, which both take part: all that waits behind a long task is done before it ends, uncharged."""
    held, *steps = await hoard(client, programs, "meet", processes=idle)
    owner = programs._started[0].pid
    others = {programs.start().pid for _ in range(idle)}
    ran_by = set(await asyncio.wait_for(client.gather(steps), LIMIT_S))
    assert ran_by == others
    assert (await held.info()).status is TaskStatus.RUNNING
    programs.mark("go").touch()
    assert await held.result(timeout=LIMIT_S) == owner
    assert Counter(name for name, _, _ in ledger(programs)) == Counter(["hold", *map(str, range(STEPS))])
    for handle in (held, *steps):
        info = await handle.info()
        assert (info.task.retry_count, len(info.attempts)) == (0, 1)


@pytest.mark.parametrize("dies", ["asked", "gave"])
async def test_an_owner_dies_while_it_is_asked(client: Engine, programs: Programs, dies: str) -> None:
    """What it held, given away or not, runs elsewhere; only the task that ran there is charged its death."""
    held, *steps = await hoard(client, programs, "step", dies)
    other = programs.start().pid
    assert await asyncio.to_thread(programs._started[0].wait, LIMIT_S) == -signal.SIGKILL
    programs.mark("go").touch()  # it runs again, alone, before anything else there
    await held.result(timeout=LIMIT_S)
    assert set(await asyncio.wait_for(client.gather(steps), LIMIT_S)) == {other}
    assert Counter(name for name, _, _ in ledger(programs)) == Counter(["hold", "hold", *map(str, range(STEPS))])
    for handle in steps:
        info = await handle.info()
        assert (info.task.retry_count, len(info.attempts)) == (0, 1)
    assert [attempt.outcome for attempt in (await held.info()).attempts] == ["crashed", "completed"]


@pytest.mark.parametrize("dies", ["asks", "got"])
async def test_an_idle_process_dies_while_it_asks(client: Engine, programs: Programs, dies: str) -> None:
    """What was given to it is there for others: the owner takes it when it comes to it, or a third process."""
    held, *steps = await hoard(client, programs, "step")
    owner = programs._started[0].pid
    dying = programs.start(1, dies)
    assert await asyncio.to_thread(dying.wait, LIMIT_S) == -signal.SIGKILL
    third = programs.start().pid
    assert set(await asyncio.wait_for(client.gather(steps), LIMIT_S)) == {third}
    programs.mark("go").touch()
    assert await held.result(timeout=LIMIT_S) == owner
    assert Counter(name for name, _, _ in ledger(programs)) == Counter(["hold", *map(str, range(STEPS))])
    for handle in (held, *steps):
        info = await handle.info()
        assert (info.task.retry_count, len(info.attempts)) == (0, 1)
