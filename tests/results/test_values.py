"""Results: large values by reference, and waiters that cost nothing and miss nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine import process_work
from tests.engine.support import LIMIT_S, engine_on, value

from mainspring import Context, Engine, TaskStatus
from mainspring.tasks.codec import encode

pytestmark = pytest.mark.anyio
MEGA = 1 << 20


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    async with engine_on(tmp_path_factory.mktemp("values") / "work.db", process_slots=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def same(engine: Engine) -> Any:
    @engine.task
    async def same(value):
        return value

    return same


@pytest.mark.parametrize(
    "large",
    ["x" * MEGA, b"\x00" * MEGA, np.arange(MEGA // 4, dtype=np.float32), {"deep": ["y" * MEGA, 1]}, "ü" * 70_000],
    ids=["text", "bytes", "array", "nested", "wide"],
)
async def test_large_values_travel_by_reference(engine: Engine, same: Any, large: Any) -> None:
    """In and out, to children, to children of children; the database file stays small."""
    first = await engine.submit(same, large)
    second = await engine.submit(same, {"a": [first, first]})
    third = await engine.submit(same, [second])
    for got in (await value(first), (await value(second))["a"][1], (await value(third))[0]["a"][0]):
        if isinstance(large, np.ndarray):
            np.testing.assert_array_equal(got, large)
        else:
            assert got == large
    result = await engine.manager.get_task_result(first.id)
    assert result.output is not None
    info = await first.info()
    assert info.task.input is not None
    assert engine.path.stat().st_size < MEGA


async def test_equal_values_are_kept_once(engine: Engine, same: Any) -> None:
    """Blobs are found by their content: the same value twice takes the place of one."""
    folder = Path(f"{engine.path}-blobs")

    def files() -> int:
        return sum(path.is_file() for path in folder.rglob("*"))

    await value(await engine.submit(same, "once" * MEGA))
    before = files()
    await engine.gather([await engine.submit(same, "once" * MEGA, max_retries=n) for n in range(3)])
    assert files() == before


async def test_large_values_between_lanes(engine: Engine, same: Any) -> None:
    """From the loop to a child process, to a thread, and back."""
    engine.task(lane="process", name="same_elsewhere")(process_work.same)

    @engine.task
    def length(text: str) -> int:
        return len(text)

    through = await engine.submit(process_work.same, await engine.submit(same, "z" * MEGA))
    assert await value(await engine.submit(length, through)) == MEGA


async def test_large_results_of_returned_handles(engine: Engine, same: Any) -> None:
    """A parent that stands for large children passes their values on."""

    @engine.task
    async def spread(ctx: Context) -> Any:
        return [ctx.submit(same, str(n) * MEGA) for n in range(3)]

    @engine.task
    async def lengths(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    parent = await engine.submit(spread)
    assert await value(await engine.submit(lengths, parent)) == [MEGA] * 3
    assert [text[0] for text in await value(parent)] == ["0", "1", "2"]


async def test_bytes_like_a_reference_beside_one(engine: Engine) -> None:
    """A result is put where its handle stood, and nowhere else."""

    @engine.task
    async def pair(number: int, raw: bytes) -> list[Any]:
        return [number, raw]

    @engine.task
    async def number() -> int:
        return 7

    handle = await engine.submit(number)
    mark = encode(handle)[0]
    assert handle.id.bytes in mark
    assert await value(await engine.submit(pair, handle, mark)) == [7, mark]


def remove_files(folder: Path, above: int) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > above:
            path.unlink()


async def test_a_lost_blob_is_an_error_and_no_hang(engine: Engine, same: Any) -> None:
    """Where the file of a large value is gone, whoever needs it fails and says so; all else goes on."""
    first = await engine.submit(same, "gone" * MEGA)
    await value(first)
    remove_files(Path(f"{engine.path}-blobs"), above=4 * MEGA - 100)
    with pytest.raises(Exception, match=r".") as caught:
        await first.result(timeout=LIMIT_S)
    assert type(caught.value).__module__ == "mainspring.errors"
    child = await engine.submit(same, first)
    with pytest.raises(Exception, match=r".") as caught:
        await child.result(timeout=LIMIT_S)
    assert (await child.info()).status is TaskStatus.FAILED
    assert await value(await engine.submit(same, 1)) == 1


async def test_handles_that_nobody_holds_cost_nothing(tmp_path: Path) -> None:
    """Their places go, also where many thousand tasks are submitted, forgotten, and never run."""
    async with engine_on(tmp_path / "work.db", queue_size=None) as engine:

        @engine.task
        async def late(n: int) -> int:
            return n

        places = engine.manager.waiters._waiting
        for _ in range(12):
            await engine.map(late, range(1_000), delay=3600)
        gc.collect()
        held = await engine.submit(late, 1, delay=3600)
        assert held.key in engine.manager.waiters._waiting
        assert len(engine.manager.waiters._waiting) < 6_000
        assert places is not engine.manager.waiters._waiting  # it was swept


async def test_a_cancelled_wait_harms_no_other(engine: Engine, same: Any) -> None:
    """Several wait for one task; one gives up; the others get the result."""
    handle = await engine.submit(same, 5, delay="50ms")
    waits = [asyncio.ensure_future(value(handle)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    assert await asyncio.gather(*waits[1:]) == [5, 5]
    assert waits[0].cancelled()
