"""Plain tests and async ones, under any plugin that a project has for those; what can't work says so."""

from __future__ import annotations

import re

import pytest
from tests.testing.plugin.conftest import Run, said

HANDLER = """
    def loop_name():
        return type(asyncio.get_running_loop()).__name__

    @pytest.fixture
    def engine(mainspring_engine):
        @mainspring_engine.task
        async def double(n: int) -> int:
            return 2 * n

        mainspring_engine.double = double
        return mainspring_engine
"""


def test_plain_and_async_tests(run: Run) -> None:
    """Without any other plugin: functions, methods, parameters, async fixtures of both kinds."""
    result = run(
        HANDLER,
        """
        def test_plain(engine):
            with engine.sync as sync:  # as an application does it
                assert sync.submit(engine.double, 2, delay="1d").result() == 4

        @pytest.mark.parametrize("n", [1, 2])
        async def test_async(engine, n):
            assert await (await engine.submit(engine.double, n, delay="1d")).result() == 2 * n

        @pytest.fixture
        async def four(engine):
            return await (await engine.submit(engine.double, 2)).result()

        @pytest.fixture
        async def six(engine):
            yield await (await engine.submit(engine.double, 3)).result()
            await engine.advance("1d")
            print("torn down")

        class TestMethods:
            @pytest.fixture
            async def eight(self, engine, four):
                self.mark = 1
                return await (await engine.submit(engine.double, 4)).result()

            async def test_async(self, four, six, eight):
                assert (four, six, eight, self.mark, loop_name()) == (4, 6, 8, 1, "StageLoop")

            def test_plain(self, four, six):
                assert (four, six) == (4, 6)
    """,
        options=["-s"],
    )
    result.assert_outcomes(passed=5)
    assert result.stdout.str().count("torn down") == 2


def test_what_a_test_leaves_behind_is_ended(run: Run) -> None:
    """Asyncio tasks that it did not await are cancelled, and tidy up."""
    result = run(
        HANDLER,
        """
        async def test_it(engine):
            async def forget():
                try:
                    await asyncio.sleep(3600)
                finally:
                    await asyncio.sleep(1)
                    print("tidied up")

            asyncio.create_task(forget())
            await asyncio.sleep(1)
    """,
        options=["-s"],
    )
    result.assert_outcomes(passed=1)
    assert "tidied up" in result.stdout.str()


def test_errors_are_the_tests_own(run: Run) -> None:
    """A failing test shows its own line and values, and nothing of the loop beneath it."""
    result = run(
        HANDLER,
        """
        async def test_it(engine):
            handle = await engine.submit(engine.double, 4)
            assert await handle.result() == 9

        def test_plain(engine):
            engine.fail_next(engine.double, Permanent("refused"))
            engine.sync.submit(engine.double, 4).result()
    """,
    )
    result.assert_outcomes(failed=2)
    assert "ProcessingFailed: Permanent: refused" in said(result)
    assert "\nassert 8 == 9" in said(result)
    assert "assert await handle.result() == 9" in said(result)
    assert not re.search(r"stage\.py|loop\.py|base_events\.py", said(result))


def test_under_anyio(run: Run) -> None:
    """Tests marked for anyio run in virtual time, fixtures without an engine stay anyio's."""
    run(
        HANDLER,
        """
        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        async def others():
            return loop_name()

        @pytest.mark.anyio
        async def test_it(engine, others):
            assert loop_name() == "StageLoop" != others
            await engine.advance("1d")

        @pytest.mark.anyio
        async def test_without(others):
            assert loop_name() == others != "StageLoop"
    """,
        beside="anyio",
    ).assert_outcomes(passed=2)


def test_trio_is_refused(run: Run) -> None:
    """A test that anyio would run on both runs on asyncio, and says why it does not on trio."""
    result = run(
        HANDLER,
        """
        @pytest.mark.parametrize("anyio_backend", ["asyncio", ("trio", {})])
        @pytest.mark.anyio
        async def test_either(engine, anyio_backend):
            await engine.advance("1d")
    """,
        beside="anyio",
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "mainspring_engine runs on asyncio, and this test asks for trio; let the fixture" in said(result)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_under_pytest_asyncio(run: Run, mode: str) -> None:
    """Tests and fixtures that pytest-asyncio would run are run in virtual time where they have an engine."""
    pytest.importorskip("pytest_asyncio")
    run(
        HANDLER,
        """
        import pytest_asyncio

        @pytest_asyncio.fixture
        async def others():
            return loop_name()

        @pytest_asyncio.fixture
        async def ours(engine):
            yield loop_name()
            await engine.advance("1d")

        @pytest.mark.asyncio
        async def test_it(engine, ours, others):
            assert ours == loop_name() == "StageLoop" != others
            assert await (await engine.submit(engine.double, 4, delay="1d")).result() == 8

        class TestMethods:
            @pytest.mark.asyncio
            async def test_it(self, engine):
                assert loop_name() == "StageLoop"

        @pytest.mark.asyncio
        async def test_without(others):
            assert loop_name() == others != "StageLoop"
    """,
        options=["--asyncio-mode", mode, "-oasyncio_default_fixture_loop_scope=function"],
        beside="asyncio",
    ).assert_outcomes(passed=3)


def test_what_can_not_work_says_so(run: Run) -> None:
    """The blocking face inside of an async test, lending an engine there, playing crashes there, a network."""
    result = run(
        HANDLER,
        """
        async def test_sync_face(engine):
            engine.sync.submit(engine.double, 1)

        async def test_lending(mainspring_engine_for):
            mainspring_engine_for(Engine())

        async def test_crashes(mainspring_engine, mainspring_crashes):
            mainspring_crashes(lambda engine: asyncio.sleep(1))

        async def test_network(engine):
            await asyncio.open_connection("127.0.0.1", 80)

        async def test_child(engine):
            await asyncio.create_subprocess_exec("true")

        def test_other_loop(engine):
            asyncio.run(engine.submit(engine.double, 1))
    """,
    )
    result.assert_outcomes(failed=6)
    text = said(result)
    assert "InvalidInput: engine.sync would block the test's event loop; await the engine's own methods" in text
    assert "InvalidInput: call mainspring_engine_for in a fixture, or in a plain test" in text
    assert "crashes are played on event loops of their own; call mainspring_crashes in a plain def test" in text
    assert "InvalidInput: this engine is in virtual time, and another event loop asks for it; let the test be" in text
    assert text.count("NoOutside: there is no network and no child process in virtual time") == 2
