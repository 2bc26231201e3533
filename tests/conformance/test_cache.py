"""Equal work: kept results are taken, what is under way runs once, and nobody gets what is not theirs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.kit import AGEING_MS, WORK, Factory, Note, Port, error, new, opened, state, statuses, submit

from mainspring.store.base import (
    BLOB_OUTPUT,
    CANCELLED,
    COMPLETED,
    FAILED,
    LEADS,
    RETRY,
    SHARED,
    TIMEOUT,
    URGENT,
    WANTS_KEPT,
    Claimed,
    NewTask,
    WorkName,
)
from mainspring.store.sql import flights, reads, upkeep
from mainspring.tasks import CustomOutput, Ref, TaskId, TextOutput, lifecycle
from mainspring.tasks.codec import encode

pytestmark = pytest.mark.anyio

HOUR = 3_600_000
KEY = b"k" * 20
ANOTHER = encode(TextOutput("another"))[0]


def same(key: bytes = KEY, keep_ms: int = HOUR, **options: Any) -> NewTask:
    """A task whose result may be that of equal work."""
    return new(work=key, keep_ms=keep_ms, flags=WANTS_KEPT, **options)


def later(**options: Any) -> NewTask:
    """One that is compared only when it is claimed, as what it does is not known before."""
    return new(keep_ms=HOUR, flags=WANTS_KEPT, **options)


def does(claim: Claimed, key: bytes = KEY, version: str = "1") -> Claimed:
    """Note what the code that runs here makes of a claim."""
    claim.work = WorkName(key, version)
    return claim


async def put(store: Any, port: Port, key: bytes = KEY, **fields: Any) -> bytes:
    """Have a result kept."""
    (id,) = await submit(store, same(key))
    await port.finish(does(await port.take(), key), **fields)
    return id


# A kept result


async def test_a_kept_result_is_taken_at_once(store: Any, port: Port) -> None:
    """A task with equal work ends as it enters: nothing is handed over, its listener hears of it."""
    await put(store, port)
    port.lanes["async"].limit += 5
    (id,) = await submit(store, same(group="another", priority=3))
    result = await store.result(id)
    assert (result.status.value, result.output.text, result.metrics.cache_hit) == ("completed", "done", True)
    assert [claim.id for claim in port.order if claim.id == id] == []
    assert port.ended_as()[id] == COMPLETED + 2
    assert (await store.info(id)).attempts == ()
    ((*_, entries, size, _),) = await store.kept()
    assert (entries, size) == (1, len(encode(TextOutput("done"))[0]))


async def test_a_task_that_did_the_work_itself_is_no_hit(store: Any, port: Port) -> None:
    """Whoever computed it is told so."""
    id = await put(store, port)
    assert not (await store.result(id)).metrics.cache_hit


async def test_other_work_is_other_work(store: Any, port: Port) -> None:
    """Another key, or no key, is not served with it."""
    await put(store, port)
    ids = await submit(store, same(b"x" * 20), new())
    assert await statuses(store, ids) == ["pending", "pending"]


async def test_a_result_is_kept_for_as_long_as_was_said(factory: Factory, store: Any, port: Port) -> None:
    """It is gone when the one who computed it said so, and too old when the one who asks says so."""
    await put(store, port)
    factory.clock.advance(60)
    (young,) = await submit(store, same(keep_ms=30_000))
    assert (await state(store, young)).reason == "ready"
    await store.cancel(young)
    (fine,) = await submit(store, same(keep_ms=61_000))
    assert (await state(store, fine)).status.value == "completed"
    factory.clock.advance(HOUR / 1000)
    (late,) = await submit(store, same(keep_ms=10 * HOUR))
    assert (await state(store, late)).reason == "ready"


@pytest.mark.parametrize("how", ["follows", "had one before"])
async def test_the_longest_that_somebody_said_holds(factory: Factory, store: Any, port: Port, how: str) -> None:
    """Also where the one that computes it says less: of one that waits for it, and of a result that was kept before."""
    if how == "follows":
        await submit(store, same(keep_ms=100), same(keep_ms=HOUR))
    else:
        await put(store, port)
        factory.clock.advance(1)
        await submit(store, same(keep_ms=100))
    await port.finish(does(await port.take()))
    factory.clock.advance(60)
    (late,) = await submit(store, same(keep_ms=HOUR))
    assert (await state(store, late)).status.value == "completed"
    (picky,) = await submit(store, same(keep_ms=100))
    assert (await state(store, picky)).reason == "ready"


async def test_what_takes_a_result_has_it_for_its_children(store: Any, port: Port) -> None:
    """Children of the same call, and later ones, get the value of a task that never ran."""
    await put(store, port)
    parent = same()
    child = new(after=[parent.id], flags=4)
    await submit(store, parent, child)
    claim = await port.take()
    assert claim.id == child.id
    assert claim.parents is not None
    assert claim.parents[parent.id].output == encode(TextOutput("done"))[0]


async def test_failures_are_not_kept(store: Any, port: Port) -> None:
    """What failed, ran out of time or was cancelled is tried again by the next one."""
    for outcome in (FAILED, TIMEOUT, CANCELLED):
        (id,) = await submit(store, same())
        await port.finish(does(await port.take()), outcome, error=error(), started_ms=store.now_ms())
        assert await statuses(store, [id]) != ["completed"]
        assert await store.kept() == []


@pytest.mark.parametrize("more", ["effects", "children", "refs", "unknown"])
async def test_a_result_that_came_with_more_is_not_kept(store: Any, port: Port, more: str) -> None:
    """An effect or a child belongs to one task. Who waited for that one does the work itself."""
    ids = await submit(store, same(), same())
    claim = await port.take()
    child = new("child", priority=0)
    fields: dict[str, dict[str, Any]] = {
        "effects": {"effects": (Note("written"),)},
        "children": {"children": (child,)},
        "refs": {
            "output": encode(CustomOutput(Ref(TaskId(child.id))))[0],
            "children": (child,),
            "refs": (child.id,),
        },
        "unknown": {},
    }
    await port.finish(claim if more == "unknown" else does(claim), **fields[more])
    assert await store.kept() == []
    assert (await port.take()).id == ids[1]


async def test_a_blob_stays_as_long_as_something_names_it(factory: Factory, store: Any, port: Port) -> None:
    """A kept result that is a blob keeps it when its task is pruned, and so does a task that took it."""

    async def unused() -> list[str]:
        return await store.view(lambda view: reads.without_payload(view, [digest]))  # type: ignore[no-any-return]

    digest = store.blobs.put(b"large").digest
    await submit(store, same(keep_ms=1_000 * HOUR))
    await port.finish(
        does(await port.take()), output=digest.encode(), flags=BLOB_OUTPUT, blobs=(digest,), output_bytes=5_000
    )
    factory.clock.advance(8 * 86_400)
    await factory.prune(store)
    assert await unused() == []
    assert (await store.kept())[0].bytes == 5_000
    await submit(store, same(keep_ms=1_000 * HOUR))
    assert await store.purge() == 1
    assert await unused() == []
    assert factory.contents().violations == []


LARGE = encode(TextOutput("large " * 1_000))[0]


async def finish_large(store: Any, port: Port, claim: Claimed) -> Path:
    """End a task with a result that is a blob; returns the blob's file."""
    digest = store.blobs.put(LARGE).digest
    await port.finish(does(claim), output=digest.encode(), flags=BLOB_OUTPUT, blobs=(digest,), output_bytes=len(LARGE))
    return store.blobs.folder / digest[:2] / digest[2:]  # type: ignore[no-any-return]


