"""What a child used for one piece of work, measured by itself."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import NamedTuple

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which getrusage counts."""
_PAGE = resource.getpagesize()


class Sample(NamedTuple):
    cpu_s: float  # all threads, and processes it started and waited for
    total_cpu_s: float  # of its whole life so far
    peak_bytes: int | None  # highest resident memory since `start`; None where the system can't tell
    resident_bytes: int | None  # now
    program_bytes: int  # at most, peak of the largest process that it started and waited for; 0: there was none


class Meter:
    """Measures from `start` to `stop`; one piece of work at a time.

    CPU is exact. The peak is the kernel's own high-water mark, reset at `start` (Linux; proc(5): writing 5 to
    clear_refs), so it includes what the interpreter and its modules hold; it may lag by some pages per core. Memory of
    processes that the work starts is not in it: of those the system keeps the largest peak since this process began.

    Reading that mark costs more than most quick work. Memory grows by page faults alone: where there was none since
    what is resident was last read, the peak is that.
    """

    def __init__(self) -> None:
        self._start_s = 0.0
        self._waited_faults = 0  # at the start, of processes that were waited for
        self._faults = -1  # as of the last reading
        self._resident = 0
        self._clear = self._status = self._statm = -1
        with contextlib.suppress(OSError):
            self._status = os.open("/proc/self/status", os.O_RDONLY)
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)
            self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def start(self) -> None:
        if self._clear >= 0:
            os.pwrite(self._clear, b"5", 0)
        self._start_s, _, self._waited_faults, _ = _used()

    def so_far(self) -> tuple[float, int | None]:
        """Return the CPU time and the peak since `start`, while the work goes on."""
        peak = None if self._clear < 0 else _kib(os.pread(self._status, 8192, 0), b"VmHWM:")
        return self.cpu_s() - self._start_s, peak

    def stop(self) -> Sample:
        total_s, faults, waited_faults, program = _used()
        cpu_s = total_s - self._start_s
        if waited_faults == self._waited_faults:
            program = 0
        if self._clear < 0:
            return Sample(cpu_s, total_s, None, None, program)
        if faults != self._faults:
            self._faults = faults
            status = os.pread(self._status, 8192, 0)
            self._resident = _kib(status, b"VmRSS:")
            return Sample(cpu_s, total_s, _kib(status, b"VmHWM:"), self._resident, program)
        peak, self._resident = self._resident, int(os.pread(self._statm, 256, 0).split(None, 2)[1]) * _PAGE
        return Sample(cpu_s, total_s, peak, self._resident, program)

    @staticmethod
    def cpu_s() -> float:
        """CPU time of this process so far, with the processes that it has waited for."""
        return _used()[0]


def _used() -> tuple[float, int, int, int]:
    """Return the CPU time of this process so far, with the processes that it has waited for, and its page faults; then
    those of these processes, and the largest peak of one of them in bytes."""
    own, waited = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime + waited.ru_utime + waited.ru_stime
    faults = own.ru_minflt + own.ru_majflt
    return cpu_s, faults, waited.ru_minflt + waited.ru_majflt, waited.ru_maxrss * MAXRSS_UNIT


def own_peak_bytes() -> int:
    """Return what exec leaves in the peak of a child: the high-water mark of this process since its own exec.

    getrusage(2) has more where the system tells the mark itself: it keeps what was there before that exec.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            return _kib(status.read(), b"VmHWM:")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def _kib(status: bytes, name: bytes) -> int:
    return int(status[status.index(name) + len(name) :].split(None, 1)[0]) * 1024
