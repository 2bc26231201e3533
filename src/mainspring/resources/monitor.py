"""How full the machine is: CPU, memory, disk and network as this container may use them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from mainspring.config import SchedulerConfig, check_given, cores, seconds
from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import invalid
from mainspring.resources.cgroup import Cgroup
from mainspring.resources.own import OwnLoad, OwnProcesses, started_by

logger = logging.getLogger("mainspring.resources")

FULL = 0.95
"""How full memory and storage may be where nothing else is configured."""
MOST_COST = 0.002
"""Share of a core that sampling may take: where a sample costs more than that of the interval, the next comes later."""


class ResourceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What is in use, what there is, and how much of that may be in use. None means unknown, never zero.

    "Own" is what this process takes with all that it has started: limits hold for what is left without it.
    """

    cpu_usage: float | None  # 0..1 of cpu_limit, over the time since the sample before; None for the first one
    own_cpu_usage: float | None  # the part of it that is own
    memory_bytes: int  # in use and not to be had by dropping caches
    own_memory_bytes: int  # the part of it that is own
    storage_bytes: int  # of the disk that holds the folder, not available to this user
    network_bytes: int | None  # both ways over all interfaces but loopback, since the monitor was made
    cpu_limit: float  # cores
    memory_limit_bytes: int
    storage_limit_bytes: int  # size of that disk
    max_cpu_usage: float | None  # the limits in force; None: CPU is not limited
    max_memory_bytes: int
    max_storage_bytes: int


class _Cpu(NamedTuple):
    """CPU time until some moment; only differences between points of the same limit mean anything."""

    used_s: float
    own_s: float
    available_s: float
    limit: float  # cores
    of_group: bool  # a control group's, else the machine's


class _Network:
    """What went over interfaces since it was made. Those of containers come and go: what they counted stays."""

    def __init__(self) -> None:
        self._sum = 0
        self._seen = _by_interface()

    def bytes(self) -> int | None:
        now, before = _by_interface(), self._seen
        if now is None:
            return None
        if before is not None:
            self._sum += sum(_grown(before.get(name, 0), n) for name, n in now.items())
        self._seen = now
        return self._sum


