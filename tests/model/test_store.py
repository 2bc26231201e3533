"""Stores against their specification, and the specification's own credibility."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.conformance.kit import FACTORIES
from tests.model.ablations import examples_until_found
from tests.model.machine import StepsMachine, StoreMachine, examine

SEED = 3
"""`python -m proof.model --seed 3` tries the same examples first, and shortens what fails."""
EXAMPLES = {"sqlite": 40, "postgres": 12}
"""An example on a server takes as long as five on a file."""
MUST_HAPPEN = {
    "submit": "list Conflict TaskNotFound QueueFull",
    "finish as completed": "completed False cancelled failed",
    "finish as retry": "pending False",
    "finish as crashed": "pending failed",
    "finish as released": "pending failed",
    "finish as timeout": "timeout",
    "cancel": "cancelled held requested TaskNotFound already(completed)",
    "retry": "bytes InvalidInput",
    "withdraw": "True False",
    "resume": "0 1",
    "limit": "None",
    "share": "None",
    "join": "leads over",
    "equal work": "waits kept completed failed goes",
}
"""Answers that a run without them would have proved little."""


@pytest.mark.parametrize("kind", FACTORIES)
def test_the_store_does_what_its_specification_says(kind: str) -> None:
    """Whatever is asked in whatever order, of up to two processes on one file that come, go and die: answers, claims,
    lost outcomes, news, every row and every count are the model's after every step, and no invariant is broken."""
    machine: Any = type("Machine", (StoreMachine,), {"kind": kind, "seen": Counter()})
    examine(machine, EXAMPLES[kind], SEED)
    if kind != "sqlite":
        return  # the first ones of the same examples, in each of which every answer was compared
    happened = {(name, answer.split()[0]) for name, answer in machine.seen}
    missing = {(name, answer) for name, answers in MUST_HAPPEN.items() for answer in answers.split()} - happened
    assert not missing


@pytest.mark.parametrize("kind", FACTORIES)
def test_ends_may_travel_in_steps(kind: str) -> None:
    """However few ends travel in one commit, what comes of them is the same."""
    examine(type("Machine", (StepsMachine,), {"kind": kind}), EXAMPLES[kind] // 4, SEED)


@pytest.mark.parametrize(
    "name",
    [
        "claims ignore the rank",
        "a finish is taken from whoever sends it",
        "keys are shared by namespaces",
        "completed tasks are counted twice",
        "policy skip is taken for require",
        "deadlines are not looked at",
        "a wish to cancel is not kept",
        "failures are kept",
        "equal work of other namespaces will do",
        "the clock may go back",
    ],
)
def test_what_is_taken_out_is_found(name: str) -> None:
    """Without one of its safeguards the store is told from its specification."""
    assert examples_until_found(name, 60) is not None
