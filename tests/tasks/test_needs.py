"""What an attempt needs, as people read it."""

from __future__ import annotations

import pytest

from mainspring.tasks.needs import Short, amounts, shares

MEMORY = "memory"


@pytest.mark.parametrize(
    ("short", "said"),
    [
        (Short("seat", 2.0000001, 0, 2), "needs 2.0000001 seat, more than the 2 seat that there is"),
        (Short("seat", 3, 2, 4), "needs 3 seat and 2 seat is free, of 4 seat"),
        (
            Short("seat", 0.3, 1.0 - 0.7, 1, "task 1"),
            "needs 0.3 seat; 0.3 seat is free, of 1 seat, and kept for task 1",
        ),
        (Short("cpu", 1.00000001, 0, 1), "needs 1.00000001 cores, more than the 1 core that there is"),
        (Short(MEMORY, 2e9 + 4e6, 2e9, 8e9), "needs 2.004 GB and 2.000 GB is free, of 8.0 GB"),
        (Short(MEMORY, 204e6, 196e6, 0.6e9), "needs 204.0 MB and 196.0 MB is free, of 600.0 MB"),
        (Short(MEMORY, 1e9, 0, 1e9 - 1e4), "needs 1.00000 GB, more than the 0.99999 GB that there is"),
        (Short(MEMORY, 5e11, -3.0, 1e12), "needs 500.0 GB and 0.0 MB is free, of 1000.0 GB"),
        (Short("children", 1, 0, 2), "needs 1 child process and 0 child processes is free, of 2 child processes"),
    ],
    ids=lambda item: "" if isinstance(item, Short) else item.partition(",")[0],
)
def test_what_is_missing(short: Short, said: str) -> None:
    """Figures that differ read differently, with no more digits than that takes."""
    assert str(short) == said


def test_parts_of_a_whole() -> None:
    assert shares(0.9, 0.8, 0.76) == ["90%", "80%", "76%"]
    assert shares(0.801, 0.8) == ["80.1%", "80.0%"]
    assert shares(0.1 + 0.2, 0.3) == ["30%", "30%"]
    assert shares(0.83, 0.0001) == ["83%", "0.01%"]
    assert shares(0.0, 0.004) == ["0%", "0.4%"]


def test_equal_ones() -> None:
    assert amounts(MEMORY, 5e8, 5e8) == ["500.0 MB", "500.0 MB"]


def test_small_ones() -> None:
    """What is something does not read as nothing, whatever stands beside it."""
    assert amounts(MEMORY, 1.54e9, 1, 0.95) == ["1.5 GB", "1 byte", "0.95 bytes"]
    assert amounts(MEMORY, 852.9e6, 2_000, 1_900) == ["852.9 MB", "2.0 kB", "1.9 kB"]
    assert amounts(MEMORY, 1e5, 0) == ["0.1 MB", "0.0 MB"]
