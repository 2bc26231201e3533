"""The async and thread lanes: time limits, stops, and handlers that don't listen."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, SOON, engine_on, shows, until, value

from mainspring import (
    Context,
    Engine,
    InvalidInput,
    ProcessingFailed,
    Retry,
    TaskCancelled,
    TaskPriority,
    TaskStatus,
    TaskTimeout,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    async with engine_on(async_slots=8, thread_slots=2) as engine:
        yield engine


async def outcomes(engine: Engine, handle: Any) -> list[str]:
    return [attempt.outcome for attempt in (await handle.info()).attempts]


async def test_a_time_limit_ends_an_async_handler(engine: Engine) -> None:
    """The attempt is stopped where it awaits; without a retry left the task ends as TIMEOUT."""
    stopped: list[str] = []

    @engine.task(retry=0, timeout="30ms")
    async def sleeper() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            stopped.append("clean-up")
            raise

    handle = await engine.submit(sleeper)
    with pytest.raises(TaskTimeout, match=r"attempt 1 ran longer than 0\.03 s") as caught:
        await value(handle)
    assert caught.value.attempts == 1
    assert stopped == ["clean-up"]
    assert (await handle.info()).status is TaskStatus.TIMEOUT


async def test_a_time_limit_asks_a_thread(engine: Engine) -> None:
    """A thread that looks at ctx.cancelled stops in time; what it still returns is not recorded."""

    @engine.task(retry=0, timeout="30ms")
    def polite(ctx: Context) -> str:
        flag = threading.Event()
        while not ctx.cancelled:
            flag.wait(0.002)
        return "too late"

    handle = await engine.submit(polite)
    with pytest.raises(TaskTimeout):
        await value(handle)
    assert (await handle.info()).status is TaskStatus.TIMEOUT


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_what_ends_past_its_limit_does_not_complete(engine: Engine, lane: str) -> None:
    """However the handler ends after its time, the attempt is a timeout."""

    async def slow_async() -> str:
        threading.Event().wait(0.05)  # blocks the loop: nobody can ask it to stop
        return "late"

    def slow() -> str:
        threading.Event().wait(0.05)
        return "late"

    handler = engine.task(name=f"slow_{lane}", retry=0, timeout="20ms")(slow_async if lane == "async" else slow)
    with pytest.raises(TaskTimeout):
        await value(await engine.submit(handler))


async def test_a_thread_that_does_not_listen_is_replaced(engine: Engine) -> None:
    """Its attempt ends as TIMEOUT, its slot goes on with another thread, and all other tasks run meanwhile."""
    go = threading.Event()
    started: list[int] = []

    @engine.task(retry=0, timeout="100ms")
    def deaf() -> None:
        started.append(threading.get_ident())
        go.wait(LIMIT_S)

    @engine.task
    def brief(n: int) -> int:
        return n

    try:
        handles = [await engine.submit(deaf) for _ in range(4)]
        for handle in handles:
            with pytest.raises(TaskTimeout):
                await value(handle)
        assert not go.is_set()
        assert await engine.gather(await engine.map(brief, range(50))) == list(range(50))
        assert len(set(started)) == len(started) > 0
        assert (await engine.manager.stats())["lanes"]["thread"]["running"] == 0
    finally:
        go.set()


async def test_an_async_handler_that_swallows_its_cancellation_is_replaced(engine: Engine) -> None:
    """Likewise: TIMEOUT, the slot is replaced, the others go on."""
    go = asyncio.Event()

    @engine.task(retry=0, timeout="30ms")
    async def stubborn() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    @engine.task
    async def brief_async(n: int) -> int:
        return n

    handles = [await engine.submit(stubborn) for _ in range(4)]
    for handle in handles:
        with pytest.raises(TaskTimeout):
            await value(handle)
    assert await engine.gather(await engine.map(brief_async, range(50))) == list(range(50))
    go.set()


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_a_given_up_attempt_does_not_disturb_the_next_one(engine: Engine, lane: str) -> None:
    """The first attempt ignores its limit and comes back while the second one runs: the second is what counts."""
    first_may_end, second_runs, second_may_end = threading.Event(), threading.Event(), threading.Event()
    first_ended = threading.Event()
    loop = asyncio.get_running_loop()

    def persistent(ctx: Context) -> str:
        if ctx.attempt == 1:
            first_may_end.wait(LIMIT_S)
            first_ended.set()
            return "first"
        second_runs.set()
        second_may_end.wait(LIMIT_S)
        return "second"

    async def persistent_async(ctx: Context) -> str:
        waiting = loop.run_in_executor(None, persistent, ctx)
        while True:
            try:
                return await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue

    handler = engine.task(name=f"persistent_{lane}", retry=SOON)(persistent_async if lane == "async" else persistent)
    handle = await engine.submit(handler, timeout="50ms")
    await until(second_runs.is_set)
    first_may_end.set()
    await until(first_ended.is_set)
    second_may_end.set()
    try:
        assert await value(handle) == "second"
    except TaskTimeout:  # on a machine too busy for the second one's limit the task still ends
        assert (await handle.info()).status is TaskStatus.TIMEOUT
    assert (await engine.manager.stats())["lanes"][lane]["running"] == 0


async def test_a_swallowed_cancellation_leaves_no_trace_in_the_slot() -> None:
    """A handler that swallows its cancellation and returns in time harms no task group of the next one."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(retry=0)
        async def swallows() -> str:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return "swallowed"
            return ""

        @engine.task(retry=0)
        async def groups() -> str:
            async def fails() -> None:
                raise KeyError("inner")

            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails())
                    await asyncio.sleep(3600)
            except* KeyError:
                seen = "group saw it"
            return seen

        for _ in range(3):
            with pytest.raises(TaskTimeout):
                await value(await engine.submit(swallows, timeout="20ms"))
            assert await value(await engine.submit(groups)) == "group saw it"


