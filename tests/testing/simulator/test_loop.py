"""Virtual time: nothing is waited for, nothing is lost, and a seed repeats an order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mainspring.environment import HERE, Random
from mainspring.testing.simulator.loop import Deadlock, Livelock, SimLoop
from mainspring.testing.simulator.machine import Machine, Process
from mainspring.testing.simulator.order import Order


def run(work: Callable[[SimLoop], Coroutine[Any, Any, Any]], seed: int = 1, **options: Any) -> Any:
    loop = SimLoop(Order(Random(seed)), **options)
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


def test_three_hours_pass_at_once() -> None:
    """Timers fire in their order, at their time, however far off."""
    order: list[float] = []

    async def work(loop: SimLoop) -> float:
        async def one(seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        async with asyncio.TaskGroup() as group:
            for seconds in (3 * 3600.0, 1.0, 60.0):
                group.create_task(one(seconds))
        return loop.time()

    assert 3 * 3600.0 <= run(work) < 3 * 3600.0 + 1
    assert order == [1.0, 60.0, 3 * 3600.0]


def test_timeouts_and_cancels_work() -> None:
    async def work(loop: SimLoop) -> str:
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        except TimeoutError:
            return "in time"
        return "late"

    assert run(work) == "in time"


def test_a_lost_wakeup_is_a_deadlock() -> None:
    """Whoever waits for what nobody will bring is found at once."""

    async def work(loop: SimLoop) -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        run(work)


def test_going_on_for_ever_is_found() -> None:
    async def work(loop: SimLoop) -> None:
        def again() -> None:
            loop.call_soon(again)

        again()
        await loop.create_future()

    with pytest.raises(Livelock):
        run(work, most_steps=1_000)


def orders(seed: int) -> list[str]:
    """In which order the tasks of three processes run."""
    order: list[str] = []

    async def work(loop: SimLoop) -> None:
        machine = Machine(loop, Random(seed))

        async def one(name: str) -> None:
            for _ in range(4):
                order.append(name)
                await asyncio.sleep(0)

        processes = [Process(machine, f"p{n}") for n in range(3)]
        await asyncio.gather(*(process.spawn(one(f"{process.name}{n}")) for process in processes for n in range(2)))

    run(work, seed)
    return order


def test_a_seed_repeats_its_order_and_others_differ() -> None:
    assert orders(3) == orders(3)
    assert len({tuple(orders(seed)) for seed in range(60)}) > 50


def test_a_dead_process_does_nothing_more() -> None:
    """Not even what cancelling or closing would run."""
    ran: list[str] = []

    async def work(loop: SimLoop) -> None:
        process = Process(Machine(loop, Random(1)), "p")

        async def one() -> None:
            try:
                await asyncio.sleep(1)
                ran.append("went on")
            finally:
                ran.append("tidied up")

        task = process.spawn(one())
        await asyncio.sleep(0.5)
        process.die()
        process.later(ran.append, "a thread of it")
        await asyncio.sleep(5)
        assert not task.done()
        assert ran == []

    run(work)


def test_a_process_that_stands_still_goes_on_later() -> None:
    """Its timers fire late; time goes on for the others."""

    async def work(loop: SimLoop) -> tuple[float, float]:
        machine = Machine(loop, Random(1))
        slow, quick = Process(machine, "slow"), Process(machine, "quick")
        slow.stalled_until = 7.0

        async def one() -> float:
            await asyncio.sleep(1)
            return loop.time()

        first, second = slow.spawn(one()), quick.spawn(one())
        return await first, await second

    at_slow, at_quick = run(work)
    assert 8.0 <= at_slow < 8.1
    assert 1.0 <= at_quick < 1.1


def test_each_process_is_its_own_environment() -> None:
    """What asks without being handed one gets its own process's clock and ids."""

    async def work(loop: SimLoop) -> None:
        machine = Machine(loop, Random(1))

        async def one() -> tuple[Any, bytes]:
            return HERE.get(), HERE.get().new_id()

        processes = [Process(machine, f"p{n}") for n in range(2)]
        seen = [await process.spawn(one()) for process in processes]
        assert [here for here, _ in seen] == processes
        assert seen[0][1] != seen[1][1]
        machine.wall_offset_ms += 1_000
        assert processes[0].wall_ms() - int(processes[0].monotonic() * 1000) == 1_800_000_001_000

    run(work)
