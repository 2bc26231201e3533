"""How new tasks get into the tables of a server: those of a call that differ in little go with less."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conformance.kit import PostgresFactory, new, opened

from mainspring.store.base import RESERVES
from mainspring.store.postgres.session import Session
from mainspring.store.sql.transaction import Row

pytestmark = pytest.mark.anyio
FAR_MS = 4_000_000_000_000
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "priority": {"priority": 3},
    "max_retries": {"max_retries": 9},
    "timeout": {"timeout_ms": 5_000},
    "deadline": {"deadline_ms": FAR_MS},
    "not_before": {"not_before_ms": FAR_MS},
    "flags": {"flags": RESERVES},
    "spec": {"spec": b"\x80"},
    "group": {"group": "g"},
}
"""What a task is told that others are not."""
ITS_OWN = ("seq", "id", "rank", "input", "submitted_ms", "ready_ms")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that wrote new tasks."""
    seen: list[str] = []
    real = Session.changed

    def changed(self: Session, name: str, values: Any = ()) -> int:
        if name.startswith("insert_"):
            seen.append(name)
        return real(self, name, values)

    monkeypatch.setattr(Session, "changed", changed)
    return seen


def stored(factory: PostgresFactory) -> list[Row]:
    """Return the rows of all tasks, in their order, without what no two have in common."""
    columns = factory._ask("SELECT attname FROM pg_attribute WHERE attrelid = 'task'::regclass AND attnum > 0")
    shared = ", ".join(name for (name,) in columns if name not in ITS_OWN)
    return factory._ask(f"SELECT {shared} FROM task ORDER BY seq")


@pytest.mark.parametrize("option", OPTIONS)
async def test_tasks_of_a_call_are_stored_as_each_by_itself(
    factory: PostgresFactory, ways: list[str], option: str
) -> None:
    """Whether they differ or not: a call of many says once what all of them have in common."""
    given = OPTIONS[option]
    async with opened(factory.make()) as store:
        await store.submit([new("one", **given)])
        await store.submit([new("two", **given), new("three", **given)])
        await store.submit([new("four"), new("five", **given)])
        rows = stored(factory)
    alone, two, three, four, five = rows
    assert alone == two == three == five
    assert (alone == four) is (option == "nothing")
    assert ways == ["insert_task", "insert_alike", "insert_alike" if option == "nothing" else "insert_task"]
