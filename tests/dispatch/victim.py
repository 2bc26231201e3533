"""A worker that runs the handlers of `tests.dispatch.ways`: `python -m tests.dispatch.victim STORE`."""

from __future__ import annotations

import asyncio
import resource
import sys

from tests.dispatch.ways import LANES, LEAK_BYTES, SLOTS, holds

from mainspring import Engine, EngineConfig, ExecutorConfig, Retry, TaskManagerConfig

FILES = 256


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    manager = TaskManagerConfig(
        async_slots=SLOTS["async"],
        thread_slots=SLOTS["thread"],
        process_slots=SLOTS["process"],
        grace_s=0.2,
        drain_s=1.0,
    )
    executor = ExecutorConfig(child_recycle_bytes=LEAK_BYTES)
    engine = Engine(sys.argv[1], EngineConfig(manager=manager, executor=executor))
    soon = Retry(max_retries=0, delay="5ms", max_delay="10ms")
    for lane, handlers in LANES.items():
        for handler in handlers:
            engine.task(lane=lane, retry=soon)(handler)
    engine.task(retry=soon)(holds)
    asyncio.run(engine.run())


if __name__ == "__main__":
    main()
