"""Failed attempts: when they are repeated, when not, and what is recorded of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.support import LIMIT_S, SOON, FullJitter, engine_on, quick, value

from mainspring import (
    Context,
    DependencyNotMet,
    Engine,
    InvalidInput,
    Permanent,
    ProcessingFailed,
    Retry,
    RetryAfter,
    TaskStatus,
    TaskTimeout,
)
from mainspring.dispatch.verdict import verdict
from mainspring.execution.base import Report
from mainspring.store.base import CANCELLED, COMPLETED, CRASHED, FAILED, RELEASED, RETRY, TIMEOUT, Claimed
from mainspring.tasks import ErrorInfo, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    async with engine_on() as engine:
        yield engine


async def test_attempts_and_retries_are_recorded(engine: Engine) -> None:
    """Two failures and a success: three attempts, two retries, each with its own error."""

    @engine.task(retry=SOON)
    async def third_time(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt}")
        return ctx.attempt

    handle = await engine.submit(third_time)
    assert await value(handle) == 3
    info = await handle.info()
    assert [(a.number, a.outcome) for a in info.attempts] == [(1, "retry"), (2, "retry"), (3, "completed")]
    assert [a.error and a.error.message for a in info.attempts] == ["attempt 1", "attempt 2", None]
    assert (info.attempt, info.task.retry_count, info.error) == (3, 2, None)
    assert (await engine.manager.get_task_result(handle.id)).metrics.retry_count == 2


async def test_the_last_error_is_the_task_s(engine: Engine) -> None:
    """With all retries used the task is FAILED with the last message and the number of tries."""

    @engine.task(retry=SOON)
    async def never(ctx: Context) -> None:
        raise KeyError(f"attempt {ctx.attempt}")

    handle = await engine.submit(never, max_retries=2)
    with pytest.raises(ProcessingFailed, match="KeyError: 'attempt 3'") as caught:
        await value(handle)
    assert caught.value.attempts == 3
    assert caught.value.info is not None
    assert caught.value.info.type == "KeyError"
    result = await engine.manager.get_task_result(handle.id)
    assert (result.status, result.output, result.metrics.retry_count) == (TaskStatus.FAILED, None, 2)
    assert str(result.error) == "'attempt 3'"


@pytest.mark.parametrize("where", ["decorator", "number", "call"])
async def test_no_retry(engine: Engine, where: str) -> None:
    """max_retries=0 means one attempt, wherever it is said."""
    runs: list[int] = []

    async def once() -> None:
        runs.append(1)
        raise ValueError

    retry: Retry | int = SOON if where == "call" else 0 if where == "number" else Retry(max_retries=0)
    handler = engine.task(name=f"once_{where}", retry=retry)(once)
    options = {"max_retries": 0} if where == "call" else {}
    with pytest.raises(ProcessingFailed):
        await value(await engine.submit(handler, **options))
    assert runs == [1]


async def test_permanent_is_not_repeated(engine: Engine) -> None:
    """`Permanent` fails the task at once."""

    @engine.task(retry=SOON)
    async def hopeless() -> None:
        raise Permanent("this address is no address")

    with pytest.raises(ProcessingFailed, match="this address is no address") as caught:
        await value(await engine.submit(hopeless))
    assert caught.value.attempts == 1


async def test_invalid_input_raised_by_a_handler_is_not_repeated(engine: Engine) -> None:
    """Our own errors know whether a retry makes sense."""

    @engine.task(retry=SOON)
    async def picky() -> None:
        raise InvalidInput("wrong colour")

    with pytest.raises(InvalidInput, match="wrong colour") as caught:
        await value(await engine.submit(picky))
    assert caught.value.attempts == 1


async def test_retry_after_overrides_the_backoff(engine: Engine) -> None:
    """It waits as long as the handler says, and counts as a retry."""

    @engine.task(retry=Retry(max_retries=1, delay=3600, max_delay=3600))
    async def busy_server(ctx: Context) -> float:
        if ctx.attempt == 1:
            raise RetryAfter(0.03, "slow down")
        return ctx.retry_count

    handle = await engine.submit(busy_server)
    assert await value(handle) == 1
    first, second = (await handle.info()).attempts
    assert second.started is not None
    assert (second.started - first.ended).total_seconds() >= 0.028
    assert first.error is not None
    assert first.error.message == "slow down"


@pytest.mark.parametrize("wait", [float("nan"), float("inf"), -5, 1e300, "soon", None])
async def test_a_nonsense_retry_after_ends_its_attempt(engine: Engine, wait: Any) -> None:
    """It must not take the slot with it: the attempt is recorded, the lane goes on."""

    number = len(engine.executor.handlers)

    @engine.task(name=f"nonsense_{number}", retry=0)
    async def nonsense() -> None:
        raise RetryAfter(wait)

    @engine.task(name=f"nonsense_retried_{number}", retry=SOON)
    async def nonsense_retried() -> None:
        raise RetryAfter(wait)

    for handler in (nonsense, nonsense_retried):
        handle = await engine.submit(handler)
        with pytest.raises((ProcessingFailed, InvalidInput)):
            await handle.result(timeout=LIMIT_S)


async def test_backoff_is_exponential_with_full_jitter() -> None:
    """Before retry n the wait is drawn from 0 to min(max_delay, delay * factor ** n), and is kept."""
    env = FullJitter()
    async with Engine(config=quick(), env=env) as engine:

        @engine.task(retry=Retry(max_retries=5, delay=0.004, factor=2.0, max_delay=0.02))
        async def fails() -> None:
            raise ValueError

        handle = await engine.submit(fails)
        with pytest.raises(ProcessingFailed):
            await value(handle)
        assert env.asked[:5] == [(0, 0.004), (0, 0.008), (0, 0.016), (0, 0.02), (0, 0.02)]
        attempts = (await handle.info()).attempts
        for before, after, wait in zip(attempts, attempts[1:], (0.004, 0.008, 0.016, 0.02, 0.02), strict=False):
            assert after.started is not None
            assert (after.started - before.ended).total_seconds() >= wait - 0.002


async def test_timeouts_are_retried_and_end_as_timeout(engine: Engine) -> None:
    """Each attempt has its own limit; the last one decides between TIMEOUT and FAILED."""

    @engine.task(retry=SOON, timeout="20ms")
    async def slow_then_bad(last: str, ctx: Context) -> None:
        if ctx.attempt < 2 or last == "slow":
            await asyncio.sleep(3600)
        raise ValueError("bad")

    for last, status, error in (
        ("slow", TaskStatus.TIMEOUT, TaskTimeout),
        ("bad", TaskStatus.FAILED, ProcessingFailed),
    ):
        handle = await engine.submit(slow_then_bad, last, max_retries=1)
        with pytest.raises(error) as caught:
            await value(handle)
        assert caught.value.attempts == 2
        info = await handle.info()
        assert info.status is status
        assert [attempt.outcome for attempt in info.attempts] == ["retry", "timeout" if last == "slow" else "failed"]


async def test_a_backoff_beyond_the_deadline_is_not_waited_for(engine: Engine) -> None:
    """The task ends as TIMEOUT at once, with the last error in its message."""

    @engine.task(retry=Retry(max_retries=3, delay=3600, max_delay=3600))
    async def fails_early() -> None:
        raise RetryAfter(1800, "come back later")

    handle = await engine.submit(fails_early, deadline=60)
    with pytest.raises(
        TaskTimeout, match=r"deadline would pass before the next try; the last error was come back later"
    ):
        await value(handle)
    (attempt,) = (await handle.info()).attempts
    assert attempt.error is not None
    assert attempt.error.message == "come back later"


async def test_a_failed_task_can_be_retried_by_hand(engine: Engine) -> None:
    """A new task, linked both ways; descendants that failed for it come along; what ended well can't be retried."""
    broken = [True]

    @engine.task(retry=0)
    async def mendable(n: int) -> int:
        if broken:
            raise ValueError
        return n

    @engine.task
    async def below(n: int) -> int:
        return n + 1

    parent = await engine.submit(mendable, 1, idempotency_key="mend")
    child = await engine.submit(below, parent)
    for handle in (parent, child):
        with pytest.raises(Exception, match=r"."):
            await value(handle)
    broken.clear()
    again = engine.handle(await engine.manager.retry_task(parent.id))
    assert await value(again) == 1
    assert (await again.info()).retry_of == parent.id
    assert (await parent.info()).retried_as == again.id
    new_child = (await child.info()).retried_as
    assert new_child is not None
    assert await value(engine.handle(new_child)) == 2
    assert (await engine.submit(mendable, 1, idempotency_key="mend")).id == again.id
    for id in (again.id, parent.id):
        with pytest.raises(InvalidInput, match="retried"):
            await engine.manager.retry_task(id)


