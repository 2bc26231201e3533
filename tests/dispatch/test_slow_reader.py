"""Output of a worker that nobody reads: a handler in the loop that prints more than fits into the pipe blocks it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.dispatch.ways import FLOOD_BYTES
from tests.engine.support import engine_on, until, value

from mainspring import Custom, Engine, Task, TaskStatus, TaskType

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
PAGE_BYTES = 4_096


@contextlib.contextmanager
def working(store: Path, output: int) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.dispatch.victim", str(store)],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT,
    )  # fmt: skip
    try:
        yield
    finally:
        worker.kill()
        worker.wait()


def waiting_in(pipe: int) -> int:
    """Return how many bytes nobody has read yet."""
    found = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return found[0]


def size_of(path: str) -> int:
    return os.path.getsize(path)


def let_go(mark: str) -> None:
    Path(f"{mark}.go").touch()


def read_all(pipe: int, size: list[int]) -> None:
    while piece := os.read(pipe, 1 << 16):
        size[0] += len(piece)


async def test_a_slow_reader_of_output_blocks_the_loop(tmp_path: Path) -> None:
    """Once the pipe is full the handler stands still in its print, and with it the loop and all beside it; as soon as
    somebody reads, everything goes on."""
    reading, writing = os.pipe()
    capacity = fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
    mark, neighbour = str(tmp_path / "mark"), str(tmp_path / "neighbour")
    size = [0]
    reader = threading.Thread(target=read_all, args=(reading, size))

    def submit(engine: Engine, kind: str, **arguments: Any) -> Any:
        return engine.submit(Task(task_type=TaskType.custom(kind), input=Custom(arguments), max_retries=0))

    async with engine_on(tmp_path / "work.db", worker=False) as client:
        with working(tmp_path / "work.db", writing):
            os.close(writing)
            while "custom:holds" not in await client.manager.store.registered_types():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            held = await submit(client, "holds", mark=neighbour)
            await until(Path(f"{neighbour}.began").exists)
            flooding = await submit(client, "in_loop", way="floods", mark=mark)
            await until(lambda: waiting_in(reading) > capacity - PAGE_BYTES)
            ticks = size_of(f"{neighbour}.ticks")
            echo = await submit(client, "echo_in_loop", n=7)
            let_go(neighbour)
            assert size_of(f"{neighbour}.ticks") == ticks
            for handle in (held, flooding, echo):
                assert (await handle.info()).status in (TaskStatus.PENDING, TaskStatus.RUNNING)
            reader.start()
            assert await value(flooding) is None
            assert await value(echo) == 7
            assert await value(held)
    reader.join()
    os.close(reading)
    assert size[0] > FLOOD_BYTES * 0.9
