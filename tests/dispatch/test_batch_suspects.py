"""Tasks that were in a call when their process died: nobody is with them in the next one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Batch

pytestmark = pytest.mark.anyio
HOLDS = """
import asyncio, sys
from mainspring import Batch, Engine
engine = Engine(sys.argv[1])
began = asyncio.Event()
@engine.task(name="hold", batch=Batch(max_size=3, max_wait=60))
async def hold(items: list[int]) -> list[int]:
    began.set()
    await asyncio.sleep(3600)
async def main():
    async with engine:
        handles = await engine.map(hold, [1, 2, 3])
        await began.wait()
        for handle in handles:
            while (await handle.info()).status.value != "running":
                pass
        print(*[handle.id for handle in handles], flush=True)
        await engine.gather(handles)
asyncio.run(main())
"""


async def test_suspects_run_alone(tmp_path: Path) -> None:
    """One of them may have killed it: each has a call of its own, which waits for nobody."""
    path = tmp_path / "work.db"
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDS, str(path), stdout=asyncio.subprocess.PIPE)
    assert dead.stdout is not None
    ids = (await dead.stdout.readline()).decode().split()
    dead.kill()
    await dead.wait()
    calls: list[list[int]] = []
    async with engine_on(path) as engine:

        @engine.task(name="hold", batch=Batch(max_size=3, max_wait=3600))
        async def hold(items: list[int]) -> list[int]:
            calls.append(items)
            return items

        assert [await engine.handle(id).result(timeout=LIMIT_S) for id in ids] == [1, 2, 3]
        assert sorted(calls) == [[1], [2], [3]]
