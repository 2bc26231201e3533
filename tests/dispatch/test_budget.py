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


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 2), (0.11, 2), (0.04, 5), (0.005, 8)])
def test_long_calls_are_few_enough_to_tell(seconds: float, calls: int) -> None:
    """Another size is tried after so many, and left again after as many where it does not pay."""
    costs = calls_of(Budget(64), 2 * calls + 1, lambda _: seconds)
    assert costs == [64.0] * calls + [32.0] * calls + [64.0]


def trials(costs: list[float], usual: float) -> list[tuple[int, float]]:
    """Return how many usual calls came before each trial, and what its calls cost."""
    found, calls = [], 0
    for cost, following in zip(costs, [*costs[1:], 0.0], strict=True):
        if cost == usual:
            calls += 1
        elif following == usual:
            found.append((calls, cost))
            calls = 0
    return found


def test_trials_that_do_not_pay_come_ever_more_seldom() -> None:
    """Each after twice as many calls as the one before, up to a bound; towards smaller and larger calls in turns."""
    costs = calls_of(Budget(64), 6_000, lambda cost: 0.01 * max(cost, 256 / cost) ** 2 / 16)
    found = trials(costs[costs.index(16.0) :], 16.0)
    assert [calls for calls, _ in found][1:10] == [8, 16, 32, 64, 128, 256, 512, 1024, 1024]
    assert [cost for _, cost in found][:6] in ([8.0, 32.0] * 3, [32.0, 8.0] * 3)


def test_what_pays_after_long_is_followed_at_once() -> None:
    """However seldom trials had become, the next sizes are tried one after the other, and soon again."""
    budget = Budget(64)
    calls_of(budget, 6_000, lambda _: 0.1)
    costs = calls_of(budget, 1_500, lambda cost: cost * cost)
    down = costs[costs.index(32.0) :]
    assert down[:12] == [32.0] * 2 + [16.0] * 2 + [8.0] * 2 + [4.0] * 2 + [2.0] * 2 + [1.0] * 2
    assert [calls for calls, _ in trials(down[10:], 1.0)][1:4] == [8, 16, 32]


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


def test_more_is_tried_however_often_memory_ran_out() -> None:
    """The next trial is never further away than some thousand calls."""
    fit = Fit()
    for _ in range(30):
        fit.ran_out(4)
    assert calls_in(fit, 1_025, 64)[-2:] == [4, 8]
