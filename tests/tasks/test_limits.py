"""Rates: what is written is read, and never more begins than was said, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.errors import InvalidInput
from mainspring.tasks import Rate
from mainspring.tasks.limits import CostRate


@pytest.mark.parametrize(
    ("text", "n", "ms", "shown"),
    [
        ("60/m", 60, 60_000, "60/m"),
        ("10/s", 10, 1_000, "10/s"),
        (" 5 / 30s ", 5, 30_000, "5/30s"),
        ("1,000/h", 1_000, 3_600_000, "1000/h"),
        ("7/d", 7, 86_400_000, "7/d"),
        ("3/60s", 3, 60_000, "3/m"),
        ("1/8ms", 1, 8, "1/8ms"),
        ("2/1.5s", 2, 1_500, "2/1500ms"),
        ("1/30d", 1, 2_592_000_000, "1/30d"),
        ("5/2w", 5, 1_209_600_000, "5/14d"),
        ("3/90s", 3, 90_000, "3/90s"),
        ("1/1234567ms", 1, 1_234_567, "1/1234567ms"),
        ("9/3650d", 9, 315_360_000_000, "9/3650d"),
    ],
)
def test_what_is_a_rate(text: str, n: int, ms: int, shown: str) -> None:
    """A number in a time; what is shown is read back as the same."""
    rate = Rate.parse(text, "rate")
    assert (rate.n, rate.ms, str(rate)) == (n, ms, shown)
    assert Rate.parse(str(rate), "rate") == rate


@pytest.mark.parametrize("text", ["60", "/m", "0/m", "-1/m", "6/0s", "x/m", "60/month", "", "2000000/s", 60, None])
def test_what_is_no_rate(text: str) -> None:
    """It is named with its field and what one looks like."""
    with pytest.raises(InvalidInput) as caught:
        Rate.parse(text, "rate")
    assert caught.value.field == "rate"


@given(n=st.integers(1, 1_000), ms=st.integers(1, 315_360_000_000))
def test_what_is_shown_is_read_back(n: int, ms: int) -> None:
    """Whatever the time is, to the millisecond, up to ten years."""
    assert Rate.parse(str(Rate(n, ms)), "rate") == (n, ms)
    assert CostRate.parse(str(CostRate(n, ms)), "cost_rate") == (n, ms)


RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([8, 1_000, 60_000]))
STEPS = st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(0, 60)), min_size=1, max_size=30)


@given(rate=RATES, steps=STEPS)
def test_no_more_begin_than_the_rate_allows(rate: Rate, steps: list[tuple[int, int]]) -> None:
    """In any stretch of time at most a bucket full and what came in meanwhile; and never less than is there."""
    now, full = 1_800_000_000_000_000, 0
    begun: list[tuple[int, int]] = []
    for wait, wanted in steps:
        now += wait
        n = min(wanted, rate.left(full, now))
        full = rate.after(full, now, n)
        begun.append((now, n))
        if rate.left(full, now) == 0:
            assert rate.left(full, rate.next_us(full, now)) >= 1
            assert rate.left(full, rate.next_us(full, now) - 1) == 0
    for i, (since, _) in enumerate(begun):
        for until, _ in begun[i:]:
            total = sum(n for at, n in begun if since <= at <= until)
            assert total <= rate.n + (until - since) * rate.n / (rate.ms * 1_000) + 1e-6


@given(rate=RATES, used=st.integers(0, 60), back=st.integers(0, 10**12))
def test_another_clock_blocks_nobody(rate: Rate, used: int, back: int) -> None:
    """What a clock that was ahead has written lasts no longer than an empty bucket takes to fill."""
    ahead = 1_800_000_000_000_000
    full = rate.after(0, ahead, min(used, rate.n))
    now = ahead - back
    assert rate.next_us(full, now) - now <= rate.ms * 1_000 // rate.n + 1


def test_what_is_given_back_is_there_again() -> None:
    """And never more than there can be."""
    rate = Rate(3, 60_000)
    full = rate.after(0, 10**15, 3)
    assert rate.left(full, 10**15) == 0
    third, first = full, rate.after(0, 10**15, 1)
    assert rate.left(full - rate.rest_us(third, 10**15) - rate.rest_us(first, 10**15), 10**15) == 2
    assert rate.left(full - 9 * rate.rest_us(third, 10**15), 10**15) == 3
    assert rate.rest_us(first, first) == rate.rest_us(first, 10**16) == 0
    assert rate.rest_us(rate.after(0, 10**15, 2), first - 1) == 20 * 10**6
    assert rate.rest_us(first, first - 5) == 5
