"""Run mixed load through one process and then through two, and fail on whatever keeps growing.

    python -m proof.soak --minutes 30       the nightly size: half of the time in one process, half in two
    python -m proof.soak --minutes 1        a smoke test, with wider limits
    python -m proof.soak --minutes 1 --leak 400
                                            negative control: a handler keeps 400 bytes of each call: must be seen

Prints a table, and leaves samples, figures (JSON) and a picture in proof/out/.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from proof.figures import Figures
from proof.soak.picture import draw
from proof.soak.program import Sample
from proof.soak.verdict import Course, course, judge, judge_store, limits_for

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).resolve().parents[1] / "out"
_ENDS_WITHIN_S = 60.0


class Started:
    """A program of a scenario, and where its samples go."""

    def __init__(self, store: Path, role: str, seconds: float, samples: Path, leak: int) -> None:
        self.samples = samples
        command = [sys.executable, "-m", "proof.soak.program", *map(str, (store, role, seconds, samples, leak))]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def ended(self, limit_s: float) -> list[Sample]:
        """Wait for its end, and return what it saw. Raises: RuntimeError: it failed."""
        code = self.process.wait(limit_s)
        if code:
            raise RuntimeError(f"a process of the soak ended with exit code {code}; its samples: {self.samples}")
        return [msgspec.json.decode(line, type=Sample) for line in self.samples.read_bytes().splitlines()]


def one_process(folder: Path, out: Path, seconds: float, leak: int) -> list[Course]:
    alone = Started(folder / "one.db", "alone", seconds, out / "soak-alone.jsonl", leak)
    samples = alone.ended(seconds + _ENDS_WITHIN_S)
    return [course("one process", samples, samples)]


def two_processes(folder: Path, out: Path, seconds: float, leak: int) -> list[Course]:
    store = folder / "two.db"
    works = Started(store, "works", seconds, out / "soak-works.jsonl", leak)
    try:
        submits = Started(store, "submits", seconds, out / "soak-submits.jsonl", leak)
        asked = submits.ended(seconds + _ENDS_WITHIN_S)
    finally:
        works.process.send_signal(signal.SIGTERM)
    return [course("submitter", asked, asked), course("worker", works.ended(_ENDS_WITHIN_S), asked)]


def run(folder: Path, out: Path, seconds: float, *, leak: int = 0) -> tuple[Figures, list[Course]]:
    """Run both scenarios and judge them."""
    out.mkdir(parents=True, exist_ok=True)
    courses = one_process(folder, out, seconds / 2, leak) + two_processes(folder, out, seconds / 2, leak)
    figures, limits = Figures(), limits_for(seconds)
    for one in courses:
        judge(figures, one, limits)
        if one.name != "worker":
            judge_store(figures, one, limits)
    return figures, courses


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proof.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES", help="the negative control")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where the stores lie meanwhile; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mainspring-soak-", dir=given.folder) as folder:
        figures, courses = run(Path(folder), given.out, given.minutes * 60, leak=given.leak)
    print(figures.table())
    (given.out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures.rows)))
    if draw(courses, given.out / "soak.png"):
        print(f"picture: {given.out / 'soak.png'}")
    if not given.leak:
        return 0 if figures.are_met else 1
    grew = [row for row in figures.rows if "memory" in row.what and not row.is_met]
    print(f"control: the leak was seen in {len(grew)} processes")
    return 0 if grew else 1


if __name__ == "__main__":
    sys.exit(main())
