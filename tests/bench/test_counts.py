"""A task does not take more work than it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from bench.counts import WAYS, recorded, version

ROOT = Path(__file__).resolve().parents[2]
_MOST = 1.1
"""Counts differ by 1 to 10 % from run to run, most on a busy machine: what shares a commit is a matter of time."""
_RUNS = 3
"""What chance adds is gone in one of so many, what the code adds is not."""
_PROGRAM = "import json, sys; from bench.counts import counts; print(json.dumps(counts(sys.argv[1:])))"


def counted(ways: Iterable[str]) -> dict[str, dict[str, float]]:
    """Count in a process of its own: what tests have loaded makes calls too."""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *ways], env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT, check=True,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_no_more_work_than_recorded() -> None:
    """Where more is wanted, `python -m bench.counts --write` records it, and the commit says what for."""
    before = recorded()
    if before is None:
        pytest.skip(f"no counts are recorded for Python {version()}: python -m bench.counts --write")
    assert before.keys() == WAYS.keys()
    left = {(way, unit): n for way, figures in before.items() for unit, n in figures.items()}
    ratios: dict[str, float] = {}
    for _ in range(_RUNS):
        found = counted(dict.fromkeys(way for way, _ in left))
        ratios = {f"{way} {unit}": found[way][unit] / n for (way, unit), n in left.items()}
        left = {(way, unit): n for (way, unit), n in left.items() if ratios[f"{way} {unit}"] > _MOST}
        if not left:
            return
    pytest.fail(f"more than recorded, each time: {ratios}")
