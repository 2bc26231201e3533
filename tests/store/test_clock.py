"""The store's clock, beside a wall clock that is set and a machine that sleeps."""

from __future__ import annotations

import logging

import pytest
from tests.conformance.kit import Clock

from mainspring.environment import SYSTEM
from mainspring.store.clock import StoreClock

DAY_S = 86_400.0


@pytest.fixture
def machine() -> Clock:
    return Clock()


@pytest.fixture
def clock(machine: Clock) -> StoreClock:
    clock = StoreClock(machine)
    clock.set(machine.wall_ms(), 0)
    return clock


def test_the_system_has_a_clock_that_counts_sleep() -> None:
    """It goes on like the other one, and is never behind it."""
    earlier = SYSTEM.since_boot() - SYSTEM.monotonic()
    assert SYSTEM.since_boot() - SYSTEM.monotonic() >= earlier - 1
    assert SYSTEM.since_boot() > 0


@pytest.mark.parametrize("slept_s", [0.4, 30.0, DAY_S])
def test_a_moment_before_a_sleep_stays_where_it_was(machine: Clock, clock: StoreClock, slept_s: float) -> None:
    """What began before a sleep is told by the time it began at, within a nap; what began after it by the new one."""
    began, began_ms = machine.monotonic(), clock.now_ms()
    machine.advance(10)
    machine.sleep_through(slept_s)
    woke_ms = clock.now_ms()
    machine.advance(5)
    assert woke_ms == began_ms + 10_000 + int(slept_s * 1000)
    assert clock.ms_at(began) == began_ms
    assert abs(clock.ms_at(machine.monotonic()) - clock.now_ms()) <= 500
    machine.sleep_through(DAY_S)
    assert clock.now_ms() == machine.wall_ms()
    assert clock.ms_at(began) == began_ms


def test_what_comes_right_after_a_sleep_is_told_as_of_then(machine: Clock, clock: StoreClock) -> None:
    """Also where nobody has looked at the clock since: what ends first is as late as what is looked at first."""
    clock.now_ms()
    machine.advance(1)
    machine.sleep_through(600)
    machine.advance(1)
    ended = machine.monotonic()
    assert clock.ms_at(ended) == machine.wall_ms()
    machine.advance(1)
    assert clock.ms_at(ended) == machine.wall_ms() - 1_000
    assert clock.now_ms() == machine.wall_ms()


def test_naps_add_up(machine: Clock, clock: StoreClock) -> None:
    """Many short ones are never forgotten: a moment of the monotonic clock is told half a second wrong at most."""
    for _ in range(100):
        machine.sleep_through(0.3)
        machine.advance(1)
        now = clock.now_ms()
        assert abs(clock.ms_at(machine.monotonic()) - now) <= 500
    assert clock.now_ms() == machine.wall_ms()


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
def test_it_says_that_the_wall_clock_was_set(
    machine: Clock, clock: StoreClock, caplog: pytest.LogCaptureFixture, by_s: float
) -> None:
    """Once when it goes and once when it is back; a sleep, and a second that it was set by, are nothing to tell."""
    with caplog.at_level(logging.WARNING, "mainspring.store"):
        machine.sleep_through(DAY_S)
        machine.jump(1)
        clock.look()
        assert caplog.messages == []
        machine.jump(by_s)
        clock.look()
        clock.look()
        machine.jump(-by_s)
        clock.look()
    set_by, back = caplog.messages
    assert f"set {'forward' if by_s > 0 else 'back'} by 86" in set_by
    assert "restart the process" in set_by
    assert "back where it was" in back


def test_it_says_that_the_store_is_ahead(machine: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that goes on from newer times than its own tells who opens the store."""
    clock = StoreClock(machine)
    with caplog.at_level(logging.WARNING, "mainspring.store"):
        clock.set(machine.wall_ms(), machine.wall_ms() + 59_000)
        assert caplog.messages == []
        clock.set(machine.wall_ms(), machine.wall_ms() + 86_400_000)
    assert "86400 s ahead of the clock" in caplog.text
    assert clock.now_ms() == machine.wall_ms() + 86_400_000
