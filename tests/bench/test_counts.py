"""A task does not take more work than it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.counts import recorded, version

ROOT = Path(__file__).resolve().parents[2]
_MOST = 1.1
"""Counts differ by up to 3 % from run to run: what shares a commit is a matter of time."""
_PROGRAM = "import json; from bench.counts import counts; print(json.dumps(counts()))"


def test_no_more_work_than_recorded() -> None:
    """Where more is wanted, `python -m bench.counts --write` records it, and the commit says what for."""
    before = recorded()
    if before is None:
        pytest.skip(f"no counts are recorded for Python {version()}: python -m bench.counts --write")
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT, check=True,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = json.loads(done.stdout)
    ratios = {f"{way} {unit}": found[way][unit] / n for way, figures in before.items() for unit, n in figures.items()}
    assert {name: ratio for name, ratio in ratios.items() if ratio > _MOST} == {}
