"""What this process takes with all that it has started: load of its own making."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mainspring.resources.cgroup import is_blind

_TICKS_S = 1.0 / os.sysconf("SC_CLK_TCK")
_HELD = re.compile(rb"(VmRSS|RssAnon|RssShmem):\s+(\d+) kB")
_PARENT, _TIMES = 1, slice(11, 15)
"""Fields of /proc/PID/stat behind the name: user and system time, and those of children that were waited for.

Source: proc_pid_stat(5), proc_pid_status(5).
"""


class OwnLoad(NamedTuple):
    cpu_s: float  # of those that live and those they have waited for; less than before where one was lost unseen
    memory_bytes: int  # that goes with them: without the files they have mapped; of shared memory what one of them has


class OwnProcesses:
    """A process and its descendants, also those whose parents have died since they were seen.

    A look costs a list of all processes, and a read for each that is new or own.

    Args:
        root: number of the process, as /proc shows it; by default this one.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = root
        self._own: set[int] = set()
        self._others: set[int] = set()  # nobody becomes a descendant later

    def look(self) -> OwnLoad:
        """Raises OSError where nothing can be opened now."""
        try:
            root = self._root or int(os.readlink("/proc/self"))
            living = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        except OSError as exc:
            if is_blind(exc):
                raise
            return _by_psutil(self._root)
        self._sort(root, living)
        cpu = private = shared = 0
        for pid in self._own:
            with _ended():
                cpu += sum(map(int, _stat(pid)[_TIMES]))
                with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
                    held = {name: int(kib) << 10 for name, kib in _HELD.findall(file.read())}
                private += held.get(b"RssAnon", held.get(b"VmRSS", 0))
                shared = max(shared, held.get(b"RssShmem", 0))
        return OwnLoad(cpu * _TICKS_S, private + shared)

    def _sort(self, root: int, living: set[int]) -> None:
        self._own &= living
        self._own.add(root)
        self._others &= living
        parents = dict(_parents(living - self._own - self._others))
        for pid in parents:
            line = [pid]
            while line[-1] in parents and parents[line[-1]] not in line:
                line.append(parents[line[-1]])
            (self._own if line[-1] in self._own else self._others).update(one for one in line if one in parents)


def _parents(pids: Iterable[int]) -> Iterable[tuple[int, int]]:
    for pid in pids:
        with _ended():
            yield pid, int(_stat(pid)[_PARENT])


@contextmanager
def _ended() -> Iterator[None]:
    """It may have ended just now, or be hidden from this user."""
    try:
        yield
    except OSError as exc:
        if is_blind(exc):
            raise


def _stat(pid: int) -> list[bytes]:
    """Return the fields behind the name, which may hold anything."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read().rpartition(b")")[2].split()


def _by_psutil(root: int | None) -> OwnLoad:
    """Where there is no /proc."""
    import psutil

    cpu, memory = 0.0, 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = one.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                memory += one.memory_info().rss
    return OwnLoad(cpu, memory)
