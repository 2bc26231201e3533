"""Which classes have ready tasks: none is forgotten, whoever made it ready, and looking costs what changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import WORK, Port, SqliteFactory, error, new, opened, state, submit

from mainspring.errors import Conflict, InternalError
from mainspring.store.base import COMPLETED, FAILED, RELEASED, RETRY
from mainspring.store.ready import ANYWHERE, Ready
from mainspring.store.sql.transaction import Transaction
from mainspring.store.sqlite import news

pytestmark = pytest.mark.anyio
MANY = 10_000


@pytest.fixture
def factory(tmp_path: Path) -> SqliteFactory:
    return SqliteFactory(tmp_path)


@pytest.fixture
async def pair(factory: SqliteFactory) -> AsyncIterator[tuple[Any, Any]]:
    """Two stores on one file, as two processes have them; nobody looks but when the test says so."""
    async with opened(factory.make()) as one, opened(factory.make()) as two:
        for store in (one, two):
            await store._caretaker.stop()
        yield one, two


def statements(store: Any) -> Callable[[], int]:
    """Return what tells how many statements a store's writer has run since it was last asked."""
    run: list[str] = []

    def note(cursor: Any, sql: str, values: Any) -> bool:
        run.append(sql)
        return True

    store._writer.connection.set_exec_trace(note)

    def since() -> int:
        n = len(run)
        run.clear()
        return n

    return since


async def test_a_look_costs_what_changed(pair: tuple[Any, Any]) -> None:
    """With 10,000 classes that have ready tasks, another process's commit makes this one look at those classes that
    it concerns; a claim looks into what it takes. All are found in the end, in order."""
    one, two = pair
    sent = []
    for at in range(0, MANY, 1000):
        sent += await submit(one, *(new(group=str(n)) for n in range(at, at + 1000)))
    port = Port(two)
    await port.serve()
    since = statements(two)
    for room in (0, 1):
        sent += await submit(one, new(group="7"), new(group="another"))
        await port.settle()
        before = since()
        await port.room(room)
        assert (before < 30, since() < 30) == (True, True)
    port.lanes["async"].limit = 2 * MANY
    two.demand()
    await port.until(lambda: len(port.order) == len(sent))
    assert [claim.id for claim in port.order] == sent


async def test_a_claim_costs_what_it_takes(factory: SqliteFactory) -> None:
    """Of many classes only those are looked into whose best task may be the next one."""
    async with opened(factory.make()) as store:
        await store._caretaker.stop()  # its looks are statements too
        await submit(store, *(new(group=str(n % 500), priority=n % 4) for n in range(2000)))
        port = Port(store)
        await port.serve()
        since = statements(store)
        for _ in range(50):
            since()
            await port.room(1)
            assert since() < 15
        await port.room(2000)
        await port.until(lambda: len(port.order) == 2000)
        places = [(claim.rank, claim.seq) for claim in port.order]
        assert places == sorted(places)


async def test_a_child_makes_its_parent_more_urgent(factory: SqliteFactory) -> None:
    """A ready task that gets a better rank for the sake of one that waits for it goes first from then on, also where
    its class was looked into before."""
    async with opened(factory.make()) as store:
        port = Port(store)
        await port.serve()
        await submit(store, new(group="a", priority=2), new(group="a", priority=2))
        (slow,) = await submit(store, new(group="b", priority=0))
        await port.room(1)
        await submit(store, new(after=[slow], priority=3))
        assert [claim.id for claim in await port.room(1)] == [slow]


async def test_alone_there_are_no_news(factory: SqliteFactory) -> None:
    """Where nobody else has the file open, nothing is written for others."""
    async with opened(factory.make()) as store:
        await submit(store, new())
        assert factory._rows("SELECT count(*) FROM news") == [(0,)]
        async with opened(factory.make()):
            await submit(store, new())
            assert factory._rows("SELECT count(*) FROM news") == [(1,)]
        await submit(store, new())
        assert factory._rows("SELECT count(*) FROM news") == [(1,)]


async def test_only_the_newest_news_are_kept(pair: tuple[Any, Any], factory: SqliteFactory, monkeypatch: Any) -> None:
    """Their number is bounded; who has missed some that are gone looks through everything."""
    monkeypatch.setattr(news, "_KEPT_NEWS", 8)
    one, two = pair
    port = Port(two)
    await port.serve()
    sent = [(await submit(one, new(group=str(n))))[0] for n in range(50)]
    assert factory._rows("SELECT count(*) < 20 FROM news") == [(1,)]
    assert [claim.id for claim in await port.room(60)] == sent


OPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.integers(0, 1), st.integers(0, 3), st.sampled_from([0, 0, 1000]), st.booleans()
        ),
        st.tuples(st.just("take"), st.integers(0, 1), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 1), st.sampled_from([COMPLETED, FAILED, RETRY, RELEASED])),
        st.tuples(st.just("wait"), st.integers(0, 1)),
        st.tuples(st.just("pause"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("resume"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("refused"), st.integers(0, 1)),
        st.tuples(st.just("reopen"), st.integers(0, 1)),
    ),
    max_size=25,
)


