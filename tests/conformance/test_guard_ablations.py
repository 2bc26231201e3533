"""The credibility of the tests of claims on a server: one guard taken out at a time, and the test that must notice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.conformance import test_claims as of_claims
from tests.conformance import test_outcomes as of_outcomes
from tests.conformance.kit import OUTPUT, Port, PostgresFactory, error, new, opened, submit

from mainspring.store.base import COMPLETED, FAILED, RETRY, Finish
from mainspring.store.postgres.statements import SQL
from mainspring.store.ready import ANYWHERE, Place, Ready, Woken
from mainspring.tasks import TaskStatus

pytestmark = pytest.mark.anyio
Test = Callable[[PostgresFactory, Any, Port], Awaitable[None]]


def unguarded(name: str, *guards: str) -> AbstractContextManager[Any]:
    """A statement that takes whoever asks, whatever became of the claim meanwhile."""
    text = SQL[name]
    for guard in guards:
        assert guard in text
        text = text.replace(guard, f"{guard.rpartition('= ')[2]}::integer IS NOT NULL")
    return mock.patch.dict(SQL, {name: text})


def unguarded_completion() -> AbstractContextManager[Any]:
    """The row of the attempt, which can't be written twice, is a second guard; it goes as well."""
    guards = {
        "complete_and_note": ("task.attempt = v.attempt", "coalesce(task.owner, 0) = v.owner"),
        "complete_alike": ("task.attempt = $8::integer", "coalesce(task.owner, 0) = $9::integer"),
    }
    texts = {}
    for name, both in guards.items():
        with unguarded(name, *both):
            text = SQL[name]
        before, end, after = text.partition(")\nSELECT")
        assert end
        texts[name] = f"{before} ON CONFLICT DO NOTHING{end}{after}"
    return mock.patch.dict(SQL, texts)


def unflagged(name: str, guard: str) -> AbstractContextManager[Any]:
    """A statement that doesn't see whether somebody asked for a cancel."""
    assert guard in SQL[name]
    return mock.patch.dict(SQL, {name: SQL[name].replace(guard, "true")})


def after_a_cancel(outcome: int) -> Test:
    async def run(factory: PostgresFactory, store: Any, port: Port) -> None:
        (id,) = await submit(store, new())
        claim = await port.take()
        await store.cancel(id)
        await port.finish(claim, outcome, error=error(), delay_ms=100)
        assert str((await store.info(id)).status) == str(TaskStatus.CANCELLED)

    return run


def stale(what: str, outcome: int) -> Test:
    async def run(factory: PostgresFactory, store: Any, port: Port) -> None:
        await of_outcomes.test_a_lost_claim_changes_nothing(factory, store, port, what, outcome)

    return run


async def a_late_completion(factory: PostgresFactory, store: Any, port: Port) -> None:
    """Without effects and children: many of these go into one statement."""
    claim, id = await of_outcomes.stale_after("next attempt", factory, store, port)
    await port.finish(claim, COMPLETED)
    assert [finish.claim.attempt for finish in port.missed] == [1]
    assert str((await store.info(id)).reason) == "claimed"


def a_late_completion_beside(lane: str) -> Test:
    """With one that is in time: where both ran in one lane they say once what they have in common."""

    async def run(factory: PostgresFactory, store: Any, port: Port) -> None:
        late, id = await of_outcomes.stale_after("next attempt", factory, store, port)
        (other,) = await submit(store, new())
        claim = await port.take()
        async with factory.together(store, 2):
            port.end(claim)
            store.finish(Finish(late, COMPLETED, store.now_ms(), output=OUTPUT, lane=lane))
        await port.settle()
        assert [finish.claim.attempt for finish in port.missed] == [1]
        assert str((await store.info(id)).reason) == "claimed"
        assert str((await store.info(other)).status) == str(TaskStatus.COMPLETED)

    return run


