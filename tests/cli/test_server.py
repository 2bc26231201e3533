"""The command line on a store that is on a server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.cli.conftest import SHOP, Answer, Worker
from tests.cli.indexed import need_model

from mainspring.config import ModelConfig, without_password
from mainspring.store.postgres.address import parse

MODELS = ModelConfig().cache_folder
Run = Callable[..., Answer]
SECRET = "postgresql://me:secret@127.0.0.1/work"
NEARLY = "me:secret@127.0.0.1/work"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path))  # where large values would go
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


def test_commands_take_an_address(store: str, tmp_path: Path, run: Run, call: Run) -> None:
    """A worker, submit, show, stats, pause and cancel work as on a file."""
    worker = Worker(tmp_path, f"{SHOP}:engine", "--store", store)
    try:
        answer = run("submit", "--store", store, "custom:resize", '{"width": 2}', "--wait", "--json")
        assert answer.code == 0, answer.err
        assert "6" in answer.out
        (row,) = call("ps", "--store", store, "--json").json
        assert call("show", "--store", store, row["id"][-12:], "--json").code == 0
        assert "1 completed" in call("stats", "--store", store).out
        seen = call("top", "--store", store, "--json").json
        assert seen["store"] == worker.ready["store"] == parse(store).named
        assert f"?schema={postgres.schema_of(tmp_path)}" in call("top", "--store", store, "--once").out
        assert seen["tasks"]["completed"] == 1
        assert [one["name"] for one in seen["workers"]] == [worker.ready["worker"]]
        assert call("ps", "--store", store, "--type", "resize", "--json").json == [row]
        assert call("pause", "--store", store).code == 0
        later = call("submit", "--store", store, "custom:resize", '{"width": 2}', "--json")
        assert call("cancel", "--store", store, later.json["id"]).code == 0
        assert call("resume", "--store", store).code == 0
    finally:
        worker.signal(signal.SIGTERM)
        assert worker.end().code == 0


def test_a_folder_is_indexed_and_searched_on_a_server(store: str, tmp_path: Path, call: Run) -> None:
    """Only what changed is computed again; the collection moves to a file and back, and may have an index."""
    (tmp_path / ".cache" / "mainspring").mkdir(parents=True)
    ModelConfig().cache_folder.symlink_to(MODELS)
    need_model()
    files = tmp_path / "files"
    files.mkdir()
    (files / "cats.txt").write_text("Cats are small mammals that people keep at home.")
    (files / "sun.txt").write_text("The Sun is a star made of hydrogen.")
    first = call("index", str(files), "--store", store, "--json").json
    assert (first["indexed"], first["failed"]) == (2, [])
    (files / "sun.txt").unlink()
    (files / "rust.txt").write_text("Iron rusts when water touches it.")
    second = call("index", str(files), "--store", store, "--json").json
    assert (second["indexed"], second["unchanged"], second["removed"]) == (1, 1, 1)

    def best(place: str) -> tuple[str, float]:
        hit = call("search", "a pet", "--store", place, "--json").json["hits"][0]
        return Path(hit["metadata"]["source"]).name, hit["score"]

    assert best(store)[0] == "cats.txt"
    (row,) = call("collections", "--store", store, "--json").json
    assert (row["name"], row["count"], row["dim"]) == ("default", 2, 384)
    moved = call("collections", "copy", "default", "--from", store, "--to", "moved.db", "--json").json
    assert (moved["records"], moved["written"]) == (2, 2)
    assert best("moved.db") == best(store)
    back = call("collections", "copy", "default", "--from", "moved.db", "--to", store, "--as", "again", "--json").json
    assert back == {"name": "again", "records": 2, "written": 2}
    assert call("collections", "index", "again", "--store", store).code == 0
    found = call("search", "a pet", "--store", store, "--collection", "again", "--filter", "size=48", "--json").json
    assert [Path(hit["metadata"]["source"]).name for hit in found["hits"]] == ["cats.txt"]
    assert call("collections", "index", "again", "--drop", "--store", store).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("copy", "nothing", "--from", "{store}", "--to", "new.db"), 2, "nothing"),
        (("copy", "a", "--from", "{store}", "--to", "{store}"), 2, "is where it comes from"),
        (("copy", "a", "--from", "gone.db", "--to", "{store}"), 4, "no store at"),
        (("index", "a", "--store", "file.db"), 2, "is a file"),
        (("index", "nothing", "--store", "{store}"), 2, "nothing"),
        (("index", "a", "--store", "{store}", "--memory-mb", "0"), 2, "memory_mb"),
    ],
)
def test_what_collections_can_t_do(store: str, call: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    answer = call("collections", *(argument.format(store=store) for argument in arguments))
    assert answer.code == code, answer.err
    assert words in answer.err


@pytest.mark.parametrize("kind", ["file", "server"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ps", "--namespace", "a\udcff"], r"namespace = 'a\udcff': is no valid Unicode; use"),
        (["ps", "--type", "a\udcff"], r"type = 'a\udcff': is no valid Unicode; use"),
        (["cache", "purge", "--namespace", "a\udcff"], r"namespace = 'a\udcff': is no valid Unicode; use"),
        (["submit", "data_retrieval", "a\udcff"], r"input = 'a\udcff': "),
    ],
)
def test_what_a_shell_gives_may_be_no_unicode(store: str, call: Run, kind: str, words: list[str], says: str) -> None:
    """It is told in one line, on every store."""
    name = "work.db" if kind == "file" else store
    assert call("submit", "text_processing", "--text", "a", "--store", name).code == 0
    answer = call(*words, "--store", name)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("work.db", "work.db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u:p@h:1/db?schema=a", "postgresql://u@h:1/db?schema=a"),
        ("postgresql://u:p@ss/w:ord@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?user=u&password=p&schema=a", "postgresql://h/db?user=u&schema=a"),
        ("postgresql://h/db?password=p", "postgresql://h/db"),
        ("postgresql://h/db?%70assword=p&a=b", "postgresql://h/db?a=b"),
        ("postgresql://h/db?sslpassword=p&PASSWORD=p&passwd=p", "postgresql://h/db"),
        ("postgresql://h/db?password=a&b", "postgresql://h/db"),
        ("postgresql:/u:p@h/db", "..."),
        ("u:p@h/db", "..."),
        ("postgresql+asyncpg://u:p@h/db", "postgresql+asyncpg://..."),
        ("u:p@h://db", "..."),
        ("host=h password=p", "..."),
        ("./u:p@h", "./u:p@h"),
        ("/data/10:30@noon.db", "/data/10:30@noon.db"),
    ],
)
def test_a_store_is_shown_without_its_password(name: str, shown: str) -> None:
    """Also where the password has signs that an address can't have."""
    assert without_password(name) == shown


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["backup", "copy.db", "--store", SECRET], "pg_dump"),
        (["restore", "copy.db", "--store", SECRET], "pg_restore"),
        (["backup", SECRET], "pg_dump"),
        (["restore", SECRET], "pg_restore"),
    ],
)
def test_copies_of_a_server_are_its_own_business(tmp_path: Path, call: Run, words: list[str], remedy: str) -> None:
    """`backup` and `restore` name the tool for it, hide the password, and leave no file behind, wherever among their
    words the address stands."""
    (tmp_path / "copy.db").touch()
    before = sorted(tmp_path.rglob("*"))
    answer = call(*words)
    assert answer.code == 2
    assert remedy in answer.err
    assert "secret" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["stats", "--store"],
        ["doctor", "--store"],
        ["worker", "--builtin", "--store"],
        ["submit", "custom:resize", '{"width": 2}', "--store"],
        ["index", ".", "--store"],
        ["migrate", "work.db"],
        ["collections", "copy", "docs", "--to", "work.db", "--from"],
        ["backup", "copy.db", "--store"],
        ["restore", "--store", "work.db"],
    ],
)
@pytest.mark.parametrize("name", ["postgresql:/me:secret@h/db", "me:secret@h/db", "host=h password=secret"])
def test_what_is_nearly_an_address_is_no_file(tmp_path: Path, call: Run, words: list[str], name: str) -> None:
    """No command makes a store or a copy of such a name, or shows what may be a password in it."""
    (tmp_path / "work.db").touch()
    before = sorted(tmp_path.rglob("*"))
    answer = call(*words, name)
    assert answer.code == 2
    assert "is no address of a store" in answer.err
    assert "secret" not in answer.out + answer.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["migrate", NEARLY, NEARLY],
        ["migrate", NEARLY, "work.db"],
        ["collections", "copy", "docs", "--from", NEARLY, "--to", NEARLY],
        ["collections", "copy", "docs", "--from", "work.db", "--to", NEARLY],
        ["backup", NEARLY],
        ["restore", NEARLY],
        ["demo", "--store", NEARLY],
        ["demo", "--store", SECRET],
    ],
)
def test_whatever_is_wrong_with_it_no_password_is_shown(call: Run, words: list[str]) -> None:
    answer = call(*words)
    assert answer.code != 0
    assert "secret" not in answer.out + answer.err
