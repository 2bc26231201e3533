"""The proof program over simulated worlds, small."""

from __future__ import annotations

import pytest
from proof.figures import Figures
from proof.simulation.__main__ import try_worlds
from proof.simulation.ablations import SAFEGUARDS, ablate

from proof import ROOT

QUICK = (
    "one order", "retry limit", "not before", "waiters", "idempotency", "equal arguments join", "edge walk",
    "conditional cancel", "slots", "rescue guard", "effects in the finishing transaction",
    "changed rates", "outcomes kept",
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


def test_every_safeguard_stands_beside_its_promise() -> None:
    """docs/guarantees.md names each where the invariant stands that falls with it."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert [safeguard.name for safeguard in SAFEGUARDS if safeguard.name not in page] == []


@pytest.mark.parametrize("name", QUICK)
def test_the_loss_of_a_safeguard_is_noticed(name: str) -> None:
    assert ablate(name, 60).seed is not None


def test_nothing_is_broken_with_all_of_them() -> None:
    """And a program that finds something says so."""
    figures = Figures()
    try_worlds(1, range(200, 230), figures)
    assert figures.conclude() == 0
    figures.none("broken", 1)
    assert figures.conclude() == 1
