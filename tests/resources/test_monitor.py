"""The monitor: figures of the container where it has limits, of the machine where not, at a bounded cost."""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mainspring.config import SchedulerConfig, cores
from mainspring.environment import Environment
from mainspring.errors import InvalidInput
from mainspring.resources import Cgroup, CpuQuota, MemoryLimit, ResourceMonitor
from mainspring.resources import monitor as monitors
from mainspring.resources.own import OwnLoad, OwnProcesses

pytestmark = pytest.mark.anyio


class Clock(Environment):
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Group(Cgroup):
    """A control group whose figures a test sets."""

    quota: CpuQuota | None = None
    limit: MemoryLimit | None = None
    reads = 0

    def cpu(self) -> CpuQuota | None:
        self.reads += 1
        return self.quota

    def memory(self) -> MemoryLimit | None:
        return self.limit


async def test_usage_of_this_machine(tmp_path: Path) -> None:
    """Real figures, within what psutil and the disk tell at the same time."""
    clock = Clock()
    monitor = ResourceMonitor(tmp_path, env=clock)
    usage = await monitor.current_usage()
    assert usage.cpu_usage is None
    assert 0 < usage.cpu_limit <= cores()
    assert 0 < usage.memory_bytes < usage.memory_limit_bytes <= psutil.virtual_memory().total
    assert usage.storage_limit_bytes == shutil.disk_usage(tmp_path).total
    assert 0 < usage.storage_bytes <= usage.storage_limit_bytes
    assert usage.network_bytes is None or usage.network_bytes >= 0
    sum(math.sqrt(n) for n in range(1_000_000))  # so that CPU time passes
    clock.now += 1
    later = await monitor.current_usage()
    assert later.cpu_usage is not None
    assert 0 < later.cpu_usage <= 1


def test_between_two_samples_asking_reads_nothing(tmp_path: Path) -> None:
    clock, group = Clock(), Group()
    monitor = ResourceMonitor(tmp_path, "500ms", cgroup=group, env=clock)
    first = monitor.sample()
    reads = group.reads
    clock.now += 0.4
    assert monitor.sample() is first
    assert group.reads == reads
    clock.now += 0.2
    assert monitor.sample() is not first
    assert group.reads > reads


def test_cpu_usage_is_the_share_of_the_groups_quota(tmp_path: Path) -> None:
    clock, group = Clock(), Group()
    group.quota = CpuQuota(0.5, 10.0)
    monitor = ResourceMonitor(tmp_path, 1, cgroup=group, env=clock)
    assert monitor.sample().cpu_usage is None
    assert monitor.sample().cpu_limit == 0.5
    clock.now, group.quota = clock.now + 4, CpuQuota(0.5, 11.0)
    assert monitor.sample().cpu_usage == pytest.approx(0.5)
    clock.now, group.quota = clock.now + 2, CpuQuota(0.5, 12.0)
    assert monitor.sample().cpu_usage == pytest.approx(1.0)


def test_a_changed_quota_begins_again(tmp_path: Path) -> None:
    """Figures of two limits say nothing together: unknown once, then of the new one."""
    clock, group = Clock(), Group()
    group.quota = CpuQuota(0.5, 10.0)
    monitor = ResourceMonitor(tmp_path, 1, cgroup=group, env=clock)
    clock.now, group.quota = clock.now + 2, CpuQuota(0.25, 10.5)
    assert monitor.sample().cpu_usage is None
    clock.now, group.quota = clock.now + 2, CpuQuota(0.25, 10.6)
    assert monitor.sample().cpu_usage == pytest.approx(0.2)


def test_a_quota_above_the_cores_is_no_limit(tmp_path: Path) -> None:
    group = Group()
    group.quota = CpuQuota(cores() + 1.0, 0.0)
    assert ResourceMonitor(tmp_path, cgroup=group).sample().cpu_limit == cores()


def test_memory_is_the_groups_where_it_is_limited(tmp_path: Path) -> None:
    group = Group()
    group.limit = MemoryLimit(4096, 1024)
    usage = ResourceMonitor(tmp_path, cgroup=group).sample()
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (1024, 4096)
    group.limit = MemoryLimit(1 << 62, 1024)
    usage = ResourceMonitor(tmp_path, cgroup=group).sample()
    assert usage.memory_limit_bytes == psutil.virtual_memory().total
    assert usage.memory_bytes > 1024


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        ResourceMonitor(tmp_path / "nowhere")


class Own(OwnProcesses):
    """Processes of ours with figures that a test sets."""

    def __init__(self) -> None:
        self.load = OwnLoad(0.0, 0)

    def look(self) -> OwnLoad:
        return self.load


