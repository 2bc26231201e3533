"""A worker process for benchmarks: `worker_beside(path, loop)` starts one and gives its process id.

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
async def worker_beside(path: Path, loop: str) -> AsyncIterator[int]:
    """Run a worker on the same file while the block runs; it is ready when the block begins."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.worker", str(path), loop,
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


async def _work(path: Path) -> None:
    async with opened(path):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    run(lambda: _work(Path(sys.argv[1])), sys.argv[2])
