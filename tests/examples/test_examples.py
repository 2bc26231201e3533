"""The examples run as they stand, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.indexed import need_model

import mainspring

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str | Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(mainspring.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path: Path) -> None:
    """Twice on one file."""
    for _ in range(2):
        out = run("quickstart.py", str(tmp_path / "work.db"))
        assert "words: 7" in out
        assert "attempts: ['retry', 'completed']" in out
        assert sorted(line for line in out.splitlines() if line.startswith("counted")) == [
            f"counted: {n}" for n in (1, 2, 3)
        ]
        assert "the same task: True" in out
        assert "failed: ConnectionError: https://example.org does not answer" in out
        assert "why: It ended as failed" in out


def test_fan_out() -> None:
    """A tree of any size."""
    for n in (33, 0, 1):
        out = run("fan_out.py", str(n))
        assert f"sum: {sum(range(n))} expected: {sum(range(n))}" in out


def test_search_files(tmp_path: Path) -> None:
    """The file that answers the question comes first, also on a second run over the same store."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "bread.txt").write_text("Knead the dough, let it rise overnight, and bake the loaf in a hot oven.")
    (folder / "sails.txt").write_text("The crew hoisted the main sail and the ship left the harbour with the tide.")
    (folder / "empty.txt").write_text("")
    for _ in range(2):
        out = run("search_files.py", str(folder), "How do I make bread?", str(tmp_path / "work.db"))
        assert out.splitlines()[:2] == ["1 records stored"] * 2
        assert "bread.txt" in out.splitlines()[2]


def test_the_program_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as it stands, but for the addresses, which are those of files here."""
    pytest.importorskip("onnxruntime")
    need_model()
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text("<p>a real\n  page</p>")
    program = re.sub(
        r"https://\w+\.\w+", (tmp_path / "page.html").as_uri(), readme.split("```python\n")[1].split("```")[0]
    )
    (tmp_path / "app.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "app.py").splitlines() == [" a real page ", *["<p>a real", "  page</p>"] * 2]
