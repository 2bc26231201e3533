"""What is too large for one statement goes to the server in several, and into one transaction all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.conformance.kit import Port, PostgresFactory, new, opened, submit

from mainspring.store.postgres import parts
from mainspring.store.postgres.session import Found, Session
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio
LIMIT = 10_000
LARGE = "x" * 1_000


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Statements that were given columns, with the bytes of these."""
    monkeypatch.setattr(parts, "STATEMENT_BYTES", LIMIT)
    found: list[tuple[str, int]] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Session, name: str, values: Sequence[Any] = ()) -> Any:
            lists = [value for value in values if isinstance(value, (list, tuple))]
            found.append((name, sum(len(one) for column in lists for one in column if isinstance(one, bytes))))
            return real(self, name, values)

        return run

    monkeypatch.setattr(Session, "run", noted(Session.run))
    monkeypatch.setattr(Session, "changed", noted(Session.changed))
    return found


def of(sent: list[tuple[str, int]], *names: str) -> list[int]:
    return [size for name, size in sent if name in names]


def transactions(factory: PostgresFactory) -> Found:
    return factory._ask("SELECT count(*), count(DISTINCT xmin::text) FROM task")


async def test_tasks_go_in_by_several_statements_and_one_commit(
    factory: PostgresFactory, sent: list[tuple[str, int]]
) -> None:
    """Alike or not: no statement has more than it may, no transaction has a part of a call."""
    async with opened(factory.make()) as store:
        ids = await submit(store, *(new(LARGE) for _ in range(50)), *(new(LARGE, priority=2) for _ in range(50)))
        sizes = of(sent, "insert_task", "insert_alike")
        assert len(sizes) > 10
        assert max(sizes) <= LIMIT
        assert sum(sizes) > 100 * len(LARGE)
        assert transactions(factory) == [(100, 1)]
        assert [bytes(id) for (id,) in factory._ask("SELECT id FROM task ORDER BY seq")] == ids


async def test_one_task_above_the_limit_goes_alone(factory: PostgresFactory, sent: list[tuple[str, int]]) -> None:
    async with opened(factory.make()) as store:
        await submit(store, new("a"), new("y" * 3 * LIMIT), new("b"))
        assert len(of(sent, "insert_task", "insert_alike")) == 3
        assert transactions(factory) == [(3, 1)]


async def test_outputs_are_recorded_by_several_statements(
    factory: PostgresFactory, sent: list[tuple[str, int]]
) -> None:
    """All of them are completed, also those of the last part."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        ids = await submit(store, *(new() for _ in range(40)))
        claims = await port.room(40)
        async with factory.together(store, 40):
            for claim in claims:
                port.end(claim, output=LARGE.encode())
        await port.until(lambda: len(port.ended_as()) == 40)
        sizes = of(sent, "complete_and_note", "complete_alike")
        assert max(sizes) <= LIMIT
        assert len(sizes) > 4
        assert sum(sizes) == 40 * len(LARGE)
        assert {state.status for state in factory.states().values()} == {TaskStatus.COMPLETED}
        assert set(port.ended_as()) == set(ids)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([], []),
        ([1], [1]),
        ([LIMIT + 1], [1]),
        ([LIMIT, 1], [1, 1]),
        ([1, LIMIT - 1], [2]),
        ([LIMIT + 1, 1, 1], [1, 2]),
        ([1, LIMIT + 1, 1], [1, 1, 1]),
        ([LIMIT // 2] * 5, [2, 2, 1]),
    ],
)
def test_parts_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch, sizes: list[int], cut: list[int]) -> None:
    monkeypatch.setattr(parts, "STATEMENT_BYTES", LIMIT)
    found = list(parts.parts(sizes))
    assert [part.stop - part.start for part in found] == cut
    assert [size for part in found for size in sizes[part]] == sizes
