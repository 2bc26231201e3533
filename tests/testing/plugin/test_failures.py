"""`fail_next`: the next attempts fail as a test asks, in every lane, and none that was asked for is forgotten."""

from __future__ import annotations

from tests.testing.plugin.conftest import Run, said

HANDLERS = """
    @pytest.fixture
    def engine(mainspring_engine):
        for lane, handler in (("async", quick), ("thread", solid), ("process", apart), ("process", aside)):
            mainspring_engine.task(lane=lane, retry=Retry(max_retries=2, delay=60))(handler)
        return mainspring_engine

    async def quick() -> int:
        return 1

    def solid() -> int:
        return 2

    def apart() -> int:
        return 3

    async def aside() -> int:
        return 4

    ALL = pytest.mark.parametrize("handler", [quick, solid, apart, aside])

    def outcomes(handle):
        return [attempt.outcome for attempt in handle.info().attempts]
"""


def test_attempts_fail_as_asked(run: Run) -> None:
    """An error is tried again, `Permanent` is not, `RetryAfter` waits as long as it says; by function and by name."""
    run(
        HANDLERS,
        """
        @ALL
        def test_errors(engine, handler):
            engine.fail_next(handler, ConnectionError("down"), times=2)
            handle = engine.sync.submit(handler)
            assert handle.result() in (1, 2, 3, 4)
            assert outcomes(handle) == ["retry", "retry", "completed"]
            first = handle.info().attempts[0]
            assert (first.error.type, first.error.message) == ("ConnectionError", "down")
            assert first.started is not None

        @ALL
        def test_permanent(engine, handler):
            engine.fail_next(handler.__name__, Permanent("no such page"))
            with pytest.raises(ProcessingFailed, match="no such page"):
                engine.sync.submit(handler).result()

        @ALL
        def test_later(engine, handler):
            engine.fail_next(handler, RetryAfter(3600))
            handle = engine.sync.submit(handler)
            engine.sync.advance("59m")
            assert outcomes(handle) == ["retry"]
            engine.sync.advance("2m")
            assert outcomes(handle) == ["retry", "completed"]

        def test_in_the_order_asked_for(engine):
            engine.fail_next(quick, ValueError)
            engine.fail_next(quick, Permanent("enough"))
            handle = engine.sync.submit(quick)
            engine.sync.run_until_idle()
            assert outcomes(handle) == ["retry", "failed"]

        def test_built_in(engine):
            engine.fail_next(TaskType.TEXT_PROCESSING, Permanent("no text today"))
            with pytest.raises(ProcessingFailed, match="no text today"):
                engine.sync.text("some text")

        def test_nonsense(engine):
            wrong = [("nobody", ValueError, 1), (quick, "down", 1), (quick, int, 1)]
            wrong += [(quick, error, 1) for error in (KeyboardInterrupt, KeyboardInterrupt(), SystemExit(1))]
            wrong += [(quick, ValueError, times) for times in (0, 1.5, True, "2")]
            for handler, error, times in wrong:
                with pytest.raises((InvalidInput, UnsupportedTaskType)):
                    engine.fail_next(handler, error, times)
    """,
    ).assert_outcomes(passed=15)


def test_who_runs_beside_one_that_fails_is_stopped(run: Run) -> None:
    """In a call for several, of which the first fails as asked: the others are cancelled, or their time is over."""
    run(
        """
        stopped = []

        async def held(items: list[int]) -> list[int]:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                stopped.append(items)
                raise
            return items

        @pytest.mark.parametrize("lane", ["async", "process"])
        @pytest.mark.parametrize("timeout", [None, 5])
        def test_it(mainspring_engine, lane, timeout):
            engine = mainspring_engine
            batch = Batch(max_size=3, max_wait=60)
            engine.task(lane=lane, batch=batch, retry=Retry(max_retries=0), timeout=timeout)(held)
            engine.fail_next(held, Permanent("no"))
            handles = engine.sync.map(held, range(3))
            engine.sync.advance(1)
            if timeout is None:
                for handle in handles:
                    handle.cancel()
            engine.sync.advance(4.5)
            assert stopped.pop(0) == [1, 2]
            engine.sync.run_until_idle()
            stopped.clear()
    """,
    ).assert_outcomes(passed=4)


