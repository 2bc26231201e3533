"""What a child has started ends with it: however it hides, and however the child, its parent or its guard ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.engine.support import until

from mainspring.children import guard
from mainspring.children.child import Child, Exit, Spawner

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not guard.IS_THERE, reason="there are guards on Linux alone")]

ROOT = Path(__file__).parents[2]
FAMILY = '''
def family():
    """Start one of each kind that may outlive its parent, and return their numbers."""
    found = [subprocess.Popen(["sleep", "600"]).pid, subprocess.Popen(["sleep", "600"], start_new_session=True).pid]
    read, write = os.pipe()
    if not os.fork():  # a daemon by the book: another session, no parent, no descriptor, and a child of its own
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(write, b"%d " % os.getpid())
        own = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
        os.write(write, b"%d " % own.pid)
        os.closerange(0, 256)
        time.sleep(600)
        os._exit(0)
    os.wait()
    os.close(write)
    text = b""
    while text.count(b" ") < 2:
        text += os.read(read, 100)
    os.close(read)
    return found + [int(number) for number in text.split()]
'''
PROGRAM = f"""
import sys
from mainspring.children.guard import stand
stand(*sys.argv[-2:])
import os, signal, subprocess, time
from mainspring.children.frames import BlockingPipe
from mainspring.children.parent import take_pipe
{FAMILY}
pipe = BlockingPipe(take_pipe())
pipe.send(repr([os.getpid(), *family()]).encode())
pipe.receive()
exec(sys.argv[1])
"""


class Talk:
    """One child with its family, and how it ended."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def begin(self, spawner: Spawner, code: str) -> Child:
        self.child = await spawner.spawn(
            (sys.executable, "-c", PROGRAM, code), on_frame=self.frames.put_nowait, on_exit=self.exit.set_result,
            keep_output=1000, guarded=True,
        )  # fmt: skip
        self.pids: list[int] = msgspec.json.decode(await self.frames.get())
        assert self.child.pid == self.pids[0]
        assert all(map(is_running, self.pids))
        self.child.send(b"go on")
        return self.child


@pytest.fixture
async def spawner(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spawner]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    made = Spawner()
    yield made
    made.close()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def asked_to_go(child: Child) -> None:
    await child.end(60)


async def told_to_go(child: Child) -> None:
    await child.end(0.1)


async def killed(child: Child) -> None:
    child.kill()


async def killed_by_another(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)


async def untouched(_: Child) -> None: ...


@pytest.mark.parametrize(
    ("code", "ends_it", "how"),
    [
        ("os._exit(3)", untouched, (3, None)),
        ("os.kill(os.getpid(), signal.SIGSEGV)", untouched, (None, signal.SIGSEGV)),
        ("pipe.receive()", asked_to_go, (0, None)),
        ("time.sleep(600)", told_to_go, (None, signal.SIGTERM)),
        ("time.sleep(600)", killed, (None, signal.SIGKILL)),
        ("os.kill(os.getpid(), signal.SIGSTOP)", killed, (None, signal.SIGKILL)),
        ("time.sleep(600)", killed_by_another, (None, signal.SIGKILL)),
    ],
)
async def test_however_a_child_ends(
    spawner: Spawner, code: str, ends_it: Callable[[Child], Awaitable[None]], how: tuple[int | None, int | None]
) -> None:
    """Nothing of what it has started is left when its end is told, and what is told is the child's own end."""
    talk = Talk()
    await ends_it(await talk.begin(spawner, code))
    ended = await talk.exit
    assert (ended.code, ended.signal) == how
    assert not any(map(is_running, talk.pids))


async def test_when_the_parent_is_killed(tmp_path: Path) -> None:
    """A parent that can't tidy up leaves nothing behind either."""
    program = tmp_path / "parent.py"
    program.write_text(
        f"import asyncio, os, signal, sys\nsys.path[:] = {[str(ROOT), str(ROOT / 'src'), *sys.path]!r}\n"
        "from tests.children.test_guard import Talk\n"
        "from mainspring.children.child import Spawner\n"
        "async def main():\n"
        "    talk = Talk()\n"
        "    await talk.begin(Spawner(), 'time.sleep(600)')\n"
        "    print(talk.pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(program)], capture_output=True, check=False, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    await until(lambda: not any(map(is_running, msgspec.json.decode(done.stdout))))


async def test_a_guard_that_is_killed(spawner: Spawner) -> None:
    """Its child dies with it, as do those in the child's group; what hides is out of reach then."""
    talk = Talk()
    child = await talk.begin(spawner, "time.sleep(600)")
    os.kill(psutil.Process(child.pid).ppid(), signal.SIGKILL)
    ended = await talk.exit
    assert ended.signal == signal.SIGKILL
    await until(lambda: not any(map(is_running, talk.pids[:2])))
    for pid in filter(is_running, talk.pids):
        os.kill(pid, signal.SIGKILL)


UNSEEN = ("unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
SMALL = """
import sys
from mainspring.children.guard import stand
stand(*sys.argv[-2:])
import os
from mainspring.children.frames import BlockingPipe
from mainspring.children.parent import take_pipe
pipe = BlockingPipe(take_pipe())  # who closes it is killed
pipe.send(b"here")
os._exit(3)
"""
PARENT = f"""
import asyncio, sys
from mainspring.children.child import Spawner
async def main():
    heard, ended = asyncio.Queue(), asyncio.Queue()
    command = (sys.executable, "-c", {SMALL!r})
    told = {{"on_frame": heard.put_nowait, "on_exit": ended.put_nowait}}
    spawner = Spawner()  # its thread is to outlive the child
    await spawner.spawn(command, **told, keep_output=1000, guarded=True)
    print((await heard.get()).decode(), (await ended.get()).code)
    spawner.close()
asyncio.run(main())
"""


def test_where_no_process_can_be_seen() -> None:
    """Without /proc a child lives and ends as it does elsewhere."""
    if (
        shutil.which(UNSEEN[0]) is None
        or subprocess.run([*UNSEEN, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user can't take /proc away: unshare(1) is missing or not permitted")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*UNSEEN, sys.executable, "-c", PARENT], capture_output=True, check=False, env=environment, timeout=60
    )
    assert done.stdout == b"here 3\n", done.stderr


async def test_an_orphan_is_reaped(spawner: Spawner) -> None:
    """A daemon that ends before its child does is no zombie until then."""
    talk = Talk()
    child = await talk.begin(spawner, "pipe.receive()")
    daemon = talk.pids[3]
    assert psutil.Process(daemon).ppid() == psutil.Process(child.pid).ppid()
    os.kill(daemon, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(daemon))
    await child.end(60)


async def test_what_a_child_used_is_its_own(spawner: Spawner) -> None:
    """Neither its guard's time nor its parent's memory, which hides that of a child without a guard."""
    small, large = Talk(), Talk()
    await small.begin(spawner, "os._exit(0)")
    ended = await small.exit
    assert ended.peak_bytes is not None
    assert ended.peak_bytes < 100 << 20
    await large.begin(spawner, f"x = b'1' * {100 << 20}; os._exit(0)")
    ended = await large.exit
    assert ended.peak_bytes is not None
    assert 100 << 20 < ended.peak_bytes < 200 << 20


async def test_a_parent_that_ignores_its_childrens_ends(spawner: Spawner) -> None:
    """Such as one that was started with SIGCHLD ignored: how a child ended is known all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        talk = Talk()
        await talk.begin(spawner, "os._exit(3)")
        assert (await talk.exit).code == 3
    finally:
        signal.signal(signal.SIGCHLD, before)
