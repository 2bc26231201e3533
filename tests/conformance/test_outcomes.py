"""How attempts end, and that each ends once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.conformance.kit import Factory, Note, Port, error, new, opened, state, status, statuses, submit

from mainspring.errors import InvalidInput, TaskNotFound
from mainspring.results.waiters import Waiters
from mainspring.store.base import (
    BLOB_OUTPUT,
    CANCELLED,
    COMPLETED,
    CRASHED,
    FAILED,
    MAX_CRASHES,
    MAX_RELEASES,
    RELEASED,
    RETRY,
    SHORT,
    SUSPECT,
    TIMEOUT,
)
from mainspring.store.sql import outcomes
from mainspring.tasks import ErrorInfo, TaskStatus, Usage

pytestmark = pytest.mark.anyio

OTHER_OUTPUT = b"\x82\xa4kind\xa4text\xa4text\xa5other"


async def test_completed(store: Any, port: Port) -> None:
    """The result is there with its output and what the attempt cost; the listener heard of it."""
    (id,) = await submit(store, new())
    claim = await port.take()
    usage = Usage(duration=2.0, cpu_time=0.5, memory_bytes=9, batch_size=4)
    await port.finish(claim, usage=usage, started_ms=claim.ready_ms + 3)
    result = await store.result(id)
    assert (result.status, result.output.text, result.error) == (TaskStatus.COMPLETED, "done", None)
    metrics = result.metrics
    assert (metrics.duration, metrics.cpu_time, metrics.cpu_usage, metrics.memory_bytes) == (2.0, 0.5, 0.25, 9)
    assert (metrics.batch_size, metrics.queue_wait, metrics.lane) == (4, 0.003, "async")
    assert [ended.id for ended in port.ends] == [id]
    (attempt,) = (await store.info(id)).attempts
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "completed", store.worker_id)


async def test_an_end_that_does_not_press_waits_for_company(factory: Factory, store: Any, port: Port) -> None:
    """It wakes nobody at once, is written with whatever comes next, and soon in any case."""
    await factory.hold_upkeep(store)  # it looks for work too
    ids = await submit(store, new(), new(), new())
    first, second, third = await port.room(3)
    for claim in (first, second):
        port.end(claim, is_pressing=False)
        assert not store._writer.signal._raised
    await port.finish(third)
    assert [ended.id for ended in port.ends] == ids
    await submit(store, new())
    await port.settle()
    (last,) = port.held.values()
    port.end(last, is_pressing=False)
    await port.until(lambda: len(port.ends) == 4)


@pytest.mark.parametrize(("outcome", "ends"), [(FAILED, "failed"), (TIMEOUT, "timeout"), (CANCELLED, "cancelled")])
async def test_ends_without_a_result(store: Any, port: Port, outcome: int, ends: str) -> None:
    """A task that failed, ran out of time or was cancelled has an error, no output, and is over."""
    (id,) = await submit(store, new())
    await port.finish(await port.take(), outcome, error=error("why"))
    result = await store.result(id)
    assert (result.status.value, result.output) == (ends, None)
    assert "why" in result.error.message
    assert await port.room(3) == []
    assert [(ended.id, ended.output) for ended in port.ends] == [(id, None)]


async def test_ends_without_a_result_are_written_together(
    factory: Factory, store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are in a commit, and whatever they mean for their tasks, nobody looks at each of them."""
    due = store.now_ms() + 1_000
    ids = await submit(store, *(new(deadline_ms=deadline_ms) for deadline_ms in (None, None, None, None, due)))
    await port.room(5)
    looked_at: list[Any] = []
    monkeypatch.setattr(outcomes, "finish_one", lambda tx, finish: looked_at.append(finish))
    port.lanes["async"].limit -= 5
    for id, outcome in zip(ids, (FAILED, TIMEOUT, CANCELLED, RETRY, RETRY), strict=True):
        port.end(port.held[id], outcome, error=error("why"), delay_ms=2_000, flags=SHORT if outcome == RETRY else 0)
    await port.settle()
    assert looked_at == []
    assert await statuses(store, ids) == ["failed", "timeout", "cancelled", "pending", "timeout"]
    infos = [await store.info(id) for id in ids]
    assert [[attempt.outcome for attempt in info.attempts] for info in infos] == [
        ["failed"], ["timeout"], [], ["retry"], ["timeout"]
    ]  # fmt: skip
    assert [info.task.retry_count for info in infos] == [0, 0, 0, 1, 0]
    assert "deadline would pass" in infos[-1].error.message
    assert port.ended_as() == {ids[0]: 3, ids[1]: 5, ids[2]: 4, ids[4]: 5}
    assert (await store.stats())["pending"] == 1
    factory.clock.advance(2)
    assert (await port.take()).flags & SHORT


