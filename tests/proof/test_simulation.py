"""The proof program over simulated worlds, small."""

from __future__ import annotations

import pytest
from proof.figures import Figures
from proof.safeguards import SAFEGUARDS
from proof.simulation import ablate, run_chunk

QUICK = (
    "one order", "retry limit", "not before", "waiters", "idempotency", "edge walk", "conditional cancel", "slots",
    "rescue guard", "effects in the finishing transaction",
)  # fmt: skip
"""Those whose loss one of the first few seeds notices."""


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name)
def test_what_takes_a_safeguard_away_still_fits_the_code(safeguard: object) -> None:
    """Each edit finds the text that it replaces, and puts everything back."""
    before = [getattr(edit.owner, edit.name) for edit in safeguard.edits]  # type: ignore[attr-defined]
    with safeguard.removed():  # type: ignore[attr-defined]
        changed = [getattr(edit.owner, edit.name) for edit in safeguard.edits]  # type: ignore[attr-defined]
        assert all(new is not old for new, old in zip(changed, before, strict=True))
    assert [getattr(edit.owner, edit.name) for edit in safeguard.edits] == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", QUICK)
def test_the_loss_of_a_safeguard_is_noticed(name: str) -> None:
    (number,) = [number for number, safeguard in enumerate(SAFEGUARDS) if safeguard.name == name]
    assert ablate(number, 40).seed is not None


def test_nothing_is_broken_with_all_of_them() -> None:
    """And a program that finds something says so."""
    assert [ran.violations for ran in run_chunk(range(200, 230))] == [[]] * 30
    figures = Figures()
    figures.none("broken", 1)
    assert not figures.are_met
