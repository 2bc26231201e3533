"""Values that can't be read: each is named where it is asked for, and hides nothing else."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.cli.conftest import Answer
from tests.store.fixtures.make import make

from mainspring.tasks import TaskId


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tasks in every state."""
    return asyncio.run(make(tmp_path_factory.mktemp("died")))


Spoil = Callable[[str], None]


@pytest.fixture
def spoil(died: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Run a statement on the store that the commands of a test see."""
    monkeypatch.chdir(tmp_path)
    for item in died.parent.iterdir():
        to = tmp_path / item.name.replace("work.db", "mainspring.db")
        shutil.copytree(item, to) if item.is_dir() else shutil.copy(item, to)

    def run(sql: str) -> None:
        connection = apsw.Connection("mainspring.db")
        connection.execute(sql)
        connection.close()

    return run


def task(text: str) -> str:
    return str(TaskId(ask("SELECT id FROM task WHERE instr(input, CAST(? AS BLOB))", text)))


def ask(sql: str, *values: str) -> Any:
    connection = apsw.Connection("mainspring.db")
    found = connection.execute(sql, values).get
    connection.close()
    return found


def refused(answer: Answer, id: str, field: str) -> bool:
    told = ('"type":"StoreDamaged"', '"exit_code":4', f'"field":"{field}"', id, "doctor --check")
    return answer.code == 4 and all(what in answer.err for what in told)


def test_an_output(call, spoil: Spoil) -> None:
    """All that is known of the task is shown; the value is refused, with what to do."""
    spoil("UPDATE task SET output = x'c1c1' WHERE instr(input, CAST('plain' AS BLOB))")
    id = task("plain")
    shown = call("show", id, "--json")
    assert shown.json["status"] == "completed"
    assert len(shown.json["attempts"]) == 1
    assert refused(shown, id, "output")
    assert refused(call("result", id, "--json"), id, "output")
    assert id in {item["id"] for item in call("ps", "--json").json}


@pytest.mark.parametrize("of", ["task", "attempt"])
def test_an_error(call, spoil: Spoil, of: str) -> None:
    """Lists and the task itself tell that it can't be read, beside all others."""
    spoil(f"UPDATE {of} SET error = x'c1c1' WHERE error IS NOT NULL")
    id = task("broken")
    assert len(call("ps", "--json").json) == ask("SELECT count(*) FROM task") > 10
    shown = call("show", id, "--json")
    assert shown.code == 0
    error = shown.json["error"] if of == "task" else shown.json["attempts"][-1]["error"]
    assert error["type"] == "StoreDamaged"
    assert id in error["message"]
    assert id in {item["id"] for item in call("failures", "--json").json}
    if of == "task":
        assert refused(call("result", id, "--json"), id, "error")
        assert call("wait", id).code == 1


def test_the_name_of_a_blob(call, spoil: Spoil) -> None:
    """Large payloads stand in the row as the name of a blob: one that is none."""
    spoil("UPDATE task SET input = x'c100c1' WHERE flags & 16; UPDATE task SET output = x'c100c1' WHERE flags & 32")
    assert len(call("ps", "--json").json) == ask("SELECT count(*) FROM task")
    id = str(TaskId(ask("SELECT id FROM task WHERE flags & 32")))
    assert refused(call("result", id, "--json"), id, "output")
    checked = call("doctor", "--check", "--json")
    assert checked.code == 4
    assert "invariant payloads" in {item["about"] for item in checked.json["findings"]}


def test_a_spec(call, spoil: Spoil) -> None:
    """What can't be told of the task is missing, and said so."""
    spoil("UPDATE task SET spec = x'c1c1' WHERE instr(input, CAST('plain' AS BLOB))")
    shown = call("show", task("plain"), "--json")
    assert shown.code == 0
    assert "unreadable" in shown.json["metadata"]


def test_a_priority(call, spoil: Spoil) -> None:
    """One that there is not is shown as the nearest, and named by the check."""
    spoil("PRAGMA ignore_check_constraints = 1; UPDATE task SET priority = 77 WHERE status < 2")
    assert {item["priority"] for item in call("ps", "--status", "pending", "--json").json} == {"critical"}
    checked = call("doctor", "--check", "--json")
    assert "invariant states" in {item["about"] for item in checked.json["findings"]}


def test_a_handler(call, spoil: Spoil) -> None:
    """`doctor` goes on without it, `--check` names it, and a submit that needs it is refused."""
    spoil("UPDATE handler SET options = '{'")
    assert call("doctor", "--json").code == 1
    checked = call("doctor", "--check", "--json")
    assert checked.code == 4
    assert "invariant readable" in {item["about"] for item in checked.json["findings"]}
    answer = call("submit", "custom:work", "{}", "--json")
    assert answer.code == 4
    assert '"type":"StoreDamaged"' in answer.err
    assert "start a worker that declares it" in answer.err
