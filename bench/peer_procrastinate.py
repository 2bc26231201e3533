"""procrastinate on Postgres, for `bench.peers`. Runs in procrastinate's own environment and knows nothing of ours.

`peer_procrastinate.py work` is a worker. Without an argument it submits: each line of standard input is a count of
tasks; the answer is one line of JSON with the seconds from the first submit until all are known to be done, and its own
CPU seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import procrastinate
import psycopg

_ADDRESS = os.environ["BENCH_SERVER"]
_PAYLOAD = "x" * 100
_LOOK_EVERY_S = 0.02
_CONCURRENCY = 10
_LEFT = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=_ADDRESS, min_size=1, max_size=_CONCURRENCY),
    import_paths=["peer_procrastinate"],
)


@app.task(name="noop")
async def noop(payload: str) -> str:
    """Do nothing; what is returned is logged and not kept."""
    return payload


async def work() -> None:
    async with app.open_async():
        await app.run_worker_async(concurrency=_CONCURRENCY, wait=True)


async def submit() -> None:
    loop = asyncio.get_running_loop()
    async with app.open_async(), await psycopg.AsyncConnection.connect(_ADDRESS, autocommit=True) as looking:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            n = int(line)
            began, spent = time.perf_counter(), time.process_time()
            await noop.batch_defer_async(*[{"payload": _PAYLOAD}] * n)
            while True:
                row = await (await looking.execute(_LEFT)).fetchone()
                if row is not None and row[0] == 0:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
            print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - spent}), flush=True)


if __name__ == "__main__":
    asyncio.run(work() if sys.argv[1:] == ["work"] else submit())
