"""How full the machine is: CPU, memory, disk and network as this container may use them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from mainspring.config import cores, seconds
from mainspring.environment import SYSTEM, Environment, Lock
from mainspring.errors import invalid
from mainspring.resources.cgroup import Cgroup


class ResourceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What is in use and what there is. None means unknown, never zero."""

    cpu_usage: float | None  # 0..1 of cpu_limit, over the time since the sample before; None for the first one
    memory_bytes: int  # in use and not to be had by dropping cached files
    storage_bytes: int  # of the disk that holds the folder, not available to this user
    network_bytes: int | None  # both ways over all interfaces but loopback, since the monitor was made
    cpu_limit: float  # cores
    memory_limit_bytes: int
    storage_limit_bytes: int  # size of that disk


class _Cpu(NamedTuple):
    """CPU time until some moment; only differences between points of the same limit mean anything."""

    used_s: float
    available_s: float
    limit: float  # cores
    of_group: bool  # a control group's, else the machine's


class ResourceMonitor:
    """Tells usage as it was at most `sample_interval` ago; between two samples asking is free.

    Under a control group's limit the figures are that group's: what its other processes use counts, what others on the
    host use does not. Without a limit they are the machine's.

    Args:
        folder: on the disk whose room is watched; by default where the program runs.
        sample_interval: seconds, or text such as "500ms".
    """

    def __init__(
        self,
        folder: str | Path = ".",
        sample_interval: float | str = 0.5,
        *,
        cgroup: Cgroup | None = None,
        env: Environment = SYSTEM,
    ) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise invalid("folder", str(folder), "is no folder", "create it first")
        self._folder = folder
        self._interval_s = seconds(sample_interval, "sample_interval")
        self._cgroup = cgroup or Cgroup()
        self._env = env
        self._lock = Lock()
        self._network_before = _network_bytes()
        self._usage: ResourceUsage | None = None
        self._taken_s = env.monotonic()
        self._cpu_before = self._cpu(self._taken_s)

    async def current_usage(self) -> ResourceUsage:
        return self.sample()

    def sample(self) -> ResourceUsage:
        """Return the usage now, or the last sample where it is young enough. May be called from any thread."""
        with self._lock:
            now_s = self._env.monotonic()
            if self._usage is None or now_s - self._taken_s >= self._interval_s:
                self._usage = self._take(now_s)
                self._taken_s = now_s
            return self._usage

    def _take(self, now_s: float) -> ResourceUsage:
        cpu, usage = self._cpu(now_s), None
        before = self._cpu_before
        if cpu[2:] != before[2:]:  # the limit was changed: begin again
            self._cpu_before = cpu
        elif now_s - self._taken_s >= self._interval_s and cpu.available_s > before.available_s:
            usage = min(1.0, max(0.0, (cpu.used_s - before.used_s) / (cpu.available_s - before.available_s)))
            self._cpu_before = cpu
        memory, memory_limit = self._memory()
        disk = shutil.disk_usage(self._folder)
        network = _network_bytes()
        return ResourceUsage(
            cpu_usage=usage,
            memory_bytes=memory,
            storage_bytes=disk.total - disk.free,
            network_bytes=None if network is None or self._network_before is None else network - self._network_before,
            cpu_limit=cpu.limit,
            memory_limit_bytes=memory_limit,
            storage_limit_bytes=disk.total,
        )

    def _cpu(self, now_s: float) -> _Cpu:
        quota = self._cgroup.cpu()
        if quota is not None and quota.used_s is not None and quota.cores <= cores():
            return _Cpu(quota.used_s, now_s * quota.cores, quota.cores, of_group=True)
        return _Cpu(*_host_cpu(), float(cores()), of_group=False)

    def _memory(self) -> tuple[int, int]:
        """Return bytes in use and the limit."""
        import psutil

        host = psutil.virtual_memory()
        group = self._cgroup.memory()
        if group is not None and group.limit_bytes < host.total:
            return group.used_bytes, group.limit_bytes
        return host.total - host.available, host.total


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


def _network_bytes() -> int | None:
    """Return the bytes of all interfaces but loopback; None where the system does not tell."""
    import psutil

    try:
        counters = psutil.net_io_counters(pernic=True, nowrap=True)
    except OSError:
        return None
    outward = [counted for name, counted in counters.items() if name not in ("lo", "lo0")]
    return sum(counted.bytes_sent + counted.bytes_recv for counted in outward)
