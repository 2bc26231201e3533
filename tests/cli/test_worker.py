"""`mainspring worker`: which engine it runs, on which file, and how it stops."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import SHOP, Worker, finished, started

from mainspring.cli.worker import load
from mainspring.errors import Conflict, InvalidInput


def hold(call, worker: Worker) -> str:
    """Submit a task that runs until the file `go` appears, and return its id once it runs."""
    submitted = call("submit", "custom:hold", json.dumps({"until": str(worker.folder / "go")}), "--json")
    id: str = submitted.json["id"]
    while call("show", id, "--json").json["progress"] is None:
        pass
    return id


def test_a_signal_lets_running_tasks_end(call, worker: Worker) -> None:
    """It takes nothing new, the running task completes, and the exit code is 0."""
    id = hold(call, worker)
    worker.signal(signal.SIGTERM)
    later = call("submit", "custom:resize", '{"width": 1}', "--json").json["id"]
    (worker.folder / "go").touch()
    answer = worker.end()
    assert (answer.code, answer.lines) == (0, [{"event": "stopped"}])
    told = call("show", id, "--json").json
    assert (told["status"], told["attempt"]) == ("completed", 1)
    assert call("show", later, "--json").json["status"] == "pending"
    assert "No living worker serves custom:resize" in call("why", later).out


def test_a_second_signal_hands_back_at_once(call, worker: Worker) -> None:
    """The task does not end; it is there for the next worker, uncharged."""
    id = hold(call, worker)
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGINT)
    assert worker.end().code == 0
    told = call("show", id, "--json").json
    assert (told["status"], told["reason"], told["retry_count"]) == ("pending", "no_worker", 0)
    assert [item["outcome"] for item in told["attempts"]] == ["released"]


def test_a_killed_worker_loses_no_task(call, worker: Worker) -> None:
    """The next command takes back what it held, and the next worker runs it."""
    id = hold(call, worker)
    worker.process.kill()
    worker.end()
    answer = call("show", id, "--json")
    assert answer.json["status"] == "pending"
    (worker.folder / "go").touch()
    again = Worker(worker.folder, f"{SHOP}:engine")
    assert call("wait", id).code == 0
    again.signal(signal.SIGTERM)
    assert again.end().code == 0


def test_the_store_can_be_named(call, tmp_path: Path) -> None:
    """It goes before the engine's own file; the module's engine is there too, with its handlers and models."""
    store = tmp_path / "named.db"
    named = Worker(tmp_path, f"{SHOP}:engine", "--store", str(store))
    assert named.ready["store"] == str(store)
    answer = call("submit", "custom:ask", '{"text": "hello"}', "--wait", "--store", str(store))
    where = call("submit", "custom:where", "--wait", "--store", str(store))
    named.signal(signal.SIGTERM)
    assert named.end().code == 0
    assert (answer.out, where.out) == ("hello\n", f"{store}\n")
    assert [path.name for path in tmp_path.glob("*.db")] == ["named.db"]


def test_built_in_types_need_no_module(call, tmp_path: Path) -> None:
    """`--builtin` serves them alone, on the store of the environment."""
    process = started("worker", "--builtin", "--json", folder=tmp_path, environment={"MAINSPRING_STORE": "env.db"})
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["store"] == str(tmp_path / "env.db")
    assert not [kind for kind in ready["types"] if kind.startswith("custom:")]
    answer = call("submit", "text_processing", "--text", "a  b", "--wait", "--store", "env.db")
    process.send_signal(signal.SIGTERM)
    assert finished(process).code == 0
    assert answer.out == "a b\n"


def test_an_engine_with_a_file_of_its_own_works_there(tmp_path: Path) -> None:
    """Also one that is made only to submit: a worker works. A module is found in the working folder."""
    (tmp_path / "own_file.py").write_text(
        "from mainspring import Engine\nengine = Engine('own.db', worker=False)\n@engine.task\ndef f(): return 1\n"
    )
    own = Worker(tmp_path, "own_file:engine")
    assert own.ready["store"] == str(tmp_path / "own.db")
    own.signal(signal.SIGTERM)
    assert own.end().code == 0


MODULES = {
    "no engine": ("x = 1", "engine is not an Engine there; make one: engine = Engine()"),
    "another name": ("from mainspring import Engine\nshop = Engine()", "use broken.py:NAME with one of: shop"),
    "syntax": ("def", "SyntaxError"),
    "raises": ("x = 1\nraise RuntimeError('boom')", "RuntimeError: boom ("),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's module goes; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {name: found for name, found in sys.modules.items() if name != "broken"})
    return tmp_path / "broken.py"


@pytest.mark.parametrize(("source", "why"), MODULES.values(), ids=MODULES)
def test_a_module_that_is_no_use_is_told_to_its_author(module: Path, source: str, why: str) -> None:
    """In one line: what is wrong, and at which line of whose file."""
    module.write_text(source)
    with pytest.raises(InvalidInput) as told:
        load("broken.py:engine")
    assert why in str(told.value)
    if "raise" in source:
        assert f"{module}, line 2" in str(told.value)


def test_a_wrong_declaration_keeps_its_own_error(module: Path) -> None:
    """What the engine says about a handler is not wrapped."""
    module.write_text(
        "from mainspring import Engine\nengine = Engine()\n"
        "for _ in range(2):\n    @engine.task(name='twice')\n    def f() -> int: return 1\n"
    )
    with pytest.raises(Conflict, match="twice"):
        load("broken.py:engine")


def test_a_file_hidden_behind_a_module_is_refused(module: Path) -> None:
    """`json.py` would not be imported, the standard library's would."""
    (module.parent / "json.py").write_text("from mainspring import Engine\nengine = Engine()")
    with pytest.raises(InvalidInput, match="rename the file"):
        load("json.py:engine")


TALKER = """
import subprocess
from mainspring import Engine

print("a module")
engine = Engine()


@engine.task
async def on_the_loop() -> None:
    print("the loop")


@engine.task
def in_a_thread() -> None:
    print("a thread", flush=True)
    subprocess.run(["echo", "a program"], check=True)


@engine.task(lane="process")
def in_a_child() -> None:
    print("a child")
"""


def test_what_handlers_print_is_no_document(call, tmp_path: Path) -> None:
    """Nor what their module does, their children and the programs that they start: all of it goes to stderr."""
    (tmp_path / "talker.py").write_text(TALKER, encoding="utf-8")
    worker = Worker(tmp_path, "talker.py:engine")
    for name in ("on_the_loop", "in_a_thread", "in_a_child"):
        assert call("submit", f"custom:{name}", "--wait").code == 0
    worker.signal(signal.SIGTERM)
    answer = worker.end()
    assert answer.lines == [{"event": "stopped"}]
    printed = {line for line in answer.err.splitlines() if not line.startswith("mainspring: worker ")}  # of the callers
    assert printed == {"a child", "a module", "a program", "a thread", "the loop"}
