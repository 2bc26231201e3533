"""What this process takes with all that it has started: load of its own making."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mainspring.resources.cgroup import is_blind

_TICKS_S = 1.0 / os.sysconf("SC_CLK_TCK")
_HELD = re.compile(rb"(VmRSS|RssAnon|RssShmem):\s+(\d+) kB")
_PARENT, _SESSION, _TIMES = 1, 3, slice(11, 15)
"""Fields of /proc/PID/stat behind the name: user and system time, and those of children that were waited for.

Source: proc_pid_stat(5), proc_pid_status(5).
"""


class OwnLoad(NamedTuple):
    cpu_s: float  # of those that live and those they have waited for; less than before where one was lost unseen
    memory_bytes: int  # that goes with them: without the files they have mapped; of shared memory what one of them has


class OwnProcesses:
    """A process and its descendants, also those whose parents have died: since they were seen, or before, as those of a
    program that goes to the background, where they stayed in the session of one that is own.

    A look costs a list of all processes, and a read for each that is new or own.

    Args:
        root: number of the process, as /proc shows it; by default this one.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = root
        self._own: set[int] = set()
        self._others: set[int] = set()  # nobody becomes a descendant later
        self._sessions: set[int] = set()  # of the own processes, at the last look; before the first one nobody is left

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
        sessions = set()
        for pid in self._own:
            with _ended():
                stat = _stat(pid)
                cpu += sum(map(int, stat[_TIMES]))
                sessions.add(int(stat[_SESSION]))
                with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
                    held = {name: int(kib) << 10 for name, kib in _HELD.findall(file.read())}
                private += held.get(b"RssAnon", held.get(b"VmRSS", 0))
                shared = max(shared, held.get(b"RssShmem", 0))
        self._sessions = sessions - {0}  # so are all shown that are outside of this namespace of processes
        return OwnLoad(cpu * _TICKS_S, private + shared)

    def _sort(self, root: int, living: set[int]) -> None:
        self._own &= living
        self._own.add(root)
        self._others &= living
        found = {pid: (parent, session) for pid, parent, session in _origins(living - self._own - self._others)}
        for pid in found:
            line = [pid]
            while line[-1] in found and found[line[-1]][0] not in line:
                line.append(found[line[-1]][0])
            new = [one for one in line if one in found]
            is_own = line[-1] in self._own or (bool(new) and self._is_orphan(*found[new[-1]]))
            (self._own if is_own else self._others).update(new)

    def _is_orphan(self, parent: int, session: int) -> bool:
        """Whether it is left of one that ended unseen: it has come since the last look into a session of own processes,
        and now belongs to somebody outside, who adopts. In that session a shell may start strangers too, whose parent
        it stays. (A process group would be narrower, and left by `timeout` and by job control.)"""
        if session not in self._sessions:
            return False
        return all(other not in self._sessions for _, _, other in _origins([parent]))


def started_by(pid: int, *, but: Container[int]) -> Iterator[int]:
    """Yield the descendants of a process, without some of them and theirs; nobody where the system does not tell."""
    found: list[bytes] = []
    with _ended():
        for thread in os.listdir(f"/proc/{pid}/task"):
            with _ended(), open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += file.read().split()
    for child in map(int, found):
        if child not in but:
            yield child
            yield from started_by(child, but=but)


def _origins(pids: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield each with its parent and its session."""
    for pid in pids:
        with _ended():
            stat = _stat(pid)
            yield pid, int(stat[_PARENT]), int(stat[_SESSION])


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
