"""pgqueuer on Postgres, for `bench.peers`. Runs in pgqueuer's own environment and knows nothing of ours.

`peer_pgqueuer.py work N` is a worker that takes N jobs at once. Without an argument it submits: each line of standard
input is a count of tasks; the answer is one line of JSON with the seconds from the first submit until all are known to
be done, and its own CPU seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

_ADDRESS = os.environ["BENCH_SERVER"]
_PAYLOAD = b"x" * 100
_LOOK_EVERY_S = 0.02


async def work(batch: int) -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(_ADDRESS)))

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        """Do nothing; there is no place for a result."""

    await queue.run(batch_size=batch)


async def submit() -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(_ADDRESS)))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        n = int(line)
        began, spent = time.perf_counter(), time.process_time()
        await queries.enqueue(["noop"] * n, [_PAYLOAD] * n, [0] * n)
        while await queries.queue_size():  # noqa: ASYNC110 - finished jobs leave the table, which nothing tells us of
            await asyncio.sleep(_LOOK_EVERY_S)
        print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - spent}), flush=True)


if __name__ == "__main__":
    uvloop.run(work(int(sys.argv[2])) if sys.argv[1:2] == ["work"] else submit())
