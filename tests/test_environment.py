"""Work beside the loop, and what is used where nobody hands an environment in."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from mainspring import TaskId
from mainspring.environment import HERE, SYSTEM, Environment, Signal, Turns
from mainspring.processors.calls import moment

pytestmark = pytest.mark.anyio


class Fixed(Environment):
    def new_id(self) -> bytes:
        return bytes(range(16))

    def wall_ms(self) -> int:
        return 1_000


async def test_a_strand_goes_on_when_it_is_woken() -> None:
    """It runs up to each `yield`, waits there for its signal, and has ended when its steps have."""
    signal, came = SYSTEM.signal(), queue.SimpleQueue[str]()

    def steps() -> Iterator[None]:
        came.put("first")
        yield
        came.put("second")

    strand = SYSTEM.start_strand("test", steps(), signal)
    assert came.get(timeout=60) == "first"
    assert came.empty()
    signal.raise_()
    assert came.get(timeout=60) == "second"
    await strand.ended()


@pytest.mark.parametrize(("signal", "passes"), [(Signal, 1), (Turns, 3)])
async def test_signals_collapse_and_turns_add_up(signal: type[Signal | Turns], passes: int) -> None:
    """Raised before anybody looks, a signal wakes once and turns wake as often as they were raised."""
    raised, woken = signal(), queue.SimpleQueue[int]()

    def steps() -> Iterator[None]:
        for n in range(passes):
            yield
            woken.put(n)

    for _ in range(3):
        raised.raise_()
    await SYSTEM.start_strand("test", steps(), raised).ended()
    assert woken.qsize() == passes


async def test_ids_and_moments_come_from_here() -> None:
    """A simulated process has its own clock and ids, also where no environment is handed in."""
    token = HERE.set(Fixed())
    try:
        assert TaskId().bytes == bytes(range(16))
        assert moment(2, "delay").timestamp() == 3.0
    finally:
        HERE.reset(token)
