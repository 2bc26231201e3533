"""An error tells how often its task was tried, whatever ended each try."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.engine import process_work
from tests.engine.support import engine_on, value

from mainspring import ProcessingFailed, Retry, TaskTimeout

pytestmark = pytest.mark.anyio
SOON = Retry(max_retries=3, delay=0.001)


@pytest.mark.parametrize("retries", [0, 1])
async def test_tries_that_crashed_count(place: str, retries: int) -> None:
    """Three children died of it, and the error says three, however many retries of failures it has."""
    engine = engine_on(place, process_slots=1)
    engine.task(lane="process", retry=Retry(max_retries=retries, delay=0.001))(process_work.leave)
    async with engine:
        handle = await engine.submit(process_work.leave, 3)
        with pytest.raises(ProcessingFailed) as caught:
            await value(handle)
        info = await handle.info()
    assert [attempt.outcome for attempt in info.attempts] == ["crashed", "crashed", "failed"]
    assert [attempt.error and attempt.error.attempts for attempt in info.attempts] == [1, 2, 3]
    assert (caught.value.attempts, info.error and info.error.attempts) == (3, 3)


async def test_tries_before_a_deadline_that_passed_count(place: str) -> None:
    """It had failed once before it could not begin in time."""
    engine = engine_on(place)

    @engine.task(retry=SOON)
    async def stops_all() -> None:
        await engine.manager.pause()
        raise ValueError("not yet")

    async with engine:
        handle = await engine.submit(stops_all, deadline=datetime.now(UTC) + timedelta(seconds=1))
        with pytest.raises(TaskTimeout, match="deadline passed before start") as caught:
            await value(handle)
        await engine.manager.resume()
    assert caught.value.attempts == 1
