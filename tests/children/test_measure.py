"""What a child measures of itself: the peak of each piece of work, whether or not it had to be read anew."""

from __future__ import annotations

import sys

import pytest

from mainspring.children.measure import Meter, Sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
SIZE = 64 << 20
NEAR = 16 << 20


def measured(meter: Meter, size: int, held: list[bytearray]) -> tuple[int, int]:
    """Return peak and rest of work that holds so many bytes more, or gives all back."""
    meter.start()
    if size:
        held.append(bytearray(size))
    else:
        held.clear()
    return told(meter.stop())


def is_near(much: int, wanted: int) -> bool:
    return abs(much - wanted) < NEAR


def told(sample: Sample) -> tuple[int, int]:
    assert sample.peak_bytes is not None
    assert sample.resident_bytes is not None
    return sample.peak_bytes, sample.resident_bytes


def test_each_piece_of_work_has_its_own_peak() -> None:
    """What grows is seen at once, what was given back is missed at once, and idle work has what is there."""
    meter = Meter()
    held: list[bytearray] = []
    rest = [measured(meter, 0, held)[1] for _ in range(5)][-1]
    for _ in range(2):
        assert is_near(measured(meter, SIZE, held)[0], rest + SIZE)
        peak, left = measured(meter, 0, held)
        assert is_near(peak, rest + SIZE)
        assert is_near(left, rest)
        for _ in range(3):
            assert all(is_near(much, rest) for much in measured(meter, 0, held))


def test_cpu_time_of_a_piece_is_part_of_the_whole() -> None:
    """What all pieces used is no more than what the process did."""
    meter, used = Meter(), 0.0
    before = Meter.cpu_s()
    for _ in range(3):
        meter.start()
        sum(range(200_000))
        sample = meter.stop()
        assert sample.cpu_s > 0
        used += sample.cpu_s
    assert used <= sample.total_cpu_s - before + 1e-9  # floats
    assert sample.total_cpu_s <= Meter.cpu_s()
