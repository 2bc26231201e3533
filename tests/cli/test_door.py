"""The door itself: help, version, completion, mistakes and their exit codes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from mainspring.cli import app, exits
from mainspring.errors import BY_NAME, StoreNewer, SubmitIndeterminate, TaskTimeout, UnsupportedTaskType
from mainspring.tasks import ErrorInfo, TaskId

LOOKS = [["ps"], ["show", "a" * 32], ["why", "a" * 32], ["wait", "a" * 32], ["result", "a" * 32], ["cancel", "a" * 32]]
LOOKS += [["retry", "a" * 32], ["pause"], ["resume"], ["failures"], ["stats"], ["collections"], ["submit", "custom:x"]]
LOOKS += [["doctor"], ["backup", "copy.db"]]
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_version_and_help_load_neither_engine_nor_commands(run) -> None:
    """They answer without the engine, its libraries or the terminal library."""
    told = run("--version", PYTHONPROFILEIMPORTTIME="1")
    overview = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert told.out.startswith("mainspring ")
    assert told.code == overview.code == 0
    for answer in (told, overview):
        loaded = set(re.findall(r"\| +([\w.]+)$", answer.err, re.MULTILINE))
        assert "mainspring.cli.app" in loaded
        assert not loaded & {"mainspring.engine", "mainspring.store", "mainspring.cli.opening", "apsw", "rich", "numpy"}


def test_help_lists_every_command(call) -> None:
    """The overview names all commands; each command's own help comes from its module."""
    overview = call("--help").out
    assert all(re.search(rf"^  {name} ", overview, re.MULTILINE) for name in app.COMMANDS)
    for name in app.COMMANDS:
        own = call(name, "--help")
        assert own.code == 0
        assert f"Usage: mainspring {name} " in own.out
        assert "--json" in own.out


def test_every_command_is_documented() -> None:
    """docs/cli.md has a section for each command of this version."""
    page = DOCS.read_text(encoding="utf-8")
    assert [name for name in app.COMMANDS if f"`mainspring {name}" not in page] == []


def test_shells_complete_commands_and_options(run) -> None:
    """Completion knows commands and the options of each."""
    commands = run(_MAINSPRING_COMPLETE="complete_bash", COMP_WORDS="mainspring p", COMP_CWORD="1")
    options = run(_MAINSPRING_COMPLETE="complete_bash", COMP_WORDS="mainspring ps --st", COMP_CWORD="2")
    assert commands.out.split() == ["ps", "pause"]
    assert options.out.split() == ["--status", "--store"]


@pytest.mark.parametrize("arguments", LOOKS, ids=lambda arguments: arguments[0])
def test_looking_makes_no_store(call, tmp_path: Path, arguments: list[str]) -> None:
    """A missing file is said to be missing, and stays so; an empty one too."""
    answer = call(*arguments, "--store", "typo.db")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == (
        f"mainspring: there is no store at {tmp_path}/typo.db; check --store and MAINSPRING_STORE "
        "(a worker or a submit of a built-in type makes one)\n"
    )
    (tmp_path / "empty.db").touch()
    assert call(*arguments, "--store", "empty.db").code == 4
    assert {path.name for path in tmp_path.iterdir()} == {"empty.db"}
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.parametrize("arguments", [*LOOKS, ["submit", "text_processing", "--text", "x"]], ids=str)
@pytest.mark.parametrize(("store", "why"), [("x" * 300, "too long"), ("mysql://x/y", "no address of a store")])
def test_what_can_not_be_a_store(call, tmp_path: Path, arguments: list[str], store: str, why: str) -> None:
    """A name that no file can have, or the address of another kind of server."""
    answer = call(*arguments, "--store", store)
    assert (answer.code, answer.out) == (2, "")
    assert why in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_backup_has_names_of_its_own(call, tmp_path: Path) -> None:
    """What is wrong with them is said of them."""
    assert call("submit", "text_processing", "--text", "x", "--store", "work.db").code == 0
    for words, code, says in (
        (["backup", "x" * 300], 2, "target = "),
        (["backup", "mysql://x/y"], 2, "target = "),
        (["restore", "x" * 300], 2, "backup = "),
        (["restore", "nowhere.db"], 4, f"there is no backup at {tmp_path}/nowhere.db; check the path"),
    ):
        answer = call(*words, "--store", "work.db")
        assert answer.code == code
        assert says in answer.err
    assert {item.name for item in tmp_path.iterdir()} <= {"work.db", "work.db-live", "work.db-blobs"}


