"""Virtual time: what waits is over at once, what never comes is told, and the same seed gives the same."""

from __future__ import annotations

from tests.testing.plugin.conftest import Run, said


def test_hours_and_days_pass_at_once(run: Run) -> None:
    """Backoff, delays, deadlines, sleeps on the loop and in threads: a month of them. Whoever waits is ended."""
    result = run("""
        def test_backoff(mainspring_engine):
            engine, tries = mainspring_engine, []

            @engine.task(retry=Retry(max_retries=3, delay=3600, max_delay=86400))
            async def flaky() -> int:
                tries.append(asyncio.get_running_loop().time())
                if len(tries) < 4:
                    raise ConnectionError
                return 1

            assert engine.sync.submit(flaky).result() == 1
            assert 600 < tries[-1] - tries[0] < 3600 * 14

        async def test_delay(mainspring_engine):
            engine, loop = mainspring_engine, asyncio.get_running_loop()

            @engine.task
            async def later() -> float:
                return loop.time()

            handle = await engine.submit(later, delay="30d")
            assert 30 * 86400 <= await handle.result() - 0.0 < 30 * 86400 + 1

        async def test_deadline(mainspring_engine):
            engine = mainspring_engine

            @engine.task
            async def never() -> None: ...

            await engine.manager.pause()
            handle = await engine.submit(never, deadline=datetime.now(UTC) + timedelta(hours=1))
            await engine.advance("59m")
            assert (await handle.info()).status is TaskStatus.PENDING
            await engine.advance("2m")
            assert (await handle.info()).status is TaskStatus.TIMEOUT

        async def test_cron(mainspring_engine):
            engine, runs = mainspring_engine, []

            @engine.task
            async def hourly(ctx: Context) -> None:
                runs.append(1)
                ctx.submit(hourly, delay="1h")

            await engine.submit(hourly)
            await engine.advance("1d")
            assert len(runs) == 24
            with pytest.raises(StillPending, match="(?s)goes on after '2d'.*hourly .*not to start before"):
                await engine.run_until_idle(within="2d")
            assert len(runs) == 72

        def test_threads(mainspring_engine):
            engine = mainspring_engine

            @engine.task(timeout=60, retry=0)
            def slow(seconds: float, ctx: Context) -> bool:
                time.sleep(seconds)
                return ctx.cancelled

            assert engine.sync.submit(slow, 50.0).result() is False
            with pytest.raises(TaskTimeout):
                engine.sync.submit(slow, 61.0).result()

        async def test_beside_the_loop(mainspring_engine):
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.gather(*(asyncio.to_thread(time.sleep, 100) for _ in range(10)))
            assert 100 <= loop.time() - began < 101
    """)
    result.assert_outcomes(passed=6)


def test_upkeep_does_not_hold_time_back(run: Run) -> None:
    """A quiet month is some thousand callbacks, not the ten million ticks of the engine's upkeep."""
    run("""
        def test_month(mainspring_engine):
            loop = mainspring_engine.stage.loop
            mainspring_engine.sync.advance("30d")
            assert loop.now > 30 * 86400
            assert loop.steps < 1000
    """).assert_outcomes(passed=1)


def test_idle_is_after_the_upkeep(run: Run) -> None:
    """What only the engine's upkeep brings about is there when it is idle: here, how far a handler is."""
    run("""
        def test_progress(mainspring_engine):
            @mainspring_engine.task
            async def hang(ctx: Context) -> None:
                ctx.progress(3, 4)
                await asyncio.Event().wait()

            handle = mainspring_engine.sync.submit(hang)
            mainspring_engine.sync.run_until_idle(pending_ok=True)
            assert handle.info().progress == (3, 4)
    """).assert_outcomes(passed=1)


