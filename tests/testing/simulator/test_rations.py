"""What simulated worlds say of rates where clocks are set or commits fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mainspring.store.base import Claimed
from mainspring.testing.simulator.rations import Rations

RULE = (1, 1, "", "a", None, 2, 1_000, 0, None)  # two a second


class Judge:
    """A witness of one rule."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def accuse(self, invariant: str, task: str | None, what: str, **figures: Any) -> None:
        self.found.append(figures)

    def find(self, sql: str, *values: Any) -> list[Any]:
        return [RULE]


@pytest.mark.parametrize(("begun", "clocks", "is_fine"), [(8, 1, True), (9, 1, False), (9, 2, True)])
def test_rates_over_all(begun: int, clocks: int, is_fine: bool) -> None:
    """Within half a second no more begin than a bucket at first, one when the rate was set, one a clock, and one."""
    judge, passed = Judge(), [0.0]
    rations = Rations(judge, lambda: passed[0], sees_all=True, has_one_clock=False)
    tx: Any = SimpleNamespace(sets_limits=True, now_ms=5)
    rations.look(tx)
    rations.claimed(None, [], tx, [])
    tx.sets_limits = False
    passed[0] = 0.5
    claims = [Claimed(bytes([n] * 16), 1, "custom:work", b"", class_key=("", "custom:work", "a")) for n in range(begun)]
    rations.claimed(None, claims, tx, [])
    attempts = {took.attempt for took in rations._took[1] if took.attempt is not None}
    assert len(attempts) == begun
    rations.judge_rates(attempts, clocks)
    assert (judge.found == []) is is_fine
