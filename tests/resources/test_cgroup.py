"""Limits of control groups, read from trees of both versions as kernels and container runtimes lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.resources import Cgroup, CpuQuota, MemoryLimit

GIB = 1 << 30
UNLIMITED_V1 = 9223372036854771712  # what the kernel shows where nothing was set


def tree(folder: Path, membership: str, files: dict[str, object]) -> Cgroup:
    root = folder / "cgroup"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    (folder / "self").write_text(membership)
    return Cgroup(root, folder / "self")


def test_version_2(tmp_path: Path) -> None:
    cgroup = tree(
        tmp_path,
        "0::/user/job\n",
        {
            "cgroup.controllers": "cpu memory",
            "user/job/cpu.max": "150000 100000",
            "user/job/cpu.stat": "usage_usec 2500000\nuser_usec 2000000",
            "user/job/memory.max": 4 * GIB,
            "user/job/memory.current": 3 * GIB,
            "user/job/memory.stat": f"anon 5\ninactive_file {GIB - 9}\nactive_file 9",
        },
    )
    assert cgroup.cpu() == CpuQuota(1.5, 2.5)
    assert cgroup.memory() == MemoryLimit(4 * GIB, 2 * GIB)


def test_version_1(tmp_path: Path) -> None:
    """Controllers mounted together or apart, each with a path of its own."""
    cgroup = tree(
        tmp_path,
        "4:memory:/job\n2:cpu,cpuacct:/job\n1:name=systemd:/init\n0::/\n",
        {
            "cpu,cpuacct/job/cpu.cfs_quota_us": 50000,
            "cpu,cpuacct/job/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/job/cpuacct.usage": 7_000_000_000,
            "memory/job/memory.limit_in_bytes": 2 * GIB,
            "memory/job/memory.usage_in_bytes": GIB,
            "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 24",
        },
    )
    assert cgroup.cpu() == CpuQuota(0.5, 7.0)
    assert cgroup.memory() == MemoryLimit(2 * GIB, GIB - 1024)


def test_version_1_counts_cpu_time_in_another_hierarchy(tmp_path: Path) -> None:
    cgroup = tree(
        tmp_path,
        "2:cpuacct:/job\n1:cpu:/job\n",
        {
            "cpu/job/cpu.cfs_quota_us": 200000,
            "cpu/job/cpu.cfs_period_us": 100000,
            "cpuacct/job/cpuacct.usage": 3_000_000_000,
        },
    )
    assert cgroup.cpu() == CpuQuota(2.0, 3.0)


@pytest.mark.parametrize("outer", [True, False])
def test_the_tightest_of_all_ancestors_is_in_force(tmp_path: Path, outer: bool) -> None:
    """And usage is that of the group whose limit it is."""
    limits = (2, 8) if outer else (8, 2)
    files: dict[str, object] = {"cgroup.controllers": "cpu memory"}
    for path, limit in zip(("outer", "outer/inner"), limits, strict=True):
        files |= {
            f"{path}/cpu.max": f"{limit}00000 100000",
            f"{path}/cpu.stat": f"usage_usec {limit}000000",
            f"{path}/memory.max": limit * GIB,
            f"{path}/memory.current": limit * 100,
        }
    files |= {"outer/inner/leaf/cpu.max": "max 100000", "outer/inner/leaf/memory.max": "max"}
    cgroup = tree(tmp_path, "0::/outer/inner/leaf\n", files)
    assert cgroup.cpu() == CpuQuota(2.0, 2.0)
    assert cgroup.memory() == MemoryLimit(2 * GIB, 200)


def test_no_limit(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    second = tree(tmp_path / "two", "0::/job\n", {"cgroup.controllers": "", "job/cpu.max": "max 100000"})
    assert (second.cpu(), second.memory()) == (None, None)
    (tmp_path / "one").mkdir()
    first = tree(
        tmp_path / "one",
        "2:memory:/\n1:cpu:/\n",
        {
            "cpu/cpu.cfs_quota_us": -1,
            "cpu/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/memory.usage_in_bytes": 5,
        },
    )
    assert first.cpu() is None
    assert first.memory() == MemoryLimit(UNLIMITED_V1, 5)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """The kernel names the host's path, which does not exist under the container's mount."""
    cgroup = tree(
        tmp_path,
        "2:memory:/docker/0123\n1:cpu:/docker/0123\n",
        {
            "cpu/cpu.cfs_quota_us": 100000,
            "cpu/cpu.cfs_period_us": 100000,
            "cpu/cpuacct.usage": 1_000_000_000,
            "memory/memory.limit_in_bytes": GIB,
            "memory/memory.usage_in_bytes": 7,
        },
    )
    assert cgroup.cpu() == CpuQuota(1.0, 1.0)
    assert cgroup.memory() == MemoryLimit(GIB, 7)


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    """As on macOS."""
    cgroup = Cgroup(tmp_path / "none", tmp_path / "none")
    assert (cgroup.cpu(), cgroup.memory()) == (None, None)


def test_who_was_killed_for_memory(tmp_path: Path) -> None:
    """The kernel's count of the group itself, in both versions; nobody's where there is none."""
    second = tree(
        tmp_path / "2", "0::/job\n", {"cgroup.controllers": "memory", "job/memory.events": "low 0\noom 4\noom_kill 3"}
    )
    assert second.oom_kills() == 3
    files: dict[str, object] = {"memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2"}
    assert tree(tmp_path / "1", "4:memory:/job\n", files).oom_kills() == 2
    assert tree(tmp_path / "0", "0::/\n", {"cpu/cpu.shares": 1}).oom_kills() is None
