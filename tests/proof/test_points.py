"""A process that is killed at statements and file operations, at a size for each change: `python -m proof.points` takes
all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from proof.faults.judge import scratch
from proof.faults.scenes import Scene, all_scenes, small_steps
from proof.points.nursery import Moment
from proof.points.walk import CONTROLS, Nursery, prepare, walk


class Ground(NamedTuple):
    nursery: Nursery
    scenes: dict[str, Scene]
    starts: dict[str, Path]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with small_steps(), Nursery() as nursery, scratch() as folder:
        scenes = all_scenes()
        yield Ground(nursery, scenes, prepare(nursery, scenes, Path(folder)))


@pytest.mark.parametrize("moment", ["before", "after", "write"])
@pytest.mark.parametrize(
    ("scene", "stride"), [("small", 25), ("mixed", 250), ("recovery", 90), ("upgrade", 40), ("engine", 80)]
)
def test_a_death_costs_nothing_that_was_told(ground: Ground, scene: str, stride: int, moment: Moment) -> None:
    """Wherever the process dies, within recovery too: the next one finds all that was acknowledged, brings each task to
    one end, keeps every invariant, and leaves nothing to do for the one after it."""
    found = walk(ground.nursery, ground.starts[scene], ground.scenes[scene], moment, stride=stride)
    assert found.violations == {}, found.first
    assert found.cases > 1


@pytest.mark.parametrize(
    ("ablation", "stride"),
    [
        ("answers_before_the_commit", 4),
        ("effects_in_a_transaction_of_their_own", 60),
        ("ends_that_travel_later", 3),
        ("buried_before_the_rescue", 60),
    ],
)
def test_deaths_find_a_missing_safeguard(ground: Ground, ablation: str, stride: int) -> None:
    """Each safeguard that a death could get past is one that these deaths miss when it is gone."""
    scene, _ = CONTROLS[ablation]
    start, scenes = ground.starts[scene], ground.scenes[scene]
    for step in (stride, 1):  # threads run as they like: the points of one life are not quite those of another
        found = walk(ground.nursery, start, scenes, "before", stride=step, ablation=ablation)
        if found.violations:
            break
    assert found.violations.total() > 0