async def test_whoever_takes_a_blob_holds_it(
    factory: Factory, store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a follower, at a claim with its own followers, and at submit: each is listed as one that needs it."""
    monkeypatch.setattr(flights, "SHARE", 1)
    ids = await submit(store, *(same() for _ in range(4)))
    await finish_large(store, port, await port.take())
    assert await store.join(does(await port.take()), HOUR) == "over"
    ids += await submit(store, same())
    assert [(await store.result(id)).output.text for id in ids] == ["large " * 1_000] * 5
    assert factory.contents().violations == []


def lose(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(LARGE[:-1] + (b"" if how == "cut" else b"?"))


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
async def test_what_has_lost_its_blob_is_no_result_at_submit(
    store: Any, port: Port, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Nobody completes with a value that can't be read: it is forgotten, which the log says, and computed again."""
    await submit(store, same())
    file = await finish_large(store, port, await port.take())
    await submit(store, same())  # it was whole then
    assert caplog.text == ""
    lose(file, how)
    ids = await submit(store, same(), same())
    assert [(await state(store, id)).reason for id in ids] == ["ready", "same_work"]
    assert await store.kept() == []
    assert caplog.text.count("a kept result can't be read") == 1
    await finish_large(store, port, await port.take())
    ids += await submit(store, same())
    assert [(await store.result(id)).output.text for id in ids] == ["large " * 1_000] * 3


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
async def test_what_has_lost_its_blob_is_no_result_for_a_claim(
    store: Any, port: Port, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Neither for one that is compared then, nor for one that goes on for those who were too many to end at once."""
    monkeypatch.setattr(flights, "SHARE", 1)
    ids = await submit(store, *(same() for _ in range(4)))
    lose(await finish_large(store, port, await port.take()), how)
    third = does(await port.take())
    assert (third.id, await store.join(third, HOUR)) == (ids[2], "leads")
    assert await store.kept() == []
    assert "a kept result can't be read" in caplog.text
    lose(await finish_large(store, port, third), how)
    ids += await submit(store, later())
    claim = await port.take()
    assert (claim.id, await store.join(does(claim), HOUR)) == (ids[4], "leads")
    await finish_large(store, port, claim)
    assert [(await store.result(id)).output.text for id in ids] == ["large " * 1_000] * 5


# What is under way


async def test_equal_work_runs_once(store: Any, port: Port) -> None:
    """Those that follow wait for the first, in whatever call they come, and have its result."""
    ids = [*await submit(store, same(), same()), *await submit(store, same())]
    assert [(await state(store, id)).reason for id in ids] == ["ready", "same_work", "same_work"]
    leader = (await store.standing(ids[1])).leader
    assert (leader.id, leader.state) == (ids[0], "ready")
    (claim,) = await port.room(3)
    await port.finish(does(claim), output=ANOTHER)
    results = [await store.result(id) for id in ids]
    assert [result.output.text for result in results] == ["another"] * 3
    assert [result.metrics.cache_hit for result in results] == [False, True, True]
    assert [port.ended_as()[id] for id in ids] == [COMPLETED + 2] * 3


async def test_equal_work_is_looked_for_in_pages(store: Any, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with many tasks asks a few times what is kept and under way, not once for each, and is run once."""
    asked: list[int] = []

    def counted(real: Any) -> Any:
        def look(tx: Any, works: Any) -> Any:
            asked.append(len(works))
            return real(tx, works)

        return look

    monkeypatch.setattr(flights, "kept", counted(flights.kept))
    monkeypatch.setattr(flights, "leaders", counted(flights.leaders))
    await submit(store, *(same((n // 2).to_bytes(20)) for n in range(600)))
    assert max(asked) < 300
    assert len(asked) < 9


async def test_a_claimed_leader_leads(store: Any, port: Port) -> None:
    """Also where the first enters already claimed."""
    port.lanes["async"].limit += 2
    ids = await submit(store, same(), same())
    assert [claim.id for claim in port.order] == ids[:1]
    assert (await state(store, ids[1])).reason == "same_work"


async def test_a_final_failure_is_shared(factory: Factory, store: Any, port: Port) -> None:
    """A try that is repeated keeps the others waiting; what fails in the end fails for all, with its error, and all
    who wait for one of them hear of it."""
    ids = await submit(store, same(), same(), same())
    (child,) = await submit(store, new(after=ids[1:2]))
    await port.finish(does(await port.take()), RETRY, error=error("first"), started_ms=store.now_ms())
    assert (await state(store, ids[1])).reason == "same_work"
    claim = await port.take()
    await port.finish(does(claim), FAILED, error=error("in the end"), started_ms=store.now_ms())
    assert await statuses(store, [*ids, child]) == ["failed"] * 4
    assert [port.ended_as().get(id) for id in (*ids, child)] == [lifecycle.FAILED] * 4
    assert factory.contents().violations == []
    results = [await store.result(id) for id in ids]
    assert [(result.status.value, result.error.message) for result in results] == [("failed", "in the end")] * 3


async def test_a_final_timeout_is_shared_and_a_deadline_is_not(factory: Factory, store: Any, port: Port) -> None:
    """Work that takes too long takes too long for all; that somebody came too late is his own matter."""
    ids = await submit(store, same(), same())
    await port.finish(does(await port.take()), TIMEOUT, error=error(), started_ms=store.now_ms())
    assert await statuses(store, ids) == ["timeout", "timeout"]
    ids = await submit(store, same(deadline_ms=store.now_ms() + 1_000), same())
    claim = await port.take()
    factory.clock.advance(2)
    await port.finish(does(claim), TIMEOUT, error=error())  # before its start
    assert (await state(store, ids[1])).reason == "ready"


async def test_who_leads_and_goes_hands_over_to_the_best(store: Any, port: Port) -> None:
    """Cancelled while it is claimed, while it runs, or while it waits: the best of the others goes on."""
    first, second, third, fourth = await submit(store, same(), same(), same(priority=2), same(priority=3))
    claim = await port.take()
    assert claim.id == first
    await store.cancel(first)
    await port.finish(claim, CANCELLED)
    claim = await port.take()
    assert claim.id == fourth
    assert claim.flags & LEADS  # nothing can be kept: it runs without another look
    await store.cancel(fourth)
    await port.finish(does(claim), COMPLETED)  # somebody was told that it is cancelled
    assert (await state(store, third)).reason == "ready"
    assert await store.cancel(third) == "cancelled"
    claim = await port.take()
    assert claim.id == second
    await port.finish(does(claim))
    assert await statuses(store, [first, second, third, fourth]) == ["cancelled", "completed", "cancelled", "cancelled"]


async def test_a_follower_may_go(factory: Factory, store: Any, port: Port) -> None:
    """Cancelled, or past its deadline, a follower ends by itself, and the others stay as they are."""
    ids = await submit(store, same(), same(), same(deadline_ms=store.now_ms() + 1_000), same())
    assert await store.cancel(ids[1]) == "cancelled"
    factory.clock.advance(2)
    await port.settle()
    await port.finish(does(await port.take()))
    assert await statuses(store, ids) == ["completed", "cancelled", "timeout", "completed"]


async def test_the_leader_takes_the_best_rank(store: Any, port: Port) -> None:
    """What an urgent task waits for is urgent; also where it waits at a distance."""
    (slow,) = await submit(store, same(priority=0))
    (other,) = await submit(store, new(priority=1))
    (follower,) = await submit(store, same(priority=0))
    await submit(store, new(after=[follower], priority=3))
    assert (await port.take()).id == slow
    assert (await port.take()).id == other


async def test_the_leader_takes_the_rank_of_who_comes_later(store: Any, port: Port) -> None:
    """In another call, and in the same one."""
    (slow,) = await submit(store, same(priority=0))
    ids = await submit(store, new(priority=1), same(b"x" * 20, priority=0), same(b"x" * 20, priority=2))
    await submit(store, same(priority=3))
    assert [claim.id for claim in await port.room(3)] == [slow, ids[1], ids[0]]


async def test_a_dead_leader_is_done_again_by_itself(factory: Factory) -> None:
    """The process that ran it dies: another runs it, and those who waited have its result."""
    async with opened(factory.make()) as second:
        first = factory.make()
        await first.open()
        port = Port(first)
        await port.serve()
        ids = await submit(first, same(), same())
        first.mark(0, (await port.take()).seq, 1)
        await factory.die(first)
        await factory.rescue(second)
        port = Port(second)
        await port.serve()
        claim = await port.take()
        assert (claim.id, claim.attempt) == (ids[0], 2)
        await port.finish(does(claim))
        assert await statuses(second, ids) == ["completed", "completed"]


async def test_other_code_does_not_answer_for_who_waits(store: Any, port: Port) -> None:
    """The one that runs was handed to newer code: its result is kept as that code's, and the next one is run."""
    ids = await submit(store, same(), same())
    await port.finish(does(await port.take(), b"n" * 20, "2"), output=ANOTHER)
    assert [(kept.version, kept.entries) for kept in await store.kept()] == [("2", 1)]
    assert (await state(store, ids[1])).reason == "ready"
    await port.finish(does(await port.take()))
    assert (await store.result(ids[1])).output.text == "done"
    (newer,) = await submit(store, same(b"n" * 20))
    assert (await store.result(newer)).output.text == "another"


async def test_other_code_does_not_fail_for_who_waits(store: Any, port: Port) -> None:
    """What newer code can't do those who asked for the older one may yet have."""
    ids = await submit(store, same(), same())
    claim = does(await port.take(), b"n" * 20, "2")
    await port.finish(claim, FAILED, error=error(), started_ms=store.now_ms())
    assert await statuses(store, ids) == ["failed", "pending"]
    await port.finish(does(await port.take()))
    assert await statuses(store, ids) == ["failed", "completed"]


async def test_other_code_goes_its_own_way_past_who_waits(
    store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the one that goes on after a result is handed to newer code, it does that code's work, and the next one
    goes on in its place."""
    monkeypatch.setattr(flights, "SHARE", 1)
    ids = await submit(store, *(same() for _ in range(4)))
    await port.finish(does(await port.take()))
    third = does(await port.take(), b"n" * 20, "2")
    assert (third.id, await store.join(third, HOUR)) == (ids[2], "leads")
    fourth = does(await port.take())
    assert not fourth.flags & LEADS  # it looks for the result
    assert await store.join(fourth, HOUR) == "over"
    await port.finish(third, output=ANOTHER)
    results = [(await store.result(id)).output.text for id in ids]
    assert results == ["done", "done", "another", "done"]


async def test_more_than_one_commit_can_end_end_in_several(
    store: Any, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of the rest leads, finds the result kept, and ends the next ones with it."""
    monkeypatch.setattr(flights, "SHARE", 2)
    ids = await submit(store, *(same() for _ in range(8)))
    await port.finish(does(await port.take()))
    for _ in range(2):
        claim = await port.take()
        assert not claim.flags & LEADS
        assert await store.join(does(claim), HOUR) == "over"
    assert await statuses(store, ids) == ["completed"] * 8
    assert await port.room(3) == []


# What is compared when it is claimed


async def test_a_claim_takes_a_kept_result(store: Any, port: Port) -> None:
    """It is over without a start, and its end travels."""
    await put(store, port)
    (id,) = await submit(store, later())
    (child,) = await submit(store, new(after=[id]))
    claim = await port.take()
    assert await store.join(does(claim), HOUR) == "over"
    result = await store.result(id)
    assert (result.status.value, result.metrics.cache_hit) == ("completed", True)
    assert (await port.take()).id == child


async def test_a_claim_takes_what_is_young_enough_for_it(factory: Factory, store: Any, port: Port) -> None:
    """As at submit: what is too old for the one who asks is computed anew, and stays for those who ask for less."""
    await put(store, port)
    factory.clock.advance(60)
    ids = await submit(store, later(), later())
    strict, easy = await port.room(2)
    assert await store.join(does(strict), 30_000) == "leads"
    assert await store.join(does(easy), 61_000) == "over"
    assert await statuses(store, ids) == ["pending", "completed"]


async def test_who_leads_is_not_compared_again(store: Any, port: Port) -> None:
    """A claim of the next try tells that it leads."""
    await submit(store, later())
    claim = await port.take()
    assert not claim.flags & LEADS
    assert await store.join(does(claim), HOUR) == "leads"
    await port.finish(claim, RETRY, error=error(), delay_ms=0)
    assert (await port.take()).flags & LEADS


async def test_a_claim_follows_and_leads(store: Any, port: Port) -> None:
    """The first to be compared leads, a second one waits for it and is held by nobody."""
    ids = await submit(store, later(), later(priority=3))
    (second, first) = await port.room(2)
    assert await store.join(does(first), HOUR) == "leads"
    assert await store.join(does(second), HOUR) == "over"
    assert (await state(store, ids[1])).reason == "same_work"
    await port.finish(first)
    assert await statuses(store, ids) == ["completed", "completed"]
    assert await store.join(second, HOUR) == "lost"


async def test_what_has_become_urgent_since_its_claim_makes_the_leader_so(store: Any, port: Port) -> None:
    """A claim that waits for equal work passes on the rank that it has then."""
    await submit(store, later(priority=0), later(priority=0), new())
    leader, follower = [claim for claim in await port.room(3) if claim.flags & WANTS_KEPT]
    assert await store.join(does(leader), HOUR) == "leads"
    await port.finish(leader, RETRY, error=error(), delay_ms=0)
    await submit(store, new(after=[follower.id], priority=3))
    assert await store.join(does(follower), HOUR) == "over"
    await submit(store, new(priority=2))
    assert (await port.take()).id == leader.id


async def test_a_cancelled_claim_is_not_compared(store: Any, port: Port) -> None:
    """Who was told that it is cancelled finds it so, whatever is kept."""
    await put(store, port)
    (id,) = await submit(store, later())
    claim = await port.take()
    await store.cancel(id)
    assert await store.join(does(claim), HOUR) == "over"
    assert await statuses(store, [id]) == ["cancelled"]


async def test_what_has_to_wait_is_compared_when_it_is_claimed(factory: Factory, store: Any, port: Port) -> None:
    """A parent that must come first comes first, and a delay is kept, also where a result is there."""
    await put(store, port)
    (parent,) = await submit(store, new())
    ids = await submit(store, same(after=[parent]), same(not_before_ms=store.now_ms() + 1_000))
    assert [(await state(store, id)).reason for id in ids] == ["parents", "delayed"]
    await port.finish(await port.take(), FAILED)
    assert await statuses(store, ids[:1]) == ["failed"]


async def test_what_is_made_anew_is_compared_anew(store: Any, port: Port) -> None:
    """A retry by hand takes a kept result too."""
    (id,) = await submit(store, same())
    await port.finish(does(await port.take()), FAILED, error=error(), started_ms=store.now_ms())
    await put(store, port)
    again = await store.retry(id)
    claim = await port.take()
    assert claim.id == again
    assert claim.flags & WANTS_KEPT
    assert await store.join(does(claim), HOUR) == "over"
    assert await statuses(store, [again]) == ["completed"]


# What is forgotten


async def test_purge_by_what_it_is_of(store: Any, port: Port) -> None:
    """By namespace, type and version; what is left stays, tasks keep their results."""
    for n, (namespace, version) in enumerate([("default", "1"), ("default", "2"), ("tenant", "1")]):
        (id,) = await submit(store, same(bytes([n]) * 20, namespace=namespace))
        await port.finish(does(await port.take(), bytes([n]) * 20, version))
    assert await store.purge(version="2") == 1
    assert await store.purge(namespace="tenant", type="custom:none") == 0
    assert [(kept.namespace, kept.version) for kept in await store.kept()] == [("default", "1"), ("tenant", "1")]
    assert await store.purge(type=WORK) == 2
    assert await store.kept() == []
    assert (await store.result(id)).output.text == "done"


async def test_old_and_unused_results_go(factory: Factory) -> None:
    """What has expired goes first, then what was not used for longest, down to the limit in bytes."""
    size = len(encode(TextOutput("done"))[0])
    async with opened(factory.make(cache_bytes=2 * size)) as store:
        port = Port(store)
        await port.serve()
        keys = [bytes([n]) * 20 for n in range(4)]
        for key in keys[:3]:
            await put(store, port, key)
            factory.clock.advance(120)
        await submit(store, same(keys[0]))  # used: now the second one is the oldest
        while await store.write(upkeep.prune_kept):
            pass
        ids = await submit(store, same(keys[0]), same(keys[1]), same(keys[2]))
        assert await statuses(store, ids) == ["completed", "pending", "completed"]
        factory.clock.advance(HOUR / 1000)
        await store.write(upkeep.prune_kept)
        assert await store.kept() == []


async def test_a_claim_that_takes_a_result_uses_it(factory: Factory) -> None:
    """It stays longer than what nobody took."""
    size = len(encode(TextOutput("done"))[0])
    async with opened(factory.make(cache_bytes=size)) as store:
        port = Port(store)
        await port.serve()
        keys = [bytes([n]) * 20 for n in range(2)]
        for key in keys:
            await put(store, port, key)
            factory.clock.advance(120)
        await submit(store, later())
        assert await store.join(does(await port.take(), keys[0]), HOUR) == "over"
        await store.write(upkeep.prune_kept)
        ids = await submit(store, *(same(key) for key in keys))
        assert await statuses(store, ids) == ["completed", "pending"]


async def test_the_bytes_of_what_is_kept_are_counted(factory: Factory) -> None:
    """As it comes, is kept anew, is used, goes by age, by hand and by the limit: one number, never a sum."""

    async def counted() -> tuple[int, int]:
        return await store.view(lambda view: view.one("kept_bytes")[0]), sum(kind.bytes for kind in await store.kept())

    size = len(encode(TextOutput("done"))[0])
    async with opened(factory.make(cache_bytes=4 * size)) as store:
        port = Port(store)
        await port.serve()
        for n in range(7):
            await put(store, port, bytes([n]) * 20)
        assert await counted() == (7 * size, 7 * size)
        assert await store.write(upkeep.prune_kept) is False
        assert await counted() == (4 * size, 4 * size)
        factory.clock.advance(120)
        await submit(store, same(bytes([6]) * 20, keep_ms=60_000))  # what is kept is too old for it
        again = encode(TextOutput("done again"))[0]
        await port.finish(does(await port.take(), bytes([6]) * 20), output=again, output_bytes=len(again))
        longer = len(again)
        assert await counted() == (3 * size + longer,) * 2
        await submit(store, same(bytes([5]) * 20))
        assert await counted() == (3 * size + longer,) * 2
        await store.purge(version="none")
        assert await counted() == (3 * size + longer,) * 2
        assert await store.purge(type=WORK) == 4
        assert await counted() == (0, 0)


async def test_a_result_beyond_the_whole_limit_is_not_kept(factory: Factory) -> None:
    """One value never drives out all others; one that just fits is kept."""
    size = len(encode(TextOutput("done"))[0])
    for limit, kept in ((3, 0), (size - 1, 0), (size, 1)):
        async with opened(factory.make(cache_bytes=limit)) as store:
            port = Port(store)
            await port.serve()
            await put(store, port)
            assert len(await store.kept()) == kept


async def test_two_processes_agree_on_one_leader(factory: Factory) -> None:
    """Submitted at the same moment through two processes, equal work still runs once."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        many = [[same() for _ in range(20)] for _ in range(6)]
        accepted = await asyncio.gather(*(store.submit(some) for store, some in zip([one, two] * 3, many, strict=True)))
        ids = [task.id for some in accepted for task in some]
        reasons = [(await state(one, id)).reason for id in ids]
        assert Counter(reasons) == {"ready": 1, "same_work": 119}


async def test_a_shared_end_is_marked(store: Any, port: Port) -> None:
    """The flag tells results that were computed from those that were taken."""
    await submit(store, same(), same())
    await port.finish(does(await port.take()))
    assert [bool(ended.flags & SHARED) for ended in port.ends] == [False, True]


@pytest.mark.parametrize("urgent", ["high", "near deadline"])
async def test_who_holds_what_an_urgent_task_waits_for_is_told(store: Any, port: Port, urgent: str) -> None:
    """Once, with the rank that it has now; whoever claims it later finds it flagged. Others change nothing."""
    (leader,) = await submit(store, same())
    claim = await port.take()
    assert not claim.flags & URGENT
    far_ms = store.now_ms() + 10 * AGEING_MS
    await submit(store, same(), same(priority=0), same(deadline_ms=far_ms))
    assert port.urgent == []
    options: dict[str, Any] = {"priority": 2} if urgent == "high" else {"deadline_ms": store.now_ms() + AGEING_MS // 2}
    await submit(store, same(**options), same(**options))
    rank = claim.rank - AGEING_MS if urgent == "high" else claim.rank
    assert [(id, abs(told - rank) < 1_000) for id, told in port.urgent] == [(leader, True)]
    await port.finish(claim, RETRY, error=error(), delay_ms=0)
    again = await port.take()
    assert (again.id, again.flags & URGENT) == (leader, URGENT)


async def test_what_is_urgent_as_others_wait_is_so_when_it_is_claimed(store: Any, port: Port) -> None:
    """Also at a distance: through equal work, and through children."""
    ids = await submit(store, same())
    (follower,) = await submit(store, same())
    (child,) = await submit(store, new(after=[follower]))
    await submit(store, new(after=[child], priority=3))
    claim = await port.take()
    assert (claim.id, claim.flags & URGENT) == (ids[0], URGENT)
    assert port.urgent == []


async def test_who_leads_next_is_urgent_for_those_that_wait_on(factory: Factory, store: Any, port: Port) -> None:
    """Also where it goes before an urgent one for the time that it has waited."""
    leader, old = await submit(store, same(), same())
    factory.clock.advance(2 * AGEING_MS / 1000)
    (urgent,) = await submit(store, same(priority=2))
    await store.cancel(leader)
    claim = await port.take()
    assert (claim.id, claim.flags & URGENT) == (old, URGENT)
    await store.cancel(urgent)
    (calm,) = await submit(store, same(key=b"c" * 20))
    await submit(store, same(key=b"c" * 20))
    await store.cancel(calm)
    assert not (await port.take()).flags & URGENT


async def test_a_claim_that_follows_tells_too(store: Any, port: Port) -> None:
    """What is compared only when it is claimed is as urgent for whom it follows."""
    await submit(store, later(), later(), later(priority=2))
    claims = await port.room(3)
    leader, calm = [claim for claim in claims if claim.priority == 1]
    (urgent,) = [claim for claim in claims if claim.priority == 2]
    assert await store.join(does(leader), HOUR) == "leads"
    assert await store.join(does(calm), HOUR) == "over"
    assert port.urgent == []
    assert await store.join(does(urgent), HOUR) == "over"
    assert [id for id, _ in port.urgent] == [leader.id]


async def test_the_other_process_is_told(factory: Factory) -> None:
    """Where another one holds it the bell tells that."""
    async with opened(factory.make()) as holder, opened(factory.make()) as other:
        port = Port(holder)
        await port.serve()
        (leader,) = await submit(holder, same())
        await port.take()
        await submit(other, same(priority=2))
        async with asyncio.timeout(60):
            while not port.urgent:
                port._news.clear()
                await port._news.wait()
        assert [id for id, _ in port.urgent] == [leader]