@pytest.mark.parametrize(("outcome", "ends"), [(FAILED, "failed"), (TIMEOUT, "timeout"), (RETRY, "pending")])
async def test_a_cancel_among_ends_without_a_result(store: Any, port: Port, outcome: int, ends: str) -> None:
    """What somebody has asked to cancel ends so, what was lost meanwhile is told, and the others end as they would."""
    ids = await submit(store, *(new() for _ in range(4)))
    first, second, third, fourth = await port.room(4)
    await store.cancel(second.id)
    await store.withdraw(third)
    port.lanes["async"].limit = 0
    for claim in (first, second, third, fourth):
        port.end(claim, outcome, error=error("its own"), delay_ms=1_000)
    await port.settle()
    assert await statuses(store, ids) == [ends, "cancelled", "cancelled", ends]
    assert [finish.claim.id for finish in port.missed] == [third.id]
    assert [len((await store.info(id)).attempts) for id in ids] == [1, 0, 0, 1]


async def test_retry_waits_for_its_backoff(factory: Factory, store: Any, port: Port) -> None:
    """A failed try is charged, its error kept, and the next one comes when the backoff is over, with the next
    number."""
    (id,) = await submit(store, new())
    await port.finish(await port.take(), RETRY, error=error("first"), delay_ms=5_000)
    info = await store.info(id)
    assert (info.status, info.reason, info.task.retry_count) == (TaskStatus.PENDING, "retry", 1)
    assert info.due.timestamp() * 1000 == store.now_ms() + 5_000
    assert info.error.message == "first"
    factory.clock.advance(4.999)
    assert await port.room(1) == []
    factory.clock.advance(0.001)
    (claim,) = await port.room(0)
    assert (claim.id, claim.attempt, claim.retry_count) == (id, 2, 1)
    await port.finish(claim)
    info = await store.info(id)
    assert [attempt.outcome for attempt in info.attempts] == ["retry", "completed"]
    assert info.error is None
    assert port.ended_as() == {id: 2}


async def test_a_retry_without_delay_comes_at_once(store: Any, port: Port) -> None:
    """Backoff nought means now."""
    (id,) = await submit(store, new())
    await port.finish(await port.take(), RETRY, error=error())
    assert (await port.take()).id == id


async def test_a_retry_that_would_end_after_the_deadline_is_a_timeout(store: Any, port: Port) -> None:
    """There is no use in waiting for a deadline to pass: TIMEOUT at once, with the last error told."""
    (id,) = await submit(store, new(deadline_ms=store.now_ms() + 1_000))
    await port.finish(await port.take(), RETRY, error=error("cause"), delay_ms=2_000)
    result = await store.result(id)
    assert result.status is TaskStatus.TIMEOUT
    assert result.error.type == "TaskTimeout"
    assert "deadline" in result.error.message
    assert "cause" in result.error.message


async def test_released_is_uncharged_and_bounded(store: Any, port: Port) -> None:
    """Handing back costs no retry; but a task that is handed back again and again ends as failed."""
    (id,) = await submit(store, new())
    for n in range(MAX_RELEASES):
        claim = await port.take()
        assert (claim.releases, claim.retry_count, claim.attempt) == (n, 0, n + 1)
        await port.finish(claim, RELEASED)
        assert str(await state(store, id)) == "PENDING (ready)"
    await port.finish(await port.take(), RELEASED)
    assert await status(store, id) is TaskStatus.FAILED
    assert port.ended_as() == {id: 3}
    assert (await store.stats())["pending"] == 0