async def test_own_timeouts_and_groups_work_inside_handlers(engine: Engine) -> None:
    """asyncio's own tools behave in a handler as anywhere."""

    @engine.task(retry=0)
    async def tools() -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            seen.append("timeout")
        inner = asyncio.ensure_future(asyncio.sleep(3600))
        inner.cancel()
        try:
            await inner
        except asyncio.CancelledError:
            seen.append("cancelled")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        return seen

    assert await value(await engine.submit(tools)) == ["timeout", "cancelled"]


BASE = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("lane", ["async", "thread"])
@pytest.mark.parametrize("kind", BASE, ids=lambda kind: kind.__name__)
async def test_base_exceptions_are_failures_of_their_attempt(
    engine: Engine, lane: str, kind: type[BaseException]
) -> None:
    """A handler may raise what would end a program: its attempt fails, is tried again, and all else goes on."""

    def leaves(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise kind("out")
        return "stayed"

    async def leaves_async(ctx: Context) -> str:
        await asyncio.sleep(0)
        return leaves(ctx)

    handler = engine.task(name=f"leaves_{lane}_{kind.__name__}", retry=SOON)(
        leaves_async if lane == "async" else leaves
    )
    handle = await engine.submit(handler)
    assert await value(handle) == "stayed"
    first = (await handle.info()).attempts[0]
    assert first.outcome == "retry"
    assert first.error is not None
    assert kind.__name__ in f"{first.error.type} {first.error.traceback}"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("\udcff"),
        ValueError("x" * 10_000_000),
        Unprintable(),
        ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        StopIteration("stop"),
    ],
    ids=["surrogate", "huge", "unprintable", "group", "stop"],
)
@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_odd_exceptions_are_recorded(engine: Engine, lane: str, error: Exception) -> None:
    """Whatever an exception looks like, its attempt ends, its record is small, and the lane goes on."""

    def odd() -> None:
        raise error

    async def odd_async() -> None:
        raise error

    number = len(engine.executor.handlers)
    handler = engine.task(name=f"odd_{number}", retry=0)(odd_async if lane == "async" else odd)
    handle = await engine.submit(handler)
    with pytest.raises(ProcessingFailed):
        await handle.result(timeout=LIMIT_S)
    info = (await handle.info()).error
    assert info is not None
    assert len(info.message) < 100_000


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_cancelling_what_runs(engine: Engine, lane: str) -> None:
    """`requested`, then CANCELLED; what the handler still returns is not recorded; asking again says it ended."""
    started = threading.Event()

    def busy(ctx: Context) -> str:
        started.set()
        while not ctx.cancelled:
            threading.Event().wait(0.002)
        return "late"

    async def busy_async() -> str:
        started.set()
        await asyncio.sleep(3600)
        return "never"

    handle = await engine.submit(engine.task(name=f"busy_{lane}")(busy_async if lane == "async" else busy))
    await until(started.is_set)
    assert await handle.cancel() == "requested"
    with pytest.raises(TaskCancelled):
        await value(handle)
    assert await handle.cancel() == "already(cancelled)"
    assert (await handle.info()).status is TaskStatus.CANCELLED


