"""What is said of a task that waits is so: held against what the claims do next."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, new, opened, submit
from tests.conformance.test_costs import MINUTE, RATE, costing, look
from tests.conformance.test_line import ELSEWHERE, end, explained, handler, line_of, register
from tests.conformance.test_resources import TWO, large, needs, pass_over

from mainspring.store.base import RESERVES, WANTS_KEPT, Spec
from mainspring.store.sql.obstacles import OWN_SLOT
from mainspring.store.standing import Line
from mainspring.tasks import CostRate, Rate, Resources, TaskId, Usage

pytestmark = pytest.mark.anyio


def offer(store: Any, **state: Any) -> None:
    store.offer(msgspec.json.encode(state))


async def test_what_is_passed_over_does_not_go_first(store: Any, port: Port) -> None:
    """Neither of its own type nor of another one: it begins at once, as is said; nor does what its worker withholds."""
    await register(store, handler(WORK, "async"), handler(OTHER, "async"))
    pass_over(store, port, TWO)
    offer(store, passes=TWO)
    await submit(store, *(large(priority=2) for _ in range(3)), needs(Resources(cpu=0, custom={"seat": 1}), priority=2))
    (id,) = await submit(store, new())
    (other,) = await submit(store, new(type=OTHER))
    assert (await line_of(store, id)).ahead == 1
    assert (await line_of(store, other)).ahead == 2
    assert [claim.id for claim in await port.room(3)][1:] == [id, other]
    await submit(store, new(type=OTHER), new(type=OTHER))
    (last,) = await submit(store, new())
    assert (await line_of(store, last)).ahead == 2
    offer(store, passes=TWO, withheld={OTHER: 16})
    assert (await line_of(store, last)).ahead == 0


async def test_only_workers_that_can_run_it_have_a_line(factory: Factory, store: Any, port: Port) -> None:
    """What others would run goes first nowhere where it can run itself."""
    await register(store, handler(WORK, "async"), handler(OTHER, "async"))
    async with opened(factory.make()) as larger:
        one = Port(larger, 0, WORK)
        await one.serve()
        await submit(store, new(type=OTHER), new())
        (id,) = await submit(store, large())
        assert (await line_of(store, id)).ahead == 2
        offer(store, passes=TWO)
        assert (await line_of(store, id)).ahead == 1
        assert [claim.id for claim in await one.room(2)][1] == id


async def test_of_a_group_what_is_passed_over_does_not_go_first(store: Any, port: Port) -> None:
    """It does not wait for the group's limit."""
    await store.limit("a", concurrency=1)
    await submit(store, new(group="a"))
    await port.take()
    pass_over(store, port, TWO)
    offer(store, passes=TWO)
    await submit(store, large(group="a"), large(group="a"))
    (id,) = await submit(store, new(group="a"))
    said = "Group a is at its limit: 1/1 are claimed or run; 0 of its tasks go first, "
    said += "and it starts when one of the group ends."
    assert await explained(store, id) == said


async def test_a_limit_that_will_keep_it_is_told(store: Any, port: Port) -> None:
    """Its group has room, and not for all that go first: it does not start when a slot falls free."""
    await register(store, handler(WORK, "async"), handler(OTHER, "async"))
    await store.limit("a", concurrency=3)
    await store.limit("a", namespace="n", rate=Rate(1, MINUTE))
    await submit(store, new(group="a"))
    await port.take()
    first, *_ = await submit(store, new(type=OTHER), *(new(group="a", namespace="n") for _ in range(3)))
    told = "It is ready and {} first in the async lane; {}."
    (own,) = await submit(store, new(group="a", namespace="n"))
    lets = "group a in namespace n lets 1 more begin now, and 3 of its tasks go first"
    assert await explained(store, own) == told.format("4 tasks go", lets)
    next_one, id = await submit(store, new(group="a"), new(group="a"))
    falls = "it starts when a slot falls free"
    assert await explained(store, next_one) == told.format("5 tasks go", falls), "of those in n one may begin"
    lets = "group a lets 2 more begin now, and 2 of its tasks go first"
    assert await explained(store, id) == told.format("6 tasks go", lets)
    await store.pause(namespace="n")
    assert await explained(store, id) == told.format("2 tasks go", falls)
    await store.resume(namespace="n")
    begun = [claim.id for claim in await port.room(10)]
    assert begun[:1] + begun[2:] == [first, next_one]


async def begins_in(factory: Factory, store: Any, port: Port, id: bytes) -> None:
    """A task begins when its limit says that the next one does, and not before."""
    limits = (await store.standing(id, in_line=True)).limits
    seconds = max(limit.next_in for limit in limits)
    begun = len(port.order)
    factory.clock.advance(seconds - 0.05)
    await look(store, port)
    assert len(port.order) == begun
    factory.clock.advance(0.06)
    await look(store, port)
    assert [claim.id for claim in port.order[begun:]] == [id]


