"""Resources: how full the machine is, seen from inside its container. Knows no task and decides nothing."""

from mainspring.resources.cgroup import Cgroup, CpuQuota, MemoryLimit
from mainspring.resources.monitor import ResourceMonitor, ResourceUsage

__all__ = ["Cgroup", "CpuQuota", "MemoryLimit", "ResourceMonitor", "ResourceUsage"]
