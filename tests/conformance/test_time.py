"""Delays, deadlines, and what is counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, error, new, opened, state, status, statuses, submit

from mainspring.errors import TaskNotFound
from mainspring.store.base import COMPLETED, FAILED, RETRY
from mainspring.tasks import TaskId, TaskStatus

pytestmark = pytest.mark.anyio


async def test_not_before(factory: Factory, store: Any, port: Port) -> None:
    """A delayed task is not handed over a millisecond early, also where there is room; then at once."""
    await port.room(2)
    (id,) = await submit(store, new(not_before_ms=store.now_ms() + 5_000))
    factory.clock.advance(4.999)
    await port.settle()
    assert port.order == []
    assert (await state(store, id)).reason == "delayed"
    factory.clock.advance(0.001)
    await port.settle()
    assert [claim.id for claim in port.order] == [id]


async def test_a_delay_that_is_over_at_submit(store: Any, port: Port) -> None:
    """A not_before in the past is none."""
    (id,) = await submit(store, new(not_before_ms=store.now_ms() - 1))
    assert str(await state(store, id)) == "PENDING (ready)"


async def test_time_wakes_the_store_by_itself(factory: Factory, store: Any, port: Port) -> None:
    """Nobody has to ask for a delay to end or a deadline to pass."""
    from mainspring.environment import SYSTEM

    factory.clock.monotonic = SYSTEM.monotonic  # type: ignore[method-assign]
    factory.clock.since_boot = SYSTEM.since_boot  # type: ignore[method-assign]
    async with opened(factory.make()) as live:
        port = Port(live, 5, WORK)
        await port.serve()
        soon = live.now_ms() + 30
        (late,) = await submit(live, new(not_before_ms=soon))
        (gone,) = await submit(live, new(type=OTHER, deadline_ms=soon))
        await port.until(lambda: port.order and port.ends)
        assert [claim.id for claim in port.order] == [late]
        assert port.ended_as() == {gone: 5}
        assert live.now_ms() >= soon


async def test_many_delays_end_together(factory: Factory, store: Any, port: Port) -> None:
    """More than one transaction may move become ready one after the other, without being asked for each."""
    due = store.now_ms() + 1_000
    sent = await submit(store, *(new(not_before_ms=due) for _ in range(1_200)))
    factory.clock.advance(1)
    port.lanes["async"].limit = 2_000
    store.demand()
    await port.until(lambda: len(port.order) == len(sent))
    assert [claim.id for claim in port.order] == sent


@pytest.mark.parametrize("how", ["ready", "parents", "delayed", "retry"])
async def test_a_deadline_that_passes_before_the_start(factory: Factory, store: Any, port: Port, how: str) -> None:
    """TIMEOUT, with the reason, whatever the task was waiting for; it's never handed over."""
    deadline = store.now_ms() + 10_000
    if how == "parents":
        (parent,) = await submit(store, new(type="custom:unserved"))
        (id,) = await submit(store, new(after=[parent], deadline_ms=deadline))
    else:
        delay = store.now_ms() + 9_000 if how == "delayed" else None
        (id,) = await submit(store, new(deadline_ms=deadline, not_before_ms=delay))
        if how == "retry":
            await port.finish(await port.take(), RETRY, error=error(), delay_ms=9_000)
    assert (await state(store, id)).reason == how
    factory.clock.advance(60)
    assert await port.room(3) == []
    result = await store.result(id)
    assert (result.status, result.error.type) == (TaskStatus.TIMEOUT, "TaskTimeout")
    assert "deadline passed before start" in result.error.message


async def test_a_deadline_that_has_passed_at_submit(store: Any, port: Port) -> None:
    """It's stored and over at once, also where a lane would have room for it."""
    await port.room(3)
    (id,) = await submit(store, new(deadline_ms=store.now_ms() - 1))
    await port.settle()
    assert await status(store, id) is TaskStatus.TIMEOUT
    assert port.order == []


async def test_a_deadline_does_not_touch_a_claim(factory: Factory, store: Any, port: Port) -> None:
    """Whoever holds a task decides: once claimed it is not taken away by its deadline."""
    (id,) = await submit(store, new(deadline_ms=store.now_ms() + 1_000))
    claim = await port.take()
    factory.clock.advance(5)
    await port.settle()
    await port.finish(claim)
    assert await status(store, id) is TaskStatus.COMPLETED


