"""The credibility of the tests of equal work: one safeguard taken out at a time, and the test that must notice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.conformance import test_cache as of_stores
from tests.conformance.kit import Factory, Port, SqliteFactory, opened
from tests.engine import test_cache as of_engines

from mainspring.errors import InternalError
from mainspring.results.cache import ResultCache
from mainspring.store.base import BLOB_OUTPUT, WANTS_KEPT, WorkName
from mainspring.store.sql import commands, flights, graph, intake, outcomes, upkeep
from mainspring.store.sqlite.statements import SQL
from mainspring.tasks import TextOutput
from mainspring.tasks.codec import encode

pytestmark = pytest.mark.anyio

Test = Callable[[Factory], Awaitable[None]]


def on_a_store(test: Callable[..., Awaitable[None]]) -> Test:
    async def run(factory: Factory) -> None:
        async with opened(factory.make()) as store:
            port = Port(store)
            await port.serve()
            given = {"factory": factory, "store": store, "port": port}
            names = test.__code__.co_varnames[: test.__code__.co_argcount]
            await test(**{name: given[name] for name in names})

    return run


def on_a_file(test: Callable[[Path], Awaitable[None]]) -> Test:
    async def run(factory: Any) -> None:
        await test(factory.path.parent)

    return run


def sql(name: str, before: str, after: str) -> AbstractContextManager[Any]:
    assert before in SQL[name]
    return mock.patch.dict(SQL, {name: SQL[name].replace(before, after)})


def replaced(owner: Any, name: str, by: Any) -> AbstractContextManager[Any]:
    return mock.patch.object(owner, name, by)


@contextmanager
def failures_are_kept() -> Iterator[None]:
    def as_a_result(finish: Any, outcome: int, error: bytes | None) -> Any:
        namespace, kind, _ = finish.claim.class_key
        empty = encode(TextOutput(""))[0]
        return flights.Result(finish.claim.work, namespace, kind, empty, 0, len(empty))

    with mock.patch.object(outcomes, "_failure", as_a_result):
        yield


def _whatever_came_with_it(finish: Any, output: bytes) -> Any:
    work = finish.claim.work or WorkName(of_stores.KEY, "1")
    namespace, kind, _ = finish.claim.class_key
    return flights.Result(work, namespace, kind, output, finish.flags & BLOB_OUTPUT, len(output))


def _by_any_code(finish: Any, outcome: int, error: bytes) -> Any:
    return flights.Failure(outcomes._STATUS[outcome], error, None)


def _of_any_code(self: Any, kind: str, model_id: str | None) -> tuple[str, str]:
    return "1", ""


_go_on = flights._go_on


def _as_was_asked(tx: Any, key: bytes, end: Any) -> Any:
    asked = WorkName(of_stores.KEY, "1")
    return _go_on(tx, key, end._replace(work=asked) if isinstance(end, flights.Result) else end)


async def with_children(store: Any, port: Port) -> None:
    await of_stores.test_a_result_that_came_with_more_is_not_kept(store, port, "children")


ABLATIONS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Test]] = {
    "no version in the key": (
        lambda: replaced(ResultCache, "_code_of", _of_any_code),
        on_a_file(of_engines.test_another_version_or_source_is_other_work),
    ),
    "no single flight": (
        lambda: replaced(flights, "leaders", lambda tx, works: {}),
        on_a_store(of_stores.test_equal_work_runs_once),
    ),
    "failures are kept": (failures_are_kept, on_a_store(of_stores.test_failures_are_not_kept)),
    "what came with more is shared": (
        lambda: replaced(outcomes, "_shareable", _whatever_came_with_it),
        on_a_store(with_children),
    ),
    "age is not looked at": (
        lambda: replaced(flights, "is_fresh", lambda tx, found, keep_ms: found is not None),
        on_a_store(of_stores.test_a_result_is_kept_for_as_long_as_was_said),
    ),
    "nothing expires": (
        lambda: sql("kept", "expires_ms > ?", "expires_ms > 0 * ?"),
        on_a_store(of_stores.test_a_result_is_kept_for_as_long_as_was_said),
    ),
    "whoever leads and goes takes all along": (
        lambda: replaced(flights, "_elect", lambda tx, key, has_result: None),
        on_a_store(of_stores.test_who_leads_and_goes_hands_over_to_the_best),
    ),
    "a failure is nobody else's": (
        lambda: replaced(outcomes, "_failure", lambda finish, outcome, error: None),
        on_a_store(of_stores.test_a_final_failure_is_shared),
    ),
    "a deadline is taken for a failure": (
        lambda: replaced(
            outcomes,
            "_failure",
            lambda finish, outcome, error: flights.Failure(outcomes._STATUS[outcome], error, finish.claim.work),
        ),
        on_a_store(of_stores.test_a_final_timeout_is_shared_and_a_deadline_is_not),
    ),
    "other code answers": (
        lambda: replaced(flights, "_go_on", _as_was_asked),
        on_a_store(of_stores.test_other_code_does_not_answer_for_who_waits),
    ),
    "other code fails for those that wait": (
        lambda: replaced(outcomes, "_failure", _by_any_code),
        on_a_store(of_stores.test_other_code_does_not_fail_for_who_waits),
    ),
    "a cancel is not looked at": (
        lambda: replaced(commands, "CANCEL_ASKED", 0),
        on_a_store(of_stores.test_a_cancelled_claim_is_not_compared),
    ),
    "leaders keep their rank": (
        lambda: replaced(intake, "raise_parents", lambda tx, parents, rank: None),
        on_a_store(of_stores.test_the_leader_takes_the_best_rank),
    ),
    "blobs of kept results are nobody's": (
        lambda: sql("blob_in_use", "FROM cache WHERE digest", "FROM cache WHERE -digest"),
        on_a_store(of_stores.test_a_blob_stays_as_long_as_something_names_it),
    ),
    "whatever expires stays": (
        lambda: replaced(upkeep, "prune_kept", lambda tx: False),
        of_stores.test_old_and_unused_results_go,
    ),
    "what is made anew forgets that it may be kept": (
        lambda: replaced(commands, "_RENEWED", commands._RENEWED & ~WANTS_KEPT),
        on_a_store(of_stores.test_what_is_made_anew_is_compared_anew),
    ),
    "ends that are shared don't travel": (
        lambda: replaced(graph, "ended", lambda tx, tasks: None),
        on_a_store(of_stores.test_a_claim_takes_a_kept_result),
    ),
}
"""What is taken out, by what the store does without it; with the test that has to fail then."""

NOTICED_BY_THE_STORE = {
    "no single flight": "UNIQUE constraint failed: flight.key",
    "a cancel is not looked at": "statement complete found no row",
}
"""Where the store stops before the test sees anything: what it says."""


@pytest.mark.parametrize("name", ABLATIONS)
async def test_each_is_noticed(name: str, tmp_path: Path) -> None:
    """The test passes as it is, and fails without the safeguard, by what it asserts or what the store can't do."""
    ablated, test = ABLATIONS[name]
    for folder in ("whole", "ablated"):
        (tmp_path / folder).mkdir()
    await test(SqliteFactory(tmp_path / "whole"))
    of_engines.RUNS.clear()
    says = NOTICED_BY_THE_STORE.get(name)
    with ablated(), pytest.raises(AssertionError if says is None else InternalError, match=says):
        await test(SqliteFactory(tmp_path / "ablated"))