@pytest.mark.parametrize("why", ["paused", "unserved", "never"])
async def test_nobody_saves_up_for_what_can_not_start(factory: Factory, store: Any, port: Port, why: str) -> None:
    """The next one of a group is the first that can: its cost tells the time."""
    await store.limit("a", cost_rate=RATE)
    first = costing(5_000, type={"paused": OTHER, "unserved": ELSEWHERE}.get(why, WORK))
    if why == "paused":
        await store.pause(type=OTHER)
    elif why == "never":
        pass_over(store, port, TWO)
        offer(store, passes=TWO)
        first.spec = msgspec.msgpack.encode(Spec(cost=5_000, resources=Resources(cpu=0, custom={"seat": 5})))
        first.flags |= RESERVES
    await submit(store, costing(5_000))
    await port.room(5)
    _, id = await submit(store, first, costing(1_200))
    (limit,) = (await store.standing(id, in_line=True)).limits
    assert (limit.cost_next, limit.next_in) == (1_200, 2)
    await begins_in(factory, store, port, id)


@pytest.mark.parametrize(
    "own", [{"concurrency": 1}, {"rate": Rate(1, MINUTE)}, {"cost_rate": CostRate(300, 60 * MINUTE)}]
)
async def test_others_go_by_what_waits_for_its_namespace(
    factory: Factory, store: Any, port: Port, own: dict[str, Any]
) -> None:
    """Where a task's own limit keeps it, that of all namespaces saves nothing up for it."""
    await store.limit("a", cost_rate=RATE)
    await store.limit("a", namespace="n", **own)
    await submit(store, costing(4_800), costing(200, namespace="n"))
    await port.room(5)
    _, id = await submit(store, costing(150 if "cost_rate" in own else 5_000, namespace="n"), costing(2_000))
    (limit,) = (await store.standing(id, in_line=True)).limits
    assert (limit.namespace, limit.cost_next, limit.next_in) == (None, 2_000, 10)
    await begins_in(factory, store, port, id)


async def test_costs_are_told_in_full(store: Any, port: Port) -> None:
    """No figure is rounded to powers of ten; where a task needs more than there can be, that is said; and where a debt
    is more than there can be, so is what to do if that is wrong."""
    await store.limit("a", cost_rate=CostRate(2_000_000, MINUTE))
    await submit(store, costing(1_987_654.25))
    await port.room(1)
    (id,) = await submit(store, costing(1_234_567))
    said = await explained(store, id)
    assert (
        "of 2,000,000 cost a minute 12,345 are left and the next one needs 1,234,567; the next starts in 36.7 s;"
        in said
    )
    await store.limit("a", cost_rate=CostRate(1_000, MINUTE))
    said = await explained(store, id)
    remedy = " (if that is wrong, take the cost rate off and set it again)"
    assert f"1,000 cost a minute are used up, and 1,986,654 more{remedy};" in said
    await store.limit("a")
    await store.limit("a", cost_rate=CostRate(2_000_000, MINUTE))
    await port.room(1)
    await port.finish(port.order[1], started_ms=store.now_ms(), usage=Usage(cost=2_000_001))
    (id,) = await submit(store, costing(1))
    assert "2,000,000 cost a minute are used up, and 1 more; the next starts in" in await explained(store, id)


async def test_both_rates_are_told(store: Any, port: Port) -> None:
    """Where one lets none begin and the other has not what the next one needs."""
    await store.limit("a", rate=Rate(1, MINUTE), cost_rate=RATE)
    await submit(store, costing(5_000))
    await port.room(1)
    (id,) = await submit(store, costing(4_000))
    assert await explained(store, id) == (
        "Group a: 1 task a minute is used up and of 6,000 cost a minute 1,000 are left and the next one needs 4,000; "
        "the next starts in 60.0 s; 0 of its tasks go first."
    )


async def test_searches_wait_for_searches(factory: Factory, store: Any, port: Port) -> None:
    """They have a slot of their own: nothing else of their lane goes first, and their rate is their own."""
    (search,) = OWN_SLOT
    port = Port(store, 0, WORK, search)
    await port.serve()
    await register(store, handler(WORK, "thread"))
    await store.register([WORK, search], [])
    await submit(store, *(new(priority=2) for _ in range(20)), new(type=search))
    (id,) = await submit(store, new(type=search))
    assert await line_of(store, id) == Line("thread", 1, ahead_is_more=False, per_s=None, has_own_slot=True)
    said = await explained(store, id)
    assert said == (
        "It is ready and 1 task of its type goes first; it starts when a slot of the thread lane falls free, or the "
        "one of its type."
    )
    (work,) = await submit(store, new())
    assert (await line_of(store, work)).ahead == 22
    await end(port, 10, "thread")
    factory.clock.advance(2)
    assert (await line_of(store, work)).per_s == 5.0
    assert (await line_of(store, id)).per_s is None