async def test_deadlines_of_a_whole_chain(factory: Factory, store: Any, port: Port) -> None:
    """Parents and children whose deadlines pass at the same moment all end, and the store goes on."""
    chain = [new(deadline_ms=store.now_ms() + 1_000)]
    for _ in range(3):
        chain.append(new(after=[chain[-1].id], deadline_ms=store.now_ms() + 1_000))
    await store.submit(chain)
    factory.clock.advance(2)
    await port.settle()
    ends = await statuses(store, (task.id for task in chain))
    assert ends[0] == "timeout"
    assert set(ends[1:]) <= {"timeout", "failed"}
    assert len(port.ends) == 4
    (id,) = await submit(store, new())
    assert (await port.take()).id == id


async def test_the_clock_goes_on_from_the_last_one_that_had_it_open(factory: Factory) -> None:
    """A backoff that began under a clock that was ahead ends in time, also when nothing was submitted under it."""
    async with opened(factory.make()) as store:
        await submit(store, new())
    factory.clock.advance(86_400)
    ahead = factory.make()
    await ahead.open()
    port = Port(ahead)
    await port.serve()
    await port.finish(await port.take(), RETRY, error=error(), delay_ms=2_000)
    await factory.die(ahead)
    factory.clock.advance(-86_400)
    async with opened(factory.make()) as store:
        port = Port(store, 1)
        await port.serve()
        factory.clock.advance(2)
        await port.settle()
        assert [claim.attempt for claim in port.order] == [2]


async def test_the_clock_never_goes_back(factory: Factory, store: Any) -> None:
    """A store that is opened with its wall clock set back goes on from the newest task it has."""
    factory.clock.advance(1_000)
    (id,) = await submit(store, new())
    newest = store.now_ms()
    factory.clock.advance(-5_000)
    async with opened(factory.make()) as other:
        assert other.now_ms() >= newest
        (later,) = await submit(other, new())
        assert (await other.info(later)).submitted >= (await other.info(id)).submitted


