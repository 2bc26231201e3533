"""What keeps tasks from starting that stands in none of their own rows, seen at one moment: pauses, and what living
workers take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from mainspring.store.sql.shortages import Offer, offers_of
from mainspring.store.sql.weighing import said
from mainspring.store.standing import Pause
from mainspring.tasks import TaskId

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View
    from mainspring.store.sql.transaction import Row

BUILT_IN_LANE: Final = "thread"
"""Types without a handler of their own run there."""
OWN_SLOT: Final = frozenset({"vector_search"})
"""Types that have a slot of their own beside those of their lane: they wait for tasks of their type alone."""
COUNT_LIMIT: Final = 10_000
"""So many ready tasks of one class are counted; more are said to be more."""
_slots: Final = msgspec.json.Decoder(dict[str, int])
_FIRST: Final = 1_000
"""Among so many of a class that one is looked for which goes first and can run."""


Silences = Callable[[Collection[str]], Mapping[str, float]]


class Place(NamedTuple):
    """Where a ready task stands."""

    rank: int
    seq: int
    type: str
    ready_ms: int
    namespace: str
    group: str


class Obstacles:
    """Each of them is read once, when somebody asks for it.

    Args:
        told: this process's worker with what it says of tasks that it does not start, which may be newer than what is
            stored.
        silences: see `Looking.silences`.
    """

    def __init__(
        self,
        view: View,
        now_ms: int,
        told: tuple[str, Offer] | None = None,
        silences: Silences = lambda workers: {},
    ) -> None:
        self.view = view
        self.now_ms = now_ms
        self._silences = silences
        self._told = told
        self._serving: dict[str, Sequence[str]] = {}

    @cached_property
    def offers(self) -> dict[str, Offer]:
        """What living workers tell of tasks that they don't start, by their names."""
        offers = offers_of(self.view)
        if self._told is not None:
            offers[self._told[0]] = self._told[1]
        return offers

    @cached_property
    def pauses(self) -> list[Pause]:
        return [
            Pause(a, b, c, datetime.fromtimestamp(ms / 1000, UTC), who)
            for a, b, c, ms, who in self.view.rows("pauses_since")
        ]

    @cached_property
    def _lanes(self) -> dict[str, str]:
        return {kind: lane for kind, lane, *_ in self.view.rows("lanes_of_handlers")}

    def lane_of(self, kind: str) -> str:
        return self._lanes.get(kind, BUILT_IN_LANE)

    def covering(self, namespace: str, kind: str, group: str) -> list[Pause]:
        """Return the pauses that keep the tasks of a class."""
        return [
            pause
            for pause in self.pauses
            if pause.namespace in ("", namespace) and pause.type in ("", kind) and pause.group in ("", group)
        ]

    def serving(self, kind: str) -> Sequence[str]:
        """Return the living workers that serve a type."""
        if kind not in self._serving:
            self._serving[kind] = tuple(name for (name,) in self.view.rows("serving", kind))
        return self._serving[kind]

    def going(self, kind: str) -> Sequence[str]:
        """Return those of them that still take tasks of it."""
        return [name for name in self.serving(kind) if not self._is_over(name, kind)]

    def _is_over(self, worker: str, kind: str) -> bool:
        offer = self.offers.get(worker)
        return offer is not None and (offer.stops or kind in offer.withheld)

    def beside(self, workers: Sequence[str], kind: str) -> dict[str, list[str]]:
        """Return what workers that serve a type take, each type with those of them that take it."""
        found: dict[str, list[str]] = {}
        for worker, other in self.view.rows("served_beside", kind):
            if worker in workers and not self._is_over(worker, other):
                found.setdefault(other, []).append(worker)
        return found

    @cached_property
    def _slots(self) -> dict[str, tuple[int, dict[str, int]]]:
        """The numbers of living workers, with their slots by lane; older ones don't tell."""
        rows = self.view.rows("serving_workers")
        return {name: (id, _slots.decode(slots or "{}")) for name, *_, slots, id in rows}

    @cached_property
    def silent(self) -> Mapping[str, float]:
        """For how many seconds living workers have not been heard of; those of which that is not so are left out."""
        return self._silences(self._slots)

    def has_slot(self, worker: str, kind: str, *, is_held: bool = False) -> bool:
        """Whether a worker has a slot for one more task of a type; or for this one too, which it has claimed."""
        if worker not in self._slots or worker in self.silent:
            return False
        id, slots = self._slots[worker]
        lane = self.lane_of(kind)
        types: list[tuple[str, int]] = self.view.rows("held_types", id)
        held = {other: n for other, n in types if self.lane_of(other) == lane}
        own = sum(n for other, n in held.items() if other in OWN_SLOT)
        if kind in OWN_SLOT and own <= is_held:
            return True
        return sum(held.values()) - min(own, 1) - self._parked(worker, lane) < slots.get(lane, 0) + is_held

    def _parked(self, worker: str, lane: str) -> int:
        """Return how many tasks of a lane a worker holds without a slot, as they lack resources."""
        waits = self.offers[worker].waits if worker in self.offers else ()
        rows = [self.view.one("whole_task", TaskId(id).bytes) for id in waits]
        return sum(row is not None and row[29] == worker and self.lane_of(row[27]) == lane for row in rows)

    def count(self, class_id: int, kind: str, workers: Sequence[str], rank: int, seq: int, n: int) -> int:
        """Return how many of the `n` ready tasks of a class that go before a place can run on one of these workers."""
        if not n or not self._has_to_weigh(kind, workers):
            return n
        rows = self.view.rows("specs_before", class_id, rank, seq, COUNT_LIMIT)
        return sum(n for spec, n in rows if self._fits(kind, spec, workers))

    def first(self, class_id: int, kind: str, workers: Sequence[str], first: Row) -> Row | None:
        """Return the ready task of a class that goes first and can run on one of these workers, as (rank, seq, spec,
        whether that says what it is to cost); None where there is none. `first` is it, whatever it needs."""
        if not self._has_to_weigh(kind, workers):
            return first
        rows = self.view.rows("firsts_of_class", class_id, _FIRST)
        return next((row for row in rows if self._fits(kind, row[2], workers)), None)

    def _has_to_weigh(self, kind: str, workers: Sequence[str]) -> bool:
        """Whether all of these workers pass over some tasks of a type."""
        offers = self.offers
        return all(name in offers and kind in offers[name].passes.types for name in workers)

    def _fits(self, kind: str, spec: bytes | None, workers: Sequence[str]) -> bool:
        needs = said(spec)
        return any(self.offers[name].passes.short(kind, needs) is None for name in workers)
