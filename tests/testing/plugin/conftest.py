"""A project of a user's, whose pytest runs for real inside of a test."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

import numpy  # noqa: F401 - what an inner run imports first it also forgets, and this can't be imported again
import pytest

import mainspring
import mainspring.testing.stage.crashes

ROOT = Path(__file__).resolve().parents[3]
ALONE = [f"-pno:{name}" for name in ("anyio", "asyncio", "hypothesispytest", "platformdirs")]
"""Options for a run without the other plugins that are installed here."""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What installing the package writes down: its entry point, whatever is installed here."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    folder = pytester.mkdir("installed")
    about = folder / "mainspring_here-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mainspring-here\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    monkeypatch.syspath_prepend(str(folder))
    source = str(Path(mainspring.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), source]))
    for name in ("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):  # the last two make pytest say each failure twice in full
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(installed: None, pytester: pytest.Pytester) -> Run:
    """Run tests, given as the texts of a file, with a warning for an error, and at most one plugin beside ours."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(*texts: str, options: Sequence[str] = (), beside: str = "") -> pytest.RunResult:
        pytester.makepyfile(test_it=_HEAD + "".join(map(dedent, texts)))
        return pytester.runpytest_inprocess(*[option for option in ALONE if option != f"-pno:{beside}"], *options)

    return run


_HEAD = """
import asyncio, time
from datetime import UTC, datetime, timedelta
import pytest
from mainspring import *
from mainspring.testing import Crash, StillPending

"""


def said(result: pytest.RunResult) -> str:
    """Return what a run printed, without the marks in front of the lines of an error."""
    return re.sub(r"^E +", "", result.stdout.str(), flags=re.MULTILINE)
