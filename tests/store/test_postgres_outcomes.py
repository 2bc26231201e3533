"""How ends get into the tables of a server: those of a commit that differ in little go with less."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.kit import Port, PostgresFactory, new, opened, status, submit

from mainspring.store.base import BLOB_OUTPUT, RELEASED, Claimed
from mainspring.store.postgres.session import Found, Session
from mainspring.tasks import TaskStatus, Usage

pytestmark = pytest.mark.anyio
USAGE: dict[str, Any] = {"duration": 0.5, "cpu_time": 0.25, "memory_bytes": 7, "network_bytes": 8}
LANES: dict[str, Any] = {"async": ["custom:work"], "thread": []}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "output": {"output": b"another"},
    "start": {"started_ms": 1},
    "duration": {"usage": Usage(**USAGE | {"duration": 1.5})},
    "CPU time": {"usage": Usage(**USAGE | {"cpu_time": None})},
    "memory": {"usage": Usage(**USAGE | {"memory_bytes": 70})},
    "network": {"usage": Usage(**USAGE | {"network_bytes": None})},
    "batch": {"usage": Usage(**USAGE, batch_size=3)},
    "flags": {"flags": BLOB_OUTPUT},
    "lane": {"lane": "thread"},
    "attempt": {"attempt": 2},
}
"""What an end has that others have not."""
APART = {"batch", "flags", "lane", "attempt", "memory", "network"}
"""Those that keep it from being written alike."""


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that wrote ends."""
    seen: list[str] = []
    real = Session.run

    def run(self: Session, name: str, values: Any = ()) -> Found:
        if name.startswith("complete_"):
            seen.append(name)
        return real(self, name, values)

    monkeypatch.setattr(Session, "run", run)
    return seen


def stored(factory: PostgresFactory) -> list[str]:
    """Return all tasks with their attempts, in their order, without what no two have in common."""
    rows = factory._ask(
        """SELECT (to_jsonb(mine) - ARRAY['seq', 'id', 'rank'])::text || (to_jsonb(tried) - 'task')::text
           FROM task AS mine JOIN attempt AS tried ON tried.task = mine.seq ORDER BY mine.seq"""
    )
    return [text for (text,) in rows]


async def held(store: Any, port: Port, attempt: int = 1) -> Claimed:
    """Return the claim of a new task, of whatever attempt."""
    (id,) = await submit(store, new())
    await port.until(lambda: id in port.held)
    while port.held[id].attempt < attempt:
        port.end(port.held[id], RELEASED)
        await port.until(lambda: id in port.held)
    return port.held[id]


def end(port: Port, claim: Claimed, *, attempt: int = 1, lane: str = "async", **fields: Any) -> None:
    chosen: dict[str, Any] = {"started_ms": 5, "usage": Usage(**USAGE), **fields}
    port.end(claim, lane=lane, **chosen)


@pytest.mark.parametrize("option", OPTIONS)
async def test_ends_of_a_commit_are_stored_as_each_by_itself(
    factory: PostgresFactory, ways: list[str], option: str
) -> None:
    """Whether they differ or not: a commit of many says once what all of them have in common."""
    given = OPTIONS[option]
    async with opened(factory.make()) as store:
        port = Port(store, 99, **LANES)
        await port.serve()
        for options in ([given], [given, given], [{}, given]):
            claims = [await held(store, port, each.get("attempt", 1)) for each in options]
            ways_before = len(ways)
            async with factory.together(store, len(options)):
                for claim, each in zip(claims, options, strict=True):
                    end(port, claim, **each)
            await port.settle()
            assert len(ways) == ways_before + 1
        rows = stored(factory)
    alone, two, three, four, five = rows
    assert alone == two == three == five
    assert (alone == four) is (option == "nothing")
    last = "complete_and_note" if option in APART else "complete_alike"
    assert ways == ["complete_alike", "complete_alike", last]


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_lost_end_among_others_changes_nothing(factory: PostgresFactory, lane: str) -> None:
    """However they are written: the others are recorded, and it is reported as lost."""
    async with opened(factory.make()) as store:
        port = Port(store, 99, **LANES)
        await port.serve()
        good, stale = await held(store, port), await held(store, port)
        assert await store.withdraw(stale)
        async with factory.together(store, 2):
            end(port, good)
            end(port, stale, lane=lane)
        await port.settle()
        assert [finish.claim.id for finish in port.missed] == [stale.id]
        assert await status(store, good.id) is TaskStatus.COMPLETED
        assert await status(store, stale.id) is TaskStatus.CANCELLED
