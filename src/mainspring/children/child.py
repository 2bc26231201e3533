"""A child process as its parent sees it: start, talk, kill with all it started, reap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from mainspring.children import guard
from mainspring.children.measure import MAXRSS_UNIT, own_peak_bytes
from mainspring.children.output import Output
from mainspring.children.pipe import Pipe

_POLL_S = 0.02  # where the kernel has no descriptor for a process


class Exit(NamedTuple):
    """How a child ended. `str()` completes the sentence "the child process ..."."""

    code: int | None  # None: killed by a signal, or unknown
    signal: int | None
    cpu_time: float | None  # seconds of its whole life, with processes it has waited for
    peak_bytes: int | None  # of its whole life; None where it is hidden behind the parent's own peak
    output: str  # tail of its stdout and stderr

    def __str__(self) -> str:
        if self.signal is not None:
            how = f"was killed by {_signal_name(self.signal)}"
        else:
            how = "ended, nobody knows how" if self.code is None else f"exited with code {self.code}"
        return how if self.peak_bytes is None else f"{how}; its peak memory was {self.peak_bytes >> 20} MiB"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


class _Process(NamedTuple):
    popen: subprocess.Popen[bytes]
    sock: socket.socket
    output: int
    inherited_peak: int
    told: guard.Told | None  # by its guard, which is the process that we have started, and the child is another


class Child:
    """One running child. Made by `Spawner.spawn`; belongs to the event loop it was made on."""

    def __init__(
        self,
        process: _Process,
        on_frame: Callable[[bytes], None],
        on_exit: Callable[[Exit], None],
        keep_output: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._started = process.popen.pid
        self._told = process.told
        self._loop = loop
        self._process = process
        self._on_exit = on_exit
        self._ending = False
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._pipe = Pipe(loop, process.sock, on_frame, self._pipe_ended)
        self._output = Output(loop, process.output, keep_output)
        self._pidfd = -1
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self._started)
        if self._pidfd >= 0:
            loop.add_reader(self._pidfd, self._look)
        else:
            loop.call_later(_POLL_S, self._poll)

    def send(self, body: bytes) -> None:
        """Send one frame; to a dead child it is dropped. Raises: InvalidInput: larger than a frame may be."""
        if not self._exit.done():
            self._pipe.send(body)

    @property
    def pid(self) -> int:
        """The process that the program runs in."""
        return (self._told.pid if self._told is not None else None) or self._started

    @property
    def usable(self) -> bool:
        """False from the moment that its end was asked for or seen."""
        return not self._ending

    def kill(self) -> None:
        """SIGKILL at once, for it and what it has started: all of that where it has a guard, else its group.

        `on_exit` follows within milliseconds.
        """
        self._ending = True
        self._signal(signal.SIGKILL)

    async def end(self, grace_s: float) -> Exit:
        """Let an idle child go: close its pipe, after `grace_s` SIGTERM, after as long again SIGKILL."""
        self._ending = True
        if not self._exit.done():
            self._pipe.finish()
        for number in (signal.SIGTERM, signal.SIGKILL):
            done, _ = await asyncio.wait((self._exit,), timeout=grace_s)
            if done:
                break
            self._signal(number)
        return await self._exit

    def _signal(self, number: int) -> None:
        if not self._exit.done():  # as long as it is not reaped, the number is its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._told is None or self._told.pid is None:
                    os.killpg(self._started, number)
                else:
                    os.kill(self._started, guard.KILL if number == signal.SIGKILL else number)

    def _pipe_ended(self) -> None:
        if not self._ending:  # a child that closed its pipe can't be told anything any more
            self.kill()

    def _poll(self) -> None:
        self._look()
        if not self._exit.done():
            self._loop.call_later(_POLL_S, self._poll)

    def _look(self) -> None:
        """Reap, if it has ended."""
        if self._pidfd >= 0:
            self._kill_rest()
        try:
            pid, status, usage = os.wait4(self._started, os.WNOHANG)
        except ChildProcessError:  # somebody else reaped it, or SIGCHLD is ignored
            self._reaped(None, None)
        else:
            if pid:
                self._reaped(os.waitstatus_to_exitcode(status), usage)

    def _kill_rest(self) -> None:
        """Kill its group, which has ended and is not reaped: the number can't belong to anybody else yet."""
        if self._told is None or self._told.pid is None:
            self._signal(signal.SIGKILL)
        elif self._told.end is None:  # the guard was killed, and its child with it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._told.pid, signal.SIGKILL)

    def _reaped(self, code: int | None, usage: resource.struct_rusage | None) -> None:
        self._ending = True
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        else:
            self._kill_rest()
        self._process.popen.returncode = 0 if code is None else code  # keeps Popen from waiting for it
        self._pipe.close()
        self._output.close()
        cpu_time = peak = None
        if self._told is not None:
            if (end := self._told.end) is not None:
                code, cpu_time, peak = os.waitstatus_to_exitcode(end.status), end.cpu_time, end.peak_bytes
            self._told.close()
        elif usage is not None:
            cpu_time = usage.ru_utime + usage.ru_stime
            peak = usage.ru_maxrss * MAXRSS_UNIT
            peak = peak if peak > self._process.inherited_peak else None
        signalled = code is not None and code < 0
        ended = Exit(
            code=None if signalled else code,
            signal=-code if signalled and code is not None else None,
            cpu_time=cpu_time,
            peak_bytes=peak,
            output=self._output.tail,
        )
        self._exit.set_result(ended)
        self._on_exit(ended)


