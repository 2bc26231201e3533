"""Run mixed load through one process and then through two, and fail on whatever keeps growing.

    python -m proof.soak                    30 minutes: half of them in one process, half in two
    python -m proof.soak --minutes 2        a smoke test, with wider limits
    python -m proof.soak --ablations        a handler keeps 400 bytes of each call, which must be seen: one minute

Prints a table, and leaves samples, figures (JSON) and a picture in proof/out/.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from proof import OUT, ROOT
from proof.figures import Figures, announce
from proof.soak.picture import draw
from proof.soak.program import Sample
from proof.soak.verdict import Course, course, judge, judge_store, limits_for

_ENDS_WITHIN_S = 60.0


class Started:
    """A program of a scenario, and where its samples go."""

    def __init__(self, store: Path, role: str, seconds: float, samples: Path, leak: int, seed: int) -> None:
        self.samples = samples
        command = [sys.executable, "-m", "proof.soak.program", *map(str, (store, role, seconds, samples, leak, seed))]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def ended(self, limit_s: float) -> list[Sample]:
        """Wait for its end, and return what it saw. Raises: RuntimeError: it failed."""
        code = self.process.wait(limit_s)
        if code:
            raise RuntimeError(f"a process of the soak ended with exit code {code}; its samples: {self.samples}")
        return [msgspec.json.decode(line, type=Sample) for line in self.samples.read_bytes().splitlines()]


def one_process(folder: Path, out: Path, seconds: float, leak: int, seed: int) -> list[Course]:
    alone = Started(folder / "one.db", "alone", seconds, out / "soak-alone.jsonl", leak, seed)
    samples = alone.ended(seconds + _ENDS_WITHIN_S)
    return [course("one process", samples, samples)]


def two_processes(folder: Path, out: Path, seconds: float, seed: int) -> list[Course]:
    store = folder / "two.db"
    works = Started(store, "works", seconds, out / "soak-works.jsonl", 0, seed)
    try:
        submits = Started(store, "submits", seconds, out / "soak-submits.jsonl", 0, seed)
        asked = submits.ended(seconds + _ENDS_WITHIN_S)
    finally:
        works.process.send_signal(signal.SIGTERM)
    return [course("submitter", asked, asked), course("worker", works.ended(_ENDS_WITHIN_S), asked)]


def run(folder: Path, out: Path, seconds: float, seed: int) -> tuple[Figures, list[Course]]:
    """Run both scenarios and judge them."""
    out.mkdir(parents=True, exist_ok=True)
    courses = one_process(folder, out, seconds / 2, 0, seed)
    courses += two_processes(folder, out, seconds / 2, seed)
    figures, limits = Figures(), limits_for(seconds)
    for one in courses:
        judge(figures, one, limits)
        if one.name != "worker":
            judge_store(figures, one, limits)
    return figures, courses


def see_a_leak(folder: Path, out: Path, seconds: float, leak: int, seed: int) -> tuple[Figures, list[Course]]:
    """Let a handler keep something of each call: the verdict on the process must say so."""
    out.mkdir(parents=True, exist_ok=True)
    courses, judged, figures = one_process(folder, out, seconds, leak, seed), Figures(), Figures()
    judge(judged, courses[0], limits_for(seconds))
    for row in judged.rows:
        figures.note(row.what, row.value)
    grew = [row for row in judged.rows if "memory" in row.what and not row.is_met]
    figures.some(f"rises seen where a handler keeps {leak:,} bytes of each call", len(grew))
    return figures, courses


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--ablations", action="store_true", help="see that a leak is found, in one minute at most")
    parser.add_argument("--leak", type=int, default=400, metavar="BYTES", help="the size of that leak a call")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where the stores lie meanwhile; a temporary folder by default")
    given = parser.parse_args()
    announce(
        given.seed, f"proof.soak --seed {given.seed} --minutes {given.minutes:g}" + " --ablations" * given.ablations
    )
    seconds = given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="mainspring-soak-", dir=given.folder) as name:
        if given.ablations:
            figures, courses = see_a_leak(Path(name), given.out, min(seconds, 60.0), given.leak, given.seed)
        else:
            figures, courses = run(Path(name), given.out, seconds, given.seed)
    (given.out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures.rows)))
    if draw(courses, given.out / "soak.png"):
        print(f"picture: {given.out / 'soak.png'}")
    return figures.conclude()


if __name__ == "__main__":
    sys.exit(main())
