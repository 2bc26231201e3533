"""The pipeline in a process of its own that is killed, stopped and started again; real documents, real model."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from tests.cli.indexed import ask, check_ledger, need_model, records, run_index, write_texts

from mainspring.cli.session import INTERRUPTED

N = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_model()
    return write_texts(tmp_path_factory.mktemp("real") / "texts", N)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    store = tmp_path_factory.mktemp("whole") / "store.db"
    assert run_index(folder, store) == 0
    check_ledger(store, N)
    return records(store)


def test_killed_three_times(folder: Path, undisturbed: list[Any], tmp_path: Path) -> None:
    """After kill -9 at three moments and a last start the index is the same to the bit, and no step was done twice."""
    store = tmp_path / "store.db"
    for moment in (1, N // 4, N // 3):
        assert run_index(folder, store, stop_at=moment) == -signal.SIGKILL
    assert len(records(store)) < len(undisturbed)
    assert run_index(folder, store) == 0
    assert records(store) == undisturbed
    check_ledger(store, N)


def test_interrupted(folder: Path, undisturbed: list[Any], tmp_path: Path) -> None:
    """Ctrl-C ends the run politely: nothing crashed, nothing is half written, and the next start does the rest only."""
    store = tmp_path / "store.db"
    assert run_index(folder, store, stop_at=N // 4, how=signal.SIGINT) == INTERRUPTED
    assert ask(store, "SELECT count(*) FROM attempt WHERE outcome NOT IN (0, 5)") == [(0,)]  # completed, released
    assert set(records(store)) < set(undisturbed)
    assert run_index(folder, store) == 0
    assert records(store) == undisturbed
    check_ledger(store, N)