class Spawner:
    """Starts children, from one thread of its own that lives as long as they do.

    Linux ties "kill me when my parent dies" to the thread that started the child, so it must not be one of a pool that
    comes and goes; and starting takes milliseconds that the event loop doesn't have.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mainspring-spawn")

    async def spawn(
        self,
        arguments: Sequence[str],
        *,
        on_frame: Callable[[bytes], None],
        on_exit: Callable[[Exit], None],
        keep_output: int,
        descriptors: Sequence[int] = (),
        guarded: bool = False,
    ) -> Child:
        """Start a program in a session of its own; its stdin is our pipe, its stdout and stderr are drained.

        It has our `descriptors` too, by the same numbers. One that is to be `guarded` hands its two last arguments to
        `guard.stand` before it does anything else.

        `on_frame` gets each frame, `on_exit` comes last and once. Not to be cancelled while it waits.

        Raises: OSError: the program can't be started.
        """
        process = await asyncio.get_running_loop().run_in_executor(
            self._thread, _start, arguments, descriptors, guarded
        )
        return Child(process, on_frame, on_exit, keep_output)

    def close(self) -> None:
        """Call when all children have ended: it would kill them."""
        self._thread.shutdown(wait=False)


def _start(arguments: Sequence[str], descriptors: Sequence[int], guarded: bool) -> _Process:
    with ExitStack() as theirs, ExitStack() as ours:
        sock, stdin = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.callback(sock.close)
        theirs.callback(stdin.close)
        output, printed = _pipe(ours, theirs)
        told = None
        if guarded:
            last = guard.NOBODY
            if guard.IS_THERE:
                heard, telling = _pipe(ours, theirs)
                told, last = guard.Told(heard), (str(os.getpid()), str(telling))
                descriptors = (*descriptors, telling)
            arguments = (*arguments, *last)
        peak = own_peak_bytes()
        popen = subprocess.Popen(
            arguments,
            stdin=stdin.fileno(),
            stdout=printed,
            stderr=printed,
            pass_fds=descriptors,
            start_new_session=True,
        )
        ours.pop_all()  # they stay open
    return _Process(popen, sock, output, peak, told)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """Return a pipe from them to us."""
    reading, writing = os.pipe()
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing
