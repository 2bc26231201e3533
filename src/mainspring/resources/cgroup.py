"""Linux control groups, version 1 and 2: the limits that hold here, and what is used of them.

Limits hold for a group and all below it: the tightest of a group and its ancestors is in force, and of memory there is
no more than any of them has left. What cannot be read counts as no limit; where just now nothing can be opened, that is
an OSError.

Source: Linux kernel documentation, admin-guide/cgroup-v1 (memory, cpuacct, sched-bwc) and admin-guide/cgroup-v2.
Which CPUs a cpuset leaves is in the affinity of each process (`cores`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_UNLIMITED = 1 << 60
"""Version 1 shows a number where nothing was set: the largest that is whole pages, of whatever size."""
_DROPPED_2 = ("inactive_file", "active_file", "slab_reclaimable")
"""What the kernel drops when it needs the room: pages of files, and its own caches, as of the names of files."""
_DROPPED_1 = ("total_inactive_file", "total_active_file")  # what of its own could go, it does not tell
_BLIND = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def is_blind(error: OSError) -> bool:
    """Whether nothing can be opened now, of whatever there is: that says nothing about what was to be read."""
    return error.errno in _BLIND


class CpuQuota(NamedTuple):
    cores: float  # CPU seconds allowed in each second
    used_s: float | None  # CPU seconds that the limited group has used since it was made


class MemoryLimit(NamedTuple):
    limit_bytes: int
    used_bytes: int  # so much of it is not to be had: in use, without what can be dropped, or gone from one further out


class Limiting(NamedTuple):
    limit_bytes: int
    folder: Path  # of the group


class Cgroup:
    """The groups this process belongs to.

    Args:
        root: where the hierarchies are mounted.
        membership: the kernel's list of this process's groups.
    """

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> None:
        self._root = root
        self._paths = dict(_memberships(_text(membership) or ""))
        self._unified = root if (root / "cgroup.controllers").exists() else None
        beside = root / "unified"
        self._beside = frozenset(() if self._unified else (_text(beside / "cgroup.controllers") or "").split())

    def cpu(self) -> CpuQuota | None:
        """Return the tightest CPU limit; None where there is none."""
        second = self._is_second("cpu")
        quotas = [quota for folder in self._groups("cpu") if (quota := self._quota(folder, second)) is not None]
        return min(quotas, key=lambda quota: quota.cores, default=None)

    def memory(self) -> MemoryLimit | None:
        """Return the tightest memory limit, which `memory.high` is too, and what is not to be had of it; None where
        there is none.

        Others may have used up more of a wider limit, further out, than of this one: all are looked at, and that counts
        which leaves least. The limit stays the same meanwhile, so that what fits into it is judged by one figure.
        """
        limits = self._memory_limits()
        left = [one.limit_bytes - used for one in limits if (used := self._memory_used(one.folder)) is not None]
        if not left:
            return None
        tightest = min(limits).limit_bytes
        return MemoryLimit(tightest, max(0, tightest - min(left)))

    def limiting(self) -> Limiting | None:
        """Return the group whose memory limit is the tightest; None where there is none."""
        return min(self._memory_limits(), default=None)

    def _memory_limits(self) -> list[Limiting]:
        """Return the limited groups, each with the tightest limit of its own."""
        read = _limits_2 if self._is_second("memory") else _limits_1
        found = []
        for folder in self._groups("memory"):
            limits = [limit for limit in read(folder) if limit is not None and limit < _UNLIMITED]
            if limits:
                found.append(Limiting(min(limits), folder))
        return found

    def oom_kills(self) -> int | None:
        """Return how many processes of this group were killed for want of memory; None where nobody counts."""
        file = "memory.events" if self._is_second("memory") else "memory.oom_control"
        folder = next(self._groups("memory"), None)
        return None if folder is None else _field(folder / file, "oom_kill")

    def _quota(self, folder: Path, second: bool) -> CpuQuota | None:
        if second:
            quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
            if not quota.isdigit() or not period.isdigit():
                return None
            used = _field(folder / "cpu.stat", "usage_usec")
            return CpuQuota(int(quota) / int(period), None if used is None else used / 1e6)
        allowed, each = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if allowed is None or allowed <= 0 or not each:
            return None
        used = _number(self._accounting(folder) / "cpuacct.usage")
        return CpuQuota(allowed / each, None if used is None else used / 1e9)

    def _accounting(self, folder: Path) -> Path:
        """Return where version 1 counts the CPU time of a group: beside its limit, or in a hierarchy of its own, where
        the group of this process may have another path."""
        mount, apart = self._mount("cpu"), self._mount("cpuacct")
        if (folder / "cpuacct.usage").exists() or mount is None or apart is None:
            return folder
        alike = apart / folder.relative_to(mount)
        is_own = folder == next(self._groups("cpu"), None)
        return next(self._groups("cpuacct"), alike) if is_own else alike

    def _memory_used(self, folder: Path) -> int | None:
        second = self._is_second("memory")
        used = _number(folder / ("memory.current" if second else "memory.usage_in_bytes"))
        if used is None:
            return None
        stat = _fields(folder / "memory.stat")
        return max(0, used - sum(stat.get(kind, 0) for kind in (_DROPPED_2 if second else _DROPPED_1)))

    def _groups(self, controller: str) -> Iterator[Path]:
        """Yield this process's group and its ancestors, as far as they can be seen from here."""
        mount = self._mount(controller)
        if mount is None:
            return
        path = self._paths.get("" if self._is_second(controller) else controller, "").lstrip("/")
        folder = mount / path
        if not folder.is_dir():  # the path is the host's, and the container's own group is mounted as the root
            folder = mount
        while True:
            yield folder
            if folder == mount:
                return
            folder = folder.parent

    def _mount(self, controller: str) -> Path | None:
        if self._unified is not None:
            return self._unified
        if (self._root / controller).is_dir():
            return self._root / controller
        joint = next((path for path in self._root.glob("*,*") if controller in path.name.split(",")), None)
        return self._root / "unified" if joint is None and controller in self._beside else joint

    def _is_second(self, controller: str) -> bool:
        """Whether version 2 has it: all of them, or on a host with both some."""
        mount = self._mount(controller)
        return mount is not None and mount in (self._unified, self._root / "unified")


def _limits_2(folder: Path) -> tuple[int | None, ...]:
    return _number(folder / "memory.max"), _number(folder / "memory.high")


def _limits_1(folder: Path) -> tuple[int | None, ...]:
    """With that of ancestors which can't be seen from here."""
    return _number(folder / "memory.limit_in_bytes"), _field(folder / "memory.stat", "hierarchical_memory_limit")


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """Yield (controller, path); version 2's single hierarchy has the name ""."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError as exc:
        if is_blind(exc):
            raise
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _field(path: Path, name: str) -> int | None:
    return _fields(path).get(name)


def _fields(path: Path) -> dict[str, int]:
    lines = (line.partition(" ") for line in (_text(path) or "").splitlines())
    return {name: int(value) for name, _, value in lines if value.isdigit()}