async def test_a_deaf_thread_is_cancelled_all_the_same(engine: Engine) -> None:
    """After the grace the task is CANCELLED, though its thread goes on."""
    go, started = threading.Event(), threading.Event()

    @engine.task
    def deaf_to_cancel() -> None:
        started.set()
        go.wait(LIMIT_S)

    handle = await engine.submit(deaf_to_cancel)
    await until(started.is_set)
    try:
        assert await handle.cancel() == "requested"
        with pytest.raises(TaskCancelled):
            await value(handle)
        assert not go.is_set()
    finally:
        go.set()


async def test_cancelling_what_waits() -> None:
    """Ready, delayed, waiting for parents, prefetched: `cancelled`, and it never runs. Dependents end too."""
    ran: list[int] = []
    async with engine_on(async_slots=1) as engine:
        go, started = asyncio.Event(), asyncio.Event()

        @engine.task
        async def hold() -> None:
            started.set()
            await go.wait()

        @engine.task
        async def note(n: int) -> None:
            ran.append(n)

        holder = await engine.submit(hold)
        await started.wait()
        queued = await engine.map(note, range(40))
        delayed = await engine.submit(note, 100, delay=3600)
        child = await engine.submit(note, 101, after=holder)
        grandchild = await engine.submit(note, 102, after=queued[0])
        for handle in (*queued, delayed, child):
            assert await handle.cancel() == "cancelled"
            assert await handle.cancel() == "already(cancelled)"
        go.set()
        await value(holder)
        assert await holder.cancel() == "already(completed)"
        with pytest.raises(Exception, match="ended as cancelled"):
            await value(grandchild)
        await value(await engine.submit(note, 200))
        assert ran == [200]


async def test_cancelling_between_retries(engine: Engine) -> None:
    """A task that waits for its next attempt is cancelled for good."""

    @engine.task(retry=Retry(max_retries=5, delay=3600, max_delay=3600))
    async def fails() -> None:
        raise ValueError("first")

    handle = await engine.submit(fails)
    await shows(handle, reason="retry")
    assert await handle.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        await value(handle)
    assert await outcomes(engine, handle) == ["retry"]


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_metrics_are_truthful(engine: Engine, lane: str) -> None:
    """CPU time counts what the handler computes, not what it waits for; duration counts both."""

    def burn(seconds: float) -> None:
        began = threading.Event()
        import time

        start = time.thread_time()
        while time.thread_time() - start < seconds:
            began.is_set()

    async def burn_async(seconds: float) -> None:
        burn(seconds)

    async def nap_async(seconds: float) -> None:
        await asyncio.sleep(seconds)

    def nap(seconds: float) -> None:
        threading.Event().wait(seconds)

    is_async = lane == "async"
    burner = await engine.submit(engine.task(name=f"burn_{lane}")(burn_async if is_async else burn), 0.1)
    await value(burner)
    napper = await engine.submit(engine.task(name=f"nap_{lane}")(nap_async if is_async else nap), 0.1, delay="30ms")
    await value(napper)
    busy = (await engine.manager.get_task_result(burner.id)).metrics
    idle = (await engine.manager.get_task_result(napper.id)).metrics
    assert busy.lane == idle.lane == lane
    assert busy.cpu_time is not None
    assert idle.cpu_time is not None
    assert 0.09 < busy.cpu_time < 0.15
    assert idle.cpu_time < 0.05
    assert busy.duration is not None
    assert idle.duration is not None
    assert min(busy.duration, idle.duration) >= 0.1
    assert busy.cpu_usage == pytest.approx(busy.cpu_time / busy.duration)
    assert busy.memory_bytes is None
    assert busy.network_bytes is None
    assert idle.queue_wait is not None
    assert 0 <= idle.queue_wait < 5
    assert (busy.batch_size, busy.cache_hit, busy.retry_count) == (1, False, 0)