MISTAKES = {
    "unknown command": (["pss"], "Did you mean 'ps'"),
    "unknown option": (["ps", "--sotre", "x"], "see `mainspring ps --help`"),
    "missing argument": (["wait"], "see `mainspring wait --help`"),
    "unknown status": (["ps", "--status", "lost"], "'pending', 'running', 'completed'"),
    "no limit": (["ps", "--limit", "0"], "--limit"),
    "watch without a terminal": (["ps", "--watch"], "add --json"),
    "memory": (["ps", "--store", ":memory:"], "name a file"),
    "server": (["doctor", "--store", "postgresql://host:port/db"], "use postgresql://USER:PASSWORD@HOST"),
    "type": (["submit", "resize"], "custom:NAME"),
    "no input": (["submit", "text_processing"], "give one of INPUT, --text and --file"),
    "two inputs": (["submit", "text_processing", "{}", "--text", "a"], "give one of INPUT, --text and --file"),
    "no JSON": (["submit", "text_processing", "{"], "pass JSON as"),
    "no kind": (["submit", "text_processing", '{"text": "a"}'], "kinds: text, binary, query, model_input, custom"),
    "arguments that are no object": (["submit", "custom:x", "[1]"], "Expected `object`"),
    "text for a handler": (["submit", "custom:x", "--text", "a"], "pass the arguments as JSON"),
    "file": (["submit", "text_processing", "--file", "nowhere.pdf"], "name another file"),
    "params": (["submit", "text_processing", "--text", "a", "--params", "x"], "params = 'x'"),
    "step": (["submit", "text_processing", "--text", "a", "--params", '{"steps": ["fly"]}'], "fly"),
    "priority": (["submit", "text_processing", "--text", "a", "--priority", "top"], "LOW, NORMAL, HIGH, CRITICAL"),
    "timeout": (["submit", "text_processing", "--text", "a", "--timeout", "soon"], '"30s"'),
    "deadline": (["submit", "text_processing", "--text", "a", "--deadline", "soon"], "2030-01-31T18:00"),
    "passed deadline": (["submit", "text_processing", "--text", "a", "--deadline", "2001-01-01"], "use a later one"),
    "label": (["submit", "text_processing", "--text", "a", "--metadata", "team"], "--metadata team=search"),
    "memory of a task": (["submit", "text_processing", "--text", "a", "--memory", "2GB"], "2GiB"),
    "no amount": (["submit", "text_processing", "--text", "a", "--custom", "seat=two"], "--custom license=1"),
    "no name": (["submit", "text_processing", "--text", "a", "--custom", "2"], "--custom license=1"),
    "negative": (["submit", "text_processing", "--text", "a", "--gpu", "-1"], "use a number from 0"),
    "patience": (["submit", "text_processing", "--text", "a", "--wait-for-room", "long"], '"30s"'),
    "id of a task": (["submit", "text_processing", "--text", "a", "--task-id", "7"], "is no UUID"),
    "worker without a module": (["worker"], "--builtin"),
    "worker with both": (["worker", "shop:engine", "--builtin"], "--builtin"),
    "no such file": (["worker", "nowhere.py:engine"], "check the path"),
    "no such module": (["worker", "no_such_module_here:engine"], "No module named 'no_such_module_here'"),
}


@pytest.mark.parametrize(("arguments", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_remedy(call, arguments: list[str], remedy: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr; with --json a document there."""
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    *notes, line = answer.err.splitlines()
    assert notes in ([], [f"mainspring: makes a new store at {Path.cwd()}/mainspring.db"])
    assert line.startswith("mainspring: ")
    assert remedy in line
    if "watch" not in str(arguments):
        told = call(*arguments, "--json")
        assert (told.code, told.out) == (2, "")
        error = json.loads(told.err)["error"]
        assert (error["exit_code"], error["retryable"]) == (2, False)
        assert remedy in error["message"]


def test_what_is_no_store_is_refused_and_left_alone(call, tmp_path: Path) -> None:
    """Exit code 4 for a file that belongs to somebody else."""
    (tmp_path / "notes.txt").write_text("my notes, not a database " * 50)
    answer = call("ps", "--store", "notes.txt", "--json")
    assert (answer.code, answer.out) == (4, "")
    assert json.loads(answer.err)["error"]["type"] == "StoreForeign"
    assert call("submit", "text_processing", "--text", "a", "--store", "nofolder/x.db").code == 4
    assert (tmp_path / "notes.txt").read_text().startswith("my notes")


def test_errors_that_end_a_task_are_no_errors_of_the_command() -> None:
    """The codes: what the command was told wrongly, what is not there, what the store refuses, what took too long."""
    assert {name: exits.code_of(kind("x")) for name, kind in BY_NAME.items()} == {
        "ProcessingFailed": 1,
        "InvalidInput": 2,
        "UnsupportedTaskType": 2,
        "TaskNotFound": 3,
        "Conflict": 2,
        "ResourceLimitExceeded": 4,
        "InsufficientResources": 4,
        "QueueFull": 4,
        "StoreRefused": 4,
        "StoreUnavailable": 4,
        "TaskTimeout": 5,
        "TaskCancelled": 1,
        "DependencyNotMet": 1,
        "InternalError": 1,
    }
    assert [exits.code_of(kind("x")) for kind in (StoreNewer, SubmitIndeterminate)] == [4, 4]
    ended = ErrorInfo(type="TaskTimeout", message="attempt 1 ran longer than 1 s")
    assert exits.code_of(TaskTimeout("x", info=ended)) == 1


def test_an_unsure_submit_names_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever does not know whether a submit was stored gets the id to ask for."""
    id = TaskId()
    assert exits.tell(SubmitIndeterminate("unknown", task_id=id), as_json=True) == 4
    assert json.loads(capsys.readouterr().err)["error"]["task_id"] == str(id)


def test_an_error_names_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever kind of error it is."""
    exits.tell(UnsupportedTaskType("nobody serves it", field="task_type"), as_json=True)
    assert json.loads(capsys.readouterr().err)["error"]["field"] == "task_type"


def test_only_the_door_reads_the_environment() -> None:
    """MAINSPRING_STORE is read by the options and nowhere below."""
    source = Path(app.__file__).parents[1]
    naming = {
        path.relative_to(source).parts[0]
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "MAINSPRING_STORE"
    }
    assert naming == {"cli"}
