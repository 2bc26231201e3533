"""What a worker takes no more of, and what it says of tasks that lack resources."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.conformance.kit import OTHER, WORK, Factory, Port, error, new, opened, submit

from mainspring.store.base import RELEASED, RESERVES, RETRY, SHORT, NewTask, Spec
from mainspring.store.ready import ANYWHERE
from mainspring.store.sql import caretaker, weighing
from mainspring.tasks import Resources, TaskId
from mainspring.tasks.needs import NOTHING, Passes

pytestmark = pytest.mark.anyio
LIMIT_S = 30.0
DULL = 64  # so many are read in one step
TWO = Passes(has={"seat": 2.0}, types={WORK: {}})


def large(**options: Any) -> NewTask:
    """A task that needs more than `TWO` has."""
    return needs(Resources(cpu=0, custom={"seat": 5}), **options)


def needs(resources: Resources, **options: Any) -> NewTask:
    return new(flags=RESERVES, spec=msgspec.msgpack.encode(Spec(resources=resources)), **options)


def pass_over(store: Any, port: Port, passes: Passes) -> None:
    port.lanes["async"].passing.passes = passes
    store.look_anew()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One for each task that a claim looks at."""
    seen: list[Any] = []
    said = weighing.said

    def look(spec: bytes | None) -> Resources | None:
        seen.append(spec)
        return said(spec)

    monkeypatch.setattr(weighing, "said", look)
    return seen


async def test_withheld_types_are_not_claimed(store: Any, port: Port) -> None:
    """Neither those that are stored already nor new ones; others are, whatever stands before them."""
    (first,) = await submit(store, new())
    lane = port.lanes["async"]
    lane.withheld = {WORK: ANYWHERE}
    (second,) = await submit(store, new(type=OTHER))
    assert [claim.id for claim in await port.room(10)] == [second]
    (third,) = await submit(store, new())
    lane.withheld = {}
    store.look_anew()
    await port.until(lambda: {first, third} <= port.held.keys())


@pytest.mark.parametrize("is_weighed", [False, True])
async def test_of_withheld_types_what_goes_first_is_claimed(
    factory: Factory, store: Any, port: Port, is_weighed: bool
) -> None:
    """All that goes before the place that is set for the type, and nothing behind it; that is left for others."""
    lane = port.lanes["async"]
    if is_weighed:
        pass_over(store, port, TWO)
    held = await submit(store, new(priority=2), new(priority=1))
    claims = await port.room(2)
    assert [claim.id for claim in claims] == held
    last = claims[1]
    lane.withheld = {WORK: (last.rank, last.seq)}
    first = await submit(store, *(new(priority=2) for _ in range(3)))
    behind = await submit(store, *(new(priority=1) for _ in range(3)), *(new(priority=0) for _ in range(3)))
    best = await submit(store, new(priority=3), new(priority=0, type=OTHER))
    assert [claim.id for claim in await port.room(2)] == [best[0], first[0]]
    assert [claim.id for claim in await port.room(20)] == [*first[1:], best[1]]
    async with opened(factory.make()) as other:
        third = Port(other, 0, WORK)
        await third.serve()
        assert [claim.id for claim in await third.room(7)] == behind
        low, high = await submit(store, new(priority=0), new(priority=3))
        await port.until(lambda: high in port.held)
        await third.until(lambda: low in third.held)  # it is told of what is left
    lane.withheld = {}
    store.look_anew()
    await port.until(lambda: {*behind, low} <= port.held.keys())


@pytest.mark.parametrize("priority", [1, 2])
async def test_what_can_never_run_here_is_passed_over(store: Any, port: Port, priority: int) -> None:
    """Tasks behind it are claimed in their order, it is never; once there is more, it goes first."""
    pass_over(store, port, TWO)
    first = await submit(store, *(large(priority=priority) for _ in range(3)))
    fits = await submit(store, new(), needs(Resources(cpu=0, custom={"seat": 2})), new(type=OTHER))
    await submit(store, large())
    assert [claim.id for claim in await port.room(2)] == fits[:2]
    assert [claim.id for claim in await port.room(10)] == fits[2:]
    (late,) = await submit(store, new())
    (last,) = await submit(store, large())
    assert [claim.id for claim in port.order] == [*fits, late]
    assert {(await store.info(id)).attempt for id in (*first, last)} == {0}
    pass_over(store, port, NOTHING)
    await port.until(lambda: len(port.order) == 9)
    assert [claim.id for claim in port.order][4:7] == first


