"""Tasks that need more than this process has in all: its claims pass them over, however many of them go first.

Which those are stands in their specs, that no index knows: claims of such a type look at each task. What they have
looked at is remembered for each class, so that a claim costs what is new and not what waits: how far they have looked,
which of the tasks in front of that can run here, and at which ranks others came there since. Where another process
made more ready than it could tell one by one, all in front is looked at once more.

What comes among others that were passed over costs a look at those again where it has their rank, or an unknown one.
Such looks take a part of the time at most: the first is made at once, the next after a while in proportion to what it
passed over again.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, nsmallest

from mainspring.store.ready import ANYWHERE, FREED, Place
from mainspring.tasks.needs import NOTHING, Passes

_PART = 25
"""So many tasks are passed over once more in a millisecond, of the time and not of the work: it takes about a tenth."""
_KNOWN = 1_000
"""Tasks that can run here, of which the places are remembered; the others are looked for anew when their turn comes."""


class Seen:
    """What claims have seen of a class."""

    __slots__ = ("_came", "_dull", "_fits", "_order", "_rests_until_ms", "again", "end")

    def __init__(self) -> None:
        self.end: Place = ANYWHERE  # what is ready before it was looked at, or came later
        self.again: dict[Place, Place] = {}  # what is looked at again: from where on, by where that ends
        self._came: dict[int, int] = {}  # what came in front of the end since: rank, and the lowest number with that
        self._dull = 0  # passed over again
        self._rests_until_ms = 0
        self._fits: dict[int, int] = {}  # the rank of those in front of the end that can run here, by their number,
        self._order: list[Place] = []  # and the same as a heap; some have gone or have another rank by now

    def came(self, place: Place) -> None:
        """Something got ready, of which none of the same rank goes before this place."""
        rank, seq = place
        if place >= self.end or place == FREED or ANYWHERE[0] in self._came:
            return
        if place == ANYWHERE:
            self._came.clear()
        known = self._came.get(rank)
        self._came[rank] = seq if known is None else min(seq, known)

    def looks_again(self, now_ms: int) -> int | None:
        """Begin to look at what came; returns when that is to be, where it is not now."""
        if self.again or not self._came:
            return None
        if now_ms < self._rests_until_ms:
            return self._rests_until_ms
        for rank, seq in self._came.items():
            end = self.end if rank == ANYWHERE[0] else min(self.end, (rank + 1, 0))
            self.again[end] = min((rank, seq), self.again.get(end, (rank, seq)))
        self._came = {}
        return None

    def looked_again(self, now_ms: int, dull: int) -> None:
        """So much of it was passed over once more."""
        self._dull += dull
        if len(self._fits) > 2 * _KNOWN:
            self._forget_most()
        if not self.again:
            self._rests_until_ms = now_ms + self._dull // _PART
            self._dull = 0

    def first(self) -> Place:
        """Return a place that nothing goes before of what is still to be looked at again; there is something."""
        return min((*self.again.values(), *self._came.items()))

    def fits(self, place: Place) -> None:
        """It can run here."""
        rank, seq = place
        if self._fits.get(seq) != rank:
            self._fits[seq] = rank
            heappush(self._order, place)

    def best(self, most: int) -> list[Place]:
        """Take out the best of those that can run here."""
        best: list[Place] = []
        while self._order and len(best) < most:
            rank, seq = heappop(self._order)
            if self._fits.get(seq) == rank:
                del self._fits[seq]
                best.append((rank, seq))
        return best

    def _forget_most(self) -> None:
        """What goes behind the best of them is looked at again when its turn comes."""
        *best, self.end = nsmallest(_KNOWN + 1, ((rank, seq) for seq, rank in self._fits.items()))
        self._fits = {seq: rank for rank, seq in best}
        self._order = best
        heapify(self._order)
        for end in [end for end in self.again if end > self.end]:
            place = self.again.pop(end)
            if place < self.end:
                self.again[self.end] = min(place, self.again.get(self.end, place))


class Passing:
    """What a lane passes over: `passes` is set by the worker, all else is kept by the store."""

    __slots__ = ("_seen", "later", "passes")

    def __init__(self) -> None:
        self.passes: Passes = NOTHING
        self._seen: dict[int, Seen] = {}
        self.later: dict[int, int] = {}  # classes that are to be looked into again, and when

    def seen(self, class_id: int) -> Seen:
        found = self._seen.get(class_id)
        if found is None:
            found = self._seen[class_id] = Seen()
        return found

    def clear(self) -> None:
        self._seen.clear()
        self.later.clear()

    def due(self, now_ms: int) -> Sequence[int]:
        """Return the classes that are to be looked into again by now."""
        if not self.later:
            return ()
        due = [class_id for class_id, ms in self.later.items() if ms <= now_ms]
        for class_id in due:
            del self.later[class_id]
        return due
