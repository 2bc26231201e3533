"""The corpus: what is in it, what must never be, and how it is kept in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.cli.demo.corpus import MARKER, documents, file_names, write_corpus
from mainspring.cli.demo.docstrings import Document
from mainspring.cli.demo.library import EXCLUDED, MODULES
from mainspring.errors import InvalidInput


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return documents()


@pytest.fixture(scope="module")
def names(corpus: list[Document]) -> set[str]:
    return {document.name for document in corpus}


def python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_each_document_has_a_name_of_its_own_and_begins_with_it(corpus: list[Document], names: set[str]) -> None:
    """Names are unique, and the first line of each text is the name alone."""
    assert len(names) == len(corpus)
    assert all(document.text.split("\n", 1)[0] == document.name for document in corpus)


def test_default_corpus_has_the_size_that_the_demo_is_planned_for(corpus: list[Document]) -> None:
    """Some 2,700 documents in 3.11 to 3.13, most of them short: less than a minute of embedding on two cores."""
    assert 2_400 <= len(corpus) <= 3_000
    assert sum(len(document.text) for document in corpus) < 850_000


def test_every_chosen_module_is_in_the_corpus(corpus: list[Document]) -> None:
    """No entry of MODULES is misspelt or without documentation, and none is excluded at the same time."""
    assert set(MODULES) <= {document.module for document in corpus}
    assert not {name.partition(".")[0] for name in MODULES} & set(EXCLUDED)


@pytest.mark.parametrize(
    ("called", "not_called"),
    [
        ("builtins.open", "io.open"),
        ("builtins.OSError", "builtins.IOError"),
        ("os.path.join", "posixpath.join"),
        ("random.choice", "random.Random.choice"),
        ("json.JSONDecoder", "json.decoder.JSONDecoder"),
        ("logging.Logger.warning", "logging.Logger.warn"),
    ],
)
def test_an_object_appears_once_under_the_name_that_people_use(names: set[str], called: str, not_called: str) -> None:
    """Of the names of one object the usual one is a document, and the other is not."""
    assert called in names
    assert not_called not in names


def test_methods_from_a_base_that_nobody_can_name_belong_to_the_class(names: set[str]) -> None:
    """What the C half of a class brings is documented under the name of the class that people use."""
    assert {"cProfile.Profile.enable", "random.Random.getrandbits"} <= names


def test_no_chapter_of_the_manual_is_in_the_default_corpus(corpus: list[Document]) -> None:
    """Topics answer one question each; those that are books by themselves are left to the full corpus."""
    topics = [document for document in corpus if document.kind == "topic"]
    assert len(topics) > 40
    assert max(len(document.text) for document in topics) < 5_000


def test_docstrings_that_python_writes_itself_are_left_out(corpus: list[Document]) -> None:
    """No document says just "Alias for field number 1", or nothing but a name (as syntax nodes do)."""
    bodies = [document.text.partition("\n\n")[2].strip() for document in corpus]
    assert not [body for body in bodies if body.startswith("Alias for field number") or body.isidentifier()]
    about_none = [document.name for document in corpus if "The type of the None singleton" in document.text]
    assert about_none in ([], ["types.NoneType"])  # that class has it from 3.13 on, and no constant that is None


FULL = """
import json, sys
from mainspring.cli.demo.corpus import documents
found = documents(full=True)
json.dump({"modules": sorted(sys.modules), "documents": [[d.name, d.text] for d in found]}, sys.stdout)
"""


def test_reading_everything_imports_nothing_dangerous_and_tells_nothing_of_the_machine(names: set[str]) -> None:
    """The full corpus holds the default one, warns not, prints not, imports nothing excluded and shows no variable."""
    done = python(FULL, "-W", "error", MY_SECRET="7f3a-top-secret")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    result = json.loads(done.stdout)  # fails if an imported module prints
    full = dict(result["documents"])
    assert len(full) == len(result["documents"]) > 5_000
    assert names <= set(full)
    never = set(EXCLUDED) - {"site", "encodings", "posixpath", "ntpath", "genericpath", "posix", "nt", "pydoc_data"}
    never -= {"readline", "rlcompleter"} if sys.version_info >= (3, 13) else set()  # its debugger loads them
    assert not never & set(result["modules"]), "those that Python itself doesn't load must stay unloaded"
    assert not [name for name, text in full.items() if "top-secret" in text or " at 0x" in text]


def test_the_same_python_gives_the_same_documents_in_the_same_order(corpus: list[Document]) -> None:
    """Another process, with other hashes, reads exactly the same."""
    code = "from mainspring.cli.demo.corpus import documents; import sys; sys.stdout.write(repr(documents()))"
    done = python(code, PYTHONHASHSEED="4", PYTHONIOENCODING="utf-8")
    assert done.stdout == repr(corpus)


def test_a_file_of_the_user_is_not_taken_for_the_library(tmp_path: Path) -> None:
    """A module of the same name in the user's folder is neither imported nor read."""
    (tmp_path / "colorsys.py").write_text("raise SystemExit('imported')")
    code = "from mainspring.cli.demo.corpus import documents; print(sum(d.module == 'colorsys' for d in documents()))"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    assert python(code, PYTHONPATH=path).stdout.strip() == "0"


def test_without_docstrings_the_error_says_why() -> None:
    """`python -OO` removes what the demo searches."""
    code = "from mainspring.cli.demo.corpus import documents; documents()"
    done = python(code, "-OO")
    assert "InvalidInput" in done.stderr
    assert "run it without -OO" in done.stderr


def test_files_are_distinct_where_case_does_not_count() -> None:
    """threading.Lock and threading.lock would be one file on some systems."""
    corpus = [Document(name=name, module="m", kind="class", text=name) for name in ("m.lock", "m.Lock", "topic:m")]
    assert list(file_names(corpus)) == ["m.lock.txt", "m.Lock-2.txt", "topic-m.txt"]


def test_each_document_has_a_file_name_that_every_system_takes(corpus: list[Document]) -> None:
    """No name needs escaping anywhere, and the order is that of the documents."""
    stored = file_names(corpus)
    assert list(stored.values()) == corpus
    assert len({name.casefold() for name in stored}) == len(corpus)
    assert not [name for name in stored if set(name) & set('<>:"/\\|?* ')]


def test_a_folder_is_written_once_and_kept_up_to_date(tmp_path: Path) -> None:
    """Unchanged files keep their time, damaged ones are mended, those of no document go, and nothing else."""
    folder = tmp_path / "corpus"
    paths = write_corpus(folder)
    assert sorted(paths) == sorted(folder.glob("*.txt"))
    for path in paths:
        os.utime(path, ns=(1, 1))
    damaged, kept = paths[7], folder / "notes.md"
    text = damaged.read_bytes()
    damaged.write_text("old")
    kept.write_text("mine")
    (folder / "gone.module.txt").write_text("of another Python")

    assert write_corpus(folder) == paths
    assert damaged.read_bytes() == text
    assert [path for path in paths if path.stat().st_mtime_ns != 1] == [damaged]
    assert not (folder / "gone.module.txt").exists()
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("below", [".", "corpus", "deep/corpus"])
def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path, below: str) -> None:
    """A file where the folder or one above it should be is named, and stays."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match="file"):
        write_corpus(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    """Text files that the demo did not write are never removed."""
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(InvalidInput, match="name an empty or a new folder"):
        write_corpus(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
    assert not (tmp_path / MARKER).exists()
