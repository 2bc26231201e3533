"""The peers' own programs still run against the peers, and one that does not says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.harness import OUT, scratch
from bench.peers import PEERS, Peer, running

ROOT = Path(__file__).resolve().parents[2]
_PATIENT = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def venvs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peers' environments: those that are there, else new ones where a change is judged."""
    there = Path(os.environ.get("BENCH_PEERS", OUT / "peers"))
    if all(peer.python(there).exists() for peer in PEERS):
        return there
    if not os.environ.get("CI"):
        pytest.skip("the peers are not installed: python -m bench.peers --install, or name their folder in BENCH_PEERS")
    folder = tmp_path_factory.mktemp("peers")
    subprocess.run([sys.executable, "-m", "bench.peers", "--install", "--venvs", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.mark.parametrize("peer", [peer for peer in PEERS if not peer.tuned], ids=lambda peer: peer.name)
def test_a_peer(peer: Peer, venvs: Path) -> None:
    """Its workers do what its submitter asks for, again and again."""
    if not peer.has_server():
        assert not os.environ.get("CI"), f"the server of {peer.name} is not installed; .ci/run brings it"
        pytest.skip(f"the server of {peer.name} is not installed: apt-get install redis-server postgresql")
    with scratch(None) as folder:
        folder.chmod(0o711)  # Postgres runs as a user of its own below it
        with running(peer, venvs.resolve(), folder) as timed:
            for n in (10, 50):
                sample, *_ = timed(n)
                assert sample.n == n
                assert sample.wall_s > 0
                assert sample.cpu_s > 0


@contextlib.contextmanager
def _no_server(_folder: Path) -> Iterator[tuple[str, int]]:
    yield "nowhere", os.getpid()


def made_up(folder: Path, submitter: str, worker: str) -> Peer:
    """A peer that consists of these two programs."""
    program = folder / "peer_made_up.py"
    program.write_text(submitter)
    peer = Peer(
        name="made-up", packages=[], server=_no_server, has_server=lambda: True, program=program,
        workers=lambda bin: [[str(bin / "python"), "-c", worker]], note="",
    )  # fmt: skip
    python = peer.python(folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return peer


def test_a_submitter_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is named, and so is what went wrong."""
    peer = made_up(tmp_path, "raise SystemExit('no such call')", _PATIENT)
    with (
        running(peer, tmp_path, tmp_path) as timed,
        pytest.raises(RuntimeError, match=r"made-up: peer_made_up\.py ended"),
    ):
        timed(10)
    assert "no such call" in capfd.readouterr().err


def test_a_worker_that_fails(tmp_path: Path) -> None:
    """Nobody waits for what will never be done, and what it said is told."""
    peer = made_up(tmp_path, _PATIENT, "raise SystemExit('no such option')")
    with running(peer, tmp_path, tmp_path) as timed, pytest.raises(RuntimeError, match="no such option"):
        timed(10)


def test_work_that_is_never_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that live and do nothing are not waited for for ever."""
    monkeypatch.setattr("bench.peers._ANSWERS_WITHIN_S", 0.0)
    peer = made_up(tmp_path, _PATIENT, _PATIENT)
    with running(peer, tmp_path, tmp_path) as timed, pytest.raises(RuntimeError, match="10 tasks are not done in time"):
        timed(10)
