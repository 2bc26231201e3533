"""The best ready tasks of a class in which some need more than this process has: each is looked at."""

from __future__ import annotations

from typing import Final

import msgspec

from mainspring.store.lane import Lane
from mainspring.store.ready import Place
from mainspring.store.sql.transaction import Transaction
from mainspring.tasks import Resources
from mainspring.tasks.needs import Passes

_FIRST_STEP = 4
"""Of one rank there are few most of the time."""
_STEP = 64
_MOST = 2_000
"""So many are looked at in one transaction; the next one goes on."""
_GONE = 8
"""So many of those that were known to fit may have been taken since the last look, without a further statement."""


class _Needs(msgspec.Struct):
    """What a spec has of this."""

    resources: Resources | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Needs)


def said(spec: bytes | None) -> Resources | None:
    """Return what a task says that it needs."""
    return None if spec is None else _decoder.decode(spec).resources


def heads(
    tx: Transaction, lane: Lane, passes: Passes, class_id: int, most: int, bound: Place
) -> tuple[list[Place], Place | None]:
    """Return the best ready tasks of a class that can run here, of which none goes before `bound`; and where to look on
    after these. None: there is nothing more."""
    look = _Look(tx, lane, passes, class_id)
    look.again()
    found = look.known(most, bound)
    is_over = False
    while len(found) < most and look.left > 0 and not is_over:
        is_over = look.on(found, most, bound)
    return found, look.goes_on(found, is_over=is_over)


class _Look:
    def __init__(self, tx: Transaction, lane: Lane, passes: Passes, class_id: int) -> None:
        self._tx = tx
        self._lane = lane
        self._class_id = class_id
        self._kind = tx.class_key(class_id)[1]
        self._passes = passes
        self._seen = lane.passing.seen(class_id)
        self.left = _MOST

    def again(self) -> None:
        """Look at what came in front of where earlier looks ended, and then at what came there during that."""
        again = self._seen.again
        while self._begins():
            dull = 0
            for end in sorted(again):
                step = _FIRST_STEP
                while again[end] < end and self.left > 0:
                    dull += self._step(again, end, step)
                    step = _STEP
                if again[end] >= end:
                    del again[end]
            self._seen.looked_again(self._tx.now_ms, dull)
            if again:
                return  # the next transaction goes on

    def _begins(self) -> bool:
        """Whether something is to be looked at again now; what has to wait is looked at in its time."""
        later_ms = self._seen.looks_again(self._tx.now_ms)
        if later_ms is not None:
            self._lane.passing.later[self._class_id] = later_ms
        return bool(self._seen.again)

    def _step(self, again: dict[Place, Place], end: Place, most: int) -> int:
        """Look at some more up to there; returns how many of them are passed over."""
        rows = self._tx.run("heads_to_weigh", self._class_id, most, *again[end]).fetchall()
        dull = 0
        for rank, seq, spec in rows:
            again[end] = rank, seq + 1
            if (rank, seq) >= end:
                return dull
            self.left -= 1
            if self._fits(spec):
                self._seen.fits((rank, seq))
            else:
                dull += 1
        if len(rows) < most:
            again[end] = end
        return dull

    def known(self, most: int, bound: Place) -> list[Place]:
        """Return the best of those that earlier looks have found, as far as they are ready yet."""
        found: list[Place] = []
        before: list[Place] = []
        while len(found) < most and (some := self._seen.best(most - len(found) + _GONE)):
            seqs = self._tx.listed([seq for _, seq in some])
            ready = {(row[0], row[1]) for row in self._tx.run("still_ready", self._class_id, seqs)}
            for place in some:
                if place in ready:
                    (before if place < bound else found).append(place)
        for place in (*before, *found):
            self._seen.fits(place)
        return found[:most]

    def on(self, found: list[Place], most: int, bound: Place) -> bool:
        """Look on behind that for more; returns whether there is nothing behind."""
        seen = self._seen
        rows = self._tx.run("heads_to_weigh", self._class_id, _STEP, *max(seen.end, bound)).fetchall()
        for rank, seq, spec in rows:
            self.left -= 1
            seen.end = rank, seq + 1
            if self._fits(spec):
                seen.fits((rank, seq))
                found.append((rank, seq))
                if len(found) == most:
                    return False
        return len(rows) < _STEP

    def goes_on(self, found: list[Place], *, is_over: bool) -> Place | None:
        """Return where to look on, as `heads` does."""
        again = self._seen.again
        if again or (self.left <= 0 and not is_over):
            self._tx.looks_on = True
        if again:
            return self._seen.first()
        if is_over:
            return None
        return (found[-1][0], found[-1][1] + 1) if found else self._seen.end

    def _fits(self, spec: bytes | None) -> bool:
        return self._passes.short(self._kind, said(spec)) is None