def test_what_is_left_is_told(run: Run) -> None:
    """`run_until_idle` names the tasks that have not ended, and why; so does a wait for what never comes."""
    result = run("""
        @pytest.fixture
        def engine(mainspring_engine):
            @mainspring_engine.task
            async def hang() -> None:
                await asyncio.Event().wait()

            @mainspring_engine.task
            async def after(nothing: None) -> None: ...

            mainspring_engine.first = mainspring_engine.sync.submit(hang)
            mainspring_engine.second = mainspring_engine.sync.submit(after, mainspring_engine.first)
            return mainspring_engine

        def test_idle(engine):
            engine.sync.run_until_idle()

        async def test_wait(engine):
            await engine.handle(engine.second.id).result()

        def test_ok(engine):
            running, waiting = engine.sync.run_until_idle(pending_ok=True)
            assert "It runs: attempt 1" in running
            assert str(engine.first.id) in waiting
    """)
    result.assert_outcomes(passed=1, failed=2)
    text = said(result)
    assert "StillPending: nothing can happen any more, and tasks have not ended:\n" in text
    assert "NothingHappens: the test waits, and nothing can happen any more; tasks that have not ended:\n" in text
    assert text.count("It runs: attempt 1") == 2
    assert text.count("It waits for 1 of its 1 parents") == 2
    assert "await engine.handle(engine.second.id).result()" in text  # the line that waits is shown
    assert "run_until_complete" not in text  # and what is beneath it is not


def test_what_was_given_up_holds_nothing_back(run: Run) -> None:
    """A handler that ignores its limit, or a cancel, goes on for ever: the tasks have ended, so the engine is idle. It
    goes on as time passes for something else.
    """
    run("""
        turns = []

        def deaf() -> None:
            while True:
                turns.append(time.sleep(0.001))

        async def deaf_on_the_loop() -> None:
            while True:
                try:
                    turns.append(await asyncio.sleep(0))
                    await asyncio.sleep(0.5)
                except asyncio.CancelledError:
                    pass

        @pytest.mark.parametrize("lane", ["async", "thread", "process"])
        def test_lanes(mainspring_engine, lane):
            sync = mainspring_engine.sync
            handler = deaf_on_the_loop if lane == "async" else deaf
            mainspring_engine.task(lane=lane, timeout=2, retry=0)(handler)

            @mainspring_engine.task
            def same(n: int) -> int:
                return n

            late, asked = sync.submit(handler), sync.submit(handler)
            sync.advance(1)
            assert asked.cancel() == "requested"
            assert sync.run_until_idle() == []
            assert [handle.info().status.name for handle in (late, asked)] == ["TIMEOUT", "CANCELLED"]
            again = sync.submit(same, 1)
            assert sync.run_until_idle() == []
            assert again.result() == 1
            before = len(turns)
            sync.advance(60)
            sync.advance(60)
            assert len(turns) > before
    """).assert_outcomes(passed=3)


def test_a_seed_repeats_itself(run: Run) -> None:
    """The same seed gives the same order, times and ids; another one others."""
    text = """
        def test_chance(mainspring_engine):
            engine, seen = mainspring_engine, []

            @engine.task(retry=Retry(max_retries=3, delay=60))
            async def work(n: int, ctx: Context) -> None:
                seen.append((n, ctx.attempt, round(asyncio.get_running_loop().time(), 6), str(ctx.id)[14:]))
                if (n + ctx.attempt) % 4 == 0:
                    raise ValueError

            engine.sync.map(work, range(30))
            engine.sync.run_until_idle()
            print("chance", seen)

        def test_order(mainspring_engine):
            engine, seen = mainspring_engine, []

            @engine.task
            async def work(n: int) -> None:
                await asyncio.sleep(1)
                seen.append(n)

            engine.sync.map(work, range(30))
            engine.sync.run_until_idle()
            print("order", seen)
    """

    def seen(seed: str) -> list[str]:
        lines = run(text, options=["-s", "--mainspring-seed", seed]).outlines
        return [next(line.partition(word)[2] for line in lines if word in line) for word in ("chance", "order")]

    chances, orders = zip(*map(seen, "33456"), strict=True)
    assert (chances[0], orders[0]) == (chances[1], orders[1])
    assert len({*chances}) == 4
    assert len({*orders}) > 1
