"""What the ledger says, held against handlers whose cost is known, in each lane. The errors that are allowed for stand
in `docs/metrics.md`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.engine import spending
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Attempt, Batch, Engine, Retry, TaskHandle, TaskTimeout

pytestmark = pytest.mark.anyio
CPU_S = 0.2
CPU_ERROR = 0.05
"""Of CPU time, beside what a call costs by itself."""
CALL_S = 0.02
NEEDS_EAGER = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 begins no asyncio task at once")
MIB = 1 << 20
MEMORY_ERROR = 8 * MIB


@pytest.fixture(scope="module", params=["async", "thread", "process"])
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, place: str, lane: str) -> AsyncIterator[Engine]:
    """One for each lane: a function belongs to one handler at a time."""
    async with engine_on(place, process_slots=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def do(engine: Engine, lane: str) -> dict[str, Any]:
    """The handlers of known cost, by name."""
    return spending.declare(engine, lane)


async def spent(handle: TaskHandle) -> Attempt:
    """Return what the only attempt of a task has cost."""
    await handle.result(timeout=LIMIT_S)
    (attempt,) = (await handle.info()).attempts
    return attempt


class Counted:
    """A server that counts what goes through its sockets."""

    def __init__(self) -> None:
        self.bytes = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.split(b":")[1]))
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
        self.bytes += len(head) + len(body) + len(answer)
        writer.write(answer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def counting() -> AsyncIterator[Counted]:
    counted = Counted()
    async with await asyncio.start_server(counted.answer, "127.0.0.1", 0) as server:
        counted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/echo"
        yield counted


async def test_cpu_time(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """A spin of known CPU time is charged as such, also where it waits in between, and where others run meanwhile."""
    handles = [await engine.submit(do["spin"], CPU_S) for _ in range(2)]
    for attempt in [await spent(handle) for handle in handles]:
        assert attempt.cpu_time is not None
        assert CPU_S <= attempt.cpu_time <= CPU_S * (1 + CPU_ERROR) + CALL_S
        assert attempt.duration is not None
        assert attempt.duration >= attempt.cpu_time * (1 - CPU_ERROR)
        assert attempt.lane == lane


async def test_network_bytes(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """What went through the sockets of the other side, to the byte; other attempts have None."""
    async with counting() as server:
        attempt = await spent(await engine.submit(do["move"], server.url, 300_000))
    assert server.bytes > 600_000
    assert attempt.network_bytes == server.bytes
    other = await spent(await engine.submit(do["spin"], 0.0))
    assert other.network_bytes is None


async def test_network_bytes_of_a_batch(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """Each attempt has what went through its own context's client, also in a call that was made again in halves."""
    async with counting() as server:
        sizes = [1_000, 20_000, 300_000, 4_000]
        attempts = [
            await spent(handle) for handle in await engine.map(do["move_together"], [(server.url, n) for n in sizes])
        ]
    moved = [attempt.network_bytes or 0 for attempt in attempts]
    assert sum(moved) == server.bytes
    for n, much in zip(sizes, moved, strict=True):
        assert 4 * n < much < 4 * n + 2_000
    assert {attempt.batch_size for attempt in attempts} == {4}


