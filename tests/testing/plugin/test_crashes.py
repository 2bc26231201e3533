"""Crashes at every durable step: what survives is found to survive, and what does not is found, with the way back."""

from __future__ import annotations

import re

import pytest
from tests.testing.plugin.conftest import ALONE, Run, said

SHOP = """
    engine = Engine("shop.db")
    mails = []

    @engine.task
    async def charge(order: int) -> str:
        return f"receipt {order}"

    @engine.task
    def mail(receipt: str) -> None:
        mails.append(receipt)

    @engine.task
    async def mail_once(receipt: str, ctx: Context) -> None:
        if ctx.id not in mails:
            mails.append(ctx.id)

    async def buy(order, handler):
        receipt = await engine.submit(charge, order, idempotency_key=f"charge {order}")
        return await (await engine.submit(handler, receipt, idempotency_key=f"mail {order}")).result()
"""


def test_what_survives_passes(run: Run) -> None:
    """Killed before and after each commit, a program that bears repeating does its work, and nothing twice."""
    result = run(
        SHOP,
        """
        def test_it(mainspring_crashes):
            async def check(engine):
                tasks = await engine._parts.store.list_tasks()
                assert [task.status for task in tasks] == [TaskStatus.COMPLETED] * 2
                assert len(mails) == 1
                lives.append(engine.manager.store.worker_id)

            lives = []
            report = mainspring_crashes(
                lambda _: buy(7, mail_once), check, engine=engine, reset=mails.clear
            )
            assert report.steps >= 5
            assert report.crashes == 2 * report.steps == len(lives) - 1
            assert engine.path.name == "shop.db"
            assert not engine.path.exists()
    """,
    )
    result.assert_outcomes(passed=1)
    assert re.search(r"test_it.py::test_it: (\d+) crashes at (\d+) durable steps\n", said(result))


def test_what_does_not_survive_is_found(run: Run, pytester: pytest.Pytester) -> None:
    """A mail that goes twice where the crash comes after it; the command that it prints repeats that alone."""
    text = """
        def test_it(mainspring_crashes):
            def check(engine):
                assert mails == ["receipt 7"]

            print("began")
            mainspring_crashes(lambda _: buy(7, mail), check, engine=engine, reset=mails.clear)
    """
    result = run(SHOP, text)
    result.assert_outcomes(failed=1)
    found = said(result)
    assert "assert ['receipt 7', 'receipt 7'] == ['receipt 7']" in found
    place = re.search(r"with the process killed (before|after) durable step (\d+) of \d+; to repeat that alone:", found)
    command = re.search(
        r"pytest 'test_it.py::test_it' (--mainspring-seed 0 --mainspring-crash (\d+)-(before|after))", found
    )
    assert place
    assert command
    assert (place[2], place[1]) == (command[2], command[3])
    again = pytester.runpytest_inprocess(*ALONE, "test_it.py::test_it", *command[1].split())
    again.assert_outcomes(failed=1)
    assert "assert ['receipt 7', 'receipt 7'] == ['receipt 7']" in said(again)
    other = pytester.runpytest_inprocess(*ALONE, "test_it.py::test_it", "--mainspring-crash", "1-before")
    other.assert_outcomes(passed=1)
    assert "1 crashes at" in said(other)