class ResourceMonitor:
    """Tells usage as it was at most `sample_interval` ago; between two samples asking is free. On a machine where a
    sample takes long (thousands of processes) they come less often, so that they never take more than 0.2 % of a core.

    Where it can't look (no file can be opened now, the folder is gone) the last sample stays: the log says so once, and
    `age_s` and `as_seen` tell how old it is. So whoever asks gets an answer.

    Under a control group's limit the figures are that group's: what its other processes use counts, what others on the
    host use does not. Without a limit they are the machine's.

    Args:
        folder: on the disk whose room is watched; by default where the program runs.
        sample_interval: seconds, or text such as "500ms".
        limits: what the figures show as the limits in force.
    """

    _blind_since = ""  # while it can't look: of when the figures are

    def __init__(
        self,
        folder: str | Path = ".",
        sample_interval: float | str = 0.5,
        *,
        limits: SchedulerConfig | None = None,
        cgroup: Cgroup | None = None,
        env: Environment = SYSTEM,
    ) -> None:
        if isinstance(folder, SchedulerConfig):
            raise invalid("folder", folder, "is a SchedulerConfig", "pass limits=SchedulerConfig(...)")
        check_given(limits=(limits, SchedulerConfig))
        if not isinstance(folder, (str, Path)):
            raise invalid("folder", folder, "is no path", "name a folder")
        folder = Path(folder)
        if not folder.is_dir():
            raise invalid("folder", str(folder), "is no folder", "create it first")
        self._folder = folder
        self._interval_s = seconds(sample_interval, "sample_interval")
        self.limits = limits or SchedulerConfig()
        self._cgroup = cgroup or Cgroup()
        self._own = OwnProcesses()
        self._env = env
        self._lock = Lock()
        self._network = _Network()
        machine()  # from now on it is known
        self._taken_s = self._due_s = env.monotonic()
        self._cpu_before = self._cpu(self._taken_s, self._own.look())
        self._usage = self._take(self._taken_s)

    async def current_usage(self) -> ResourceUsage:
        return self.sample()

    def sample(self) -> ResourceUsage:
        """Return the usage now, or the last sample where it is young enough. May be called from any thread."""
        with self._lock:
            now_s = self._env.monotonic()
            if now_s >= self._due_s:
                began_ns = self._env.thread_cpu_ns()
                self._look(now_s)
                cost_s = (self._env.thread_cpu_ns() - began_ns) / 1e9
                self._due_s = now_s + max(self._interval_s, cost_s / MOST_COST)
            return self._usage

    def _look(self, now_s: float) -> None:
        try:
            self._usage = self._take(now_s)
        except OSError as exc:
            if not self._blind_since:
                at = datetime.fromtimestamp(self._env.wall_ms() / 1000 - (now_s - self._taken_s), UTC)
                self._blind_since = f"{at:%H:%M:%S} UTC"
                logger.warning(
                    "how full the machine is can't be seen now, so that the figures of %s stay: %s", self._blind_since,
                    exc,
                )  # fmt: skip
            return
        self._taken_s = now_s
        if self._blind_since:
            self._blind_since = ""
            logger.warning("how full the machine is can be seen again")

    def age_s(self) -> float:
        """Return how old the figures are that `sample` returned last."""
        return self._env.monotonic() - self._taken_s

    def as_seen(self) -> str:
        """Return what a sentence about the figures ends with: nothing, or where it can't look now, of when they are."""
        return f", as seen at {self._blind_since}; nothing newer can be read" if self._blind_since else ""

    def fresh_in_s(self) -> float:
        """Return after how many seconds there will be new figures."""
        return max(0.0, self._due_s - self._env.monotonic())

    def _take(self, now_s: float) -> ResourceUsage:
        """Raises OSError; then nothing has changed."""
        own = self._own.look()
        cpu, usage, own_usage = self._cpu(now_s, own), None, None
        memory, memory_limit = self._memory()
        disk = shutil.disk_usage(self._folder)
        limits = self.limits
        before = self._cpu_before
        if cpu[3:] != before[3:]:  # the limit was changed: begin again
            self._cpu_before = cpu
        elif now_s - self._taken_s >= self._interval_s and cpu.available_s > before.available_s:
            available_s = cpu.available_s - before.available_s
            usage = _share(cpu.used_s - before.used_s, available_s)
            own_usage = min(usage, _share(cpu.own_s - before.own_s, available_s))
            self._cpu_before = cpu
        return ResourceUsage(
            cpu_usage=usage,
            own_cpu_usage=own_usage,
            memory_bytes=memory,
            own_memory_bytes=min(memory, own.memory_bytes),
            storage_bytes=disk.total - disk.free,
            network_bytes=self._network.bytes(),
            cpu_limit=cpu.limit,
            memory_limit_bytes=memory_limit,
            storage_limit_bytes=disk.total,
            max_cpu_usage=limits.max_cpu_usage,
            max_memory_bytes=limits.max_memory_bytes or int(memory_limit * FULL),
            max_storage_bytes=limits.max_storage_bytes or int(disk.total * FULL),
        )

    def _cpu(self, now_s: float, own: OwnLoad) -> _Cpu:
        quota = self._cgroup.cpu()
        if quota is not None and quota.used_s is not None and quota.cores <= cores():
            return _Cpu(quota.used_s, own.cpu_s, now_s * quota.cores, quota.cores, of_group=True)
        limit = float(cores()) if quota is None else min(quota.cores, float(cores()))
        used_s, available_s = _host_cpu()  # of all who run on these CPUs, where nobody counts what the group uses
        return _Cpu(used_s, own.cpu_s, available_s, limit, of_group=False)

    def _memory(self) -> tuple[int, int]:
        """Return bytes in use and the limit."""
        import psutil

        host = psutil.virtual_memory()
        group = self._cgroup.memory()
        if group is not None and group.limit_bytes < host.total:
            return group.used_bytes, group.limit_bytes
        return host.total - host.available, host.total


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))


def resident_bytes(pids: Mapping[int, bool]) -> dict[int, int] | None:
    """Return the memory that each process holds now, where it says so with all that it has started but for others of
    these; None where that can't be seen. One that has ended holds none."""
    try:
        return {
            pid: sum(map(_resident, (pid, *started_by(pid, but=pids)) if with_started else (pid,)))
            for pid, with_started in pids.items()
        }
    except OSError:
        return None


def _resident(pid: int) -> int:
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


@cache
def machine() -> tuple[int, int]:
    """Return cores and bytes of memory of the whole machine, whatever this container may use of them."""
    import psutil

    return os.cpu_count() or 1, psutil.virtual_memory().total


def _host_cpu() -> tuple[float, float]:
    """Return seconds used and seconds there were of the CPUs this process may run on. Waiting for a disk is idle."""
    import psutil

    every = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    used = total = 0.0
    for times in [times for number, times in enumerate(every) if number in allowed] or every:
        spent = times._asdict()
        within = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)  # counted in user, nice
        total += within
        used += within - spent["idle"] - spent.get("iowait", 0.0)
    return used, total


def _grown(before: int, now: int) -> int:
    """Return what was counted since; a counter that is smaller has begun anew."""
    return now - before if now >= before else now


def _by_interface() -> dict[str, int] | None:
    """Return the bytes of each interface but loopback; None where the system does not tell."""
    import psutil

    try:
        counters = psutil.net_io_counters(pernic=True, nowrap=True)
    except OSError:
        return None
    outward = {name: counted for name, counted in counters.items() if name not in ("lo", "lo0")}
    return {name: counted.bytes_sent + counted.bytes_recv for name, counted in outward.items()}
