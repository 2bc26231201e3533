"""Simulated worlds of engines, and the safeguards that they must miss.

    python -m proof.simulation                           both, about 15 minutes on two cores
    python -m proof.simulation --safeguards              takes away one safeguard after the other: about 4 minutes
    python -m proof.simulation --only "commit in doubt"  one of them
    python -m proof.simulation --worlds --seeds 100000 --from 10000

With every safeguard in place no seed may break a promise; with any one taken away, one of the first seeds must. A seed
is seen again by `mainspring sim --seed N --trace`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import msgspec

from mainspring.testing.simulator.campaign import Ran, run_one
from mainspring.testing.simulator.run import simulate
from proof.figures import Figures
from proof.safeguards import SAFEGUARDS

SEEDS = 10_000
PATIENCE = 200
"""Within so many seeds the loss of a safeguard must show."""
_CHUNK = 100


class Found(msgspec.Struct, frozen=True):
    """What the loss of a safeguard came to."""

    name: str
    seed: int | None  # the first that noticed
    violation: str


def ablate(number: int, patience: int) -> Found:
    """Take one safeguard away, and look for the first seed that notices."""
    safeguard = SAFEGUARDS[number]
    with safeguard.removed():
        for seed in range(patience):
            violations = simulate(seed).violations
            if violations:
                return Found(safeguard.name, seed, str(violations[0]))
    return Found(safeguard.name, None, "nobody noticed")


def run_chunk(seeds: Sequence[int]) -> list[Ran]:
    return [run_one(seed) for seed in seeds]


def try_safeguards(jobs: int, patience: int, only: str, figures: Figures) -> None:
    numbers = [number for number, safeguard in enumerate(SAFEGUARDS) if only in safeguard.name]
    with _pool(jobs) as pool:
        running = [pool.submit(ablate, number, patience) for number in numbers]
        for future in as_completed(running):
            found = future.result()
            print(f"without {found.name}: seed {found.seed}: {found.violation[:160]}", file=sys.stderr, flush=True)
            figures.none(f"without {found.name}: not noticed within {patience} seeds", int(found.seed is None))
            if found.seed is not None:
                figures.note(f"without {found.name}: first noticed by seed", found.seed)


def try_worlds(jobs: int, seeds: range, figures: Figures) -> None:
    chunks = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    began, runs = time.monotonic(), []
    with _pool(jobs) as pool:
        for some in pool.map(run_chunk, chunks):
            runs += some
            print(f"{len(runs):,} worlds", file=sys.stderr, flush=True)
    broken = [ran for ran in runs if ran.violations]
    for ran in broken:
        print(f"mainspring sim --seed {ran.seed} --trace: {ran.violations[0]}", file=sys.stderr)
    cpu_s = sum(ran.cpu_s for ran in runs)
    figures.none(f"worlds of {len(runs):,} that break a promise", len(broken))
    figures.note("worlds a second of CPU", len(runs) / cpu_s)
    figures.note("seconds", time.monotonic() - began)
    figures.some("tasks", sum(ran.tasks for ran in runs))
    figures.some("callbacks", sum(ran.steps for ran in runs))
    figures.note("hours of virtual time", sum(ran.virtual_s for ran in runs) / 3600)


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that live for one task: what dies in a simulation is never tidied up."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="proof.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--worlds", action="store_true", help="only with every safeguard in place")
    parser.add_argument("--safeguards", action="store_true", help="only without one after the other")
    parser.add_argument("--only", default="", help="only without those whose name holds this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="worlds with every safeguard in place")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first of them")
    parser.add_argument("--patience", type=int, default=PATIENCE, help="seeds within which a loss must show")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    figures = Figures()
    if not options.worlds:
        try_safeguards(options.jobs, options.patience, options.only, figures)
    if not (options.safeguards or options.only):
        try_worlds(options.jobs, range(options.start, options.start + options.seeds), figures)
    print(figures.table())
    return 0 if figures.are_met else 1


if __name__ == "__main__":
    sys.exit(main())
