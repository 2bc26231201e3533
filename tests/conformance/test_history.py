"""Random histories against a plain model: whatever happens in whatever order, the store says what the model says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.kit import FACTORIES, OTHER, OUTPUT, WORK, Factory, Port, error, new

from mainspring.store.base import CANCELLED, COMPLETED, FAILED, RELEASED, RETRY, TIMEOUT, Claimed, Finish
from mainspring.tasks.lifecycle import STATUS_OF

pytestmark = pytest.mark.anyio

FINAL = {COMPLETED: "completed", FAILED: "failed", TIMEOUT: "timeout", CANCELLED: "cancelled"}


class Model:
    """Tasks as a dict: status, parents, policy, and what somebody holds."""

    def __init__(self) -> None:
        self.status: dict[bytes, str] = {}
        self.type: dict[bytes, str] = {}
        self.parents: dict[bytes, list[bytes]] = {}
        self.policy: dict[bytes, int] = {}
        self.asked: set[bytes] = set()
        self.ends: list[tuple[bytes, str]] = []

    def add(self, id: bytes, type: str, parents: list[bytes], policy: int) -> None:
        self.status[id], self.type[id], self.parents[id], self.policy[id] = "pending", type, parents, policy
        self.spread()

    def end(self, id: bytes, status: str) -> None:
        self.status[id] = status
        self.ends.append((id, status))
        self.spread()

    def spread(self) -> None:
        """Children of what did not complete end by their policy, and their children after them."""
        for id, status in self.status.items():
            broken = any(self.status[parent] in ("failed", "timeout", "cancelled") for parent in self.parents[id])
            if status == "pending" and broken and self.policy[id] != 1:
                return self.end(id, "failed" if self.policy[id] == 0 else "cancelled")
        return None

    def claimable(self, id: bytes) -> bool:
        over = ("completed", "failed", "timeout", "cancelled")
        return self.status[id] == "pending" and all(self.status[parent] in over for parent in self.parents[id])

    def counted(self) -> Counter[tuple[str, str]]:
        return Counter((self.type[id], status) for id, status in self.status.items())


NUMBERS = st.integers(0, 30)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.sampled_from([WORK, OTHER]), st.lists(NUMBERS, max_size=3), st.sampled_from([0, 1, 2])
        ),
        st.tuples(st.just("take"), st.integers(1, 3)),
        st.tuples(st.just("finish"), NUMBERS, st.sampled_from([COMPLETED, FAILED, TIMEOUT, RETRY, RELEASED])),
        st.tuples(st.just("cancel"), NUMBERS),
        st.tuples(st.just("withdraw"), NUMBERS),
        st.tuples(st.just("finish_stale"), NUMBERS, st.sampled_from([COMPLETED, FAILED, RETRY])),
        st.tuples(st.just("reopen")),
    ),
    min_size=4,
    max_size=30,
)


class History:
    """The store and the model, side by side; one method for each kind of step."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.model = Model()
        self.held: dict[bytes, Claimed] = {}
        self.stale: list[Claimed] = []
        self.told: list[bytes] = []  # of ends, by stores that were closed since

    async def open(self) -> None:
        self.store = self.factory.make(durability="relaxed")  # no power will fail, and there are many commits
        await self.store.open()
        self.port = Port(self.store)
        await self.port.serve()

    def pick(self, number: int) -> bytes:
        return list(self.model.status)[number % len(self.model.status)]

    def drop(self, number: int) -> Claimed:
        claim = self.held.pop(list(self.held)[number % len(self.held)])
        self.stale.append(claim)
        return claim

    async def submit(self, type: str, numbers: list[int], policy: int) -> None:
        parents = list(dict.fromkeys(self.pick(n) for n in numbers)) if self.model.status else []
        task = new(type=type, after=parents, policy=policy)
        await self.store.submit([task])
        self.model.add(task.id, type, parents, policy)

    async def take(self, n: int) -> None:
        free = [id for id in self.model.status if self.model.claimable(id) and id not in self.held]
        claims = await self.port.room(n)
        assert len(claims) == min(n, len(free))
        assert {claim.id for claim in claims} <= set(free)
        self.held.update((claim.id, claim) for claim in claims)
        self.port.lanes["async"].limit -= n - len(claims)

    async def finish(self, number: int, outcome: int) -> None:
        if not self.held:
            return
        claim = self.drop(number)
        await self.port.finish(claim, outcome, error=None if outcome in (COMPLETED, RELEASED) else error())
        if claim.id in self.model.asked:
            self.model.end(claim.id, "cancelled")
        elif outcome in FINAL:
            self.model.end(claim.id, FINAL[outcome])

    async def cancel(self, number: int) -> None:
        if not self.model.status:
            return
        id = self.pick(number)
        answer = await self.store.cancel(id)
        if self.model.status[id] != "pending":
            assert answer == f"already({self.model.status[id]})"
        elif id in self.held:
            assert answer == "held"
            self.model.asked.add(id)
        else:
            assert answer == "cancelled"
            self.model.end(id, "cancelled")

    async def withdraw(self, number: int) -> None:
        if not self.held:
            return
        claim = self.drop(number)
        assert await self.store.withdraw(claim)
        self.port.lanes["async"].limit -= 1
        self.port.lanes["async"].released += 1
        self.model.end(claim.id, "cancelled")

    async def finish_stale(self, number: int, outcome: int) -> None:
        if not self.stale:
            return
        before = len(self.port.missed)
        claim = self.stale[number % len(self.stale)]
        output = OUTPUT if outcome == COMPLETED else None
        self.store.finish(Finish(claim, outcome, self.store.now_ms(), output=output, error=error()))
        await self.port.settle()
        assert len(self.port.missed) == before + 1

    async def reopen(self) -> None:
        await self.store.close()
        self.told += [ended.id for ended in self.port.ends]
        self.stale += self.held.values()
        for id in [id for id in self.held if id in self.model.asked]:
            self.model.end(id, "cancelled")
        self.held.clear()
        await self.open()

    async def compare(self) -> None:
        """Rows, kept counts and news agree with the model."""
        model = self.model
        assert self.factory.recount() == model.counted()
        assert {id: state.status.value for id, state in self.factory.states().items()} == model.status
        stats, by_status = await self.store.stats(), Counter(model.status.values())
        for name in ("pending", "completed", "failed", "cancelled", "timeout"):
            assert stats.get(name, 0) == by_status[name], name
        kept = {(kind, name): n for kind, names in stats["types"].items() for name, n in names.items() if n}
        assert kept == {(k, "unfinished" if name == "pending" else name): n for (k, name), n in model.counted().items()}


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
@pytest.mark.parametrize("kind", FACTORIES)
async def test_any_history(kind: str, steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Statuses, counts by type and status, and answers are those of the model after every step; each end is told once,
    but those that a closing store brought about."""
    history = History(FACTORIES[kind](Path(tmp_path_factory.mktemp("history"))))
    await history.open()
    for what, *values in steps:
        await getattr(history, what)(*values)
        await history.compare()
    told = Counter(history.told) + Counter({ended.id: 1 for ended in history.port.ends if ended.id not in history.told})
    ends = Counter(id for id, _ in history.model.ends)
    assert told <= ends
    assert told == ends or ("reopen",) in steps
    assert all(history.model.status[ended.id] == STATUS_OF[ended.status].value for ended in history.port.ends)
    await history.store.close()
