"""Out of memory: how it is recognised that a child was ended for that, or could get no more, and how it is told."""

from __future__ import annotations

import resource
from pathlib import Path
from signal import SIGKILL

import msgspec

from mainspring.environment import SYSTEM, Environment
from mainspring.execution.base import Report
from mainspring.resources.cgroup import Cgroup
from mainspring.resources.monitor import machine

KILLED = "ResourceLimitExceeded"
"""The type of the error of an attempt whose child the system killed for memory."""
REFUSED = "MemoryError"
"""The same of one that got no more memory, and lived to say so."""
_FRESH_S = 1.0
"""So old may be what is known of the count when an attempt begins: files are not read for each."""
_LIMITS = {"RLIMIT_AS": resource.RLIMIT_AS, "RLIMIT_DATA": resource.RLIMIT_DATA}


class Kills:
    """The kernel's count of processes that it has killed for memory, in this control group or else on this machine.

    One that the kernel kills says nothing, and SIGKILL may come from anybody: only this count tells. It counts others
    of the same group too; hence it is looked at only when a child was killed, and not by us, or when an attempt failed
    that had started a program, and only what was counted since that one began is meant.
    """

    def __init__(
        self, cgroup: Cgroup | None = None, vmstat: Path = Path("/proc/vmstat"), env: Environment = SYSTEM
    ) -> None:
        self._cgroup = cgroup or Cgroup()
        self._vmstat = vmstat
        self._env = env
        self._told: set[int] = set()  # which of them
        self._known: int | None = None  # how many there were,
        self._looked_at = float("-inf")  # then

    def so_far(self) -> int | None:
        """Return how many there have been, for who begins now: as of a moment ago. None where that can't be seen."""
        now = self._env.monotonic()
        if now - self._looked_at >= _FRESH_S:
            self._known, self._looked_at = self._count(), now
        return self._known

    def after(self, signal: int | None, before: int | None) -> str | None:
        """Return what there was to be had, where a child that has ended by this signal ended for want of it.

        Args:
            before: how many there had been when it began.
        """
        return self.limit() if signal == SIGKILL and self.has_one(before) else None

    def has_one(self, before: int | None) -> bool:
        """Whether there is one more that was not told of yet; it is told of now."""
        count = self._count()
        if count is None or before is None:
            return False
        one = next((n for n in range(before, count) if n not in self._told), None)
        if one is None:
            return False
        self._told.add(one)
        return True

    def behind(self, report: Report, before: int | None) -> Report:
        """Return the report of an attempt whose child lives, as one that was short of memory where it failed and a
        program of its own may be what was killed for want of it: what the handler makes of that may be any error.

        Args:
            before: how many there had been when it began.
        """
        error, used = report.error, report.program_bytes
        if error is None or not used or not report.retryable or not self.has_one(before):
            return report
        message = (
            f"{error.type}: {error.message}; meanwhile the system killed a process, out of memory: a program that it "
            f"had started used {used >> 20} MiB at most, and {self.limit()}"
        )
        return msgspec.structs.replace(
            report,
            error=msgspec.structs.replace(error, type=KILLED, message=message),
            usage=msgspec.structs.replace(report.usage, memory_bytes=max(used, report.usage.memory_bytes or 0)),
            short_of_memory=True,
        )

    def limit(self) -> str:
        """Return what there was to be had."""
        whole = machine()[1]
        try:
            group = self._cgroup.memory()
        except OSError:
            return "what there is to be had can't be seen now"
        if group is not None and group.limit_bytes < whole:
            return f"its container may use {group.limit_bytes >> 20} MiB"
        return f"its machine has {whole >> 20} MiB"

    def _count(self) -> int | None:
        """None where that can't be seen now."""
        try:
            count = self._cgroup.oom_kills()
            if count is not None:
                return count
            lines = self._vmstat.read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def with_limit(report: Report, program_bytes: int) -> Report:
    """Return a report whose error tells, where it is that of one who got no more memory, what it used and might use;
    with that of another one it says what a program used that it had started."""
    error = report.error
    if error is None:
        return report
    if error.type != REFUSED:
        return msgspec.structs.replace(report, program_bytes=program_bytes) if program_bytes else report
    limits = {name: resource.getrlimit(number)[0] for name, number in _LIMITS.items()}
    told = [f"{name} lets its process have {much >> 20} MiB" for name, much in limits.items() if 0 <= much < 1 << 62]
    if report.usage.memory_bytes is not None:
        told.insert(0, f"its peak memory was {report.usage.memory_bytes >> 20} MiB")
    message = "; ".join([error.message or "no memory is left", *told])
    return msgspec.structs.replace(report, error=msgspec.structs.replace(error, message=message), short_of_memory=True)
