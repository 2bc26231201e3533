"""Whole runs: they are sound, they repeat themselves, and every kind of fault strikes in some of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mainspring
from mainspring.testing.simulator.run import Outcome, simulate

SEEDS = range(60)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [simulate(seed) for seed in SEEDS]


def test_nothing_is_broken(outcomes: list[Outcome]) -> None:
    broken = {outcome.seed: [str(violation) for violation in outcome.violations] for outcome in outcomes}
    assert not {seed: found for seed, found in broken.items() if found}


def test_much_happens(outcomes: list[Outcome]) -> None:
    """Processes die and stop, disks break, clocks jump, messages are lost; clients do whatever clients do."""
    seen = Counter(what for outcome in outcomes for _, _, what, _ in outcome.trace)
    for what in (
        "is up", "dies", "has stopped", "disk will fail", "disk is broken", "jumps", "stands still", "changes",
        "submitted", "submit refused", "begins", "ends", "sees", "cancel answered", "pauses", "retried",
        "is in a call", "forgets", "limits", "shares out",
    ):  # fmt: skip
        assert seen[what] > 0, what
    assert sum(outcome.tasks for outcome in outcomes) > 10 * len(SEEDS)
    assert len({outcome.shape for outcome in outcomes}) > len(SEEDS) / 2


@pytest.mark.parametrize("seed", [60, 628, 1895])
def test_what_was_found_once(seed: int) -> None:
    """What had come back when its process died was given back to its group's rate; what was handed back long after its
    claim let one more begin than the rate says."""
    assert not simulate(seed).violations


def digest(outcome: Outcome) -> str:
    return hashlib.sha256(repr((outcome.steps, outcome.trace)).encode()).hexdigest()


CODE = """
import sys
from tests.testing.simulator.test_run import digest, simulate
for seed in map(int, sys.argv[2:]):
    print(seed, digest(simulate(seed)))
"""


def test_a_seed_repeats_itself_in_any_process() -> None:
    """The same trace to the last line, whatever the seed of hashes, and whatever ran before."""
    seeds = [str(seed) for seed in range(100, 140)]
    root = Path(__file__).resolve().parents[3]
    said = []
    for hash_seed, order in (("1", seeds), ("2", seeds[::-1])):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join([str(Path(mainspring.__file__).parents[1]), str(root)]),
        }
        done = subprocess.run(
            [sys.executable, "-c", CODE, "--", *order], env=environment, capture_output=True, text=True, check=True
        )
        said.append(sorted(done.stdout.splitlines()))
    assert said[0] == said[1]
    assert len(said[0]) == len(seeds)
