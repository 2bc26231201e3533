"""What a process takes with all that it has started, seen with real processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mainspring.resources import own
from mainspring.resources.own import OwnLoad, OwnProcesses

MIB = 1 << 20
SPIN = "import sys\nwhile True: pass"
HOLD = f"import sys; held = b'x' * {64 * MIB}; print('ready', flush=True); sys.stdin.read()"
SHARE = f"""
import mmap, os, sys
shared = mmap.mmap(-1, {64 * MIB})
def fill(): shared[:] = b"x" * {64 * MIB}
fill()
told, tell = os.pipe()
if os.fork():
    os.read(told, 1)
    print("ready", flush=True)
else:
    fill()
    os.write(tell, b".")
sys.stdin.read()
"""
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=sys.stdin)\n"
    "print('ready', child.pid, flush=True)\n"
    "{then}"
)
SPINNING = shlex.join((sys.executable, "-c", f"import os; os.setpgid(0, 0); exec({SPIN!r})"))
BACKGROUND = f"{SPINNING} > /dev/null & echo $!"
SHELL = """
import subprocess, sys
for script in sys.stdin:
    print("ready", subprocess.run(["sh", "-c", script], stdout=-1, text=True).stdout, flush=True)
"""
LIMIT_S = 60.0


@contextmanager
def started(code: str, start_new_session: bool = False) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, start_new_session=start_new_session
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str], word: str = "ready") -> list[str]:
    assert process.stdout is not None
    first, *rest = process.stdout.readline().split()
    assert first == word
    return rest


def grows(look: OwnProcesses, by_s: float) -> bool:
    """Wait until so much CPU time was counted more."""
    before, until = look.look().cpu_s, time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if look.look().cpu_s >= before + by_s:
            return True
        time.sleep(0.02)
    return False


def test_a_child_counts() -> None:
    """Its CPU time as it passes, its memory as long as it lives."""
    look = OwnProcesses()
    before = look.look()
    with started(HOLD) as child:
        told(child)
        assert look.look().memory_bytes - before.memory_bytes > 60 * MIB
    assert look.look().memory_bytes - before.memory_bytes < 30 * MIB
    with started(SPIN):
        assert grows(look, 0.2)


def test_a_child_of_a_child_counts_also_when_its_parent_is_gone() -> None:
    """It stays what it is, whoever it belongs to then."""
    look = OwnProcesses()
    with started(PARENT.format(code=SPIN, then="sys.stdin.read()")) as parent:
        (pid,) = map(int, told(parent))
        try:
            assert grows(look, 0.2)
            parent.kill()
            parent.wait()
            look.look()
            assert pid in look._own
            assert grows(look, 0.2)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_one_that_goes_to_the_background_unseen_counts() -> None:
    """It is still in the session of those who are ours, also where it has a process group of its own."""
    with started(SHELL, start_new_session=True) as shell:  # process 1, which adopts, may be in the session of this one
        look = OwnProcesses(shell.pid)
        look.look()
        pid = in_background(shell)
        try:
            assert grows(look, 0.2)
            assert pid in look._own
        finally:
            os.kill(pid, signal.SIGKILL)


def in_background(shell: subprocess.Popen[str]) -> int:
    """Start a program that has gone to the background when this returns: who started it has ended already."""
    assert shell.stdin is not None
    print(BACKGROUND, file=shell.stdin, flush=True)
    (pid,) = map(int, told(shell))
    return pid


def test_who_was_in_the_background_before_is_a_stranger() -> None:
    """As another worker is that the same script has started: it is in the same session."""
    with started(SHELL, start_new_session=True) as shell:
        pid = in_background(shell)
        try:
            look = OwnProcesses(shell.pid)
            for _ in range(3):
                look.look()
            assert pid in look._others
        finally:
            os.kill(pid, signal.SIGKILL)


def test_what_an_entry_script_starts_is_a_strangers() -> None:
    """Where process 1 is the script of a container that started this one, it is in the same session, and stays the
    parent of all else that it starts."""
    look = OwnProcesses()
    look.look()
    first_session = next(session for _, _, session in own._origins([1]))
    look._sessions = {first_session}
    assert not look._is_orphan(1, first_session)


def test_one_that_is_over_was_ours_too() -> None:
    """What came and went between two looks is counted with those who waited for it."""
    look = OwnProcesses()
    before = look.look().cpu_s
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    assert look.look().cpu_s > before


def test_strangers_do_not_count() -> None:
    """A process with another parent is nobody's business here, whenever it began."""
    with started(HOLD) as quiet, started(HOLD) as neighbour:
        told(quiet)
        told(neighbour)
        look = OwnProcesses(quiet.pid)
        before = look.look()
        with started(SPIN):
            assert not grows_soon(look)
            assert look.look().memory_bytes - before.memory_bytes < 30 * MIB
            assert before.memory_bytes < 100 * MIB


def grows_soon(look: OwnProcesses) -> bool:
    """Whether it counts CPU time that only a stranger uses; that one has had some by now."""
    spinning = OwnProcesses()
    before = look.look().cpu_s
    assert grows(spinning, 0.3)
    return look.look().cpu_s > before


def test_shared_memory() -> None:
    """It goes with those who have it, once for all of them."""
    look = OwnProcesses()
    before = look.look().memory_bytes
    with started(SHARE) as child:
        told(child)
        assert 60 * MIB < look.look().memory_bytes - before < 110 * MIB


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: psutil tells the same."""

    def nothing(path: str) -> str:
        raise FileNotFoundError(path)

    here = OwnProcesses().look()
    monkeypatch.setattr(os, "readlink", nothing)
    with started(HOLD) as child:
        told(child)
        there = OwnProcesses().look()
    assert isinstance(there, OwnLoad)
    assert there.cpu_s >= here.cpu_s
    assert there.memory_bytes > here.memory_bytes + 60 * MIB