def test_the_process_dies_as_asked(run: Run) -> None:
    """A crash takes the worker, and another one comes; in the process lane it takes the child alone."""
    run(
        HANDLERS,
        """
        @ALL
        def test_once(engine, handler):
            worker = engine.manager.store.worker_id
            engine.fail_next(handler, Crash)
            handle = engine.sync.submit(handler)
            assert handle.result() in (1, 2, 3, 4)
            assert outcomes(handle) == ["crashed", "completed"]
            assert (engine.manager.store.worker_id == worker) == (handler in (apart, aside))

        @ALL
        def test_thrice(engine, handler):
            engine.fail_next(handler, Crash, times=3)
            handle = engine.sync.submit(handler)
            with pytest.raises(ProcessingFailed):
                handle.result()
            assert outcomes(handle) == ["crashed", "crashed", "failed"]

        async def test_who_waits_is_told_by_the_next_one(engine):
            @engine.task
            async def bystander() -> str:
                await asyncio.sleep(10)
                return "done"

            beside = await engine.submit(bystander)
            waiting = asyncio.create_task(beside.result())
            await engine.advance(1)
            engine.fail_next(quick, Crash)
            assert await (await engine.submit(quick)).result() == 1
            assert await waiting == "done"

        def test_the_test_may_end_meanwhile(engine):
            engine.sync.submit(quick)
            engine.process.died()

        ran = []

        def test_nothing_of_the_dead_goes_on(engine):
            @engine.task
            def stands() -> None:
                ran.append("began")
                time.sleep(50)
                ran.append("ended")

            handle = engine.sync.submit(stands)
            engine.fail_next(quick, Crash)
            engine.sync.submit(quick, delay="10s")
            engine.sync.run_until_idle()
            assert ran == ["began", "began", "ended"]

        def test_nor_after_the_test():
            assert ran == ["began", "began", "ended"]
    """,
    ).assert_outcomes(passed=12)


def test_what_did_not_come_fails_the_test(run: Run) -> None:
    """A test that passes although its failures were never used says nothing: it fails. One that fails fails once."""
    result = run(
        HANDLERS,
        """
        def test_one_is_left(engine):
            engine.fail_next(quick, ConnectionError("down"), times=2)
            handle = engine.sync.submit(quick, max_retries=0)
            engine.sync.run_until_idle()

        async def test_async(engine):
            engine.fail_next(solid, Crash)

        def test_own_failure(engine):
            engine.fail_next(quick, ValueError)
            assert 1 == 2
    """,
    )
    result.assert_outcomes(failed=3)
    text = said(result)
    assert (
        "the test ends, and what it asked to fail did not: fail_next(quick, ConnectionError('down')): 1 attempts"
        in text
    )
    assert "what it asked to fail did not: fail_next(solid, Crash): 1 attempts did not come" in text
    assert text.count("the test ends") == 4  # each once in full, and once in the summary


def test_a_worker_that_dies_while_the_test_submits(run: Run) -> None:
    """The call is answered by the next one, and each task is stored once."""
    result = run(
        """
        @pytest.mark.parametrize("lane", ["async", "thread"])
        async def test_it(mainspring_engine, lane):
            def plain(x: str) -> str:
                return x.upper()

            async def on_loop(x: str) -> str:
                return x.upper()

            up = mainspring_engine.task(name="up")(plain if lane == "thread" else on_loop)
            mainspring_engine.fail_next(up, Crash)
            handles = [await mainspring_engine.submit(up, x) for x in "abcdefgh"]
            await mainspring_engine.run_until_idle()
            assert [await handle.result() for handle in handles] == list("ABCDEFGH")
            assert (await mainspring_engine.manager.stats())["completed"] == 8
        """
    )
    result.assert_outcomes(passed=2)
