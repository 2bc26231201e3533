"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import apsw
import psutil


def describe(folder: Path, loop: str) -> dict[str, str]:
    """Return what a reader must know to judge figures of this machine; no names of hosts or people."""
    kind, device = filesystem_of(folder)
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "cpu": f"{_cpu_name()}, {len(psutil.Process().cpu_affinity() or [])} of {os.cpu_count()} cores"
        if hasattr(psutil.Process, "cpu_affinity")
        else f"{_cpu_name()}, {os.cpu_count()} cores",
        "memory": f"{memory_gib:.0f} GiB",
        "disk": f"{kind} on {device}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "loop": "asyncio" if loop == "asyncio" or uvloop_of() is None else f"uvloop {uvloop_of()}",
        "mainspring": _version(),
        "load": f"{os.getloadavg()[0]:.1f} when it began",
    }


def filesystem_of(folder: Path) -> tuple[str, str]:
    """Return the type and the device of the file system that a folder is on."""
    folder = folder.resolve()
    best: Any = None
    for part in psutil.disk_partitions(all=True):
        inside = folder.is_relative_to(part.mountpoint)
        if inside and (best is None or len(part.mountpoint) >= len(best.mountpoint)):
            best = part
    return ("unknown", "unknown") if best is None else (best.fstype, best.device)


def uvloop_of() -> str | None:
    """Return uvloop's version, or None where it is not installed."""
    try:
        return metadata.version("uvloop")
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    """The commit, marked when the tree has changes: figures belong to code."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
