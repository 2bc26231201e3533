"""Power cuts at every operation of a scenario, and faults at every operation of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from functools import cache

import apsw

from proof.faults import ablations
from proof.faults.judge import Promises, judge
from proof.faults.replay import Replay
from proof.faults.scenes import Played, Scene, Trouble, all_scenes, play, small_steps
from proof.faults.tally import Tally
from proof.faults.vfs import Disk, Fault, Mark, Operation, Plan


def cut(scene: Scene, seed: str, *, draws: int = 1, stride: int = 1, recover_every: int = 10) -> Tally:
    """Play a scenario, and cut the power after every n-th of its operations, several times with other luck."""
    played = asyncio.run(play(scene))
    rng = random.Random(f"{seed} {scene.name}")
    tally = Tally()
    replay, promises = Replay(played.disk, forgetful=False), Promises(scene.told)
    for at, entry in enumerate(played.disk.log):
        _step(replay, promises, entry)
        for n in range(draws if at % stride == 0 else 0):
            image, recover = replay.after_power_cut(rng), rng.randrange(recover_every) == 0
            tally.recovered += recover
            found = judge(image, promises, recover=scene.recover if recover else None)
            tally.add(found, promises, f"{scene.name}, seed {seed}, power cut after entry {at}, draw {n}", image)
    return tally


def _step(replay: Replay, promises: Promises, entry: object) -> None:
    if isinstance(entry, Mark):
        promises.take(entry.what)
    else:
        replay.step(entry)  # type: ignore[arg-type]


class Kind(str):
    """A way to fail, by name: what goes wrong, how much is done all the same, for how long."""

    fault: Fault
    lasts: bool

    def plan(self, at: int, only: str | None) -> Plan:
        """Fail at the n-th operation, or the n-th one of a kind; where it lasts, at every one from then on."""
        seen = 0

        def fault(operation: Operation) -> Fault | None:
            nonlocal seen
            hits = only in (None, operation.kind)
            seen += hits
            return self.fault if (seen == at and hits) or (seen >= at and self.lasts) else None

        return fault


def _kinds() -> Iterable[Kind]:
    for name, error in (("full", apsw.FullError), ("I/O error", apsw.IOError)):
        for how, share in (("not done", 0.0), ("half done", 0.5), ("done", 1.0)):
            for lasts in (False, True):
                kind = Kind(f"{name}, {how}, {'lasting' if lasts else 'once'}")
                kind.fault, kind.lasts = Fault(error, share), lasts
                yield kind


KINDS = list(_kinds())


def sweep(
    scene: Scene, kind: Kind, seed: str, *, opening: bool = False, stride: int = 1, only: str | None = None
) -> Tally:
    """Let each operation of a scenario fail in turn, until it comes through whole; then everything must come right."""
    tally = Tally()
    at = 1
    while True:
        played = asyncio.run(play(scene, Trouble(kind.plan(at, only), opening)))
        if not played.disk.failed:
            return tally
        where = f"{scene.name}, {kind}, at operation {at}{' of all' if opening else ''}"
        _look_back(played, scene, tally, where, random.Random(f"{seed} {where}"))
        at += stride


def sweep_apart(work: tuple[str, int, bool, str, int]) -> tuple[Tally, int]:
    """A sweep in a process that may do several; returns what was found, and how many failed commits were stored."""
    name, number, opening, seed, stride = work
    logging.getLogger("mainspring").setLevel(logging.CRITICAL)
    with small_steps(), ablations.errors_for_stored_commits() as found:
        return sweep(_scenes()[name], KINDS[number], seed, opening=opening, stride=stride), len(found)


@cache
def _scenes() -> dict[str, Scene]:
    return all_scenes()


def forgotten(scene: Scene, kind: Kind, at: int, seed: str) -> Tally:
    """Let the n-th sync of an opening fail on a system that forgets then what it could not write, and cut the power."""
    played = asyncio.run(play(scene, Trouble(kind.plan(at, "sync"), opening=True)))
    where = f"{scene.name}, {kind}, at sync {at} of all"
    rng, tally = random.Random(f"{seed} {where}"), Tally()
    replay, promises = Replay(played.disk, forgetful=True), Promises(scene.told)
    for n, entry in enumerate(played.disk.log):
        _step(replay, promises, entry)
        if n > played.disk.broke_at:
            image = replay.after_power_cut(rng)
            tally.add(judge(image, promises), promises, f"{where}, power cut after entry {n}", image)
    return tally


def _look_back(played: Played, scene: Scene, tally: Tally, where: str, rng: random.Random) -> None:
    """Judge what a death or a power cut would have left while the disk was broken, and what is there in the end."""
    disk, promises = played.disk, Promises(scene.told)
    replay = Replay(disk, forgetful=rng.random() < 0.5)
    moments = _moments(disk, played.mended, rng)
    for at, entry in enumerate(disk.log):
        _step(replay, promises, entry)
        if at in moments:
            for what, image in (("death", replay.after_death()), ("power cut", replay.after_power_cut(rng))):
                tally.add(judge(image, promises), promises, f"{where}, {what} after entry {at}", image)
    image = replay.after_death()
    tally.add(judge(image, promises, finished=True), promises, f"{where}, in the end", image)
    tally.refusals += played.refusals
    tally.doubts += played.doubts


def _moments(disk: Disk, mended: int, rng: random.Random) -> set[int]:
    """The first answers after it broke, for they speak of it; one of those that follow; and the last entry."""
    told = [at for at in range(disk.broke_at, mended) if isinstance(disk.log[at], Mark)]
    return {*told[:2], *rng.sample(told, min(1, len(told))), max(mended - 1, 0)}
