"""The guard of a child: what the child has started ends with it, in whatever session or group it is. Linux only.

The program that a parent starts forks once, before it has any thread: the copy becomes the child, and the first one
stays as its guard, which runs nothing else. Whatever loses its own parent below a guard becomes the guard's: the kernel
gives it to the nearest ancestor that has asked for such (prctl(2), PR_SET_CHILD_SUBREAPER). When the child has ended,
however it did, the guard kills what is left; it kills the child too when the parent says so, and when the parent dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

IS_THERE = sys.platform == "linux"
NOBODY = ("0", "-1")
"""What `stand` gets where there is to be no guard."""
KILL = signal.SIGUSR1
"""Tells a guard to kill its child and all that it started: SIGKILL would leave nobody to do so."""
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, KILL}
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PATIENCE_S = 2.0
"""For what does not die of SIGKILL: it waits for a device, is another user's, or forks faster than it is killed."""
_pid = struct.Struct("=i")
_end = struct.Struct("=idq")


class ChildEnd(NamedTuple):
    """How a child ended: as of wait(2), with the processes that it has waited for."""

    status: int
    cpu_time: float
    peak_bytes: int


class Told:
    """What a guard tells its parent, who has the other end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._data = b""

    @property
    def pid(self) -> int | None:
        """The child's number; None before there is one."""
        if len(self._data) < _pid.size:
            self._read()
        return None if len(self._data) < _pid.size else int(_pid.unpack_from(self._data)[0])

    @property
    def end(self) -> ChildEnd | None:
        """None before it, and where the guard itself was killed."""
        if len(self._data) < _pid.size + _end.size:
            self._read()
        return None if len(self._data) < _pid.size + _end.size else ChildEnd(*_end.unpack_from(self._data, _pid.size))

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._data += os.read(self._descriptor, 64)

    def close(self) -> None:
        os.close(self._descriptor)


def stand(parent: str, descriptor: str) -> None:
    """Return in the child, and stay as its guard. To be called before there is any thread.

    Args:
        parent: number of the process that has started this one.
        descriptor: where it hears what is told; -1: there is to be no guard.
    """
    if descriptor == NOBODY[1]:
        return
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where the parent ignores it, nobody could be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_PDEATHSIG, KILL)
    guard = os.getpid()
    child = os.fork() if os.getppid() == int(parent) else -1  # else it died before the kernel knew
    if child:
        _watch(child, int(descriptor))
    os.setsid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)
    os.write(int(descriptor), _pid.pack(os.getpid()))  # before anything else can run here
    os.close(int(descriptor))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def _watch(child: int, descriptor: int) -> NoReturn:
    """See a child to its end, and all that it has started."""
    try:
        if child > 0:
            os.closerange(0, descriptor)
            os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
            end = _end_of(child)
            with contextlib.suppress(OSError):  # the parent is dead
                os.write(descriptor, _end.pack(*end))
            _kill_rest()
    finally:
        os._exit(0)


def _end_of(child: int) -> ChildEnd:
    while True:
        number = signal.sigwait(_WATCHED)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL if number == KILL else number)
        for pid, end in _reaped():
            if pid == child:
                return end


def _reaped() -> Iterator[tuple[int, ChildEnd]]:
    """Yield those that have ended, orphans too: nobody else waits for them."""
    while True:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        yield pid, ChildEnd(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _kill_rest() -> None:
    """Kill what has come to this process, and what comes as that dies, until nothing is left."""
    until_s = time.monotonic() + _PATIENCE_S
    with contextlib.suppress(ChildProcessError):  # nothing is left
        while (left_s := until_s - time.monotonic()) > 0:
            list(_reaped())
            if not sum(map(_killed, _own())):
                return
            signal.sigtimedwait({signal.SIGCHLD}, left_s)


def _killed(pid: int) -> bool:
    """Send SIGKILL; returns whether it may come of that."""
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def _own() -> Iterator[int]:
    """Yield the numbers of this process's own children, from all that run here: not every kernel lists them. Where
    nothing is told of processes what the child has started lives on."""
    own = str(os.getpid()).encode()
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc")
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split(None, 2)[1] == own:
                    yield int(name)
