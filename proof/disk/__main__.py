"""Power cuts and failing disks under the real store.

Cuts: a scenario runs once and every file operation is kept; from that come the images of power cuts after each of them,
in which every unsynced write is lost, whole or torn by sectors. Faults: the disk is full or fails at each write, sync,
truncate and delete in turn, once or until it is mended. What is left is judged by what callers were told before.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from proof.disk.campaigns import KINDS, cut, forgotten, sweep, sweep_apart
from proof.faults import ablations
from proof.faults.replay import put
from proof.faults.scenes import Scene, all_scenes, small_steps
from proof.faults.tally import Tally
from proof.figures import Figures, announce, say

OPENED = ("small", "recovery", "upgrade")
"""Scenes whose opening is broken too: a new file, one left by a dead process, one of an older version."""


def power_cuts(scenes: Sequence[Scene], seed: str, *, draws: int, stride: int) -> Tally:
    total = Tally()
    for scene in scenes:
        total += cut(scene, seed, draws=draws, stride=stride)
        say(f"power cuts: {scene.name} done, {total.cases:,} in all")
    return total


def faults(scenes: Iterable[str], seed: str, *, stride: int, jobs: int) -> tuple[Tally, int]:
    """Returns what was found, and how many commits were stored that were reported as failed."""
    work = [
        (name, number, opening, seed, stride)
        for name in scenes
        for number in range(len(KINDS))
        for opening in ((False, True) if name in OPENED else (False,))
    ]
    total, errors = Tally(), 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for (name, number, opening, *_), (tally, wrong) in zip(work, pool.map(sweep_apart, work), strict=True):
            total += tally
            errors += wrong
            say(f"faults: {name}, {KINDS[number]}{', opening' * opening}: done, {total.cases:,} looks in all")
    return total, errors


def controls(scenes: dict[str, Scene], seed: str, figures: Figures, *, stride: int) -> None:
    """The same with a safeguard less: if nothing were found then, nothing would be proved."""
    relaxed = cut(all_scenes(durability="relaxed")["mixed"], seed, stride=stride)
    figures.some('acknowledged tasks lost with durability="relaxed"', relaxed.violations["lost"])
    figures.none('files corrupt with durability="relaxed"', relaxed.violations["corrupt"])
    with ablations.synchronous_off():
        figures.some(
            "files corrupt with synchronous=OFF", cut(scenes["mixed"], seed, stride=stride).violations["corrupt"]
        )
    with ablations.a_log_taken_as_it_is():
        found = forgotten(scenes["recovery"], KINDS[3], 1, seed).violations
        figures.some("tasks lost and files corrupt where a log is taken as it is", found["lost"] + found["corrupt"])
    with ablations.autocheckpoint(), ablations.errors_for_stored_commits() as errors:
        sweep(scenes["small"], KINDS[6], seed, only="sync")
    figures.some("errors for stored commits with autocheckpoint on", len(errors))


def prove(figures: Figures, scenes: dict[str, Scene], seed: str, *, draws: int, stride: int, jobs: int) -> Tally:
    """Fill in the figures; returns all that was found."""
    started = time.monotonic()
    cuts = power_cuts(list(scenes.values()), seed, draws=draws, stride=max(1, stride // 8))
    figures.note("power cuts", cuts.cases)
    figures.note("power cuts a second", cuts.cases / (time.monotonic() - started))
    figures.note("recoveries after one, each of them done twice", cuts.recovered)
    figures.note("acknowledged tasks and told ends looked for", cuts.promises)
    figures.none("of these lost", cuts.violations["lost"])
    started = time.monotonic()
    broken, errors = faults(scenes, seed, stride=stride, jobs=jobs)
    figures.note("looks after a disk full or an I/O error", broken.cases)
    figures.note("such looks a second", broken.cases / (time.monotonic() - started))
    figures.note("submits that were refused or in doubt meanwhile", broken.refusals + broken.doubts)
    figures.none("acknowledged tasks and told ends lost in these", broken.violations["lost"])
    figures.none("tasks there that were told not to be stored", broken.violations["untrue"])
    figures.none("outcomes lost, work stuck or engines that did not go on", broken.violations["stuck"])
    figures.none("errors for stored commits", errors)
    cuts += broken
    figures.none("corrupt files", cuts.violations["corrupt"])
    figures.none("effects without their outcome, or the other way round", cuts.violations["half"])
    figures.none("broken invariants", cuts.violations["broken"] + cuts.violations["twice"])
    figures.none("anything else", cuts.violations.total() - sum(cuts.violations[kind] for kind in _NAMED))
    return cuts


_NAMED = ("lost", "untrue", "stuck", "corrupt", "half", "broken", "twice")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.disk",
        description="Power cuts and failing disks under the real store.",
        epilog="Full size takes about 25 minutes on 2 cores, --stride 40 about one.",
    )
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of everything that is left to chance")
    parser.add_argument("--draws", type=int, default=8, help="power cuts after each operation")
    parser.add_argument("--stride", type=int, default=1, help="try only every n-th operation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    options = parser.parse_args(arguments)
    logging.getLogger("mainspring").setLevel(logging.CRITICAL)
    announce(options.seed, f"proof.disk --seed {options.seed} --draws {options.draws} --stride {options.stride}")
    figures = Figures()
    with small_steps():
        scenes = all_scenes()
        found = prove(figures, scenes, options.seed, draws=options.draws, stride=options.stride, jobs=options.jobs)
        controls(scenes, options.seed, figures, stride=min(options.stride, 8))
    if found.first:
        folder = tempfile.mkdtemp(prefix="mainspring-proof-")
        put(found.image, Path(folder))
        print(f"first: {found.first}\nfiles: {folder}")
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