async def a_start_of_the_attempt_before(factory: PostgresFactory, store: Any, port: Port) -> None:
    """Another attempt is held meanwhile, which has not begun."""
    (id,) = await submit(store, new())
    claim = await port.take()
    await port.finish(claim, RETRY, error=error())
    await port.take()
    store.started(claim, store.now_ms())
    await port.settle()
    assert str((await store.info(id)).reason) == "claimed"


async def better_ones(factory: PostgresFactory, store: Any, port: Port) -> None:
    await of_claims.test_a_better_task_of_another_process_is_not_passed_over(factory, store, port)


async def better_ones_of_its_own(factory: PostgresFactory, store: Any, port: Port) -> None:
    """What comes last goes first, though the place of what waits is known by then."""
    first = await submit(store, *(new(priority=1) for _ in range(3)))
    assert [claim.id for claim in await port.room(1)] == first[:1]
    (urgent,) = await submit(store, new(priority=3))
    assert [claim.id for claim in await port.room(1)] == [urgent]


def _only_where_unknown(ready: Ready, class_id: int, bound: Place) -> None:
    if class_id not in list(ready):
        ready.set(class_id, bound)


def _far_behind(woken: Woken, class_id: int, place: Place = ANYWHERE) -> None:
    woken._places[class_id] = (1 << 62, 0)


ABLATIONS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Test]] = {
    "a start is not fenced by the attempt": (
        lambda: unguarded("start", "attempt = $2"),
        a_start_of_the_attempt_before,
    ),
    "a completion is not fenced by the attempt": (
        unguarded_completion,
        a_late_completion,
    ),
    "a completion is not fenced by the attempt, beside another of its lane": (
        unguarded_completion,
        a_late_completion_beside("async"),
    ),
    "a completion is not fenced by the attempt, beside another of another lane": (
        unguarded_completion,
        a_late_completion_beside("thread"),
    ),
    "another outcome is not fenced by the attempt": (
        lambda: unguarded("held", "attempt = $2", "coalesce(owner, 0) = $3"),
        stale("next attempt", FAILED),
    ),
    "a failure is not fenced by the attempt": (
        lambda: unguarded("end_many", "task.attempt = v.attempt", "coalesce(task.owner, 0) = v.owner"),
        stale("withdrawn", FAILED),
    ),
    "a retry is not fenced by the attempt": (
        lambda: unguarded("again_many", "task.attempt = v.attempt", "coalesce(task.owner, 0) = v.owner"),
        stale("released", RETRY),
    ),
    "a cancel does not keep from another try": (
        lambda: unflagged("again_many", "task.flags & 1 = 0"),
        after_a_cancel(RETRY),
    ),
    "a cancel does not keep from a failure": (
        lambda: unflagged("end_many", "task.flags & 1 = 0"),
        after_a_cancel(FAILED),
    ),
    "an outcome is taken after the end": (
        lambda: unguarded("held", "attempt = $2", "coalesce(owner, 0) = $3"),
        stale("failed", RETRY),
    ),
    "nobody hears that a better task has come": (
        lambda: mock.patch.object(Ready, "lower", _only_where_unknown),
        better_ones_of_its_own,
    ),
    "a better task leaves no word of its place": (
        lambda: mock.patch.object(Woken, "add", _far_behind),
        better_ones,
    ),
}
"""What is taken out, by what the store does without it; with the test that has to fail then."""


@pytest.mark.parametrize("name", ABLATIONS)
async def test_each_is_noticed(name: str, tmp_path: Path) -> None:
    """The test passes as it is, and fails without the guard."""
    ablated, test = ABLATIONS[name]

    async def run(folder: Path) -> None:
        factory = PostgresFactory(folder)
        try:
            async with opened(factory.make()) as store:
                port = Port(store)
                await port.serve()
                await test(factory, store, port)
        finally:
            factory.drop()

    for folder in ("whole", "ablated"):
        (tmp_path / folder).mkdir()
    await run(tmp_path / "whole")
    with ablated(), pytest.raises(AssertionError):
        await run(tmp_path / "ablated")
