"""dramatiq on Redis, for `bench.peers`. Runs in dramatiq's own environment and knows nothing of ours.

As a module it is what dramatiq's workers import. As a program it submits: each line of standard input is a count of
tasks; the answer is one line of JSON with the seconds from the first submit to the last known result, and its own CPU
seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

_URL = os.environ["BENCH_SERVER"]
_PAYLOAD = "x" * 100
_GIVE_UP_MS = 120_000

broker = RedisBroker(url=_URL)
# A connection that times out by itself would break a longer wait for a result.
broker.add_middleware(Results(backend=RedisBackend(client=redis.Redis.from_url(_URL, socket_timeout=None))))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(text: str) -> str:
    return text


def _through(n: int) -> None:
    """It has no call to submit many: one message after the other, then each result."""
    messages = [noop.send(_PAYLOAD) for _ in range(n)]
    for message in messages:
        message.get_result(block=True, timeout=_GIVE_UP_MS)


if __name__ == "__main__":
    for line in sys.stdin:
        began, spent = time.perf_counter(), time.process_time()
        _through(int(line))
        print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - spent}), flush=True)
