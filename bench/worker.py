"""A worker process for benchmarks: `worker_beside(store, loop)` starts one and gives its process id.

Run as a program it opens the store, says `ready`, and works until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from bench.harness import run
from bench.subject import opened

_ROOT = Path(__file__).resolve().parent.parent
_STOP_WITHIN_S = 30.0


@contextlib.asynccontextmanager
async def worker_beside(store: Path | str, loop: str, slots: int | None = None) -> AsyncIterator[int]:
    """Run a worker on the same store while the block runs; it is ready when it begins. `slots`: see `opened`."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.worker", str(store), loop, *([] if slots is None else [str(slots)]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        said = await child.stdout.readline()
        if said.strip() != b"ready":
            raise RuntimeError(f"the worker process did not start: it said {said!r}")
        yield child.pid
    finally:
        child.stdin.close()
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()


async def _work(store: str, slots: int | None) -> None:
    async with opened(store, slots=slots):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    run(lambda: _work(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else None), sys.argv[2])
