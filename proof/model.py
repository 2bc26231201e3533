"""Random programs against the specification of the store: whatever is asked in whatever order, both say the same.

    python -m proof.model                                the store, the store in steps, and the engine: about 15 minutes
    python -m proof.model --machine store --examples 50000 --seed 7
    python -m proof.model --store NAME                   another of the stores that tests/conformance knows
    python -m proof.model --ablations                    takes out one safeguard after the other: about 10 minutes

The specification is tests/model/specification.py. Examples come in rounds of 250, one seed each; what fails is
shortened to the calls that are needed for it, which takes some minutes, and printed with its seed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from hypothesis.stateful import RuleBasedStateMachine
from tests.conformance.kit import FACTORIES
from tests.model.ablations import ABLATIONS, examples_until_found
from tests.model.engine_machine import EngineMachine
from tests.model.machine import StepsMachine, StoreMachine, examine

from proof.figures import Figures, announce, say

ROUND = 250
MACHINES: dict[str, tuple[type[RuleBasedStateMachine], int]] = {
    "store": (StoreMachine, 4_000),
    "steps": (StepsMachine, 1_000),
    "engine": (EngineMachine, 2_000),
}
"""With the examples of a full run."""
MOST_EXAMPLES = 1_000
"""In which an ablation must be found."""


class Round(NamedTuple):
    """So many programs for one machine, from one seed."""

    machine: str
    store: str
    examples: int
    seed: int


class Tried(NamedTuple):
    """What came of a round."""

    difference: str | None  # the traceback, where store and specification differ
    answers: Counter[tuple[str, str]]
    steps: int


def try_round(one: Round) -> Tried:
    """Run in a process of its own."""
    logging.disable(logging.CRITICAL)  # dead workers and refused effects are what this is about
    machine, _ = MACHINES[one.machine]
    counted: Any = type(machine.__name__, (machine,), {"kind": one.store, "seen": Counter(), "steps": Counter()})
    difference = None
    try:
        examine(counted, one.examples, one.seed, shrink=True)
    except Exception:  # noqa: BLE001 - the boundary of the program: what differs is printed, and counted
        difference = traceback.format_exc()
    return Tried(difference, counted.seen, sum(counted.steps.values()))


def rounds_of(name: str, store: str, examples: int | None, seed: int) -> list[Round]:
    examples = MACHINES[name][1] if examples is None else examples
    return [
        Round(name, store, min(ROUND, examples - done), seed + n) for n, done in enumerate(range(0, examples, ROUND))
    ]


def try_out(rounds: Sequence[Round], jobs: int, figures: Figures, *, verbose: bool) -> None:
    """Run them side by side; what one machine has tried is told together."""
    started, done = time.monotonic(), 0
    found: dict[str, list[Tried]] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for one, tried in zip(rounds, pool.map(try_round, rounds), strict=True):
            found.setdefault(one.machine, []).append(tried)
            done += one.examples
            if tried.difference is not None:
                print(tried.difference, f"again: {_command(one)}", sep="\n", file=sys.stderr)
            say(f"{one.machine}: seed {one.seed}; {done} examples in all, {time.monotonic() - started:.0f} s")
    for name, some in found.items():
        answers = sum((tried.answers for tried in some), Counter[tuple[str, str]]())
        n, differ = sum(one.examples for one in rounds if one.machine == name), [tried.difference for tried in some]
        figures.none(f"{name}: rounds that tell store and specification apart", len(differ) - differ.count(None))
        figures.note(f"{name}: programs", f"{n:,}")
        figures.note(f"{name}: steps", f"{sum(tried.steps for tried in some):,}")
        figures.note(f"{name}: different answers", len(answers))
        if verbose:
            for (what, answer), count in sorted(answers.items()):
                print(f"{count:8,}  {what}: {answer}")
    figures.note("seconds", f"{time.monotonic() - started:.0f}")


def _command(one: Round) -> str:
    return (
        f"python -m proof.model --machine {one.machine} --store {one.store} --examples {one.examples} --seed {one.seed}"
    )


def take_out(seed: int, only: str, figures: Figures) -> None:
    for name in [name for name in ABLATIONS if only in name]:
        n = examples_until_found(name, MOST_EXAMPLES, seed)
        say(f"without {name}: {n}")
        figures.some(f"without {name}: found after programs", n or 0)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", choices=MACHINES, help="only this one")
    parser.add_argument("--store", choices=FACTORIES, default="sqlite", help="what the machines store and steps try")
    parser.add_argument("--only", default="", help="of the ablations, those whose name holds this")
    parser.add_argument("--examples", type=int, help="programs a machine; the full run's by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the programs")
    parser.add_argument("--ablations", action="store_true", help="see that what is taken out of the store is found")
    parser.add_argument("--verbose", action="store_true", help="print how often what was answered")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # dead workers and refused effects are what this is about
    figures = Figures()
    announce(options.seed, f"proof.model --seed {options.seed}" + " --ablations" * options.ablations)
    if options.ablations:
        take_out(options.seed, options.only, figures)
    else:
        names = [options.machine] if options.machine else MACHINES
        rounds = [one for name in names for one in rounds_of(name, options.store, options.examples, options.seed)]
        try_out(rounds, options.jobs, figures, verbose=options.verbose)
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