async def test_a_crash_is_charged_as_a_crash(factory: Factory, store: Any, port: Port) -> None:
    """An attempt whose own child process died comes again, as a suspect, after its backoff; not counted as a retry."""
    (id,) = await submit(store, new())
    await port.finish(await port.take(), CRASHED, error=error("signal 9"), delay_ms=1_000)
    assert await status(store, id) is TaskStatus.PENDING
    factory.clock.advance(1)
    claim = await port.take()
    assert (claim.id, claim.attempt, claim.crashes, claim.retry_count) == (id, 2, 1, 0)
    assert claim.flags & SUSPECT
    await port.finish(claim)
    assert [attempt.outcome for attempt in (await store.info(id)).attempts] == ["crashed", "completed"]


async def test_the_last_crash_ends_it(factory: Factory, store: Any, port: Port) -> None:
    """A task that dies alone three times is FAILED, with the evidence of the last time."""
    (id,) = await submit(store, new())
    for n in range(MAX_CRASHES):
        factory.clock.advance(10)
        await port.finish(await port.take(), CRASHED, error=error(f"signal 9, {n}"), delay_ms=1_000)
    result = await store.result(id)
    assert (result.status, result.error.message) == (TaskStatus.FAILED, f"signal 9, {MAX_CRASHES - 1}")


async def test_a_start_is_recorded(store: Any, port: Port) -> None:
    """RUNNING is what a started attempt reads as, by whom; a start of a lost claim changes nothing."""
    (id,) = await submit(store, new())
    claim = await port.take()
    store.started(claim, store.now_ms())
    await port.settle()
    info = await store.info(id)
    assert (info.status, info.reason, info.worker) == (TaskStatus.RUNNING, None, store.worker_id)
    await port.finish(claim, RETRY, error=error())
    store.started(claim, store.now_ms())
    await port.settle()
    assert await status(store, id) is TaskStatus.PENDING


# Stale claims


async def stale_after(what: str, factory: Factory, store: Any, port: Port) -> tuple[Any, bytes]:
    """Bring a claim to the point where it is not held any more."""
    (id,) = await submit(store, new())
    claim = await port.take()
    if what == "next attempt":
        await port.finish(claim, RETRY, error=error())
        await port.take()
    elif what == "released":
        await port.finish(claim, RELEASED)
    elif what == "withdrawn":
        assert await store.withdraw(claim)
    else:
        await port.finish(claim, {"completed": COMPLETED, "failed": FAILED}[what])
    return claim, id


@pytest.mark.parametrize("what", ["next attempt", "released", "withdrawn", "completed", "failed"])
@pytest.mark.parametrize("outcome", [COMPLETED, FAILED, TIMEOUT, CANCELLED, RETRY, RELEASED, CRASHED])
async def test_a_lost_claim_changes_nothing(factory: Factory, store: Any, port: Port, what: str, outcome: int) -> None:
    """Whatever a worker says about an attempt it doesn't hold any more is reported as lost and leaves no trace."""
    claim, id = await stale_after(what, factory, store, port)
    before, result = await store.info(id), await store.result(id)
    child = new("child")
    output = OTHER_OUTPUT if outcome == COMPLETED else None
    await port.finish(
        claim, outcome, output=output, error=error("stale"), children=(child,), effects=(Note("stale"),), delay_ms=7
    )
    store.progress(claim, 1, 2)
    assert await store.info(id) == before
    assert await store.result(id) == result
    assert [finish.claim.attempt for finish in port.missed] == [1]
    assert factory.notes() == []
    assert child.id not in factory.states()


