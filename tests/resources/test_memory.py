"""One budget of memory for the models of all processes of a machine: real processes, real locks, real deaths."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.resources.holder import manager_on

from mainspring.config import MIB
from mainspring.errors import ResourceLimitExceeded
from mainspring.models import ModelManager
from mainspring.resources.machine import Machine


class Process:
    """A holder in a process of its own."""

    def __init__(self, folder: Path, budget: int) -> None:
        command = [sys.executable, "-m", "tests.resources.holder", str(folder), str(budget)]
        paths = dict(os.environ, PYTHONPATH=":".join(sys.path))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths)
        assert self.hears() == "ready"

    def told(self, line: str) -> str:
        self.tell(line)
        return self.hears()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hears(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def hears_within(self, limit_s: float) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout.fileno()], [], [], limit_s)[0])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: a socket's may not be long."""
    path = Path(tempfile.mkdtemp(prefix="memory-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[list[Process]]:
    """Holders that rest: to start one takes longer than most tests."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture
def start(folder: Path, pool: list[Process]) -> Iterator[Callable[[], Process]]:
    """Give processes that hold nothing."""
    given: list[Process] = []

    def begin() -> Process:
        given.append(pool.pop() if pool else Process(folder, 100))
        return given[-1]

    yield begin
    for process in given:
        if process.lives() and process.told("reset") == "done":
            pool.append(process)
        else:
            process.kill()


@pytest.fixture
def manager(folder: Path) -> Iterator[ModelManager]:
    """This process's own, which waits for nobody in vain."""
    manager = manager_on(folder, budget=100, wait_s=0.0)
    yield manager
    manager.close()
    manager.memory.close()


def waiting(manager: ModelManager, name: str) -> threading.Thread:
    """Load a model in a thread, with all the patience there is."""
    manager.memory._wait_s = 60.0
    thread = threading.Thread(target=manager.warm, args=(name,))
    thread.start()
    return thread


def test_two_processes_hold_no_more_than_one_may(start: Callable[[], Process], folder: Path) -> None:
    """Where both models don't fit, the idle one of the other process goes before the new one comes."""
    first, second = start(), start()
    for name in "ab":
        assert first.told(f"load {name}") == "done"
    assert second.told("load c") == "done"
    assert (first.told("bytes"), second.told("bytes")) == ("40", "40")
    assert second.told("load a") == "done"
    assert (first.told("bytes"), second.told("bytes")) == ("40", "40")  # its own idle one goes first
    assert sum(other.bytes for other in Machine(folder).look()) == 80 * MIB


def test_what_others_use_is_waited_for(start: Callable[[], Process], manager: ModelManager) -> None:
    """It comes the moment they give it back."""
    first, second = start(), start()
    assert first.told("use a") == "using"
    assert second.told("use b") == "using"
    thread = waiting(manager, "c")
    thread.join(0.3)
    assert thread.is_alive()
    assert first.told("") == "done"
    thread.join(30)
    assert not thread.is_alive()
    assert manager.loaded_bytes == 40 * MIB
    assert first.told("bytes") == "0"
    assert second.told("") == "done"


def test_patience_ends_with_the_figures(start: Callable[[], Process], manager: ModelManager) -> None:
    """Who has what is told, and that it is worth trying again."""
    first, second = start(), start()
    assert first.told("pin a") == "done"
    assert first.told("load a") == "done"
    assert second.told("use b") == "using"
    with pytest.raises(ResourceLimitExceeded) as caught:
        manager.warm("c")
    assert second.told("") == "done"
    said = str(caught.value)
    assert "model c needs about 40 MiB and models in use or pinned leave 20 MiB" in said
    assert f"process {first._process.pid} 40 MiB" in said
    assert "budget of 100 MiB" in said
    assert caught.value.retry_after is not None


def test_a_killed_process_gives_back_at_once(start: Callable[[], Process], manager: ModelManager) -> None:
    """kill -9 while it uses all there is: nobody has to notice, and whoever waits goes on."""
    first = start()
    assert first.told("load a") == "done"
    assert first.told("pin a") == "done"
    assert first.told("use b") == "using"
    thread = waiting(manager, "c")
    first.kill()
    thread.join(30)
    assert not thread.is_alive()
    assert manager.memory.machine_bytes == 40 * MIB


def test_each_holds_one_and_wants_another(start: Callable[[], Process]) -> None:
    """Both ask at the same time: each gives its idle one, nobody waits for ever, and the budget is kept."""
    first, second = start(), start()
    for _ in range(3):
        first.tell("load a")
        second.tell("load b")
        assert (first.hears(), second.hears()) == ("done", "done")
        first.tell("load b")
        second.tell("load a")
        assert (first.hears(), second.hears()) == ("done", "done")
        assert int(first.told("bytes")) + int(second.told("bytes")) <= 100


def test_nobody_takes_while_another_counts(start: Callable[[], Process], manager: ModelManager) -> None:
    """So that two can't take the same bytes."""
    first = start()
    machine = manager.memory._machine
    assert machine is not None
    with machine.counting():
        first.tell("load a")
        assert not first.hears_within(0.2)
        assert [other.bytes for other in machine.look() if other.bytes] == []
    assert first.hears() == "done"


def test_a_stopped_process_keeps_its_bytes_and_blocks_nobody(
    start: Callable[[], Process], manager: ModelManager
) -> None:
    """It can't answer: what it holds counts, and a load that would need it is refused when patience ends."""
    first = start()
    for name in "ab":
        assert first.told(f"load {name}") == "done"
    first.signal(signal.SIGSTOP)
    with pytest.raises(ResourceLimitExceeded, match="80 MiB"):
        manager.warm("c")
    first.signal(signal.SIGCONT)
    waiting(manager, "c").join(30)
    assert manager.loaded_bytes == 40 * MIB


def test_a_folder_that_is_emptied_is_found_again(start: Callable[[], Process], folder: Path) -> None:
    """A cleaner of temporary files makes nobody invisible for longer than until its next load."""
    first = start()
    assert first.told("load a") == "done"
    for path in folder.glob("*/*.held"):
        path.unlink()
    assert [other.bytes for other in Machine(folder).look()] == []
    assert first.told("load b") == "done"
    assert [other.bytes for other in Machine(folder).look()] == [80 * MIB]


def test_a_folder_of_others_is_not_believed(
    folder: Path, manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Where others may write nobody is asked; models load all the same, and the log says so once."""
    below = manager.memory._machine._folder  # type: ignore[union-attr]
    before = {path for path in below.iterdir() if path.suffix == ".held"} if below.exists() else set()
    below.mkdir(exist_ok=True)
    below.chmod(0o777)
    for name in "ab":
        manager.warm(name)
    below.chmod(0o700)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is not a folder of this user alone" in caplog.messages[0]
    assert {path for path in below.iterdir() if path.suffix == ".held"} <= before


def test_what_becomes_of_a_message(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who has gone is known; a buffer that is full loses it in silence; whatever else keeps it from going is told."""
    machine = Machine(folder)
    machine.join()
    place = machine._folder / "other.sock"
    try:
        assert not machine._send("other", b"n")  # nobody was ever there
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(place))
            assert all(machine._send("other", b"n") for _ in range(5_000))  # more than any buffer takes
        assert not machine._send("other", b"n")  # it died, and its path is left
        place.unlink()
        assert caplog.messages == []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.bind(str(place))
            assert machine._send("other", b"n")  # somebody is there
        (said,) = caplog.messages
        assert "process other can't be told" in said
        assert os.strerror(errno.EPROTOTYPE) in said
    finally:
        place.unlink(missing_ok=True)
        machine.close()


def test_a_forked_child_keeps_nothing_alive(start: Callable[[], Process], folder: Path) -> None:
    """A child that outlives its parent does not hold the parent's bytes."""
    first = start()
    assert first.told("load a") == "done"
    child = int(first.told("fork"))
    try:
        first.kill()
        assert [other.bytes for other in Machine(folder).look() if other.bytes] == []
    finally:
        os.kill(child, signal.SIGKILL)
