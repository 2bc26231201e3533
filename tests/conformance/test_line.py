"""What goes before a ready task, and how fast: counted over all that the same lanes of the same workers run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.conformance.kit import OTHER, OUTPUT, WORK, Factory, Port, new, opened, submit

from mainspring.scheduling.explain import sentence
from mainspring.store.base import COMPLETED, Finish, HandlerRecord
from mainspring.store.standing import Line, Turns
from mainspring.tasks import Rate, Usage

pytestmark = pytest.mark.anyio
ELSEWHERE = "custom:elsewhere"


def handler(kind: str, lane: str) -> HandlerRecord:
    return HandlerRecord(kind, "1", lane, "{}", "{}", "")


async def register(store: Any, *handlers: HandlerRecord) -> None:
    """A handler may be named again with another lane: the newest one counts."""
    await store.register([one.type for one in handlers], handlers)


async def line_of(store: Any, id: bytes) -> Line:
    line = (await store.standing(id, in_line=True)).line
    assert isinstance(line, Line)
    return line


async def end(port: Port, n: int, lane: str = "async", ahead_ms: int = 0) -> None:
    """So many attempts end now, or a moment after now; the lane is what is noted of them."""
    now = port.store.now_ms() + ahead_ms
    for claim in await port.room(n):
        del port.held[claim.id]
        port.store.finish(Finish(claim, COMPLETED, now, now, OUTPUT, lane, Usage(0.01)))
    port.lanes["async"].limit -= n
    port.lanes["async"].released += n
    await port.settle()


async def test_all_kinds_of_its_lane_count(store: Any, port: Port) -> None:
    """Better ones of other types, groups and namespaces go first as well; those of other lanes and worse ones don't."""
    await register(store, handler(WORK, "async"), handler(OTHER, "async"), handler(ELSEWHERE, "thread"))
    await submit(store, new(), new(type=OTHER), new(group="g"), new(namespace="n", priority=3), new(type=ELSEWHERE))
    (id,) = await submit(store, new())
    await submit(store, new(), new(priority=0))
    assert await line_of(store, id) == Line("async", 4, ahead_is_more=False, per_s=None)
    assert (await store.standing(id)).line is None, "only where it is asked for"
    assert (await store.standing(id)).ahead == 1, "of its own kind"


async def test_what_may_not_start_does_not_count(store: Any, port: Port) -> None:
    """What is paused or at its limit, and what only other workers serve, holds nobody up."""
    await register(store, handler(WORK, "async"), handler(OTHER, "async"))
    await submit(store, new(type=OTHER), new(group="g"), new(type=ELSEWHERE))
    (id,) = await submit(store, new())
    assert (await line_of(store, id)).ahead == 2
    await store.pause(group="g")
    assert (await line_of(store, id)).ahead == 1
    await store.pause(type=OTHER)
    assert (await line_of(store, id)).ahead == 0
    await store.resume(group="g")
    await store.limit("g", concurrency=1)
    assert (await line_of(store, id)).ahead == 1
    await port.take()
    await submit(store, new(group="g", priority=3))
    assert (await line_of(store, id)).ahead == 0, "its group runs as many as it may"


async def test_shares_take_turns_with_it(store: Any, port: Port) -> None:
    """Of its own share what goes first counts, of the others as many as they have turns meanwhile, by weight."""
    await register(store, handler(WORK, "async"))
    await store.share(group="a", weight=2.0)
    await store.share(group="b", weight=1.0)
    await submit(store, *(new(group="a") for _ in range(20)), *(new(group="b", priority=3) for _ in range(3)))
    ids = await submit(store, *(new() for _ in range(3)))
    line = await line_of(store, ids[0])
    assert line == Line("async", 3, ahead_is_more=False, per_s=None, turns=Turns("", "", 1.0, 0, 2, 3))
    line = await line_of(store, ids[2])
    assert line.turns == Turns("", "", 1.0, own=2, shares=2, others=6 + 3)
    assert line.ahead == 11
    said = sentence(await store.standing(ids[2], in_line=True), store.now_ms())
    assert said == (
        "It is ready and its share (what has no share of its own, weight 1) takes turns with 2 others in the "
        "async lane: 2 of its own and at most 9 of theirs go first; it starts when a slot falls free."
    )
    await store.pause(group="a")
    assert (await line_of(store, ids[0])).turns == Turns("", "", 1.0, 0, 1, 1)
    await store.pause(group="b")
    assert await line_of(store, ids[2]) == Line("async", 2, ahead_is_more=False, per_s=None), "alone it has everything"


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.5), (0.4, 2.0)])
async def test_no_more_go_first_than_is_said(store: Any, port: Port, weights: tuple[float, float]) -> None:
    """However far the turns are: each task begins after as many others as was said, or earlier by a turn of each."""
    await register(store, handler(WORK, "async"))
    await store.share(group="a", weight=weights[0])
    await store.share(namespace="n", weight=weights[1])
    kinds: list[dict[str, str]] = [{"group": "a"}, {"namespace": "n"}, {}]
    sent = await submit(store, *(new(**kind) for kind in kinds for _ in range(8)))
    before = [(await port.take()).id for _ in range(3)]
    told = {id: (await line_of(store, id)).ahead for id in sent if id not in before}
    for n in range(len(told)):
        id = (await port.take()).id
        most = sum(1 + max(weights) / min(1.0, *weights) for _ in kinds)
        assert told[id] - most <= n <= told[id]