async def test_a_rescued_claim_is_lost(factory: Factory) -> None:
    """After a rescue the old worker's outcome, should it come back to life, is not taken."""
    first = factory.make()
    await first.open()
    port = Port(first)
    await port.serve()
    (id,) = await submit(first, new())
    old = await port.take()
    await factory.die(first)
    async with opened(factory.make()) as second:
        port = Port(second)
        await port.serve()
        new_claim = await port.take()
        assert (new_claim.id, new_claim.attempt) == (id, 2)
        await port.finish(old, COMPLETED)
        assert len(port.missed) == 1
        await port.finish(new_claim, COMPLETED)
        assert await status(second, id) is TaskStatus.COMPLETED


async def test_what_a_dead_process_did_not_tell_is_looked_up(
    factory: Factory, store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death between a commit and telling of it: all hear of the death, and find ends, cancels and ready tasks."""
    await factory.hold_upkeep(store, hears=True)
    async with opened(factory.make()) as rescuer:
        dead = factory.make()
        await dead.open()
        its = Port(dead)
        await its.serve()
        ended, ready, running = await submit(dead, new(priority=3), new(), new(priority=3))
        claims = await its.room(1) + await port.room(1)
        assert [claim.id for claim in claims] == [ended, running]
        port.lanes["async"].limit += 1
        monkeypatch.setattr(port, "awaited", lambda most: [ended])
        monkeypatch.setattr(dead, "_ring", lambda tx: None)
        await dead.cancel(running)
        await its.finish(claims[0])
        await factory.die(dead)
        assert (port.asked, port.ends) == ([], [])
        await factory.rescue(rescuer)
        await port.until(lambda: port.asked == [running] and ended in port.ended_as() and ready in port.held)


async def test_what_is_handed_back_is_told_before_its_holder_is_gone(
    factory: Factory, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever dies in between is missed, and others look; once it is gone nobody would."""
    leaving = factory.make()
    await leaving.open()
    its = Port(leaving)
    await its.serve()
    await submit(leaving, new())
    await its.take()
    seen: list[str] = []
    ring, sign_off = leaving._ring, leaving._sign_off

    def rings(tx: Any) -> None:
        if tx.ready:
            seen.append("told")
        ring(tx)

    def signs_off(tx: Any) -> None:
        seen.append("gone")
        sign_off(tx)

    monkeypatch.setattr(leaving, "_ring", rings)
    monkeypatch.setattr(leaving, "_sign_off", signs_off)
    await leaving.close()
    assert seen == ["told", "gone"]


@pytest.mark.parametrize("with_key", [False, True])
async def test_two_outcomes_in_one_commit(store: Any, port: Port, with_key: bool) -> None:
    """Of two outcomes for one claim given at once the first is recorded and the second lost; neighbours are
    untouched."""
    ids = await submit(store, *(new() for _ in range(3)))
    claims = await port.room(3)
    port.lanes["async"].limit = 0
    port.end(claims[0])
    port.end(claims[1], children=(new(key="k", type="custom:unserved"),) if with_key else ())  # looked at for itself
    port.end(claims[1], FAILED)
    port.end(claims[2])
    await port.settle()
    assert [(await status(store, id)).value for id in ids] == ["completed"] * 3
    assert len(port.missed) == 1
    assert len((await store.info(ids[1])).attempts) == 1
    assert sorted(ended.id for ended in port.ends if ended.id != ids[1]) == sorted([ids[0], ids[2]])


async def test_final_is_final(factory: Factory, store: Any, port: Port) -> None:
    """Time, pauses, cancels and new looks leave an ended task as it is."""
    sent = await submit(store, *(new(deadline_ms=store.now_ms() + 1_000) for _ in range(4)))
    for outcome, claim in zip((COMPLETED, FAILED, TIMEOUT, CANCELLED), await port.room(4), strict=True):
        await port.finish(claim, outcome, error=None if outcome == COMPLETED else error())
    before = [await store.info(id) for id in sent]
    factory.clock.advance(3600)
    assert [await store.cancel(id) for id in sent] == [f"already({info.status.value})" for info in before]
    assert await port.room(5) == []
    assert [await store.info(id) for id in sent] == before


# Cancel


@pytest.mark.parametrize("how", ["ready", "parents", "delayed", "retry"])
async def test_cancel_before_the_start(factory: Factory, store: Any, port: Port, how: str) -> None:
    """What nobody holds is cancelled at once: it never starts and never completes."""
    if how == "ready":
        (id,) = await submit(store, new())
    elif how == "parents":
        _, id = await submit(store, parent := new(), new(after=[parent.id]))
        await store.cancel(id)
    elif how == "delayed":
        (id,) = await submit(store, new(not_before_ms=store.now_ms() + 1_000))
    else:
        (id,) = await submit(store, new())
        await port.finish(await port.take(), RETRY, error=error(), delay_ms=1_000)
    if how != "parents":
        assert (await state(store, id)).reason == how
        assert await store.cancel(id) == "cancelled"
    assert await store.cancel(id) == "already(cancelled)"
    factory.clock.advance(60)
    assert id not in [claim.id for claim in await port.room(5)]
    await port.run_all()
    assert await status(store, id) is TaskStatus.CANCELLED
    assert (await store.result(id)).error.type == "TaskCancelled"


async def test_cancel_of_a_claimed_task(store: Any, port: Port) -> None:
    """It's held: the worker is asked. If it withdraws, the task is cancelled without an attempt on record."""
    (id,) = await submit(store, new())
    claim = await port.take()
    assert await store.cancel(id) == "held"
    assert port.asked == [id]
    assert await store.withdraw(claim)
    assert await status(store, id) is TaskStatus.CANCELLED
    assert not await store.withdraw(claim)
    assert port.ended_as() == {id: 4}
    assert (await store.info(id)).attempts == ()


@pytest.mark.parametrize("outcome", [COMPLETED, FAILED, TIMEOUT, CANCELLED, RETRY, RELEASED, CRASHED])
@pytest.mark.parametrize("delay_ms", [0, 100])
@pytest.mark.parametrize("started", [True, False])
async def test_after_a_requested_cancel_it_ends_cancelled(
    factory: Factory, store: Any, port: Port, outcome: int, delay_ms: int, started: bool
) -> None:
    """Whatever the attempt returns, the task ends CANCELLED and reads so; nothing that it brought is kept."""
    (id,) = await submit(store, new())
    claim = await port.take()
    if started:
        store.started(claim, store.now_ms())
        await port.settle()
    assert await store.cancel(id) == ("requested" if started else "held")
    assert await store.cancel(id) == ("requested" if started else "held")
    assert (await store.info(id)).cancel_requested
    child = new()
    fields = {"error": error("its own")} if outcome not in (COMPLETED, RELEASED) else {}
    await port.finish(claim, outcome, delay_ms=delay_ms, effects=(Note("kept"),), children=(child,), **fields)
    result = await store.result(id)
    assert (result.status, result.output, result.error.type) == (TaskStatus.CANCELLED, None, "TaskCancelled")
    assert factory.notes() == []
    assert child.id not in factory.states()
    assert port.missed == []


async def test_a_cancel_survives_the_worker(factory: Factory) -> None:
    """If the worker dies before it could stop, the cancelled task does not run again."""
    first = factory.make()
    await first.open()
    port = Port(first)
    await port.serve()
    (id,) = await submit(first, new())
    claim = await port.take()
    first.started(claim, first.now_ms())
    assert await first.cancel(id) in ("requested", "held")
    await factory.die(first)
    async with opened(factory.make()) as second:
        port = Port(second, 5)
        await port.serve()
        assert port.order == []
        assert await status(second, id) is TaskStatus.CANCELLED


async def test_cancel_reaches_the_worker_of_another_process(factory: Factory, store: Any, port: Port) -> None:
    """A cancel asked elsewhere is noted in the store: what the holder then returns is not recorded."""
    (id,) = await submit(store, new())
    claim = await port.take()
    async with opened(factory.make()) as other:
        assert await other.cancel(id) == "held"
    await port.finish(claim, COMPLETED)
    assert await status(store, id) is TaskStatus.CANCELLED


# What commits with an outcome


async def test_effects_and_children_commit_with_the_outcome(factory: Factory, store: Any, port: Port) -> None:
    """They're there exactly when the outcome is."""
    (id,) = await submit(store, new())
    child = new("child")
    await port.finish(await port.take(), effects=(Note("a"), Note("b")), children=(child,))
    assert factory.notes() == ["a", "b"]
    assert await status(store, id) is TaskStatus.COMPLETED
    assert str(await state(store, child.id)) == "PENDING (ready)"


@pytest.mark.parametrize("outcome", [FAILED, RETRY, TIMEOUT, RELEASED, CANCELLED])
async def test_no_effects_without_completion(factory: Factory, store: Any, port: Port, outcome: int) -> None:
    """An attempt that did not complete leaves nothing behind, whatever it had handed over."""
    await submit(store, new())
    child = new()
    fields = {} if outcome == RELEASED else {"error": error()}
    await port.finish(await port.take(), outcome, effects=(Note("a"),), children=(child,), **fields)
    assert factory.notes() == []
    assert child.id not in factory.states()


@pytest.mark.parametrize("then", ["refuse", "break"])
async def test_a_refused_effect_fails_its_attempt_alone(factory: Factory, store: Any, port: Port, then: str) -> None:
    """The attempt is FAILED with the reason and nothing of it is written; what shared its commit goes through, and
    the store lives on."""
    ids = await submit(store, *(new() for _ in range(3)))
    claims = await port.room(3)
    port.lanes["async"].limit = 0
    child = new()
    port.end(claims[0], effects=(Note("good"),))
    port.end(claims[1], effects=(Note("half"), Note("bad", then)), children=(child,))
    port.end(claims[2])
    (beside,) = await submit(store, new())
    assert [(await status(store, id)).value for id in ids] == ["completed", "failed", "completed"]
    assert factory.notes() == ["good"]
    assert child.id not in factory.states()
    assert str(await state(store, beside)) == "PENDING (ready)"
    result = await store.result(ids[1])
    assert result.error.type == ("InvalidInput" if then == "refuse" else "KeyError")
    assert port.missed == []


async def test_a_child_that_is_refused_fails_its_parent(factory: Factory, store: Any, port: Port) -> None:
    """A child that can't be stored takes the outcome with it: half a fan-out never exists."""
    (id,) = await submit(store, new())
    good = new()
    await port.finish(await port.take(), children=(good, new(after=[bytes(16)])))
    assert await status(store, id) is TaskStatus.FAILED
    assert good.id not in factory.states()


async def test_children_of_a_repeated_parent_are_stored_once(factory: Factory, store: Any, port: Port) -> None:
    """A child that an earlier attempt has stored already, under the same id, is recognised."""
    child = new("child")
    await submit(store, new(), child)
    await port.finish(await port.take(), children=(child,))
    assert len(factory.states()) == 2


async def test_what_comes_with_results_is_written_together(
    factory: Factory, store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children, of whatever depends on what, and large values of many attempts need no look at each of them."""
    ids = await submit(store, *(new() for _ in range(3)))
    a, b, c = await port.room(3)
    children = [new("a"), new("b", after=[ids[0]])]
    looked_at: list[Any] = []
    monkeypatch.setattr(outcomes, "finish_one", lambda tx, finish: looked_at.append(finish))
    port.lanes["async"].limit = 0
    port.end(a, children=(children[0],))
    port.end(b, children=(children[1], new("c", after=[children[0].id])))
    port.end(c, output=b"digest", flags=BLOB_OUTPUT, blobs=("digest",))
    await port.settle()
    assert looked_at == []
    assert await statuses(store, ids) == ["completed"] * 3
    assert [str(await state(store, child.id)) for child in children] == ["PENDING (ready)"] * 2
    assert (await store.stats())["pending"] == 3
    assert [claim.id for claim in await port.room(5)] == [child.id for child in children]


@pytest.mark.parametrize("how", ["refused", "there already", "lost"])
async def test_one_among_many_with_children(factory: Factory, store: Any, port: Port, how: str) -> None:
    """One whose children can't go with those of the others ends as it would by itself, and so do the others."""
    ids = await submit(store, *(new() for _ in range(3)), there := new("there"))
    first, second, third = (await port.room(4))[:3]
    if how == "lost":
        await store.withdraw(second)
    child = {"refused": new(after=[bytes(16)]), "there already": there, "lost": new()}[how]
    others = [new(), new()]
    port.lanes["async"].limit = 0
    for claim, brought in ((first, others[0]), (second, child), (third, others[1])):
        port.end(claim, children=(brought,))
    await port.settle()
    ends = {"refused": "failed", "there already": "completed", "lost": "cancelled"}[how]
    assert await statuses(store, ids[:3]) == ["completed", ends, "completed"]
    assert factory.states().keys() == {*ids, *(other.id for other in others)}
    assert len(port.missed) == (how == "lost")


# Listeners


async def test_listeners_hear_of_every_end_once_and_not_before_it_is_durable(factory: Factory, store: Any) -> None:
    """At the moment a listener is told, another connection reads the final status."""

    class Witness(Port):
        def ended(self, tasks: list[Any]) -> None:
            assert all(factory.durable_status(task.id) == task.status for task in tasks)
            super().ended(tasks)

    port = Witness(store)
    await port.serve()
    sent = await submit(
        store, *(new() for _ in range(6)), new(deadline_ms=store.now_ms() + 500, type="custom:unserved")
    )
    claims = await port.room(6)
    child = new(after=[sent[1]])
    await store.submit([child])
    for outcome, claim in zip((COMPLETED, FAILED, TIMEOUT, CANCELLED, COMPLETED), claims, strict=False):
        port.end(claim, outcome, error=None if outcome == COMPLETED else error())
    assert await store.withdraw(claims[5])
    factory.clock.advance(1)
    store.stop_serving()
    await port.settle()
    assert [ended.id for ended in port.ends if ended.id == child.id] == [child.id]
    assert sorted(ended.id for ended in port.ends) == sorted([*sent, child.id])
    assert len(await store.ended(sent)) == len(sent)


async def test_a_wait_for_what_was_pruned_unheard_ends(factory: Factory) -> None:
    """Whoever missed the end, as a process that stood still, is told by the look that the task ended and is gone: each
    time that it waits."""
    async with opened(factory.make(keep_completed_s=10.0)) as store:
        port = Port(store, 5)
        await port.serve()
        (id,) = await submit(store, new())
        await port.until(lambda: port.held)
        await port.run_all()
        factory.clock.advance(100)
        await factory.prune(store)
        waiters = Waiters(store)
        waiting = waiters.expect(id)
        told = asyncio.ensure_future(waiters.wait(waiting))
        await asyncio.sleep(0)
        assert waiting.is_awaited
        store.look()
        async with asyncio.timeout(10):
            for wait in (told, waiters.wait(waiting)):
                with pytest.raises(TaskNotFound, match="ended as completed and was pruned since"):
                    await wait


async def test_what_listeners_are_told_is_what_is_stored(store: Any, port: Port) -> None:
    """The news carries the same status, output and error as a look into the store."""
    sent = await submit(store, *(new() for _ in range(2)), parent := new(), new(after=[parent.id]))
    claims = await port.room(3)
    await port.finish(claims[0])
    await port.finish(claims[1], FAILED)
    await port.finish(claims[2], FAILED)
    told = {ended.id: ended for ended in port.ends}
    assert {ended.id: ended for ended in await store.ended(sent)} == told
    assert msgspec.msgpack.decode(told[sent[3]].error or b"", type=ErrorInfo).type == "DependencyNotMet"


async def test_retry_of_what_has_not_failed_is_refused(store: Any, port: Port) -> None:
    """Only what ended without completing can be retried by hand."""
    (id,) = await submit(store, new())
    with pytest.raises(InvalidInput, match="pending"):
        await store.retry(id)
    await port.finish(await port.take())
    with pytest.raises(InvalidInput, match="completed"):
        await store.retry(id)