def test_what_is_played_can_be_chosen(run: Run) -> None:
    """A bound on the steps, a worker that only goes on, handlers of the scenario's own; errors without any crash."""
    result = run(
        SHOP,
        """
        def test_bound(mainspring_crashes):
            report = mainspring_crashes(lambda _: buy(7, mail_once), engine=engine, max_steps=2)
            assert report.crashes == 4
            assert "were left out" in str(report)

        def test_no_second_time(mainspring_crashes):
            began = []

            async def scenario(engine):
                began.append(1)
                await buy(7, mail_once)

            report = mainspring_crashes(scenario, engine=engine, again=False, reset=mails.clear)
            assert len(began) <= report.crashes + 1
            began.clear()
            again = mainspring_crashes(scenario, engine=engine, reset=mails.clear)
            assert len(began) > again.crashes + 1

        def test_before_and_after(mainspring_crashes):
            found = []

            async def scenario(engine):
                await engine.submit(charge, 1)

            async def check(engine):
                found.append(len(await engine._parts.store.list_tasks()))

            mainspring_crashes(scenario, check, engine=engine, again=False)
            assert found.count(0) == 1  # killed before the task was stored
            assert found.count(1) == len(found) - 1

        def test_own_handlers(mainspring_crashes):
            async def scenario(engine):
                @engine.task
                def work() -> int:
                    time.sleep(10)
                    return 1

                assert await (await engine.submit(work, idempotency_key="once")).result() == 1

            assert mainspring_crashes(scenario).crashes

        def test_wrong_without_any(mainspring_crashes):
            async def scenario(engine):
                assert 1 == 2

            mainspring_crashes(scenario)

        def test_wrong_after_one(mainspring_crashes):
            checks = []

            def check(engine):
                checks.append(1)
                if len(checks) == 3:
                    pytest.fail("enough")

            mainspring_crashes(lambda _: buy(7, mail_once), check, engine=engine)

        def test_not_the_same_each_time(mainspring_crashes):
            times = []

            async def scenario(engine):
                times.append(1)
                for n in range(3 if len(times) == 1 else 0):
                    await engine.submit(charge, n)

            mainspring_crashes(scenario, engine=engine)

        def test_left_undone(mainspring_crashes):
            async def scenario(engine):
                await engine.submit(mail, "x")
                await engine.manager.pause()

            mainspring_crashes(scenario, engine=engine)

        def test_not_failed(mainspring_crashes):
            async def scenario(engine):
                engine.fail_next(charge, ValueError)

            mainspring_crashes(scenario, engine=engine)
    """,
    )
    result.assert_outcomes(passed=4, failed=5)
    found = said(result)
    assert "assert 1 == 2\nwithout any crash" in found
    assert "Failed: enough\nwith the process killed after durable step 1 of" in found
    assert "that step did not come: the scenario does not do the same each time" in found
    assert "StillPending: nothing can happen any more" in found
    assert "what the scenario asked to fail did not: fail_next(charge, ValueError)" in found


def test_time_that_passes_is_no_step(run: Run) -> None:
    """A delay of days costs the one step that claims what waited, like a short one."""
    result = run(
        SHOP,
        """
        def test_it(mainspring_crashes):
            def steps(delay):
                async def scenario(_):
                    await (await engine.submit(mail_once, "x", delay=delay, idempotency_key="x")).result()

                return mainspring_crashes(scenario, engine=engine, reset=mails.clear, max_steps=1).steps

            assert steps("5d") == steps("5s") == steps("0s") + 1
    """,
    )
    result.assert_outcomes(passed=1)


def test_async_tests_are_told_to_be_plain(run: Run) -> None:
    """Whoever would run it, and where nobody would; and whoever plays crashes within a loop of his own."""
    result = run(
        SHOP,
        """
        from mainspring.testing import Crashes

        async def test_async(mainspring_crashes):
            mainspring_crashes(lambda _: buy(7, mail_once), engine=engine)

        async def test_beside_an_engine(mainspring_engine, mainspring_crashes):
            mainspring_crashes(lambda _: buy(7, mail_once), engine=engine)

        def test_a_loop_of_his_own(tmp_path):
            async def play():
                Crashes(tmp_path, str)(lambda _: buy(7, mail_once), engine=engine)

            with pytest.raises(InvalidInput, match="in a plain def test"):
                asyncio.run(play())

        @pytest.mark.parametrize("most", [0, 1.5, True])
        def test_no_number(mainspring_crashes, most):
            with pytest.raises(InvalidInput, match="max_steps"):
                mainspring_crashes(lambda _: buy(7, mail_once), engine=engine, max_steps=most)
    """,
    )
    result.assert_outcomes(passed=4, failed=2)
    told = "crashes are played on event loops of their own; call mainspring_crashes in a plain def test"
    assert said(result).count(f"\n{told}\n") == 2


def test_an_unsound_store_is_found(run: Run) -> None:
    """What `check_history` finds after a crash fails the test."""
    result = run(
        SHOP,
        """
        from mainspring.store.sql.transaction import Transaction

        def test_it(mainspring_crashes, monkeypatch):
            monkeypatch.setattr(Transaction, "write_tally", lambda self: None)
            mainspring_crashes(lambda _: buy(7, mail_once), engine=engine, reset=mails.clear)
    """,
    )
    result.assert_outcomes(failed=1)
    assert "CrashesBroken: the store is not sound; please report this:" in said(result)
