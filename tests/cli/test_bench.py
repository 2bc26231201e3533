"""`mainspring bench`: figures of this machine, and nothing left behind. No figure is judged."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from tests.cli.conftest import finished, started

MEMORY = Path("/dev/shm")


def test_bench_measures_and_leaves_nothing(run, tmp_path: Path) -> None:
    """Every way has its figures, as a table and as JSON."""
    answer = run("bench", "--n", "64", "--json", folder=tmp_path)
    assert answer.code == 0, answer.err
    figures = {figure["what"]: figure for figure in answer.json["figures"]}
    assert len(figures) == 6
    assert all(figure["per_s"] or figure["p50_ms"] for figure in figures.values())
    assert figures["no-op tasks by map"]["cpu_us"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "child processes" in run("bench", "--n", "64", folder=tmp_path).out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it in the middle of its first way, and its store goes."""
    bench = started("bench", "--n", "1000000", folder=tmp_path)
    assert bench.stderr is not None
    assert "by map" in bench.stderr.readline()
    bench.send_signal(number)
    answer = finished(bench)
    assert answer.code == 130, answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["nowhere", pytest.param(str(MEMORY), marks=pytest.mark.skipif(
    not any(part.mountpoint == str(MEMORY) for part in psutil.disk_partitions(all=True)), reason="no memory file system"
))])  # fmt: skip
def test_a_folder_that_measures_nothing_is_refused(call, tmp_path: Path, folder: str) -> None:
    """One that is not there, or in memory."""
    answer = call("bench", "--folder", folder, folder=tmp_path)
    assert answer.code == 2
    assert "folder" in answer.err
