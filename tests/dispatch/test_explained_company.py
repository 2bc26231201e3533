"""What is said of tasks beside one that must run alone, and where the only worker stops."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.dispatch.test_reservations import says
from tests.engine.support import engine_on, until, value

pytestmark = pytest.mark.anyio
HOLDS = """
import asyncio, sys
from mainspring import Engine
engine = Engine(sys.argv[1])
both = asyncio.Barrier(3)
@engine.task(name="hold")
async def hold(n):
    await both.wait()
    await asyncio.sleep(3600)
async def main():
    async with engine:
        handles = await engine.map(hold, [1, 2])
        await both.wait()
        print(*[handle.id for handle in handles], flush=True)
        await engine.gather(handles)
asyncio.run(main())
"""


async def test_beside_one_that_runs_alone(tmp_path: Path) -> None:
    """Those that ran when their process died run one after the other, and nothing else within the process meanwhile."""
    path = tmp_path / "work.db"
    command = [sys.executable, "-c", HOLDS, str(path)]
    dead = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert dead.stdout is not None
    ids = (await dead.stdout.readline()).decode().split()
    async with engine_on(path) as engine:
        go, free, busy = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @engine.task
        async def before() -> None:
            busy.set()
            await free.wait()

        @engine.task(lane="thread")
        def quick() -> None: ...

        running = await engine.submit(before)
        await busy.wait()
        dead.kill()
        await dead.wait()

        @engine.task(name="hold")
        async def hold(n: int) -> int:
            await go.wait()
            return n

        first, second = engine.handle(ids[0]), engine.handle(ids[1])
        has = f"Worker {engine.manager.store.worker_id} has claimed it and starts"
        died = "was running when its process died"
        await says(first, f"{has} it alone, as it {died}, when what runs there has ended.")
        free.set()
        await value(running)
        await until(lambda: bool(engine.manager.running_tasks()))
        others = [await engine.submit(quick) for _ in range(20)]
        why = f"starts nothing new: task {first.id} {died} and runs alone; it goes on when that has ended."
        await says(second, why)
        for other in (others[0], others[-1]):
            await says(other, why)
            assert (await other.info()).reason in ("claimed", "ready")
        go.set()
        assert await engine.gather([first, second]) == [1, 2]
        await engine.gather(others)


async def test_the_only_worker_stops(tmp_path: Path) -> None:
    """It takes nothing more, whatever slots it has free; another one that serves the type does."""
    path = tmp_path / "work.db"
    go = asyncio.Event()

    async def hold() -> None:
        await go.wait()

    async def quick() -> None: ...

    worker, looker = engine_on(path), engine_on(path, worker=False)
    for engine in (worker, looker):
        engine.task(hold)
        engine.task(quick)
    async with looker:
        await worker.start()
        await looker.submit(hold)
        await until(lambda: bool(worker.manager.running_tasks()))
        stopping = asyncio.ensure_future(worker.stop())
        waiting = await looker.submit(quick)
        name = worker.manager.store.worker_id
        await says(
            waiting,
            f"No living worker takes custom:quick any more: worker {name} is stopping; start one that registers it.",
        )
        assert (await waiting.info()).reason == "no_worker"
        other = engine_on(path)
        other.task(quick)
        async with other:
            await value(waiting)
        go.set()
        await stopping
