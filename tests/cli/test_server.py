"""The command line on a store that is on a server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.cli.conftest import SHOP, Answer, Worker

from mainspring.config import without_password


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path))  # where large values would go
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


def test_commands_take_an_address(store: str, tmp_path: Path, run: Callable[..., Answer]) -> None:
    """A worker, submit, show, stats, pause and cancel work as on a file."""
    worker = Worker(tmp_path, f"{SHOP}:engine", "--store", store)
    try:
        answer = run("submit", "--store", store, "custom:resize", '{"width": 2}', "--wait", "--json")
        assert answer.code == 0, answer.err
        assert "6" in answer.out
        (row,) = run("ps", "--store", store, "--json").json
        assert run("show", "--store", store, row["id"][-12:], "--json").code == 0
        assert "1 completed" in run("stats", "--store", store).out
        assert run("pause", "--store", store).code == 0
        later = run("submit", "--store", store, "custom:resize", '{"width": 2}', "--json")
        assert run("cancel", "--store", store, later.json["id"]).code == 0
        assert run("resume", "--store", store).code == 0
    finally:
        worker.signal(signal.SIGTERM)
        assert worker.end().code == 0


@pytest.mark.parametrize("command", [("doctor",), ("backup", "copy.db")])
def test_what_works_on_files_alone_says_so(command: tuple[str, ...], call: Callable[..., Answer]) -> None:
    """Without reaching for the server, and without showing its password."""
    answer = call(command[0], "--store", "postgresql://user:s3cret@127.0.0.1:1/db", *command[1:])
    assert answer.code == 2
    assert "works on files alone" in answer.err
    assert "s3cret" not in answer.err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("work.db", "work.db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u:p@h:1/db?schema=a", "postgresql://u@h:1/db?schema=a"),
        ("postgresql://u:p@ss/w:ord@h/db", "postgresql://u@h/db"),
    ],
)
def test_a_store_is_shown_without_its_password(name: str, shown: str) -> None:
    """Also where the password has signs that an address can't have."""
    assert without_password(name) == shown