async def test_the_newest_handler_tells_the_lane(factory: Factory, store: Any, port: Port) -> None:
    """A type without a handler is a built-in one: those run in threads."""
    (id,) = await submit(store, new())
    assert (await line_of(store, id)).lane == "thread"
    await register(store, handler(WORK, "process"))
    factory.clock.advance(1)
    await store.register([WORK], [handler(WORK, "async")._replace(version="2")])
    assert (await line_of(store, id)).lane == "async"


async def test_the_rate_is_that_since_it_waits(factory: Factory, store: Any, port: Port) -> None:
    """Of its lane alone, from the moment it became ready."""
    await register(store, handler(WORK, "async"))
    await submit(store, *(new() for _ in range(20)))
    await end(port, 10)
    factory.clock.advance(3600)
    (id,) = await submit(store, new(priority=0))
    await end(port, 2, "thread")
    factory.clock.advance(2)
    assert (await line_of(store, id)).per_s is None, "nothing of its lane has ended since"
    await end(port, 6)
    assert (await line_of(store, id)).per_s == 3.0
    factory.clock.advance(2)
    assert await line_of(store, id) == Line("async", 2, ahead_is_more=False, per_s=1.5)


async def test_a_new_task_goes_by_what_ended_just_before(factory: Factory, store: Any, port: Port) -> None:
    """Since the first end of the last seconds, what ended after it: before that there may have been nothing to do. From
    few ends nothing is concluded, and from old ones neither."""
    await register(store, handler(WORK, "async"))
    await submit(store, *(new() for _ in range(20)))
    await end(port, 2)
    (id,) = await submit(store, new(priority=0))
    factory.clock.advance(0.5)
    assert (await line_of(store, id)).per_s is None
    await end(port, 2)
    (id,) = await submit(store, new(priority=0))
    assert (await line_of(store, id)).per_s == 4.0
    factory.clock.advance(3600)
    (id,) = await submit(store, new(priority=0))
    assert (await line_of(store, id)).per_s is None


async def test_ends_of_this_very_moment_give_no_rate(factory: Factory, store: Any, port: Port) -> None:
    """What ended since the question was asked, or by a clock that is ahead, was no time ago or less."""
    await register(store, handler(WORK, "async"))
    await submit(store, *(new() for _ in range(20)))
    await end(port, 1)
    await end(port, 2, ahead_ms=3)
    (id,) = await submit(store, new(priority=0))
    assert (await line_of(store, id)).per_s is None
    factory.clock.advance(2)
    await end(port, 3, ahead_ms=5_000)
    assert (await line_of(store, id)).per_s == 3.0, "and what is told too early counts as of now"


async def test_the_rate_is_the_present_one(factory: Factory, store: Any, port: Port) -> None:
    """That of the last seconds, however long the task waits; what stood still until just now does not count."""
    await register(store, handler(WORK, "async"))
    await submit(store, *(new() for _ in range(60)))
    (id,) = await submit(store, new(priority=0))
    await end(port, 5)
    factory.clock.advance(60)
    for _ in range(8):
        await end(port, 2)
        factory.clock.advance(0.5)
    assert (await line_of(store, id)).per_s == 3.5, "fourteen in the four seconds since the first two"
    for _ in range(10):
        factory.clock.advance(1)
        await end(port, 2)
    assert (await line_of(store, id)).per_s == 2.0
    factory.clock.advance(40)
    assert (await line_of(store, id)).per_s == 34 / 54, "of the last minute, where too little ended lately"


async def test_other_workers_ends_do_not_count(factory: Factory, store: Any, port: Port) -> None:
    """A worker that doesn't serve the type doesn't bring its turn nearer."""
    await register(store, handler(WORK, "async"))
    async with opened(factory.make()) as other:
        lanes: Any = {"async": [ELSEWHERE]}
        stranger = Port(other, **lanes)
        await stranger.serve()
        (id,) = await submit(store, new())
        await submit(store, *(new(type=ELSEWHERE) for _ in range(4)))
        factory.clock.advance(2)
        await end(stranger, 4)
        assert await line_of(store, id) == Line("async", 0, ahead_is_more=False, per_s=None)


