"""How large a call should be is found out by trying."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.dispatch.budget import Budget, Fit


def calls_of(budget: Budget, calls: int, seconds: Callable[[int], float], item: float = 1.0) -> list[int]:
    """Make full calls of items that cost as much as said; return how many each held."""
    sizes = []
    for _ in range(calls):
        n = min(budget.size, max(1, int(budget.cost / item))) if item and budget.cost < math.inf else budget.size
        sizes.append(n)
        budget.learn(budget.halvings, n, n * item, seconds(n))
    return sizes


@given(
    best=st.integers(0, 7),
    below=st.floats(1.3, 3),
    above=st.floats(1.3, 3),
)
def test_the_bottom_of_a_valley_is_found(best: int, below: float, above: float) -> None:
    """Whatever its flanks are like, and wherever it is: most calls are of the best size, or beside it for a trial."""

    def seconds(size: int) -> float:
        halvings = {128 >> n: n for n in range(8)}[size]
        apart = halvings - best
        return size * (below**apart if apart > 0 else above**-apart)

    budget = Budget(128)
    calls_of(budget, 400, seconds)
    assert budget.learned == 128 >> best


def test_a_fixed_cost_keeps_calls_large() -> None:
    """As with a service that takes as long for many as for one: trials are few, and get fewer."""
    budget = Budget(64)
    sizes = calls_of(budget, 4000, lambda size: 0.1 + 0.0001 * size)
    assert budget.learned == 64
    smaller = [index for index, size in enumerate(sizes) if size < 64]
    assert len(smaller) < 100
    assert sum(index >= 2000 for index in smaller) <= 16


def test_a_change_is_noticed() -> None:
    """What paid once is left again when it pays no more."""
    budget = Budget(64)
    calls_of(budget, 200, lambda size: size * size)
    assert budget.learned == 1
    calls_of(budget, 3000, lambda _: 1.0)
    assert budget.learned == 64


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 2), (0.11, 2), (0.04, 5), (0.005, 8)])
def test_long_calls_are_few_enough_to_tell(seconds: float, calls: int) -> None:
    """Another size is tried after so many, and left again after as many where it does not pay."""
    sizes = calls_of(Budget(64), 2 * calls + 1, lambda _: seconds)
    assert sizes == [64] * calls + [32] * calls + [64]


def trials(sizes: list[int], usual: int) -> list[tuple[int, int]]:
    """Return how many usual calls came before each trial, and what its calls held."""
    found, calls = [], 0
    for size, following in zip(sizes, [*sizes[1:], 0], strict=True):
        if size == usual:
            calls += 1
        elif following == usual:
            found.append((calls, size))
            calls = 0
    return found


def test_trials_that_do_not_pay_come_ever_more_seldom() -> None:
    """Each after twice as many calls as the one before, up to a bound; towards smaller and larger calls in turns."""
    sizes = calls_of(Budget(64), 6_000, lambda size: 0.01 * max(size, 256 / size) ** 2 / 16)
    found = trials(sizes[sizes.index(16) :], 16)
    assert [calls for calls, _ in found][1:10] == [8, 16, 32, 64, 128, 256, 512, 1024, 1024]
    assert [size for _, size in found][:6] in ([8, 32] * 3, [32, 8] * 3)


def test_what_pays_after_long_is_followed_at_once() -> None:
    """However seldom trials had become, the next sizes are tried one after the other, and soon again."""
    budget = Budget(64)
    calls_of(budget, 6_000, lambda _: 0.1)
    sizes = calls_of(budget, 1_500, lambda size: size * size)
    down = sizes[sizes.index(32) :]
    assert down[:12] == [32] * 2 + [16] * 2 + [8] * 2 + [4] * 2 + [2] * 2 + [1] * 2
    assert [calls for calls, _ in trials(down[10:], 1)][1:4] == [8, 16, 32]


@pytest.mark.parametrize(("items", "cost", "seconds"), [(10, 64, 0.001), (1, 65, 1.0)])
def test_what_says_nothing_is_not_counted(items: int, cost: float, seconds: float) -> None:
    """A call too short to matter, and an item too large to join."""
    budget = Budget(16, 64)
    for _ in range(100):
        budget.learn(budget.halvings, items, cost, seconds)
        assert (budget.size, budget.cost) == (16, 64)


def test_calls_of_another_size_are_not_counted() -> None:
    """Those that were made before the last step end after it where several slots are at work."""
    budget = Budget(64)
    calls_of(budget, 2, lambda _: 1.0)
    assert budget.halvings == 1
    for _ in range(100):
        budget.learn(0, 64, 64, 1.0)
    assert budget.halvings == 1


def test_one_item_may_always_run() -> None:
    budget = Budget(1)
    assert calls_of(budget, 50, lambda _: 1.0) == [1] * 50


@pytest.mark.parametrize("allowed", [0.25, 1, 1.5, 2])
def test_no_call_takes_more_than_what_is_allowed(allowed: float) -> None:
    """Whatever is tried, and in whatever unit costs are counted."""
    budget = Budget(3, allowed)
    for _ in range(200):
        assert budget.cost <= allowed
        assert budget.size <= 3
        budget.learn(budget.halvings, budget.size, budget.cost, 1.0)


COSTS = [
    pytest.param(64, math.inf, 1.0, 64, id="by count alone"),
    pytest.param(64, 16_384, 60, 64, id="by count, where costs are counted"),
    pytest.param(64, 16_384, 0, 64, id="by count, at no cost"),
    pytest.param(64, 16_384, 1_000, 16, id="by cost"),
    pytest.param(64, 16_384, 3_000, 5, id="by cost, dear"),
    pytest.param(10_000, 1.0, 1 / 64, 64, id="by cost, in fractions"),
    pytest.param(64, 1.0, 0.3, 3, id="by cost, dear in fractions"),
    pytest.param(10_000, 1e12, 1e11, 10, id="by cost, in large units"),
]


@pytest.mark.parametrize(("size", "cost", "item", "most"), COSTS)
def test_whatever_fills_calls_is_learned(size: int, cost: float, item: float, most: int) -> None:
    """Where small calls pay they get small, where they pay no more they get large again, and so on."""
    budget = Budget(size, cost)
    for _ in range(3):
        sizes = calls_of(budget, 3_000, lambda size: size * size, item)
        assert sizes[0] == most
        assert sizes[-1_000:].count(1) > 900
        sizes = calls_of(budget, 6_000, lambda size: 0.5 + 0.001 * size, item)
        assert sizes[-1_000:].count(most) > 900


def test_items_that_became_dear_are_joined_again() -> None:
    """However much smaller calls had become, and however many steps it takes until they hold more than one."""
    budget = Budget(256, 16_384)
    calls_of(budget, 1_000, lambda size: size * size, 64)
    assert budget.cost == 64
    sizes = calls_of(budget, 3_000, lambda _: 1.0, 3_000)
    assert sizes[-100:] == [5] * 100


def test_short_calls_grow_too() -> None:
    """No trial is left open because its calls are too short to matter, nor are calls left small when they got short."""
    budget = Budget(64)
    sizes = calls_of(budget, 1_000, lambda size: 0.0014 + 0.0016 * size / 64)
    assert sizes[-100:] == [64] * 100
    calls_of(budget, 1_000, lambda size: size * size)
    sizes = calls_of(budget, 3_000, lambda _: 0.001)
    assert sizes[-100:] == [64] * 100


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
