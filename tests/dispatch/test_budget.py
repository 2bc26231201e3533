"""How large a call should be is found out by trying."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.dispatch.budget import Budget, Fit


def calls_of(budget: Budget, calls: int, seconds: Callable[[float], float]) -> list[float]:
    """Make full calls; return what each cost."""
    costs = []
    for _ in range(calls):
        cost = float(int(budget.limit))
        costs.append(cost)
        budget.learn(cost, seconds(cost))
    return costs


@given(
    best=st.integers(0, 7),
    below=st.floats(1.3, 3),
    above=st.floats(1.3, 3),
)
def test_the_bottom_of_a_valley_is_found(best: int, below: float, above: float) -> None:
    """Whatever its flanks are like, and wherever it is: most calls are of the best size, or beside it for a trial."""

    def seconds(cost: float) -> float:
        halvings = {128 >> n: n for n in range(8)}[int(cost)]
        apart = halvings - best
        return cost * (below**apart if apart > 0 else above**-apart)

    budget = Budget(128)
    calls_of(budget, 400, seconds)
    assert budget.learned == 128 >> best


def test_a_fixed_cost_keeps_calls_large() -> None:
    """As with a service that takes as long for many as for one: trials are few, and get fewer."""
    budget = Budget(64)
    costs = calls_of(budget, 4000, lambda cost: 0.1 + 0.0001 * cost)
    assert budget.learned == 64
    smaller = [index for index, cost in enumerate(costs) if cost < 64]
    assert len(smaller) < 100
    assert sum(index >= 2000 for index in smaller) <= 16


def test_a_change_is_noticed() -> None:
    """What paid once is left again when it pays no more."""
    budget = Budget(64)
    calls_of(budget, 200, lambda cost: cost * cost)
    assert budget.learned == 1
    calls_of(budget, 3000, lambda _: 1.0)
    assert budget.learned == 64


@pytest.mark.parametrize(("cost", "seconds"), [(64, 0.001), (32, 1.0), (65, 1.0), (0, 1.0)])
def test_what_says_nothing_is_not_counted(cost: float, seconds: float) -> None:
    """A call too short to matter, one that was not full, one too large to join, and one that costs nothing."""
    budget = Budget(64)
    for _ in range(100):
        budget.learn(cost, seconds)
    assert budget.limit == 64


def test_one_item_may_always_run() -> None:
    budget = Budget(1)
    assert calls_of(budget, 50, lambda _: 1.0) == [1.0] * 50


@pytest.mark.parametrize("allowed", [0.25, 1, 1.5, 2])
def test_no_call_takes_more_than_what_is_allowed(allowed: float) -> None:
    """Whatever is tried, and in whatever unit costs are counted."""
    budget = Budget(allowed)
    for _ in range(200):
        assert budget.limit <= allowed
        budget.learn(budget.limit, 1.0)


def calls_in(fit: Fit, calls: int, room: int) -> list[int]:
    """Make full calls where memory is enough for so many items; return how many went into each."""
    sizes = []
    for _ in range(calls):
        sizes.append(fit.size)
        if fit.size > room:
            fit.ran_out(room)
        else:
            fit.took(fit.size)
    return sizes


def test_more_is_tried_where_memory_ran_out_and_ever_more_seldom() -> None:
    fit = Fit()
    fit.ran_out(4)
    sizes = calls_in(fit, 8 + 1 + 16 + 1 + 32 + 1, 4)
    assert [n for n, size in enumerate(sizes) if size > 4] == [8, 25, 58]
    assert set(sizes) == {4, 8}
    assert sum(size > 4 for size in calls_in(fit, 10_000, 4)) < 20


def test_calls_grow_again_when_memory_is_there_again() -> None:
    """Also from one item, where not even that had gone through. Calls that are not full say nothing."""
    fit = Fit()
    fit.ran_out(0)
    assert fit.size == 1
    assert calls_in(fit, 24, 64) == [1] * 8 + [2] * 8 + [4] * 8
    for _ in range(100):
        fit.took(7)
    assert fit.size == 8