async def test_a_descendant_with_a_large_input_is_made_anew(engine: Engine) -> None:
    """Its input lies in a blob and names the failed parent; it gets the result of the new one."""
    broken = [True]

    @engine.task(retry=0)
    async def mends() -> int:
        if broken:
            raise ValueError
        return 1

    @engine.task
    async def takes_much(n: int, text: str) -> int:
        return n + len(text)

    parent = await engine.submit(mends)
    child = await engine.submit(takes_much, parent, "x" * 100_000)
    with pytest.raises(DependencyNotMet):
        await value(child)
    broken.clear()
    await engine.manager.retry_task(parent.id)
    again = (await child.info()).retried_as
    assert again is not None
    assert await value(engine.handle(again)) == 100_001


# The verdict by itself: pure


def claim(**fields: Any) -> Claimed:
    known: dict[str, Any] = {
        "seq": 1, "id": bytes(16), "attempt": 1, "task_type": "custom:f", "input": b"", "owner": 1, "max_retries": 3,
        "class_key": ("default", "custom:f", ""),
    }  # fmt: skip
    return Claimed(**{**known, **fields})


ERROR = ErrorInfo(type="ValueError", message="m")
DONE, BAD = Report(output=b"x"), Report(error=ERROR)


@pytest.mark.parametrize(
    ("fields", "report", "cause", "expected"),
    [
        ({}, DONE, None, COMPLETED),
        ({}, BAD, None, RETRY),
        ({"retry_count": 3}, BAD, None, FAILED),
        ({"max_retries": 0}, BAD, None, FAILED),
        ({}, Report(error=ERROR, retryable=False), None, FAILED),
        ({}, DONE, "cancel", CANCELLED),
        ({}, BAD, "cancel", CANCELLED),
        ({"timeout_ms": 10}, DONE, "timeout", RETRY),
        ({"timeout_ms": 10, "retry_count": 3}, DONE, "timeout", TIMEOUT),
        ({"timeout_ms": 10, "max_retries": 0}, Report(output=b"x", usage=Usage(0.02)), None, TIMEOUT),
        ({"timeout_ms": 30}, Report(output=b"x", usage=Usage(0.02)), None, COMPLETED),
        ({}, BAD, "drain", RELEASED),
        ({}, DONE, "drain", COMPLETED),
        ({}, Report(error=ERROR, unstarted=True), None, RELEASED),
        ({}, Report(error=ERROR, unstarted=True), "cancel", CANCELLED),
        ({"max_retries": 0}, Report(error=ERROR, crashed=True), None, CRASHED),
        ({"max_retries": 0}, Report(error=ErrorInfo(type="TaskTimeout", message="m")), None, TIMEOUT),
    ],
)
def test_verdict(fields: Any, report: Report, cause: Any, expected: int) -> None:
    """What the engine asked for comes before what the handler says; retries are counted, crashes apart from them."""
    assert verdict(claim(**fields), report, cause, SOON, FullJitter()).outcome == expected


def test_backoff_never_overflows() -> None:
    """The largest factor and many retries end at max_delay."""
    env = FullJitter()
    retry = Retry(max_retries=1_000_000, delay=1, factor=1_000, max_delay="1h")
    for count in (0, 1, 50, 63, 64, 100_000):
        found = verdict(claim(retry_count=count, max_retries=1_000_000), BAD, None, retry, env)
        assert found.delay_ms == {0: 1_000, 1: 1_000_000}.get(count, 3_600_000)