async def test_many_are_not_counted_to_the_end(store: Any, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are said to be more."""
    from mainspring.store.sql import line

    monkeypatch.setattr(line, "COUNT_LIMIT", 5)
    ids = await submit(store, *(new() for _ in range(8)))
    assert (await line_of(store, ids[4]))[1:3] == (4, False)
    assert (await line_of(store, ids[7]))[1:3] == (5, True)


async def test_a_pause_tells_who_asked_for_it(factory: Factory, store: Any, port: Port) -> None:
    """And since when; asking again changes nothing."""
    await store.pause(type=WORK)
    since = datetime.fromtimestamp(store.now_ms() / 1000, UTC)
    factory.clock.advance(1)
    async with opened(factory.make()) as other:
        await other.pause(type=WORK)
    (id,) = await submit(store, new())
    standing = await store.standing(id)
    assert standing.reason == "paused"
    (pause,) = standing.pauses
    assert (pause.type, pause.since) == (WORK, since)
    assert pause.who == f"process {store.env.pid()} on {store.env.host()}"


async def test_parents_tell_how_they_stand(store: Any, port: Port) -> None:
    """Those that have not ended, by their reasons too; and how many there are in all."""
    runs, waits, over = await submit(store, new(), new(not_before_ms=store.now_ms() + 10_000), new())
    first, second = await port.room(2)
    await port.finish(second)
    store.started(first, store.now_ms())
    (id,) = await submit(store, new(after=[runs, waits, over]))
    standing = await store.standing(id)
    assert [(parent.id, parent.state) for parent in standing.parents] == [(runs, "running"), (waits, "delayed")]
    assert standing.parents_all == 3
    assert second.id == over


async def test_claimed_tasks_name_their_worker(store: Any, port: Port) -> None:
    """Who has it, and that it was asked to cancel it."""
    (id,) = await submit(store, new())
    await port.take()
    said = sentence(await store.standing(id, in_line=True), store.now_ms())
    assert said == f"Worker {store.worker_id} has claimed it and starts it when a slot falls free."
    assert await store.cancel(id) == "held"
    said = sentence(await store.standing(id, in_line=True), store.now_ms())
    assert said == f"Worker {store.worker_id} has claimed it and was asked to cancel it."


async def explained(store: Any, id: bytes) -> str:
    return sentence(await store.standing(id, in_line=True), store.now_ms())


async def test_a_limit_counts_all_that_wait_for_it(store: Any, port: Port) -> None:
    """Whatever their type and namespace; not what waits for something else too."""
    await store.limit("g", concurrency=1)
    await submit(store, new(group="g"))
    await port.take()
    await submit(store, *(new(group="g") for _ in range(3)), new(group="g", namespace="n"), new(group="h"))
    await submit(store, new(group="g", type=ELSEWHERE), new(group="g", namespace="own"))
    (id,) = await submit(store, new(group="g", type=OTHER))
    await store.limit("g", namespace="own", rate=Rate(1, 3_600_000))
    full = "Group g is at its limit: 1/1 are claimed or run"
    said = f"{full}; 5 of its tasks go first, and the next one starts when one of the group ends."
    assert await explained(store, id) == said, "nobody serves one of them; that of the other limit may begin"
    await store.pause(type=WORK, namespace="default")
    assert await explained(store, id) == said.replace("5 of", "2 of")
    (first,) = await submit(store, new(group="g", type=OTHER, priority=3))
    next_one = f"{full}; 0 of its tasks go first, and it starts when one of the group ends."
    assert await explained(store, first) == next_one


async def test_all_limits_that_are_full_are_named(store: Any, port: Port) -> None:
    """One of them alone would tell a wrong time."""
    await store.limit("g", concurrency=2)
    await store.limit("g", namespace="n", concurrency=1, rate=Rate(1, 3_600_000))
    await submit(store, new(group="g", namespace="n"), new(group="g"))
    await port.room(2)
    (other,) = await submit(store, new(group="g"))
    await submit(store, new(group="g", namespace="n"))
    (id,) = await submit(store, new(group="g", namespace="n"))
    (behind,) = await submit(store, new(group="g"))
    said = await explained(store, id)
    assert said == (
        "Group g is at its limit: 2/2 are claimed or run; and group g in namespace n is at its limit: 1/1 are claimed "
        "or run; and group g in namespace n: 1 task an hour is used up; the next starts in 60 min; 2 of its tasks go "
        "first, and the next one starts when each of these has room."
    )
    full = "Group g is at its limit: 2"
    ends = "and the next one starts when one of the group ends."
    said = f"{full}/2 are claimed or run; 1 of its tasks goes first, {ends}"
    assert await explained(store, behind) == said, "others wait for more"
    await store.limit("g", concurrency=1)
    ends = "and it starts when 2 of the group have ended."
    assert await explained(store, other) == f"{full}/1 are claimed or run; 0 of its tasks go first, {ends}"
