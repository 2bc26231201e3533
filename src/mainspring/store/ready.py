"""Which classes may have ready tasks, in the order in which a claim has to look into them."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sized
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

from mainspring.tasks.needs import Need, Passes

Place = tuple[int, int]
"""Where a task stands in the one order: rank and sequence."""
ANYWHERE: Final[Place] = (-(1 << 63), 0)
FREED: Final[Place] = (ANYWHERE[0] + 1, 0)
"""As good as anywhere, where nothing came: something that is ready may be taken now."""
_MOST_TOLD = 64
"""Ranks of one class that others hear of one by one."""


class Asker(Protocol):
    """What other processes are asked for: a lane, or several that share slots."""

    @property
    def taken(self) -> int:
        """Claims handed over."""

    @property
    def types(self) -> frozenset[str]: ...

    @property
    def passes(self) -> Passes:
        """Which of their tasks can't run there."""

    @property
    def spare(self) -> Need:
        """What is free there of each kind of resource."""

    @property
    def ready(self) -> Sized:
        """Classes that may have ready tasks for it."""


class Woken:
    """Classes in which a transaction makes tasks ready, or better ones, with a bound each as in `Ready`."""

    __slots__ = ("_places", "_ranks")

    def __init__(
        self, places: Mapping[int, Place] | None = None, ranks: Mapping[int, Mapping[int, int]] | None = None
    ) -> None:
        self._places = dict(places or {})
        self._ranks = {class_id: dict(lowest) for class_id, lowest in (ranks or {}).items()}  # where there are several

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def add(self, class_id: int, place: Place = ANYWHERE) -> None:
        known = self._places.get(class_id)
        if known is None:
            self._places[class_id] = place
        elif place[0] != known[0] or place < known:
            rank, seq = place
            lowest = self._ranks.get(class_id)
            if lowest is None:
                lowest = self._ranks[class_id] = {known[0]: known[1]}
            if rank not in lowest or seq < lowest[rank]:
                lowest[rank] = seq
            if place < known:
                self._places[class_id] = place

    def update(self, class_ids: Iterable[int]) -> None:
        """What is ready in them may be taken now."""
        for class_id in class_ids:
            self.add(class_id, FREED)

    def discard(self, class_id: int) -> None:
        self._places.pop(class_id, None)
        self._ranks.pop(class_id, None)

    def told(self) -> list[tuple[int, int]]:
        """Return what other processes are to hear: classes, each with the ranks that its tasks have."""
        return [row for class_id in sorted(self._places) for row in self._told_of(class_id)]

    def _told_of(self, class_id: int) -> list[tuple[int, int]]:
        lowest = self._ranks.get(class_id)
        if lowest is None or len(lowest) > _MOST_TOLD:
            return [(class_id, self._places[class_id][0] if lowest is None else ANYWHERE[0])]
        return [(class_id, rank) for rank in sorted(lowest)]

    def items(self) -> ItemsView[int, Place]:
        return self._places.items()

    def ranks(self, class_id: int) -> Iterable[Place]:
        """Return the first place of each rank, where the tasks of a class have several."""
        lowest = self._ranks.get(class_id)
        return () if lowest is None else lowest.items()

    def copy(self) -> Woken:
        return Woken(self._places, self._ranks)


class Ready:
    """Classes with a bound each: none of the ready tasks of a class goes before its bound.

    A class is looked into only when its bound goes before everything that was found: a claim costs what it takes, not
    what waits. A bound that is too low costs one look.
    """

    __slots__ = ("_bounds", "_heap")

    def __init__(self) -> None:
        self._bounds: dict[int, Place] = {}
        self._heap: list[tuple[Place, int]] = []  # with entries of the past, which have another bound by now

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[int]:
        return iter(self._bounds)

    def bound(self, class_id: int) -> Place:
        return self._bounds[class_id]

    def lower(self, class_id: int, bound: Place) -> None:
        """A class got ready tasks, of which none goes before this place."""
        known = self._bounds.get(class_id)
        self.set(class_id, bound if known is None else min(known, bound))

    def set(self, class_id: int, bound: Place) -> None:
        if self._bounds.get(class_id) == bound:
            return
        self._bounds[class_id] = bound
        heappush(self._heap, (bound, class_id))
        if len(self._heap) > 2 * len(self._bounds) + 64:
            self._heap = [(bound, class_id) for class_id, bound in self._bounds.items()]
            heapify(self._heap)

    def discard(self, class_id: int) -> None:
        self._bounds.pop(class_id, None)

    def clear(self) -> None:
        self._bounds.clear()
        self._heap.clear()

    def first(self) -> Place | None:
        """Return the lowest bound."""
        heap = self._heap
        while heap and self._bounds.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self) -> int:
        """Take out the class with the lowest bound; `first` has just told it."""
        _, class_id = heappop(self._heap)
        del self._bounds[class_id]
        return class_id


class Shared:
    """Ready classes by the share that they belong to: each share keeps its order, and they take turns by weight.

    A turn moves a share's own time on by 1 / weight, and the next turn is that of whose time is lowest. A share that
    had nothing ready begins where the others are: what it did not use is no credit. With one share alone all is one
    order.
    """

    __slots__ = ("_now", "_parts", "_share_of", "_times")

    def __init__(self) -> None:
        self._parts: dict[int, Ready] = {}
        self._share_of: dict[int, int] = {}  # of classes
        self._times: dict[int, float] = {}  # of shares, at their next turn
        self._now = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def lower(self, class_id: int, bound: Place, share: int = 0) -> None:
        """A class of a share got ready tasks, of which none goes before this place."""
        before = self._share_of.get(class_id, share)
        if before != share and before in self._parts:
            self._parts[before].discard(class_id)
            bound = ANYWHERE
        self._share_of[class_id] = share
        part = self._parts.get(share)
        if part is None:
            part = self._parts[share] = Ready()
        part.lower(class_id, bound)

    def clear(self) -> None:
        self._parts.clear()
        self._share_of.clear()

    def part(self, share: int) -> Ready:
        return self._parts[share]

    def turns(self, weight_of: Callable[[int], float]) -> list[tuple[float, int]]:
        """Return the shares that have something ready, each with its time, as a heap. By its weight as it is now nobody
        waits for more than a turn of its own."""
        for share in [share for share, part in self._parts.items() if not part]:
            del self._parts[share]
        now, times = self._now, self._times
        turns = [(min(max(times.get(share, 0.0), now), now + 1 / weight_of(share)), share) for share in self._parts]
        heapify(turns)
        return turns

    def took(self, turn: tuple[float, int], n: int, weight: float) -> tuple[float, int]:
        """Count n turns of a share, one after the other; returns its next one.

        The last of them is what others begin with that had nothing ready: they have no credit for those before.
        """
        at, share = turn
        self._now = at + max(0, n - 1) / weight
        self._times[share] = self._now + min(n, 1) / weight
        return self._times[share], share