def test_the_part_that_is_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time of the time between two samples, memory of now; never more than all there is in use."""
    clock, group, own = Clock(), Group(), Own()
    monkeypatch.setattr(monitors, "OwnProcesses", lambda: own)
    group.quota, group.limit = CpuQuota(2.0, 0.0), MemoryLimit(1 << 20, 1000)
    monitor = ResourceMonitor(tmp_path, 1, cgroup=group, env=clock)
    assert monitor.sample().own_cpu_usage is None
    clock.now, group.quota, own.load = clock.now + 2, CpuQuota(2.0, 3.0), OwnLoad(1.0, 400)
    usage = monitor.sample()
    assert (usage.cpu_usage, usage.own_cpu_usage, usage.own_memory_bytes) == (0.75, 0.25, 400)
    clock.now, group.quota, own.load = clock.now + 2, CpuQuota(2.0, 4.0), OwnLoad(9.0, 4000)
    usage = monitor.sample()
    assert (usage.cpu_usage, usage.own_cpu_usage, usage.own_memory_bytes) == (0.25, 0.25, 1000)
    clock.now, group.quota, own.load = clock.now + 2, CpuQuota(2.0, 4.0), OwnLoad(1.0, 0)  # some ended unseen
    assert monitor.sample().own_cpu_usage == 0


def test_the_limits_in_force(tmp_path: Path) -> None:
    """As configured; where nothing is, CPU is not limited, memory and storage are at 95 % of what there is."""
    group = Group()
    group.limit = MemoryLimit(1_000_000, 1)
    usage = ResourceMonitor(tmp_path, cgroup=group).sample()
    assert (usage.max_cpu_usage, usage.max_memory_bytes) == (None, 950_000)
    assert usage.max_storage_bytes == int(usage.storage_limit_bytes * 0.95)
    limits = SchedulerConfig(max_cpu_usage=0.5, max_memory_bytes=7, max_storage_bytes=8)
    usage = ResourceMonitor(tmp_path, limits=limits, cgroup=group).sample()
    assert (usage.max_cpu_usage, usage.max_memory_bytes, usage.max_storage_bytes) == (0.5, 7, 8)


def test_the_network_only_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes over an interface stays counted when that is gone; one that comes, or comes anew, counts from zero."""
    counts: dict[str, int] | None = {"lo": 7, "eth0": 1_000, "veth1": 50_000}

    def look(**_: object) -> dict[str, SimpleNamespace]:
        if counts is None:
            raise OSError(errno.EACCES, "not now")
        return {name: SimpleNamespace(bytes_sent=n, bytes_recv=1) for name, n in counts.items()}

    monkeypatch.setattr(psutil, "net_io_counters", look)
    clock = Clock()
    monitor = ResourceMonitor(tmp_path, 1, env=clock)

    def total() -> int | None:
        clock.now += 3600  # however much CPU the sample before took
        return monitor.sample().network_bytes

    assert total() == 0
    counts = {"lo": 900, "eth0": 1_010, "veth1": 50_500}
    assert total() == 510
    counts = {"lo": 900, "eth0": 1_020}
    assert total() == 520
    counts = None
    assert total() is None
    counts = {"lo": 900, "eth0": 1_030, "veth2": 39}
    assert total() == 570
    counts = {"lo": 900, "eth0": 99, "veth2": 39}
    assert total() == 670


class Slow(Clock):
    """Each sample takes this much CPU time."""

    cost_ns = 0
    looks = 0

    def thread_cpu_ns(self) -> int:
        self.looks += 1
        return self.looks * self.cost_ns


def test_a_costly_sample_makes_the_next_one_come_later(tmp_path: Path) -> None:
    """No more than 0.2 % of a core goes into looking, however long one look takes."""
    clock, group = Slow(), Group()
    monitor = ResourceMonitor(tmp_path, 0.5, cgroup=group, env=clock)
    clock.cost_ns = 900_000  # 0.9 ms in 0.5 s: within
    first = monitor.sample()
    assert monitor.fresh_in_s() == pytest.approx(0.5)
    clock.now += 0.6
    clock.cost_ns = 10_000_000
    assert (second := monitor.sample()) is not first
    assert monitor.fresh_in_s() == pytest.approx(5)
    clock.now += 4.9
    assert monitor.sample() is second
    clock.now += 0.2
    assert monitor.sample() is not second


def test_where_it_cant_look_the_last_sample_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its age is told; the log says so once, and when it can look again; nothing of a look that failed is kept."""
    clock, group = Clock(), Group()
    group.quota = CpuQuota(0.5, 0.0)
    monitor = ResourceMonitor(tmp_path, 1, cgroup=group, env=clock)

    def pass_on() -> None:
        clock.now += 2
        group.quota = CpuQuota(0.5, (clock.now - 100.0) / 4)

    seen = monitor.sample()
    with monkeypatch.context() as blind:
        blind.setattr(shutil, "disk_usage", _fail)
        for _ in range(3):
            pass_on()
            assert monitor.sample() is seen
        assert monitor.age_s() == 6
        assert monitor.as_seen().endswith("nothing newer can be read")
        assert [record.getMessage().count("can't be seen now") for record in caplog.records] == [1]
    pass_on()
    assert monitor.sample().cpu_usage == 0.5
    assert (monitor.age_s(), monitor.as_seen()) == (0, "")
    assert "can be seen again" in caplog.text


def _fail(_folder: Path) -> None:
    raise FileNotFoundError("it is gone")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_what_cant_be_opened_now_is_not_what_is_not_there(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits of a container don't vanish, and own processes have not ended, for want of descriptors."""
    own = OwnProcesses()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    (tmp_path / "cgroup.controllers").touch()
    with pytest.raises(OSError, match="too many"):
        Cgroup(tmp_path)
    with pytest.raises(OSError, match="too many"):
        own.look()
    monkeypatch.undo()
    assert own.look().memory_bytes > 0


def test_limits_in_the_place_of_the_folder() -> None:
    """Who hands them in first is told by which name they go."""
    with pytest.raises(InvalidInput, match=r"pass limits=SchedulerConfig\(\.\.\.\)"):
        ResourceMonitor(SchedulerConfig(max_cpu_usage=0.9))  # type: ignore[arg-type]
