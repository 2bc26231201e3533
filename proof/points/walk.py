"""Kill a child at each point of a scenario, and check what the next process makes of what is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

import msgspec

from proof import ROOT
from proof.faults.judge import FILE, Promises, recovered, scratch
from proof.faults.replay import put
from proof.faults.scenes import Scene
from proof.faults.tally import Tally
from proof.figures import Finding
from proof.points.nursery import Death, Moment, Order, read_ledger


class Nursery:
    """The process that forks the children; several orders may be under way in it, one child at a time."""

    def __enter__(self) -> Self:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proof.points.nursery"],
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
        found.append(Finding("stuck", f"the child failed: {death.error}"))
    tally.add(found, promises, where, {})
    tally.recovered += 1
    shutil.rmtree(folder)


CONTROLS = {
    "answers_before_the_commit": ("small", 1),
    "effects_in_a_transaction_of_their_own": ("mixed", 20),
    "ends_that_travel_later": ("upgrade", 1),
    "buried_before_the_rescue": ("recovery", 20),
}
"""Safeguards whose lack must show, each with the scene that shows it, and with how many of its points."""