async def test_who_leaves_ends_nothing_that_nobody_is_told_of(factory: Factory) -> None:
    """What falls due when a process has signed off is for those who stay, and they are told."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        await factory.hold_upkeep(store)
        async with opened(factory.make()) as leaving:
            (line,) = await submit(leaving, new(type="custom:unserved", deadline_ms=leaving.now_ms() + 10_000))
            await leaving._leave()
            factory.clock.advance(10)
            await leaving._write_soon(lambda tx: None)
            assert (await state(store, line)).reason == "ready"
        store.demand()
        await port.until(lambda: port.ended_as() == {line: 5})


# Counting and looking


async def test_stats_count_by_status_and_type(factory: Factory, store: Any, port: Port) -> None:
    """The counts are those of the rows; a status that none has ever had counts none."""
    nothing = {status.value: 0 for status in TaskStatus}
    assert await store.stats() == {**nothing, "types": {}}
    await submit(store, *(new() for _ in range(4)), *(new(type=OTHER) for _ in range(2)))
    claims = await port.room(3)
    store.started(claims[0], store.now_ms())
    await port.finish(claims[1])
    await port.finish(claims[2], FAILED)
    stats = await store.stats()
    assert (stats["pending"], stats["running"], stats["completed"], stats["failed"]) == (3, 1, 1, 1)
    assert stats["types"] == {WORK: {"unfinished": 2, "completed": 1, "failed": 1}, OTHER: {"unfinished": 2}}
    counted = Counter[str]()
    for (_, name), n in factory.recount().items():
        counted[name] += n
    assert {name: stats[name] for name in counted} == counted


async def test_list_is_newest_first_in_pages(store: Any, port: Port) -> None:
    """Pages follow each other without gap or overlap, filtered by what was asked."""
    sent = await submit(store, *(new() for _ in range(7)))
    (other,) = await submit(store, new(type=OTHER, namespace="n"))
    found: list[bytes] = []
    before = None
    while page := await store.list_tasks(limit=3, type=WORK, before=before):
        found += [info.task.id.bytes for info in page]
        before = page[-1].task.id
    assert found == sent[::-1]
    assert [info.task.id.bytes for info in await store.list_tasks(namespace="n")] == [other]
    await port.finish(await port.take())
    (done,) = await store.list_tasks(status=TaskStatus.COMPLETED)
    assert done.task.id.bytes == sent[0]


async def test_progress_is_shown_while_it_runs(store: Any, port: Port) -> None:
    """The newest progress of the attempt that is held can be read; that of an old attempt is not."""
    (id,) = await submit(store, new())
    claim = await port.take()
    store.progress(claim, 1, 10)
    store.progress(claim, 3, 10)
    async with asyncio.timeout(60):
        while (await store.info(id)).progress is None:  # noqa: ASYNC110 - nobody is told of progress: it's looked up
            await asyncio.sleep(0.01)
    assert (await store.info(id)).progress == (3, 10)
    await port.finish(claim, RETRY, error=error())
    await port.take()
    assert (await store.info(id)).progress is None


async def test_standing_tells_how_many_go_first(store: Any, port: Port) -> None:
    """`ahead` counts the ready tasks of the class that go before."""
    sent = await submit(store, *(new() for _ in range(4)), new(priority=3))
    assert [(await store.standing(id)).ahead for id in sent] == [1, 2, 3, 4, 0]


async def test_what_is_not_there(store: Any) -> None:
    """Every look at an unknown id is the same typed error; asking for ends of unknown ids gives none."""
    id = TaskId().bytes
    for look in (store.info, store.result, store.standing, store.cancel, store.retry):
        with pytest.raises(TaskNotFound):
            await look(id)
    with pytest.raises(TaskNotFound):
        await store.require([id])
    assert await store.ended([id]) == []


async def test_a_close_hands_back_what_is_held(factory: Factory) -> None:
    """A process that signs off leaves nothing held: what it had claimed is ready again, uncharged, for the next one."""
    first = factory.make()
    await first.open()
    port = Port(first, 5)
    await port.serve()
    sent = await submit(first, new(), new())
    first.started(port.order[0], first.now_ms())
    await port.settle()
    await first.close()
    async with opened(factory.make()) as second:
        heir = Port(second, 5)
        await heir.serve()
        assert [claim.id for claim in heir.order] == sent
        assert [(claim.attempt, claim.retry_count, claim.crashes) for claim in heir.order] == [(2, 0, 0)] * 2
        await heir.finish(heir.order[0], COMPLETED)


@pytest.mark.parametrize("step", [86_400.0, -86_400.0])
async def test_a_jump_of_the_wall_clock(factory: Factory, store: Any, step: float) -> None:
    """By a day, while the process runs: nothing is taken away, early, late, past its deadline or pruned."""
    port = Port(store)
    await port.serve()
    now = store.now_ms()
    await submit(store, new(), new())
    held, again = await port.room(2)
    await port.finish(again, RETRY, error=error(), delay_ms=3_000)
    (soon,) = await submit(store, new(not_before_ms=now + 5_000))
    (line,) = await submit(store, new(type="custom:unserved", deadline_ms=now + 3_600_000))
    factory.clock.jump(step)
    await port.settle()
    await factory.rescue(store)
    assert await port.room(3) == []
    factory.clock.advance(3)
    await port.settle()
    assert [claim.id for claim in port.order][2:] == [again.id]
    factory.clock.advance(2)
    await port.settle()
    assert [claim.id for claim in port.order][3:] == [soon]
    assert (await state(store, line)).reason == "ready"
    await port.finish(held)
    assert port.missed == []
    await factory.prune(store)
    assert held.id in factory.states()


async def test_a_sleep_of_the_machine(factory: Factory, store: Any) -> None:
    """Delays, deadlines and backoffs go on while it lasts; what is held stays so, and is finished."""
    port = Port(store)
    await port.serve()
    now = store.now_ms()
    await submit(store, new(timeout_ms=1_000), new())
    held, again = await port.room(2)
    await port.finish(again, RETRY, error=error(), delay_ms=1_800_000)
    (later,) = await submit(store, new(not_before_ms=now + 3_600_000))
    (line,) = await submit(store, new(type="custom:unserved", deadline_ms=now + 3_600_000))
    factory.clock.sleep_through(3 * 3600)
    await port.settle()
    await factory.rescue(store)
    assert store.now_ms() == factory.clock.wall_ms()
    (new_one,) = await submit(store, new())
    assert await status(store, line) is TaskStatus.TIMEOUT
    assert await port.room(3) != []
    await port.settle()
    assert [claim.id for claim in port.order][2:] == [again.id, later, new_one]
    await port.finish(held)
    assert port.missed == []
    assert await status(store, held.id) is TaskStatus.COMPLETED


async def test_who_opens_after_a_sleep_has_the_same_clock(factory: Factory, store: Any) -> None:
    """A process that slept and one that starts afterwards agree on what comes first, and on what is due."""
    factory.clock.sleep_through(86_400)
    async with opened(factory.make()) as other:
        assert abs(other.now_ms() - store.now_ms()) <= 1
        (first,) = await submit(other, new())
        (second,) = await submit(store, new())
        port = Port(store, 2)
        await port.serve()
        await port.until(lambda: len(port.order) == 2)
        assert [claim.id for claim in port.order] == [first, second]
