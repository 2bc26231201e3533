"""Random programs against the specification of the store: whatever is asked in whatever order, both say the same.

    python -m proof.model                                the store, the store in steps, and the engine: about 25 minutes
    python -m proof.model --machine store --examples 50000 --seed 7
    python -m proof.model --store NAME                   another of the stores that tests/conformance knows
    python -m proof.model --ablations                    takes out one safeguard after the other: about 10 minutes

The specification is tests/model/specification.py. Examples come in rounds of 250, one seed each; what fails is
shortened to the calls that are needed for it, which takes some minutes, and printed with its seed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from typing import Any

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


def try_out(name: str, store: str, examples: int | None, seed: int, figures: Figures, *, verbose: bool) -> None:
    machine, usual = MACHINES[name]
    examples = usual if examples is None else examples
    counted: Any = type(machine.__name__, (machine,), {"kind": store, "seen": Counter(), "steps": Counter()})
    started, done, failed = time.monotonic(), 0, 0
    while done < examples and not failed:
        n = min(ROUND, examples - done)
        try:
            examine(counted, n, seed, shrink=True)
        except Exception:  # noqa: BLE001 - the boundary of the program: what differs is printed, and counted
            traceback.print_exc()
            print(
                f"again: python -m proof.model --machine {name} --store {store} --examples {n} --seed {seed}",
                file=sys.stderr,
            )
            failed += 1
        done, seed = done + n, seed + 1
        say(f"{name}: {done} examples, seed {seed - 1}, {time.monotonic() - started:.0f} s")
    took = time.monotonic() - started
    steps = sum(counted.steps.values())
    figures.none(f"{name}: programs that tell store and specification apart", failed)
    figures.note(f"{name}: programs, a second", f"{done:,}, {done / took:.1f}")
    figures.note(f"{name}: steps, a second", f"{steps:,}, {steps / took:.0f}")
    figures.note(f"{name}: different answers", len(counted.seen))
    if verbose:
        for (what, answer), n in sorted(counted.seen.items()):
            print(f"{n:8,}  {what}: {answer}")


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
    parser.add_argument("--ablations", action="store_true", help="see that what is taken out of the store is found")
    parser.add_argument("--verbose", action="store_true", help="print how often what was answered")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # dead workers and refused effects are what this is about
    figures = Figures()
    announce(options.seed, f"proof.model --seed {options.seed}" + " --ablations" * options.ablations)
    if options.ablations:
        take_out(options.seed, options.only, figures)
    else:
        for name in [options.machine] if options.machine else MACHINES:
            try_out(name, options.store, options.examples, options.seed, figures, verbose=options.verbose)
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
