"""A process that dies by SIGKILL before and after every SQL statement, and in the midst of every file operation.

Each point is a child of its own that opens the store itself; then the next process recovers what is left, and what must
hold is checked. Recovery is a scenario like the others: it is killed at each of its points too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

import msgspec

from proof.figures import Figures
from proof.judge import FILE, Promises, Violation, recovered, scratch
from proof.nursery import Death, Moment, Order, read_ledger
from proof.replay import put
from proof.scenes import Scene, all_scenes, small_steps
from proof.tally import Tally

ROOT = Path(__file__).resolve().parent.parent


class Nursery:
    """The process that forks the children; several orders may be under way in it, one child at a time."""

    def __enter__(self) -> Self:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proof.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def order(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def death(self) -> Death:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nursery ended with {self._process.wait()}")
        return msgspec.json.decode(line, type=Death)


def prepare(nursery: Nursery, scenes: dict[str, Scene], folder: Path) -> dict[str, Path]:
    """Make the folders that children find, by scene; each child gets a copy."""
    for name, scene in scenes.items():
        (folder / name).mkdir()
        if name == "recovery":  # with the files of a real dead process, its lock among them
            nursery.order(Order(folder=str(folder / name), scenario="leave_behind"))
            if not (death := nursery.death()).was_killed:
                raise RuntimeError(f"the scenario did not come to its death: {death.error}")
        else:
            put(scene.start, folder / name)
    return {name: folder / name for name in scenes}


def walk(
    nursery: Nursery,
    start: Path,
    scene: Scene,
    moment: Moment,
    *,
    stride: int = 1,
    ablation: str | None = None,
) -> Tally:
    """Kill a child at every n-th point of a scenario until one lives to its end. Meanwhile the last one is checked."""
    tally = Tally()
    with scratch() as name:
        folder = Path(name)

        def order(point: int) -> Path:
            path = folder / str(point)
            shutil.copytree(start, path, ignore=shutil.ignore_patterns("*.sock", "*-shm"))
            nursery.order(Order(folder=str(path), scenario=scene.name, moment=moment, point=point, ablation=ablation))
            return path

        point, coming = 1, order(1)
        while True:
            death, here = nursery.death(), coming
            if death.was_killed:
                coming = order(point + stride)
            where = f"{scene.name}, killed {moment} point {point}"
            _check(here, death, scene, tally, where)
            point += stride
            if not death.was_killed:
                return tally


def _check(folder: Path, death: Death, scene: Scene, tally: Tally, where: str) -> None:
    """Let the next process recover what a child left, and judge it by what the child was told."""
    promises = Promises(read_ledger(folder))
    found = asyncio.run(recovered(folder / FILE, promises, scene.recover))
    if death.error:
        found.append(Violation("stuck", f"the child failed: {death.error}"))
    tally.add(found, promises, where, {})
    tally.recovered += 1
    shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.points",
        description="A process killed at every statement and in the midst of every file operation.",
        epilog="Full size takes about 15 minutes on 2 cores, --stride 40 some seconds.",
    )
    parser.add_argument("--stride", type=int, default=1, help="try only every n-th point")
    options = parser.parse_args(arguments)
    logging.getLogger("mainspring").setLevel(logging.CRITICAL)
    print("no seed: every point there is; the first violation names its own", flush=True)
    figures, total, started = Figures(), Tally(), time.monotonic()
    with small_steps(), Nursery() as nursery, scratch() as name:
        scenes = all_scenes()
        for scene, start in prepare(nursery, scenes, Path(name)).items():
            for moment in get_args(Moment):
                tally = walk(nursery, start, scenes[scene], moment, stride=options.stride)
                figures.note(f"deaths in {scene}, {_WORDS[moment]}", tally.cases - 1)
                total += tally
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
    print(figures.table())
    if total.first:
        print(f"first: {total.first}")
    return 0 if figures.are_met else 1


_WORDS: dict[Moment, str] = {
    "before": "before a statement",
    "after": "after a statement",
    "write": "within a file operation",
}
CONTROLS = {
    "answers_before_the_commit": ("small", 1),
    "effects_in_a_transaction_of_their_own": ("mixed", 20),
    "ends_that_travel_later": ("upgrade", 1),
    "buried_before_the_rescue": ("recovery", 20),
}
"""Safeguards whose lack must show, each with the scene that shows it, and with how many of its points."""


if __name__ == "__main__":
    sys.exit(main())
