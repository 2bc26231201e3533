"""A type that needs much memory, in a container that has too little for all slots: unguarded, and guarded.

python -m bench.memory

Needs control groups that this user may make (version 1 or 2; as root on most machines): each way runs in one of its
own, with a hard limit, so that the kernel kills for real and nothing else on the machine is touched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mainspring import Engine, EngineConfig, Resources, Retry, TaskHandle, TaskManagerConfig, TaskStatus

MIB = 1 << 20
LIMIT, EACH, SLOTS, HOLD_S = 800 * MIB, 220 * MIB, 4, 0.5
"""Of the container; of a task; tasks at a time; how long one holds it."""
ROOT = Path("/sys/fs/cgroup")
WAYS = {
    "pool": "concurrent.futures.ProcessPoolExecutor",
    "undeclared": "engine, nothing declared",
    "learned": "engine, after a first one",
    "declared": "engine, Resources(memory=...)",
}


def hungry(n: int) -> int:
    """Hold memory for a while, all of it touched."""
    held = b"x" * EACH
    time.sleep(HOLD_S)
    return n if len(held) else -1


@contextlib.contextmanager
def group(limit: int) -> Iterator[Path]:
    """Make a control group with a limit of memory, and remove it. Raises OSError: this user may not."""
    is_new = (ROOT / "cgroup.controllers").exists()
    folder = (ROOT if is_new else ROOT / "memory") / f"mainspring-bench-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.max" if is_new else "memory.limit_in_bytes")).write_text(str(limit))
        yield folder
    finally:
        folder.rmdir()


def in_group(folder: Path, way: str, n: int) -> dict[str, Any]:
    """Run one way in a process of the group, and return what came of it."""
    done = subprocess.run(
        [sys.executable, "-c", _JOIN, str(folder / "cgroup.procs"), way, str(n)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    found: dict[str, Any] = (
        json.loads(done.stdout) if done.returncode == 0 else {"completed": 0, "ended": done.returncode}
    )
    events = folder / "memory.events" if (folder / "memory.events").exists() else folder / "memory.oom_control"
    kills = dict(line.split() for line in events.read_text().splitlines())["oom_kill"]
    return {"way": way, **found, "oom_kills": int(kills)}


_JOIN = """
import sys
with open(sys.argv[1], "w") as file:
    file.write("0")
from bench.memory import inside
inside(sys.argv[2], int(sys.argv[3]))
"""
"""It joins before it loads anything, so that all of its memory counts."""


def inside(way: str, n: int) -> None:
    start = time.monotonic()
    found = in_pool(n) if way == "pool" else asyncio.run(in_engine(n, way))
    print(json.dumps({**found, "seconds": round(time.monotonic() - start, 1)}))


def in_pool(n: int) -> dict[str, Any]:
    with ProcessPoolExecutor(SLOTS) as pool:
        futures = [pool.submit(hungry, number) for number in range(n)]
        completed = 0
        for future in futures:
            with contextlib.suppress(BrokenProcessPool):
                completed += future.result() >= 0
    return {"completed": completed, "error": "" if completed == n else "BrokenProcessPool"}


async def in_engine(n: int, way: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(manager=TaskManagerConfig(process_slots=SLOTS))
        engine = Engine(Path(folder, "work.db"), config)
        resources = Resources(cpu=0, memory=EACH + 40 * MIB) if way == "declared" else None
        engine.task(lane="process", retry=Retry(delay=0.1, max_delay=0.2), resources=resources)(hungry)
        async with engine:
            if way == "learned":
                await (await engine.submit(hungry, 0)).result()
            handles: list[TaskHandle] = await engine.map(hungry, range(n))
            done = [await engine.manager.get_task_result(handle.id) for handle in handles]
            attempts = [attempt for handle in handles for attempt in (await handle.info()).attempts]
    errors = [str(attempt.error) for attempt in attempts if attempt.error is not None]
    return {
        "completed": sum(one.status is TaskStatus.COMPLETED for one in done),
        "killed": sum(attempt.outcome != "completed" for attempt in attempts),
        "error": errors[0] if errors else "",
    }


def measure(n: int, ways: list[str]) -> list[dict[str, Any]]:
    found = []
    for way in ways:
        with group(LIMIT) as folder:
            found.append(in_group(folder, way, n))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=12, help="tasks")
    parser.add_argument("--ways", nargs="*", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    try:
        found = measure(options.n, options.ways)
    except OSError as exc:
        sys.exit(f"no control group with a limit can be made here: {exc}")
    print(f"{options.n} tasks of {EACH >> 20} MiB, {SLOTS} at a time, in a container of {LIMIT >> 20} MiB\n")
    print(f"{'':40} {'completed':>10} {'attempts killed':>16} {'killed by the kernel':>21} {'seconds':>8}")
    for row in found:
        killed, seconds = row.get("killed", ""), row.get("seconds", "")
        print(f"{WAYS[row['way']]:40} {row['completed']:>10} {killed:>16} {row['oom_kills']:>21} {seconds:>8}")
        if row.get("error"):
            print(f"    {row['error']}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