class Pair:
    """Two processes that work on one file."""

    def __init__(self, factory: SqliteFactory) -> None:
        self.factory = factory
        self.stores: list[Any] = [None, None]
        self.ports: list[Any] = [None, None]
        self.last: bytes | None = None

    async def reopen(self, at: int) -> None:
        if self.stores[at] is not None:
            await self.stores[at].close()
        self.stores[at] = self.factory.make()
        await self.stores[at].open()
        await self.stores[at]._caretaker.stop()
        self.ports[at] = Port(self.stores[at])
        await self.ports[at].serve()

    async def submit(self, at: int, group: int, delay: int, linked: bool) -> None:
        store = self.stores[at]
        after = [self.last] if linked and self.last else []
        later = store.now_ms() + delay if delay else None
        (self.last,) = await submit(store, new(group=str(group), priority=group, not_before_ms=later, after=after))

    async def take(self, at: int, n: int, at_once: bool) -> None:
        before = self.ready()
        with pytest.MonkeyPatch.context() as patch:
            if not at_once:  # the first transaction that claims them comes to nothing
                patch.setattr(Transaction, "write_tally", self._fail_once(Transaction.write_tally))
            claims = await self.ports[at].room(n)
        best = [place for places in before.values() for place in places]
        assert [(claim.rank, claim.seq) for claim in claims] == sorted(best)[:n]
        self.ports[at].lanes["async"].limit -= n - len(claims)

    def _fail_once(self, real: Callable[[Transaction], None]) -> Callable[[Transaction], None]:
        tries = iter([False, True])

        def write_tally(tx: Transaction) -> None:
            if not next(tries, True):
                raise Conflict("another time")
            real(tx)

        return write_tally

    async def end(self, at: int, outcome: int) -> None:
        port = self.ports[at]
        if port.held:
            claim = next(iter(port.held.values()))
            await port.finish(claim, outcome, error=None if outcome in (COMPLETED, RELEASED) else error())

    async def wait(self, at: int) -> None:
        self.factory.clock.advance(1)

    async def pause(self, at: int, group: int) -> None:
        await self.stores[at].pause(group=str(group))

    async def resume(self, at: int, group: int) -> None:
        await self.stores[at].resume(group=str(group))

    async def refused(self, at: int) -> None:
        """A transaction that fails, and takes back what it had done."""
        with pytest.raises(InternalError):
            await self.stores[at].write(self._break)

    def _break(self, tx: Any) -> None:
        tx.run("drop_news", 1 << 40)
        raise ZeroDivisionError

    def ready(self) -> dict[int, list[tuple[int, int]]]:
        """What a claim may take, by class."""
        found: dict[int, list[tuple[int, int]]] = {}
        sql = """SELECT class, rank, seq FROM task JOIN class ON class.id = task.class
            WHERE reason = 0 AND grp NOT IN (SELECT grp FROM pause)"""
        for class_id, *place in self.factory._rows(sql):
            found.setdefault(class_id, []).append(tuple(place))
        return found

    async def check(self) -> None:
        """Each knows all classes that have something to claim, and none with a bound that hides it."""
        for port in (*self.ports, *self.ports):
            await port.settle()
        for class_id, places in self.ready().items():
            for port in self.ports:
                parts = port.lanes["async"].ready._parts
                bounds = parts[0]._bounds if parts else {}
                assert class_id in bounds
                assert bounds[class_id] <= min(places)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ops=OPS, kept=st.sampled_from([1, 3, 10_000]))
async def test_no_class_is_forgotten(ops: list[Any], kept: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever two processes do, each knows after every commit of either where there is something to claim, and what
    it takes is the best there is."""
    pair = Pair(SqliteFactory(Path(tmp_path_factory.mktemp("pair"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(news, "_KEPT_NEWS", kept)
        for at in (0, 1):
            await pair.reopen(at)
        for what, *values in ops:
            await getattr(pair, what)(*values)
            await pair.check()
        for store in pair.stores:
            await store.close()


# The order of looking


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 5), st.integers(0, 9)),
            st.tuples(st.just("doubt"), st.integers(0, 5)),
            st.tuples(st.just("discard"), st.integers(0, 5)),
            st.tuples(st.just("pop")),
        ),
        max_size=200,
    )
)
def test_the_lowest_bound_is_first(steps: list[Any]) -> None:
    """Against a plain dict; what is kept beside it stays in proportion."""
    ready, model = Ready(), dict[int, tuple[int, int]]()
    for what, *values in steps:
        if what == "add":
            class_id, rank = values
            ready.set(class_id, (rank, class_id))
            model[class_id] = (rank, class_id)
        elif what == "doubt":
            ready.lower(values[0], ANYWHERE)
            model[values[0]] = ANYWHERE
        elif what == "discard":
            ready.discard(*values)
            model.pop(values[0], None)
        elif model:
            best = min(model.values())
            assert ready.first() == best
            assert model.pop(ready.pop()) == best
        assert set(ready) == set(model)
        assert ready.first() == min(model.values(), default=None)
        assert len(ready._heap) <= 2 * len(model) + 64


@pytest.mark.parametrize("paused", [["1"], ["1", "2"]])
async def test_what_another_process_resumes_is_found(pair: tuple[Any, Any], paused: list[str]) -> None:
    """What was left out while it was paused is taken when it may run again, whoever says so."""
    one, two = pair
    port = Port(two)
    await port.serve()
    for group in paused:
        await one.pause(group=group)
    sent = [(await submit(one, new(group=group)))[0] for group in ("1", "2", "3")]
    assert [claim.id for claim in await port.room(3)] == sent[len(paused) :]
    for group in paused:
        await one.resume(group=group)
    await port.settle()
    assert {claim.id for claim in port.order} == set(sent)


async def test_served_types_only(pair: tuple[Any, Any]) -> None:
    """Classes that nobody here serves are not kept; when they are served, they are found."""
    one, two = pair
    port = Port(two, 0, "custom:other")
    await port.serve()
    sent = await submit(one, *(new(group=str(n)) for n in range(5)))
    await port.settle()
    assert len(port.lanes["async"].ready) == 0
    assert (await state(one, sent[0])).reason == "ready"
    port = Port(two, 0, WORK)
    await port.serve()
    assert [claim.id for claim in await port.room(9)] == sent
