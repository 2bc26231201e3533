"""What the witness holds to be in force."""

from __future__ import annotations

from typing import Any

from mainspring.testing.simulator.witness import Witness

GROUP = ("", "", "a")


def test_a_pause_that_was_told_is_in_force() -> None:
    witness, process = _witness()
    with witness.pausing(process, GROUP):
        pass
    assert witness.pauses == {process: [GROUP]}


def test_a_pause_taken_back_before_it_was_told_is_not_in_force() -> None:
    """Its commit may come before another process's resume, whose answer overtakes its own."""
    witness, process = _witness()
    with witness.pausing(process, GROUP), witness.resuming():
        pass
    assert not witness.pauses


def _witness() -> tuple[Witness, Any]:
    return Witness(lambda process: (0, 0), has_one_code=True), object()