async def test_what_there_is_may_change(store: Any, port: Port) -> None:
    """What was passed over is judged anew, however much it is."""
    pass_over(store, port, TWO)
    await submit(store, *(needs(Resources(custom={"seat": 9})) for _ in range(2 * DULL)))
    (some,) = await submit(store, large())
    assert await port.room(1) == []
    pass_over(store, port, Passes(has={"seat": 5.0}, types={WORK: {}}))
    await port.settle()
    assert [claim.id for claim in port.order] == [some]


async def test_what_a_type_needs_that_says_nothing(store: Any, port: Port) -> None:
    """A task that says what it needs is judged by that, all others by what they were declared with."""
    pass_over(store, port, Passes(has={"cpu": 2.0}, types={WORK: {"cpu": 3.0}}))
    await submit(store, new(), new())
    (fits,) = await submit(store, needs(Resources(cpu=2)))
    await submit(store, new())
    assert [claim.id for claim in await port.room(5)] == [fits]


async def test_passing_over_costs_what_is_new(
    factory: Factory, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait in front: each is looked at once, in as many transactions as it takes, and a few of them for a
    claim."""
    monkeypatch.setattr(caretaker, "_HEARTBEAT_S", 2 * LIMIT_S)
    monkeypatch.setattr(caretaker, "TICK_S", 2 * LIMIT_S)
    n = 4_500
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        for _ in range(5):
            await submit(store, *(large() for _ in range(n // 5)))
        (last,) = await submit(store, new())
        port.lanes["async"].limit = 1
        pass_over(store, port, TWO)
        async with asyncio.timeout(LIMIT_S):
            await port.until(lambda: port.order)
        assert [claim.id for claim in port.order] == [last]
        assert n < len(looks) <= n + 2
        looks.clear()
        for n in range(20):
            await port.finish(port.order[-1])
            (id,) = await submit(store, new(priority=n % 3))
            assert [claim.id for claim in await port.room(1)] == [id]
        assert len(looks) < 20 * 3 * DULL


async def test_what_was_found_and_not_taken(store: Any, port: Port) -> None:
    """Tasks far apart that were found together, for which there was no room after all, are found again."""
    pass_over(store, port, TWO)
    (first,) = await submit(store, new())
    others = await submit(store, new(type=OTHER), new(type=OTHER))
    more = []
    for _ in range(2):
        *_, fits = await submit(store, *(large() for _ in range(2 * DULL)), new())
        more.append(fits)
    assert [claim.id for claim in await port.room(3)] == [first, *others]
    assert [(await port.take()).id for _ in more] == more


async def test_what_comes_again_in_the_midst_of_those(store: Any, port: Port) -> None:
    """A task that is given back is found at once among those that are passed over."""
    before = await submit(store, *(large() for _ in range(2 * DULL)))
    (fits,) = await submit(store, new())
    await submit(store, *(large() for _ in range(2 * DULL)))
    pass_over(store, port, TWO)
    (claim,) = await port.room(2)
    assert claim.id == fits
    await submit(store, large())
    await port.finish(claim, RELEASED, is_counted=False)
    assert [claim.id for claim in port.order] == [fits, fits]
    assert (await store.info(before[0])).attempt == 0


async def test_what_one_worker_passes_over_another_takes(factory: Factory, store: Any, port: Port) -> None:
    """A larger worker on the same store has them at once, and leaves the others what they can run."""
    pass_over(store, port, TWO)
    big = await submit(store, *(large() for _ in range(3)))
    (fits,) = await submit(store, new())
    async with opened(factory.make()) as beside:
        richer = Port(beside)
        await richer.serve()
        assert [claim.id for claim in await richer.room(2)] == big[:2]
        assert [claim.id for claim in await port.room(5)] == [fits]
        for claim in list(richer.held.values()):
            await richer.finish(claim, RELEASED, is_counted=False)
        (more,) = await submit(store, new())
        assert [claim.id for claim in port.order] == [fits, more]
        assert [claim.id for claim in await richer.room(5)] == big
        (told,) = await submit(store, large())
        await richer.until(lambda: told in richer.held)


async def test_what_is_said_of_tasks(factory: Factory, store: Any, port: Port) -> None:
    """Of claims by whoever holds them; of ready ones where all that could take them have said why they don't."""
    await store.register([WORK], [])
    (claimed,) = await submit(store, new())
    await port.room(1)
    port.lanes["async"].limit = 0
    (ready,) = await submit(store, new())
    text = {"waits": {str_of(claimed): "needs more"}, "withheld": {WORK: 3}}
    await says(store, claimed, [("waits", "needs more")], text)
    assert (await store.standing(claimed)).reason == "resources"
    await says(store, ready, [("withheld", "3")], text)
    await says(store, ready, [("never", "needs too much")], {"never": {str_of(ready): "needs too much"}})
    await says(store, ready, [("closed", "it is full")], {"closed": "it is full"})
    async with opened(factory.make()) as beside:
        await beside.register([WORK], [])
        assert (await store.standing(ready)).reason == "ready"  # that one may take it
        await says(beside, ready, [("closed", "it is full"), ("never", "no")], {"never": {str_of(ready): "no"}})
    assert [one.how for one in (await store.standing(ready)).shortages] == ["closed"]  # it has gone
    await says(store, ready, [], None)
    assert (await store.standing(ready)).reason == "ready"


async def test_what_is_said_of_tasks_that_fit_nowhere(factory: Factory, store: Any, port: Port) -> None:
    """Where each worker that serves the type has too little, each with what it has, the one with the most first."""
    async with opened(factory.make()) as beside:
        await beside.register([WORK], [])
        (big,) = await submit(store, large())
        (fits,) = await submit(store, new())
        store.offer(msgspec.json.encode({"passes": TWO}))
        more = "needs 5 seat, more than the 4 seat that there is"
        wanted = [("never", more), ("never", "needs 5 seat, more than the 2 seat that there is")]
        await says(beside, big, wanted, {"passes": Passes(has={"seat": 4.0}, types={WORK: {}})})
        await read(store, big, wanted)
        standing = await store.standing(big)
        assert [one.worker for one in standing.shortages] == [beside.worker_id, store.worker_id]
        assert (standing.reason, (await store.standing(fits)).reason) == ("resources", "ready")
        await says(beside, big, [], {"passes": Passes(has={"seat": 5.0}, types={WORK: {}})})


async def test_what_a_worker_has_that_starts_nothing(factory: Factory, store: Any, port: Port) -> None:
    """It meets no task: what it has in all says which ones it will never run. One that may run them is waited for."""
    await store.register([WORK, OTHER], [])
    (big,), (unsaid,) = await submit(store, large()), await submit(store, new(type=OTHER))
    full = {"closed": "it is full", "in_all": Passes(has={"seat": 2.0}, types={OTHER: {"seat": 3.0}})}
    await says(store, big, [("never", "needs 5 seat, more than the 2 seat that there is")], full)
    await read(store, unsaid, [("never", "needs 3 seat, more than the 2 seat that there is")])
    async with opened(factory.make()) as beside:
        await beside.register([WORK, OTHER], [])
        roomy = {"closed": "no core is free", "in_all": Passes(has={"seat": 5.0})}
        await says(beside, unsaid, [("never", "needs 3 seat, more than the 2 seat that there is"),
                                    ("closed", "no core is free")], roomy)  # fmt: skip
        (fits,) = await submit(store, new())
        await read(store, fits, [("closed", "it is full"), ("closed", "no core is free")])


async def test_what_could_not_be_said_is_said_again(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever kept it from being written, a bad moment of the system too: nobody says it a second time."""
    real, failures = store._caretaker._note_offer, [OSError("no descriptor left")]

    async def note() -> None:
        if failures:
            raise failures.pop()
        await real()

    monkeypatch.setattr(store._caretaker, "_note_offer", note)
    store.offer(b'{"closed": "it is full"}')
    async with asyncio.timeout(LIMIT_S):
        while not await store.view(lambda view: view.rows("offers")):  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.01)
    assert [record.message for record in caplog.records] == ["upkeep failed; it is tried again"]


async def test_who_was_short_of_memory_is_known_by_it(store: Any, port: Port) -> None:
    """The flag comes with the next claim, in whatever worker."""
    await submit(store, new())
    claim = await port.take()
    assert not claim.flags & SHORT
    port.end(claim, RETRY, error=error(), flags=SHORT)
    await port.until(lambda: len(port.order) == 2)
    assert port.order[1].flags & SHORT
    await port.finish(port.order[1])


def str_of(id: bytes) -> str:
    return str(TaskId(id))


async def says(store: Any, id: bytes, wanted: list[tuple[str, str]], text: Any) -> None:
    """Leave word, and wait until it is read so."""
    store.offer(b"" if text is None else msgspec.json.encode(text))
    await read(store, id, wanted)


async def read(store: Any, id: bytes, wanted: list[tuple[str, str]]) -> None:
    """Wait until this is what a store has heard: others hear of it a little later than who says it."""
    async with asyncio.timeout(LIMIT_S):
        while [(one.how, one.why) for one in (await store.standing(id)).shortages] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
