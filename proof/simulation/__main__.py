"""Simulated worlds of engines, in which no seed may break a promise.

    python -m proof.simulation                            10,000 worlds, about 3 minutes on two cores
    python -m proof.simulation --seeds 100000 --from 10000
    python -m proof.simulation --ablations                takes out one safeguard after the other; one of the first 200
                                                          seeds must notice: about 3 minutes
    python -m proof.simulation --ablations --only "commit in doubt"

A seed is seen again by `mainspring sim --seed N --trace`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from mainspring.testing.simulator.campaign import Ran, run_many
from proof.figures import Figures, announce, say
from proof.simulation.ablations import SAFEGUARDS, ablate

SEEDS = 10_000
MOST_S = 180.0
"""For that many, on two cores."""
PATIENCE = 200
"""Within so many seeds the loss of a safeguard must show."""


def try_worlds(jobs: int, seeds: range, figures: Figures) -> None:
    began, runs = time.monotonic(), list[Ran]()

    def ran(one: Ran) -> None:
        runs.append(one)
        if one.violations:
            print(f"mainspring sim --seed {one.seed} --trace: {one.violations[0]}", flush=True)
        if len(runs) % 1_000 == 0:
            say(f"{len(runs):,} worlds")

    asyncio.run(run_many(seeds, jobs, ran))
    figures.none(f"worlds of {len(runs):,} that break a promise", sum(bool(one.violations) for one in runs))
    seconds = time.monotonic() - began
    if len(runs) >= SEEDS:
        figures.at_most("seconds", seconds, MOST_S)
    else:
        figures.note("seconds", seconds)
    figures.note("milliseconds of CPU a world", 1000 * sum(one.cpu_s for one in runs) / len(runs))
    figures.some("tasks", sum(one.tasks for one in runs))
    figures.some("callbacks", sum(one.steps for one in runs))
    figures.note("hours of virtual time", sum(one.virtual_s for one in runs) / 3600)


def take_out(jobs: int, patience: int, only: str, figures: Figures) -> None:
    names = [safeguard.name for safeguard in SAFEGUARDS if only in safeguard.name]
    # Processes that live for one task: what dies in a simulation is never tidied up.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = {}
        for future in as_completed([pool.submit(ablate, name, patience) for name in names]):
            one = future.result()
            found[one.name] = one
            say(f"without {one.name}: seed {one.seed}: {one.violation[:160]}")
    for name in names:
        seed = found[name].seed
        figures.note(f"without {name}: first noticed by seed", "none" if seed is None else seed)
    figures.note("safeguards taken out", len(names))
    figures.none(f"of these not noticed by the first {patience} seeds", sum(one.seed is None for one in found.values()))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ablations", action="store_true", help="see that what is taken out of the engine is noticed")
    parser.add_argument("--only", default="", help="of these, those whose name holds this")
    parser.add_argument("--patience", type=int, default=PATIENCE, help="seeds within which a loss must show")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="worlds with every safeguard in place")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    options = parser.parse_args()
    figures = Figures()
    if options.ablations:
        announce("0 and on", "proof.simulation --ablations")
        take_out(options.jobs, options.patience, options.only, figures)
    else:
        announce(f"{options.start} and on", f"proof.simulation --from {options.start} --seeds {options.seeds}")
        try_worlds(options.jobs, range(options.start, options.start + options.seeds), figures)
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