async def test_what_lacks_resources_holds_slots_of_no_other_lane(store: Any, port: Port) -> None:
    """A claim that is parked has no slot; it leaves none of another lane free, and neither does one that is gone."""
    await store.register([WORK, OTHER], [handler(WORK, "async"), handler(OTHER, "thread")], {"async": 2, "thread": 2})
    ids = await submit(store, *(new(type=OTHER) for _ in range(3)), *(new() for _ in range(2)))
    await port.room(5)
    offer(store, waits={str(TaskId(id)): "needs 9 seat" for id in (*ids[:3], TaskId().bytes)})
    (work,), (other,) = await submit(store, new()), await submit(store, new(type=OTHER))
    assert not (await line_of(store, work)).has_slot
    assert (await line_of(store, other)).has_slot


async def test_slots_of_workers_that_nobody_hears_of_are_not_free(
    factory: Factory, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are waited for, as long as there are any."""
    async with opened(factory.make()) as other:
        for one, slots in ((store, 0), (other, 1)):
            await Port(one, 0, WORK).serve()
            await one.register([WORK], [handler(WORK, "async")], {"async": slots})
        (id,) = await submit(store, new())
        assert (await line_of(store, id)).has_slot
        silent = {other.worker_id: 17.0}
        monkeypatch.setattr(store, "silences", lambda view, workers: silent)
        assert await explained(store, id) == (
            "It is ready and the next one in the async lane; it starts when a slot falls free."
        )
        silent[store.worker_id] = 12.0
        assert f"worker {other.worker_id} has not been heard of for 17 s: " in await explained(store, id)


async def test_a_lowered_limit_takes_nothing_from_what_goes_first(store: Any, port: Port) -> None:
    """Where more of a namespace run than it may have now, those of others go first all the same."""
    await store.limit("g", concurrency=10)
    await submit(store, *(new(group="g", namespace="n") for _ in range(5)))
    await port.room(5)
    await store.limit("g", namespace="n", concurrency=1)
    await submit(store, *(new(group="g") for _ in range(6)), *(new(group="g", namespace="n") for _ in range(20)))
    (id,) = await submit(store, new(group="g"))
    soon = (await line_of(store, id)).soon
    assert soon is not None
    assert (soon.places, soon.ahead) == (5, 6)


async def test_the_root_of_what_is_waited_for(store: Any, port: Port) -> None:
    """Parents that are ready tell what keeps them; those that wait themselves name the one that all waits for."""
    await store.limit("g", concurrency=1)
    await submit(store, new(group="g"))
    await port.take()
    await store.pause(type=OTHER, namespace="p")
    pass_over(store, port, TWO)
    offer(store, passes=TWO)
    parents = [new(group="g"), new(type=OTHER, namespace="p"), new(type=ELSEWHERE), large(), new()]
    ids = await submit(store, *parents)
    served = f"served by no living worker: {ELSEWHERE}"
    wanted = ["at a limit of group g", "paused", served, "too large for any living worker", "ready"]
    for id, state in zip(ids, wanted, strict=True):
        (child,) = await submit(store, new(after=[id]))
        assert await explained(store, child) == f"It waits for 1 of its 1 parents: {TaskId(id)} ({state})."
        (grandchild,) = await submit(store, new(after=[child]))
        (last,) = await submit(store, new(after=[grandchild]))
        said = f"It waits for 1 of its 1 parents: {TaskId(grandchild)} (waits for {TaskId(id)}, {state})."
        assert await explained(store, last) == said


async def test_the_root_of_equal_work(store: Any, port: Port) -> None:
    """The one that leads may wait itself."""
    (root,) = await submit(store, new(type=OTHER))
    await store.pause(type=OTHER)
    work: dict[str, Any] = {"flags": WANTS_KEPT, "work": b"w" * 16, "keep_ms": 1_000}
    (first,) = await submit(store, new(group="g", **work))
    (second,) = await submit(store, new(**work))
    said = f"Task {TaskId(first)} ({{}}) does the same work; what comes of it will do for this one too."
    assert await explained(store, second) == said.format("ready")
    (child,) = await submit(store, new(after=[second, root]))
    assert f"{TaskId(second)} (waits for {TaskId(first)}, ready), {TaskId(root)} (paused)" in await explained(
        store, child
    )
    await store.limit("g", concurrency=1)
    await submit(store, new(group="g", priority=3))
    await port.take()
    assert await explained(store, second) == said.format("at a limit of group g")
