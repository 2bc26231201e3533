"""Linux control groups, version 1 and 2: the limits that hold here, and what is used of them.

Limits hold for a group and all below it: the tightest of a group and its ancestors is in force. What cannot be read
counts as no limit; where just now nothing can be opened, that is an OSError.

Source: Linux kernel documentation, admin-guide/cgroup-v1 (memory, cpuacct, sched-bwc) and admin-guide/cgroup-v2.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLIND = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def is_blind(error: OSError) -> bool:
    """Whether nothing can be opened now, of whatever there is: that says nothing about what was to be read."""
    return error.errno in _BLIND


class CpuQuota(NamedTuple):
    cores: float  # CPU seconds allowed in each second
    used_s: float | None  # CPU seconds that the limited group has used since it was made


class MemoryLimit(NamedTuple):
    limit_bytes: int
    used_bytes: int  # of the limited group, without file pages, which can be dropped


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
        self._unified = (root / "cgroup.controllers").exists()
        self._paths = dict(_memberships(_text(membership) or ""))

    def cpu(self) -> CpuQuota | None:
        """Return the tightest CPU limit; None where there is none."""
        quotas = [quota for folder in self._groups("cpu") if (quota := self._quota(folder)) is not None]
        return min(quotas, key=lambda quota: quota.cores, default=None)

    def memory(self) -> MemoryLimit | None:
        """Return the tightest memory limit; None where there is none."""
        group = self.limiting()
        used = None if group is None else self._memory_used(group.folder)
        return None if group is None or used is None else MemoryLimit(group.limit_bytes, used)

    def limiting(self) -> Limiting | None:
        """Return the group whose memory limit is the tightest; None where there is none."""
        name = "memory.max" if self._unified else "memory.limit_in_bytes"
        limits = ((_number(folder / name), folder) for folder in self._groups("memory"))
        return min((Limiting(limit, folder) for limit, folder in limits if limit is not None), default=None)

    def oom_kills(self) -> int | None:
        """Return how many processes of this group were killed for want of memory; None where nobody counts."""
        file = "memory.events" if self._unified else "memory.oom_control"
        folder = next(self._groups("memory"), None)
        return None if folder is None else _field(folder / file, "oom_kill")

    def _quota(self, folder: Path) -> CpuQuota | None:
        if self._unified:
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
        """Return where version 1 counts the CPU time of a group: beside its limit, or in a hierarchy of its own."""
        mount = self._mount("cpu")
        if (folder / "cpuacct.usage").exists() or mount is None:
            return folder
        return (self._mount("cpuacct") or mount) / folder.relative_to(mount)

    def _memory_used(self, folder: Path) -> int | None:
        used = _number(folder / ("memory.current" if self._unified else "memory.usage_in_bytes"))
        if used is None:
            return None
        prefix = "" if self._unified else "total_"
        pages = [_field(folder / "memory.stat", f"{prefix}{kind}_file") or 0 for kind in ("inactive", "active")]
        return max(0, used - sum(pages))

    def _groups(self, controller: str) -> Iterator[Path]:
        """Yield this process's group and its ancestors, as far as they can be seen from here."""
        mount = self._mount(controller)
        if mount is None:
            return
        folder = mount / self._paths.get("" if self._unified else controller, "").lstrip("/")
        if not folder.is_dir():  # the path is the host's, and the container's own group is mounted as the root
            folder = mount
        while True:
            yield folder
            if folder == mount:
                return
            folder = folder.parent

    def _mount(self, controller: str) -> Path | None:
        if self._unified:
            return self._root
        if (self._root / controller).is_dir():
            return self._root / controller
        return next((path for path in self._root.glob("*,*") if controller in path.name.split(",")), None)


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
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None
