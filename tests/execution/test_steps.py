"""What a step of a coroutine is charged with, whatever went on around it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.environment import Environment
from mainspring.execution.steps import StepClock

SPAN = st.floats(0, 200e-6)
SHARE = st.floats(0, 1)
CLOSE = 1e-8  # nanoseconds are whole


class Clocks(Environment):
    """Time passes when it is told to; of it the thread gets a share."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.reads = 0

    def monotonic(self) -> float:
        return self.now_s

    def thread_cpu_ns(self) -> int:
        self.reads += 1
        return int(self.cpu_s * 1e9)

    def run(self, span_s: float, share: float) -> float:
        """Let time pass; returns what the thread got."""
        self.now_s += span_s
        self.cpu_s += span_s * share
        return span_s * share


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SPAN, SHARE, SPAN, SHARE, st.booleans()), max_size=20))
def test_a_step_is_charged_for_what_it_used(turns: list[tuple[float, float, float, float, bool]]) -> None:
    """Never too little, and too much by 50 us at most: whatever the thread did before, and with steps within steps."""
    clocks = Clocks()
    clock = StepClock(clocks)
    for gap_s, gap_share, step_s, share, holds_another in turns:
        clocks.run(gap_s, gap_share)
        began = clock.monotonic()
        base = clock.begin(began)
        used = clocks.run(step_s, share)
        if holds_another:
            inner_began = clock.monotonic()
            inner_base = clock.begin(inner_began)
            inner_used = clocks.run(step_s, share)
            inner = clock.spent(inner_base, clock.monotonic() - inner_began)
            assert inner_used - CLOSE <= inner <= inner_used + 50e-6 + CLOSE
            used += inner_used
        spent = clock.spent(base, clock.monotonic() - began)
        assert used - CLOSE <= spent <= used + 50e-6 + CLOSE


def test_the_clock_is_read_for_long_steps_alone() -> None:
    """A hundred neighbours of 8 us share readings; one of a second has its own."""
    clocks = Clocks()
    clock = StepClock(clocks)
    for _ in range(100):
        base = clock.begin(clock.monotonic())
        clocks.run(1e-6, 1.0)
        assert clock.spent(base, 1e-6) == 1e-6
        clocks.run(7e-6, 1.0)
    assert clocks.reads < 20
    base, before = clock.begin(clock.monotonic()), clocks.reads
    clocks.run(1.0, 0.25)
    assert clock.spent(base, 1.0) == pytest.approx(0.25, abs=50e-6)
    assert clocks.reads == before + 1
