"""The child's side of its bond to the parent: it takes the pipe, and does not outlive whom it works for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "/proc/self/oom_score_adj"
_OOM_MORE, _OOM_MOST = 500, 1000


def take_pipe() -> socket.socket:
    """Return the socket that the parent put in place of stdin; stdin reads as empty from now on.

    The descriptor is not inherited by programs that a handler starts.
    """
    sock = socket.socket(fileno=os.dup(0))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return sock


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however busy it is; Linux only."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the kernel knew
        kill_own_group()


def die_before_parent() -> None:
    """Have the kernel choose this process, or what it starts, before its parent when memory runs out; Linux only."""
    with contextlib.suppress(OSError):  # another system, or one that hides this
        with open(_OOM_SCORE, encoding="ascii") as file:
            score = int(file.read())
        with open(_OOM_SCORE, "w", encoding="ascii") as file:
            file.write(str(min(score + _OOM_MORE, _OOM_MOST)))


def kill_own_group() -> None:
    """End this process and those it started, without clean-up. Does not return."""
    with contextlib.suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