async def test_memory(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """The peak of a child is what the interpreter holds and what the handler has at once, and it goes down again. Where
    others run in the same process nothing is made up."""
    before, held, after = [(await spent(await engine.submit(do["hold"], n))).memory_bytes for n in (0, 150 * MIB, 0)]
    if lane != "process":
        assert (before, held, after) == (None, None, None)
        return
    assert before is not None
    assert held is not None
    assert after is not None
    assert abs(held - before - 150 * MIB) <= MEMORY_ERROR
    assert abs(after - before) <= MEMORY_ERROR


async def test_a_batch_is_shared(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """Each of its attempts lasted as long as the call and has an equal share in its CPU time; together it is all."""
    attempts = [await spent(handle) for handle in await engine.map(do["spin_together"], [CPU_S / 4] * 4)]
    assert {attempt.batch_size for attempt in attempts} == {4}
    assert len({attempt.duration for attempt in attempts}) == 1
    times = [attempt.cpu_time for attempt in attempts if attempt.cpu_time is not None]
    assert times == [times[0]] * 4
    assert CPU_S <= sum(times) <= CPU_S * (1 + CPU_ERROR) + CALL_S
    row = next(row for row in (await engine.ledger("type")).rows if row.type == f"custom:spin_together_{lane}")
    assert (row.attempts, row.calls, row.duration.max) == (4, 1.0, attempts[0].duration)
    assert row.busy == pytest.approx(row.duration.max, abs=1e-5)


async def test_a_batch_has_one_peak(engine: Engine, do: dict[str, Any], lane: str) -> None:
    """All of its attempts were there for it."""
    before = (await spent(await engine.submit(do["hold"], 0))).memory_bytes
    handles = await engine.map(do["hold_together"], [40 * MIB] * 4)
    (peak,) = {(await spent(handle)).memory_bytes for handle in handles}
    if lane != "process":
        assert peak is None
        return
    assert peak is not None
    assert before is not None
    assert abs(peak - before - 160 * MIB) <= MEMORY_ERROR


async def spin_alone(cpu_s: float) -> None:
    spending.spin(cpu_s)


async def by_gather(shares: list[float]) -> None:
    await asyncio.gather(*map(spin_alone, shares))


async def by_group(shares: list[float]) -> None:
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(spin_alone(share))


async def by_tasks(shares: list[float]) -> None:
    """One that makes the others, and waits in between."""

    async def make() -> None:
        for share in shares:
            await asyncio.create_task(spending.spin_in_steps(share))

    await asyncio.create_task(make())


async def by_timeout(shares: list[float]) -> None:
    await asyncio.wait_for(by_gather(shares), LIMIT_S)


@pytest.mark.parametrize("way", [by_gather, by_group, by_tasks, by_timeout])
async def test_asyncio_tasks_of_a_handler_are_its_own(way: Callable[[list[float]], Awaitable[None]]) -> None:
    """What those take that a handler makes, and that these make in turn, is charged to it, also in a batch and beside
    others; a handler that makes none is not charged with it."""
    async with engine_on() as engine:

        @engine.task
        async def alone(shares: list[float]) -> None:
            await way(shares)

        @engine.task(batch=Batch(max_size=4, max_wait=60))
        async def together(shares: list[float]) -> list[None]:
            await way(shares)
            return [None] * len(shares)

        @engine.task
        async def beside() -> None:
            await asyncio.sleep(CPU_S)

        waiting = await engine.submit(beside)
        attempts = [await engine.submit(alone, [CPU_S / 2] * 2) for _ in range(2)]
        for attempt in [await spent(handle) for handle in attempts]:
            assert attempt.cpu_time is not None
            assert CPU_S <= attempt.cpu_time <= CPU_S * (1 + CPU_ERROR) + CALL_S
        shares = [(await spent(handle)).cpu_time or 0 for handle in await engine.map(together, [CPU_S / 4] * 4)]
        assert CPU_S <= sum(shares) <= CPU_S * (1 + CPU_ERROR) + CALL_S
        assert ((await spent(waiting)).cpu_time or 0) < CALL_S


async def test_what_is_no_coroutine_is_refused_as_anywhere() -> None:
    async with engine_on() as engine:

        @engine.task(retry=Retry(max_retries=0))
        async def mistaken() -> None:
            asyncio.create_task(asyncio.get_running_loop().create_future())  # type: ignore[arg-type]  # noqa: RUF006

        result = await engine.manager.get_task_result((await engine.submit(mistaken)).id, timeout=30)
        assert result.error is not None
        assert (result.error.type, result.error.message[:23]) == ("TypeError", "a coroutine was expecte")


async def test_what_a_handler_left_running_is_not_its_cost() -> None:
    """Its cost is what was used by its end."""
    async with engine_on() as engine:
        left: list[asyncio.Task[None]] = []

        @engine.task
        async def leave() -> None:
            left.append(asyncio.create_task(spending.spin_in_steps(CPU_S)))
            await asyncio.sleep(0)  # its first step of four

        attempt = await spent(await engine.submit(leave))
        await left[0]
        assert attempt.cpu_time is not None
        assert CPU_S / 4 <= attempt.cpu_time <= CPU_S / 2


@pytest.mark.parametrize("is_eager", [False, pytest.param(True, marks=NEEDS_EAGER)])
async def test_a_program_has_its_own_task_factory(is_eager: bool) -> None:
    """One that is there when the engine begins makes the tasks and is there again at the end; two engines on a loop
    count once. One that takes their place leaves CPU times unknown where handlers wait: never too small."""
    loop, made = asyncio.get_running_loop(), set[str]()
    eager: dict[str, Any] = {"eager_start": True} if is_eager else {}

    def make(loop: asyncio.AbstractEventLoop, steps: Any, **options: Any) -> asyncio.Task[Any]:
        made.add(getattr(steps, "__name__", ""))
        return asyncio.Task(steps, loop=loop, **options, **eager)

    loop.set_task_factory(make)
    try:
        async with engine_on() as first, engine_on() as second:
            for engine in (first, second):
                attempt = await spent(await engine.submit(engine.task(by_gather), [CPU_S / 2] * 2))
                assert attempt.cpu_time is not None
                assert CPU_S <= attempt.cpu_time <= CPU_S * (1 + CPU_ERROR) + CALL_S
            ours = loop.get_task_factory()
            loop.set_task_factory(make)
            last = await spent(await second.submit(by_gather, [0.0]))
            assert last.cpu_time is None or is_eager  # what began at once was over with the handler's own first step
            loop.set_task_factory(ours)
            assert "spin_alone" in made
        assert loop.get_task_factory() is make
    finally:
        loop.set_task_factory(None)


async def test_what_is_given_up_has_lasted() -> None:
    """A thread that does not stop at its timeout is charged with the time until it was given up; the rest of its cost
    is not known."""
    async with engine_on() as engine:
        go, loop = asyncio.Event(), asyncio.get_running_loop()

        @engine.task(lane="thread", timeout="50ms", retry=0)
        def stubborn() -> None:
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

        handle = await engine.submit(stubborn)
        with pytest.raises(TaskTimeout, match="ran longer than"):
            await handle.result(timeout=LIMIT_S)
        go.set()
        (attempt,) = (await handle.info()).attempts
        assert attempt.duration is not None
        assert attempt.duration >= 0.05
        assert (attempt.cpu_time, attempt.memory_bytes) == (None, None)


async def test_a_batch_that_ran_out_of_time_has_cost() -> None:
    """Its attempts come again in smaller calls; what the large one took is in the ledger."""
    async with engine_on() as engine:

        @engine.task(batch=Batch(max_size=2, max_wait=60), timeout="200ms", retry=0)
        async def nap(times: list[float]) -> list[None]:
            await asyncio.sleep(sum(times))
            return [None] * len(times)

        quick, slow = await engine.map(nap, [0.0, 3600.0])
        await quick.result(timeout=LIMIT_S)
        first, last = (await quick.info()).attempts
        assert (first.outcome, first.batch_size, last.batch_size) == ("released", 2, 1)
        assert first.duration is not None
        assert first.duration >= 0.2
        await slow.cancel()
