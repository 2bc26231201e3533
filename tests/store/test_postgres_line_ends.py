"""The line between processes comes back from whatever ends it, and leaves no session behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests import postgres
from tests.engine.support import LIMIT_S, until

from mainspring.config import StoreConfig
from mainspring.environment import SYSTEM
from mainspring.store.bell import LOOK
from mainspring.store.postgres import line as line_module
from mainspring.store.postgres.address import parse
from mainspring.store.postgres.connection import UPKEEP, connect
from mainspring.store.postgres.line import Line

pytestmark = pytest.mark.anyio
NUMBER = 77
PIDS = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid"


class End:
    """One end of a line, and what it hears."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[bytes] = []
        self.line = Line(self._connect, "mainspring.t_line", name, lambda kind, _: self.heard.append(kind), SYSTEM)
        self.before_join: Callable[[asyncpg.Connection], Any] = lambda connection: None

    async def _connect(self) -> asyncpg.Connection:
        made = await connect(parse(postgres.url()), self.name, StoreConfig())
        self.before_join(made)
        return made

    @property
    def pids(self) -> list[int]:
        return [pid for (pid,) in postgres.ask(PIDS, f"mainspring {self.name}")]

    async def leads(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not await self.line.lead():  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.005)

    async def hears(self, other: End) -> None:
        """Wait until it hears the other, which rings until then: a word may get lost."""
        del self.heard[:]
        async with asyncio.timeout(LIMIT_S):
            while LOOK not in self.heard:
                other.line.ring(LOOK)
                await asyncio.sleep(0.01)


@asynccontextmanager
async def talking(*ends: End) -> AsyncIterator[None]:
    try:
        for end in ends:
            await end.line.open(NUMBER)
        yield
    finally:
        for end in ends:
            await end.line.close()


async def test_a_killed_line_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    """However often and at whatever moment, also while it speaks and asks who leads: one session each, and no error."""
    one, other = End("one"), End("other")
    async with talking(one, other):
        for turn in range(10):
            victim = (one, other)[turn % 2]
            (pid,) = victim.pids
            one.line.ring(LOOK)
            asked = [asyncio.create_task(victim.line.lead()) for _ in range(3)]
            postgres.ask("SELECT pg_terminate_backend($1, 5000)", pid)
            victim.line.ring(LOOK)
            await asyncio.gather(*asked)
            await one.hears(other)
            await other.hears(one)
        await asyncio.gather(one.line.lead(), other.line.lead())
        assert (len(one.pids), len(other.pids)) == (1, 1)
        assert postgres.ask("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = $1", UPKEEP)
    await until(lambda: not one.pids + other.pids)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_join_that_fails_half_way_leaves_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is refused or given up."""
    listens = asyncpg.Connection.add_listener
    failures: list[BaseException] = [asyncpg.QueryCanceledError("no"), asyncio.CancelledError(), ValueError("what")]

    async def fails(connection: asyncpg.Connection, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        await listens(connection, *arguments)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", fails)
    end = End("half")
    for _ in range(3):
        with pytest.raises((asyncpg.QueryCanceledError, asyncio.CancelledError, ValueError)):
            await end.line.open(NUMBER)
        await until(lambda: not end.pids)
    async with talking(end):
        assert len(end.pids) == 1


async def test_a_session_that_dies_as_it_joins_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, however often it takes."""
    end = End("joins")
    killed: list[int] = []

    def kill(connection: asyncpg.Connection) -> None:
        if len(killed) < 3:
            killed.append(connection.get_server_pid())
            postgres.ask("SELECT pg_terminate_backend($1, 5000)", killed[-1])

    async with talking(end):
        end.before_join = kill
        postgres.ask("SELECT pg_terminate_backend($1, 5000)", end.pids[0])
        await end.leads()
        assert (len(killed), len(end.pids)) == (3, 1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_nobody_has_thought_of_is_told_and_no_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours is logged once for each time, and the line goes on."""
    monkeypatch.setattr(line_module, "_MOST_AGAIN_S", 0.05)
    one, other = End("one"), End("other")
    failures = [ZeroDivisionError("once")]

    def fail(connection: asyncpg.Connection) -> None:
        if failures:
            connection.terminate()
            raise failures.pop()

    async with talking(one, other):
        one.before_join = fail
        postgres.ask("SELECT pg_terminate_backend($1, 5000)", one.pids[0])
        await other.hears(one)
        await one.hears(other)
        await one.leads()
    assert [record.levelname for record in caplog.records if "please report" in record.message] == ["ERROR"]
