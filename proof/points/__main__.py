"""A process that dies by SIGKILL before and after every SQL statement, and in the midst of every file operation.

Each point is a child of its own that opens the store itself; then the next process recovers what is left, and what must
hold is checked. Recovery is a scenario like the others: it is killed at each of its points too.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from proof.faults.judge import scratch
from proof.faults.scenes import all_scenes, small_steps
from proof.faults.tally import Tally
from proof.figures import Figures, announce, say
from proof.points.nursery import Moment
from proof.points.walk import CONTROLS, Nursery, prepare, walk


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.points",
        description="A process killed at every statement and in the midst of every file operation.",
        epilog="Full size takes about 15 minutes on 2 cores, --stride 40 some seconds.",
    )
    parser.add_argument("--stride", type=int, default=1, help="try only every n-th point")
    options = parser.parse_args(arguments)
    logging.getLogger("mainspring").setLevel(logging.CRITICAL)
    announce(None, f"proof.points --stride {options.stride}")
    figures, total, started = Figures(), Tally(), time.monotonic()
    with small_steps(), Nursery() as nursery, scratch() as name:
        scenes = all_scenes()
        for scene, start in prepare(nursery, scenes, Path(name)).items():
            for moment in get_args(Moment):
                tally = walk(nursery, start, scenes[scene], moment, stride=options.stride)
                figures.note(f"deaths in {scene}, {_WORDS[moment]}", tally.cases - 1)
                total += tally
                say(f"{scene}, {_WORDS[moment]}: done, {total.cases:,} in all")
        figures.note("points a second", total.cases / (time.monotonic() - started))
        for ablation, (scene, stride) in CONTROLS.items():
            tally = walk(nursery, Path(name, scene), scenes[scene], "before", stride=stride, ablation=ablation)
            figures.some(f"violations with {ablation.replace('_', ' ')}", tally.violations.total())
    figures.note("acknowledged tasks and told ends looked for", total.promises)
    figures.none("of these lost", total.violations["lost"])
    figures.none("work that never ends", total.violations["stuck"])
    figures.none("ended more than once, or changed by a second recovery", total.violations["twice"])
    figures.none("effects without their outcome, or the other way round", total.violations["half"])
    figures.none("corrupt files and broken invariants", total.violations["corrupt"] + total.violations["broken"])
    figures.none("anything else", total.violations["untrue"])
    if total.first:
        print(f"first: {total.first}")
    return figures.conclude()


_WORDS: dict[Moment, str] = {
    "before": "before a statement",
    "after": "after a statement",
    "write": "within a file operation",
}

if __name__ == "__main__":
    sys.exit(main())
