"""The order's clock by itself."""

from __future__ import annotations

import math

import pytest

from mainspring.environment import Environment
from mainspring.store.sql.clock import STEP_MS, Clock


class Machine(Environment):
    """Two processes of one machine read its clocks a little apart."""

    def __init__(self) -> None:
        self.seconds = 50.0
        self.wall_s = 1_800_000_000.0

    def elapsed(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return math.floor((self.wall_s + self.seconds) * 1000)


def started(machine: Machine, stored_ms: int = 0) -> Clock:
    clock = Clock(machine)
    clock.start(machine.wall_ms(), stored_ms)
    return clock


def look(clock: Clock, machine: Machine) -> None:
    clock.follow(machine.wall_ms(), machine.seconds, machine.seconds)


def order(clock: Clock) -> int:
    now, lead = clock.take()
    return now + lead


@pytest.mark.parametrize("apart", [0.0, 0.0005, 0.00097])
def test_two_clocks_do_not_drive_each_other(apart: float) -> None:
    """Each takes over what the other has written, 20,000 times within six seconds: neither goes back, and together they
    are no faster than time."""
    machine = Machine()
    one = started(machine)
    machine.seconds += apart
    two = started(machine)
    first = written = order(one)
    began = machine.seconds
    for n in range(20_000):
        machine.seconds += 0.0003
        clock = (one, two)[n % 2]
        look(clock, machine)
        clock.reach(written)
        assert order(clock) >= written
        written = order(clock)
    assert written - first <= (machine.seconds - began) * 1000 + 3


def test_what_is_reached_is_reached() -> None:
    """No rounding leaves it a millisecond behind what is stored; these figures would."""
    machine = Machine()
    clock = started(machine)
    wall = machine.wall_ms()
    for seconds, stored in ((1547.9749566156108, 4169054), (1685.141229519399, 14166994)):
        machine.seconds = seconds
        clock.reach(wall + stored)
        assert order(clock) == wall + stored


@pytest.mark.parametrize("step", [STEP_MS + 1, -STEP_MS - 1, 86_400_000, -86_400_000])
def test_a_step_is_followed(step: int) -> None:
    """The time is the wall's again; the order's clock goes along forward and goes on where it was otherwise."""
    machine = Machine()
    clock = started(machine)
    before = order(clock)
    machine.wall_s += step / 1000
    machine.seconds += 0.25
    look(clock, machine)
    assert order(clock) == before + 250 + max(0, step)
    assert clock.now_ms() == machine.wall_ms()
    look(clock, machine)
    assert clock.steps == 1


def test_what_is_no_step_is_not_followed() -> None:
    """Between steps time goes at its own pace, whatever the two readings of a moment say."""
    machine = Machine()
    clock = started(machine)
    machine.wall_s -= STEP_MS / 2000
    before = clock.take()
    machine.seconds += 0.001
    look(clock, machine)
    assert clock.take() >= before
    assert clock.steps == 0


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0])
def test_a_slow_answer_is_no_step(moment: float) -> None:
    """Of a server that takes ten seconds to tell its time nobody knows when it looked; a step shows all the same."""
    machine = Machine()
    clock = started(machine)
    since = machine.seconds
    told = machine.wall_ms() + int(moment * 10_000)
    machine.seconds += 10
    clock.follow(told, since, machine.seconds)
    assert clock.now_ms() == machine.wall_ms()
    clock.follow(told + 3_600_000, since, machine.seconds)
    assert clock.steps == 1
    assert clock.now_ms() == told + 3_600_000


def test_a_lead_melts_when_the_wall_clock_catches_up() -> None:
    """After a step forward as far as the lead, both are one again."""
    machine = Machine()
    clock = started(machine, machine.wall_ms() + 86_400_000)
    assert clock.lead_ms() == 86_400_000
    machine.wall_s += 86_400
    look(clock, machine)
    assert clock.take() == (machine.wall_ms(), 0)
