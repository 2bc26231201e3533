"""The command line as processes run it, and one worker process for those tests that need one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import postgres
from tests.cli.moved import Home

from mainspring import cli
from mainspring.cli.screen import Screen

SHOP = Path(__file__).with_name("shop.py")
COMMAND = (sys.executable, "-m", "mainspring")


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The documents on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def started(
    *arguments: str, folder: Path, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command in a folder of its own. Ctrl-C reaches it also where the test runner ignores it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "MAINSPRING_STORE"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_take_ctrl_c,  # noqa: PLW1509 - it takes no lock
    )


def _take_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finished(process: subprocess.Popen[str], timeout: float = 60.0) -> Answer:
    out, err = process.communicate(timeout=timeout)
    return Answer(process.returncode, out, err)


class Worker:
    """A worker process that is ready."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = started("worker", *arguments, "--json", folder=folder)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, finished(self.process).err
        self.ready = json.loads(line)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> Answer:
        """Wait until it has gone."""
        return finished(self.process)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker on the shop's handlers in a folder of the test's own."""
    found = Worker(tmp_path, f"{SHOP}:engine")
    yield found
    found.process.kill()
    found.process.communicate()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The same, shared by the tests of a module."""
    found = Worker(tmp_path_factory.mktemp("shop"), f"{SHOP}:engine")
    yield found
    found.process.kill()
    found.process.communicate()


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Callable[[str], Home]]:
    """Make homes of a kind, `file` or `server`; each is another one, with nothing in it yet."""
    schemas: list[str] = []

    def home(kind: str) -> Home:
        folder = tmp_path / f"home{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if kind == "file":
            return Home(str(folder / "work.db"), folder / "work.db-blobs")
        schemas.append(postgres.schema_of(folder))
        return Home(postgres.address_of(folder), folder / "blobs", schemas[-1])

    yield home
    for schema in schemas:
        postgres.drop(schema)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Answer]:
    """Run a command as a process of its own to its end."""

    def run(*arguments: str, folder: Path = tmp_path, **environment: str) -> Answer:
        return finished(started(*arguments, folder=folder, environment=environment))

    return run


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process: quicker where no signal and no other process matters."""
    monkeypatch.delenv("MAINSPRING_STORE", raising=False)
    monkeypatch.setattr(Screen, "keep_stdout", lambda screen: None)  # it is this process's, which goes on

    def call(*arguments: str, folder: Path = tmp_path) -> Answer:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["mainspring", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        capsys.readouterr()
        code = cli.main()
        return Answer(code, *capsys.readouterr())

    return call