async def test_neighbours_on_the_loop_are_not_charged_for_each_other(engine: Engine) -> None:
    """CPU time of one coroutine is not counted for another that waits meanwhile."""
    burned = asyncio.Event()

    @engine.task
    async def waits() -> None:
        await burned.wait()

    @engine.task
    async def burns() -> None:
        import time

        start = time.thread_time()
        while time.thread_time() - start < 0.08:
            pass
        burned.set()

    waiting, burning = await engine.submit(waits), await engine.submit(burns)
    await engine.gather([waiting, burning])
    cpu = [(await engine.manager.get_task_result(handle.id)).metrics.cpu_time for handle in (waiting, burning)]
    assert cpu[0] is not None
    assert cpu[1] is not None
    assert cpu[0] < 0.04
    assert cpu[1] >= 0.08


async def test_a_cancelled_slot_serves_on() -> None:
    """A handler that cancels the asyncio task it runs in and returns at once harms no slot and no other handler."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(retry=0)
        async def rude(n: int) -> int:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return n

        @engine.task(retry=0)
        async def waits(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

        for _ in range(3):
            handles = [await engine.submit(function, n) for n in range(4) for function in (rude, waits)]
            assert [await value(handle) for handle in handles] == [0, 0, 1, 1, 2, 2, 3, 3]
        await asyncio.sleep(0.01)  # the slot has gone to rest meanwhile
        assert await value(await engine.submit(waits, 5)) == 5


async def test_slots_wake_each_other() -> None:
    """Handlers that wait for one another all begin, however few claims arrive in one go."""
    async with engine_on(async_slots=16) as engine:
        barrier = asyncio.Barrier(16)

        @engine.task(retry=0, timeout=LIMIT_S)
        async def meets(n: int) -> int:
            await barrier.wait()
            return n

        assert await engine.gather(await engine.map(meets, range(16))) == list(range(16))


async def test_swallowed_and_late_cancellations_cost_no_slot() -> None:
    """Whatever a handler does with the asyncio task that it runs in, its slot and its own result remain."""
    async with engine_on(async_slots=1) as engine:

        @engine.task(retry=0)
        async def swallows(n: int) -> int:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            return n

        @engine.task(retry=0)
        async def large(n: int) -> str:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return "x" * 100_000

        assert await value(await engine.submit(swallows, 1)) == 1
        assert len(await value(await engine.submit(large, 1))) == 100_000
        assert await value(await engine.submit(swallows, 2)) == 2


@pytest.mark.parametrize("lane", ["async", "thread"])
async def test_an_error_without_a_text(lane: str) -> None:
    """An exception whose own text can't be made is a failure like any other."""

    class Mute(BaseException):
        def __str__(self) -> str:
            raise Mute

    async with engine_on(async_slots=1, thread_slots=1) as engine:

        @engine.task(retry=0, name="mute")
        async def on_the_loop() -> None:
            raise Mute

        @engine.task(retry=0, name="mute_thread")
        def in_a_thread() -> None:
            raise Mute

        function = on_the_loop if lane == "async" else in_a_thread
        for _ in range(2):
            with pytest.raises(ProcessingFailed, match="its text can't be made"):
                await value(await engine.submit(function))


async def test_no_wait_inside_a_handler(engine: Engine) -> None:
    """as_completed refuses too: it would hold the slot."""

    @engine.task(retry=0)
    async def waits_inside(id: str) -> None:
        async for _ in engine.as_completed([engine.handle(id)]):
            pass

    other = await engine.submit(waits_inside, "no id", delay=3600)
    with pytest.raises(InvalidInput, match="hold its slot"):
        await value(await engine.submit(waits_inside, str(other.id)))


async def test_options_that_are_none_are_not_given(engine: Engine) -> None:
    """What the call leaves open is as the handler was declared."""

    @engine.task(priority=TaskPriority.HIGH, retry=7)
    async def declared() -> None: ...

    task = engine.build(declared, (), {"priority": None, "max_retries": None})
    assert (task.priority, task.max_retries) == (TaskPriority.HIGH, 7)
