"""Limits of control groups, read from trees of both versions as kernels and container runtimes lay them out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.memory import group

from mainspring.resources import Cgroup, CpuQuota, MemoryLimit, ResourceMonitor

MIB = 1 << 20
GIB = 1 << 30
FILL = """
import sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write("0")
held = b"x" * (100 << 20)
print("full", flush=True)
sys.stdin.read()
"""
UNLIMITED_V1 = 9223372036854771712  # what the kernel shows where nothing was set; with pages of 64 KiB,
UNLIMITED_64K = 9223372036854710272


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


@pytest.mark.parametrize("version", [1, 2])
def test_others_have_used_up_the_limit_of_an_ancestor(tmp_path: Path, version: int) -> None:
    """What is gone from a wider limit, further out, is not there in the group; its own limit is that of the figures."""
    at, limit, used = "memory/", "memory.limit_in_bytes", "memory.usage_in_bytes"
    files: dict[str, object] = {}
    if version == 2:
        at, limit, used, files = "", "memory.max", "memory.current", {"cgroup.controllers": "memory"}
    for path, much, gone in (("pod", 400, 284), ("pod/job", 380, 13)):
        files |= {f"{at}{path}/{limit}": much, f"{at}{path}/{used}": gone}
    cgroup = tree(tmp_path, "1:memory:/pod/job\n0::/pod/job\n", files)
    assert cgroup.memory() == MemoryLimit(380, 380 - (400 - 284))
    limiting = cgroup.limiting()
    assert limiting is not None
    assert limiting.folder.name == "job", "whoever has the same memory is who is in this group"
    (tmp_path / "cgroup" / at / "pod" / used).write_text("20\n")
    assert cgroup.memory() == MemoryLimit(380, 13)


def test_a_sibling_fills_the_parent(tmp_path: Path) -> None:
    """In real groups."""
    with contextlib.ExitStack() as groups:
        try:
            parent = groups.enter_context(group(200 * MIB))
            is_new = (parent / "memory.max").exists()
            if is_new:
                (parent / "cgroup.subtree_control").write_text("+memory")
            own, sibling = parent / "own", parent / "sibling"
            for folder in (own, sibling):
                folder.mkdir()
                groups.callback(folder.rmdir)
            (own / ("memory.max" if is_new else "memory.limit_in_bytes")).write_text(str(150 * MIB))
        except OSError as exc:
            pytest.skip(f"no control groups with limits can be made here: {exc}")
        (tmp_path / "self").write_text(f"4:memory:/{parent.name}/own\n0::/{parent.name}/own\n")
        cgroup = Cgroup(membership=tmp_path / "self")
        before = cgroup.memory()
        assert before is not None
        assert before.used_bytes < MIB
        with subprocess.Popen((sys.executable, "-c", FILL, str(sibling)), stdin=-1, stdout=-1) as filling:
            assert filling.stdout is not None
            assert filling.stdout.readline() == b"full\n"
            after = cgroup.memory()
            filling.kill()
        assert after is not None
        assert after.limit_bytes == 150 * MIB
        assert 50 * MIB <= after.used_bytes < 90 * MIB, "100 of the parent's 200 MiB are gone: less than 100 can be had"


def test_caches_of_the_kernel_are_room(tmp_path: Path) -> None:
    """What it remembers of a million names that were looked up goes as soon as somebody needs the memory."""
    files: dict[str, object] = {
        "cgroup.controllers": "memory",
        "job/memory.max": 400 * MIB,
        "job/memory.current": 316 * MIB,
        "job/memory.stat": f"active_file {2 * MIB}\nslab {292 * MIB}\nslab_reclaimable {290 * MIB}\nshmem 9",
    }
    assert tree(tmp_path, "0::/job\n", files).memory() == MemoryLimit(400 * MIB, 24 * MIB)


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
    assert (first.cpu(), first.memory(), first.limiting()) == (None, None, None)


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


QUOTA: dict[str, object] = {"cpu/job/cpu.cfs_quota_us": 150000, "cpu/job/cpu.cfs_period_us": 100000}


def test_version_1_counts_no_cpu_time(tmp_path: Path) -> None:
    """The limit holds all the same, and so it is told to whoever asks what there is."""
    cgroup = tree(tmp_path, "1:cpu:/job\n", QUOTA)
    assert cgroup.cpu() == CpuQuota(1.5, None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usage = ResourceMonitor(tmp_path, cgroup=cgroup).sample()
    assert usage.cpu_limit == min(1.5, cores)


def test_version_1_counts_cpu_time_under_another_path(tmp_path: Path) -> None:
    """Each hierarchy has groups of its own; a limit further out counts what its own group uses."""
    files = QUOTA | {"cpuacct/billing/cpuacct.usage": 4_000_000_000, "cpuacct/cpuacct.usage": 9_000_000_000}
    assert tree(tmp_path, "2:cpuacct:/billing\n1:cpu:/job\n", files).cpu() == CpuQuota(1.5, 4.0)
    assert tree(tmp_path, "2:cpuacct:/billing\n1:cpu:/job/leaf\n", files | {"cpu/job/leaf/tasks": 1}).cpu() == (
        1.5,
        None,
    )


def test_version_1_mounted_together_under_either_name(tmp_path: Path) -> None:
    """With links for each of them, or without."""
    files: dict[str, object] = {
        "cpuacct,cpu/job/cpu.cfs_quota_us": 50000,
        "cpuacct,cpu/job/cpu.cfs_period_us": 100000,
        "cpuacct,cpu/job/cpuacct.usage": 7_000_000_000,
    }
    cgroup = tree(tmp_path, "2:cpuacct,cpu:/job\n", files)
    assert cgroup.cpu() == CpuQuota(0.5, 7.0)
    for name in ("cpu", "cpuacct"):
        (tmp_path / "cgroup" / name).symlink_to("cpuacct,cpu")
    assert cgroup.cpu() == CpuQuota(0.5, 7.0)


def test_version_1_nested(tmp_path: Path) -> None:
    """A parent's tighter limit holds, with its own usage, whether it can be seen from here or not."""
    files: dict[str, object] = {}
    for path, limit in (("", UNLIMITED_64K), ("pod/", 2 * GIB), ("pod/job/", UNLIMITED_V1)):
        files |= {f"memory/{path}memory.limit_in_bytes": limit, f"memory/{path}memory.usage_in_bytes": limit // 2}
    files |= {
        "cpu/pod/cpu.cfs_quota_us": 100000,
        "cpu/pod/cpu.cfs_period_us": 100000,
        "cpu/pod/cpuacct.usage": 5_000_000_000,
        "cpu/pod/job/cpu.cfs_quota_us": 400000,
        "cpu/pod/job/cpu.cfs_period_us": 100000,
        "cpu/pod/job/cpuacct.usage": 1_000_000_000,
    }
    cgroup = tree(tmp_path, "2:memory:/pod/job\n1:cpu,cpuacct:/pod/job\n", files)
    assert cgroup.cpu() == CpuQuota(1.0, 5.0)
    assert cgroup.memory() == MemoryLimit(2 * GIB, GIB)
    hidden: dict[str, object] = {
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/memory.usage_in_bytes": 4096,
        "memory/memory.stat": f"cache 1\nhierarchical_memory_limit {GIB}\ntotal_inactive_file 96",
    }
    (tmp_path / "in").mkdir()
    assert tree(tmp_path / "in", "2:memory:/pod/job\n", hidden).memory() == MemoryLimit(GIB, 4000)


def test_memory_above_high_is_as_good_as_none(tmp_path: Path) -> None:
    """The kernel slows down who uses more and takes its pages: that is no room to be planned with."""
    files: dict[str, object] = {
        "cgroup.controllers": "memory",
        "job/memory.max": 4 * GIB,
        "job/memory.high": 3 * GIB,
        "job/memory.current": GIB,
    }
    cgroup = tree(tmp_path, "0::/job\n", files)
    assert cgroup.memory() == MemoryLimit(3 * GIB, GIB)
    (tmp_path / "cgroup/job/memory.high").write_text("max\n")
    assert cgroup.memory() == MemoryLimit(4 * GIB, GIB)


def test_a_host_with_both_versions(tmp_path: Path) -> None:
    """Each controller is where it was left: some of version 1, the others in version 2's tree beside them."""
    files: dict[str, object] = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": 50000,
        "cpu,cpuacct/job/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/job/cpuacct.usage": 1_000_000_000,
        "unified/cgroup.controllers": "memory io",
        "unified/app/job/memory.max": 2 * GIB,
        "unified/app/job/memory.current": GIB,
        "unified/app/job/memory.events": "oom 1\noom_kill 1",
        "unified/app/job/cpu.stat": "usage_usec 9",
    }
    cgroup = tree(tmp_path, "2:cpu,cpuacct:/job\n0::/app/job\n", files)
    assert cgroup.cpu() == CpuQuota(0.5, 1.0)
    assert (cgroup.memory(), cgroup.oom_kills()) == (MemoryLimit(2 * GIB, GIB), 1)


def test_a_cpuset_with_fewer_cpus_than_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The affinity of a process is what its cpuset leaves."""
    files: dict[str, object] = {
        "cgroup.controllers": "cpu cpuset",
        "job/cpu.max": "300000 100000",
        "job/cpu.stat": "usage_usec 1",
        "job/cpuset.cpus.effective": "0",
    }
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    usage = ResourceMonitor(tmp_path, cgroup=tree(tmp_path, "0::/job\n", files)).sample()
    assert usage.cpu_limit == 1.0
