"""Children and frames, without any handler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from mainspring.children.child import Child, Exit, Spawner
from mainspring.children.frames import Splitter, framed
from mainspring.errors import InternalError, InvalidInput

pytestmark = pytest.mark.anyio


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


class Ear:
    """Hears one child."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def spawn(self, spawner: Spawner, code: str, keep: int = 1000) -> Child:
        return await spawner.spawn(
            (
                sys.executable,
                "-c",
                "import sys, os, time, signal, socket\nfrom mainspring.children.frames import *\n"
                "from mainspring.children.parent import *\n" + code,
            ),
            on_frame=self.frames.put_nowait,
            on_exit=self.exit.set_result,
            keep_output=keep,
        )


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_frames_survive_any_cut() -> None:
    """However the stream is cut into pieces, the same frames come out."""
    bodies = [b"", b"a", bytes(1000), b"xyz"]
    stream = b"".join(framed(body) for body in bodies)
    for size in (1, 2, 3, 5, 7, len(stream)):
        splitter = Splitter()
        got = [body for at in range(0, len(stream), size) for body in splitter.feed(stream[at : at + size])]
        assert got == bodies


def test_frames_are_limited() -> None:
    """Too much is refused by the sender, and not believed by the receiver."""
    with pytest.raises(InvalidInput):
        framed(bytes(11), 10)
    with pytest.raises(InternalError):
        Splitter(10).feed(framed(bytes(11)))


async def test_talk_and_exit(spawner: Spawner) -> None:
    """Frames go both ways; the exit tells the code, and comes after the last frame."""
    ear = Ear()
    child = await ear.spawn(
        spawner,
        "pipe = BlockingPipe(take_pipe())\nfor body in pipe.receive(): pipe.send(body * 2)\nos._exit(3)",
    )
    child.send(b"ab" * 300_000)
    ended = await ear.exit
    assert ear.frames.get_nowait() == b"ab" * 600_000
    assert (ended.code, ended.signal) == (3, None)
    assert str(ended).startswith("exited with code 3")
    assert ended.cpu_time is not None
    assert ended.cpu_time > 0
    assert not psutil.pid_exists(child.pid)
    child.send(b"nobody hears this")
    child.kill()


async def test_only_the_tail_of_the_output_is_kept(spawner: Spawner) -> None:
    """Evidence is bounded, and its end is what matters."""
    ear = Ear()
    await ear.spawn(spawner, "sys.stderr.write('x' * 300_000 + 'the end')", keep=10)
    assert (await ear.exit).output == "xxxthe end"


async def test_output_that_nobody_takes_is_dropped(spawner: Spawner) -> None:
    """A child's output waits for nobody: what this process's stderr does not take at once is gone."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4096)
    os.set_blocking(write, True)
    late: list[bytes] = []
    over = threading.Event()

    def take() -> None:
        """Let go of a loop that does wait."""
        while not over.wait(0 if late else 10) and (data := os.read(read, 1 << 16)):
            late.append(data)

    reader = threading.Thread(target=take)
    stderr = os.dup(2)
    os.dup2(write, 2)
    reader.start()
    try:
        ear = Ear()
        await ear.spawn(spawner, "sys.stderr.write('x' * 300_000 + 'the end')", keep=10)
        assert (await ear.exit).output == "xxxthe end"
    finally:
        over.set()
        os.dup2(stderr, 2)
        for fd in (stderr, write):
            os.close(fd)
        reader.join()
    assert late == []
    assert b"x" not in os.read(read, 1 << 20)
    os.close(read)


async def test_peak_memory_is_the_childs_own(spawner: Spawner) -> None:
    """What the parent holds is not counted: the kernel starts a child's mark at the parent's."""
    unit = 1 if sys.platform == "darwin" else 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + (100 << 20)
    small, large = Ear(), Ear()
    await small.spawn(spawner, "pass")
    await large.spawn(spawner, f"x = b'1' * {size}")
    assert (await small.exit).peak_bytes is None
    peak = (await large.exit).peak_bytes
    assert peak is not None
    assert size < peak < size + (100 << 20)


def test_an_inherited_mark_hides_no_peak() -> None:
    """The mark of getrusage outlives exec: a worker started by something large would never tell a child's peak."""
    inner = "from mainspring.children.measure import own_peak_bytes; print(own_peak_bytes())"
    outer = f"import subprocess, sys; x = b'1' * {200 << 20}; subprocess.run([sys.executable, '-c', {inner!r}])"
    told = subprocess.run([sys.executable, "-c", outer], check=True, capture_output=True, text=True).stdout
    assert int(told) < 150 << 20


async def test_kill(spawner: Spawner) -> None:
    """A kill is a kill, also for a stopped process."""
    ear = Ear()
    child = await ear.spawn(spawner, "BlockingPipe(take_pipe()).send(b'up')\nos.kill(os.getpid(), signal.SIGSTOP)")
    assert await ear.frames.get() == b"up"
    child.kill()
    ended = await ear.exit
    assert (ended.code, ended.signal) == (None, signal.SIGKILL)
    assert "SIGKILL" in str(ended)


@pytest.mark.parametrize(
    ("code", "how", "grace_s"),
    [
        ("pipe.receive(); os._exit(4)", "exited with code 4", 60.0),
        ("time.sleep(600)", "killed by SIGTERM", 1.0),  # which a busy machine may be slow to deliver
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); pipe.send(b''); time.sleep(600)", "killed by SIGKILL", 0.1),
    ],
)
async def test_end_is_polite_first(spawner: Spawner, code: str, how: str, grace_s: float) -> None:
    """The closed pipe is enough for a child that listens; SIGTERM for one that sleeps; SIGKILL for one that won't."""
    ear = Ear()
    child = await ear.spawn(spawner, f"pipe = BlockingPipe(take_pipe()); pipe.send(b'up'); {code}")
    assert await ear.frames.get() == b"up"
    if "SIG_IGN" in code:
        await ear.frames.get()
    assert how in str(await child.end(grace_s))


async def test_a_child_that_closes_its_pipe_is_killed(spawner: Spawner) -> None:
    """It can't be told to stop any more."""
    ear = Ear()
    await ear.spawn(spawner, "take_pipe().close(); time.sleep(600)")
    assert (await ear.exit).signal == signal.SIGKILL


async def test_a_program_that_is_not_there(spawner: Spawner) -> None:
    """Is an OSError, with nothing left open."""
    with pytest.raises(FileNotFoundError):
        await spawner.spawn(("/nonexistent",), on_frame=print, on_exit=print, keep_output=1)
