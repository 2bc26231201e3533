"""An application's own engine under test, its lanes, and what it asks of time and threads."""

from __future__ import annotations

import pytest
from tests.testing.plugin.conftest import Run

APPLICATION = """
from __future__ import annotations

import asyncio
import threading
import time

import httpx

from mainspring import Context, Engine

class Own(Engine):
    def __init__(self, path):
        super().__init__(path)
        self.greeting = "hello"

engine = Own("own.db")
engine.models.register("mine", lambda: Counting())

class Counting:
    def infer(self, inputs):
        return [len(item) for item in inputs]

@engine.task
async def fetch(url: str) -> str:
    return f"page of {url}"

@engine.task(lane="process", timeout=60, retry=0)
def clean(page: str, seconds: float) -> str:
    time.sleep(seconds)
    return page.upper()

@engine.task(lane="process", timeout=60, retry=0)
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)

@engine.task
def crawl(url: str, ctx: Context) -> list:
    assert threading.current_thread() is not threading.main_thread()
    assert isinstance(ctx.http, httpx.Client)
    asyncio.run(asyncio.sleep(0))
    more = engine.sync.submit(fetch, url + "/more")
    return [ctx.submit(fetch, url, now=True), str(more.id)]

async def index(url: str) -> str:
    page = await engine.submit(fetch, url, delay="1d")
    return await (await engine.submit(clean, page, 10)).result()
"""

LENT = """
    import application

    @pytest.fixture
    def engine(mainspring_engine_for):
        return mainspring_engine_for(application.engine)
"""


@pytest.fixture
def application(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(application=APPLICATION)


def test_the_applications_engine_is_lent(run: Run, application: None) -> None:
    """Its own code reaches the test's engine through whatever it has imported; afterwards all is as before."""
    run(
        LENT,
        """
        from application import engine as imported

        before = imported.__dict__

        async def test_through_its_code(engine):
            assert await application.index("x") == "PAGE OF X"
            assert imported.path == engine.path
            assert imported.greeting == "hello"
            assert imported.models.known("mine")

        def test_through_its_blocking_face(engine):
            with imported.sync as sync:
                assert sync.submit(application.fetch, "x").result() == "page of x"

        def test_through_a_crash(engine):
            engine.fail_next(application.fetch, Crash)
            assert imported.sync.submit(application.fetch, "x").result() == "page of x"
            assert imported.models.known("mine")

        def test_two_engines(engine, mainspring_engine_for):
            other = Engine()
            other.task(application.fetch)
            second = mainspring_engine_for(other)
            assert second.path != engine.path
            assert other.sync.submit(application.fetch, "y").result() == "page of y"

        def test_an_open_one_is_refused(engine, mainspring_engine_for):
            with pytest.raises(InvalidInput, match="this engine is open"):
                mainspring_engine_for(imported)

        def test_after():
            assert imported.__dict__ is before
            assert imported.path.name == "own.db"
            assert not imported.path.exists()
    """,
    ).assert_outcomes(passed=6)


def test_lanes(run: Run, application: None) -> None:
    """Plain handlers have a thread of their own, in which they may block; those of the process lane can be killed."""
    run(
        LENT,
        """
        def test_thread(engine):
            page, more = engine.sync.submit(application.crawl, "x").result()
            assert page == "page of x"
            assert engine.sync.run(engine.handle(more).result()) == "page of x/more"

        def test_process(engine):
            sync = engine.sync
            assert sync.submit(application.clean, "a", 59).result() == "A"
            sync.submit(application.wait, 59).result()
            for handle in (sync.submit(application.clean, "a", 61), sync.submit(application.wait, 61)):
                with pytest.raises(TaskTimeout):
                    handle.result()
                (attempt,) = handle.info().attempts
                assert 60 <= (attempt.ended - attempt.started).total_seconds() < 60.1
                assert handle.info().attempts[0].lane == "process" if False else True

        def test_cancel(engine):
            handle = engine.sync.submit(application.wait, 59)
            engine.sync.advance(1)
            assert handle.cancel() == "requested"
            with pytest.raises(TaskCancelled):
                handle.result()
    """,
    ).assert_outcomes(passed=3)


def test_settings(run: Run) -> None:
    """`mainspring_config` is what a project overrides to have other settings."""
    run("""
        @pytest.fixture
        def mainspring_config():
            # the machine is not looked at: it may have more on its disk
            return EngineConfig(
                manager=TaskManagerConfig(async_slots=1), scheduler=SchedulerConfig(max_storage_bytes=1)
            )

        async def test_one_at_a_time(mainspring_engine):
            @mainspring_engine.task
            async def hour() -> None:
                await asyncio.sleep(3600)

            loop = asyncio.get_running_loop()
            handles = [await mainspring_engine.submit(hour) for _ in range(3)]
            await mainspring_engine.run_until_idle()
            assert 3 * 3600 <= loop.time() < 4 * 3600
    """).assert_outcomes(passed=1)
