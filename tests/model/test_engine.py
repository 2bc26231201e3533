"""The engine against the specification of its store."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.model.engine_machine import EngineMachine
from tests.model.machine import examine

SEED = 0


def test_the_engine_does_what_the_specification_says() -> None:
    """Whatever handlers do (succeed, fail, ask for another try, ignore a cancel, submit children, return handles), what
    runs with which values, who waits and how each task stands is the model's after every step, over restarts."""
    machine: Any = type("Machine", (EngineMachine,), {"seen": Counter()})
    examine(machine, 12, SEED)
    assert {status for status, _ in machine.seen} == {
        "pending",
        "running",
        "completed",
        "failed",
        "cancelled",
        "timeout",
    }
