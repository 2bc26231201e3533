"""The soak at its smallest, its negative control, and that its judgement tells a rise from chance."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from proof.figures import Figures
from proof.soak import __main__ as soak
from proof.soak.fit import fit
from proof.soak.program import Sample
from proof.soak.verdict import course, judge, judge_store, limits_for

MIB = 1 << 20
NIGHT_S = 1800


def test_nothing_grows_and_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run through one process and through two leaves a table, figures and samples, and all limits are met."""
    monkeypatch.setattr(sys, "argv", ["soak", "--minutes", "0.2", "--out", str(tmp_path / "out")])
    assert soak.main() == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"soak.json", "soak-alone.jsonl", "soak-submits.jsonl", "soak-works.jsonl"} <= names
    rows = json.loads((tmp_path / "out" / "soak.json").read_bytes())
    assert {row[0].partition(":")[0] for row in rows} == {"one process", "submitter", "worker"}


def test_a_leaking_handler_is_seen(tmp_path: Path) -> None:
    """What a handler keeps of each call shows as a rise of memory."""
    (alone,) = soak.one_process(tmp_path, tmp_path, 6.0, 20_000, 1)
    figures = Figures()
    judge(figures, alone, limits_for(6.0))
    assert [row.what for row in figures.rows if not row.is_met] == [
        "one process: memory, MiB a 100,000 operations, at least"
    ]


def samples(idle: tuple[float, float] = (1.0, 1.0), **rises: float) -> list[Sample]:
    """Half an hour of a process: steady but for chance, and what rises within it. `idle`: how much of the machine it
    gets in the first half and in the second."""
    chance = random.Random(1)
    n = 3600
    plain = {
        "rss": 80.0 * MIB,
        "descriptors": 20.0,
        "threads": 12.0,
        "tasks": 70.0,
        "file": 5.0 * MIB,
        "log": 4.0 * MIB,
    }
    found, done, cpu = [], 0.0, 0.0
    for at in range(n + 10):
        share = min(at, n) / n
        values = {
            name: int(value + rises.get(name, 0.0) * share + value * chance.uniform(-0.02, 0.02))
            for name, value in plain.items()
        }
        speed = idle[at > n * 0.65]
        done += 500 * speed
        cpu += 0.4 * speed * (1 + rises.get("cpu", 0.0) * share)
        values["file"] = int(values["file"] * (0.5 + 0.5 * speed))
        latency = 0.01 / speed * (1 + rises.get("latency", 0.0) * share) * chance.uniform(0.5, 1.5)
        found.append(
            Sample(at=at / 2, done=int(done), cpu=cpu, loaded=at <= n, latencies=[latency] if at <= n else [], **values)
        )
    return found


def missed(seen: list[Sample]) -> set[str]:
    figures, one = Figures(), course("p", seen, seen)
    judge(figures, one, limits_for(NIGHT_S))
    judge_store(figures, one, limits_for(NIGHT_S))
    return {row.what.removeprefix("p: ") for row in figures.rows if not row.is_met}


def test_what_is_steady_is_not_accused() -> None:
    """Chance, and memory that only warmed up, are no rise."""
    assert missed(samples()) == set()
    for idle in ((1.0, 0.4), (0.4, 1.0)):
        assert missed(samples(idle)) == set(), "the machine had other work in one half"
    warming = [replace(s, rss=s.rss - int(30 * MIB * max(0.0, 1 - s.at / 400))) for s in samples()]
    assert missed(warming) == set()


@pytest.mark.parametrize(
    ("name", "rise", "accused"),
    [
        ("rss", 60.0 * MIB, "memory, MiB a 100,000 operations, at least"),
        ("descriptors", 12.0, "descriptors, gained while it ran"),
        ("threads", 6.0, "threads, gained while it ran"),
        ("tasks", 20.0, "tasks, gained while it ran"),
        ("file", 3.0 * MIB, "file in use, gained while it ran, at least"),
        ("log", 200.0 * MIB, "log, MiB at most"),
        ("latency", 3.0, "urgent task, operations meanwhile, p99 of the last quarter in the first"),
        ("cpu", 3.0, "CPU an operation, last quarter in the first"),
    ],
)
def test_what_rises_is_named(name: str, rise: float, accused: str) -> None:
    """Each quantity by itself: a leak of 3 MiB a 100,000 operations, a descriptor every two minutes ...; on a machine
    with steady other work, and with less or more of it."""
    for idle in ((1.0, 1.0), (1.0, 0.4), (0.4, 1.0)) if name in ("file", "latency", "cpu") else ((1.0, 1.0),):
        assert accused in missed(samples(idle, **{name: rise}))


def test_what_stays_after_the_load_is_named() -> None:
    """A process at rest has given back what it took."""
    seen = samples()
    left = [replace(sample, tasks=90, descriptors=40) for sample in seen if not sample.loaded]
    assert missed([*(sample for sample in seen if sample.loaded), *left]) == {
        "tasks, left when it rests",
        "descriptors, left when it rests",
    }


def test_a_wandering_series_has_a_wide_error() -> None:
    """Samples that hang together count for fewer: a drift that turns back is no rise."""
    chance = random.Random(2)
    walk, at = [], 0.0
    for _ in range(400):
        at += chance.uniform(-1, 1)
        walk.append(at)
    xs = [float(x) for x in range(400)]
    line = fit(xs, [2 * x for x in xs])
    assert line.slope == pytest.approx(2)
    assert line.at_least == pytest.approx(2)
    wandering = fit(xs, walk)
    independent = fit(xs, random.Random(3).sample(walk, 400))
    assert wandering.error > 3 * independent.error
