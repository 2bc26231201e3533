"""The best ready tasks of a class in which some need more than this process has: each is looked at."""

from __future__ import annotations

from typing import Final

import msgspec

from mainspring.store.lane import Lane
from mainspring.store.passing import DULL
from mainspring.store.ready import Place
from mainspring.store.sql.transaction import Transaction
from mainspring.tasks import Resources

_STEP = 64
_MOST = 2_000
"""So many are looked at in one transaction; the next one goes on."""


class _Needs(msgspec.Struct):
    """What a spec has of this."""

    resources: Resources | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Needs)


def said(spec: bytes | None) -> Resources | None:
    """Return what a task says that it needs."""
    return None if spec is None else _decoder.decode(spec).resources


def heads(tx: Transaction, lane: Lane, class_id: int, most: int, bound: Place) -> tuple[list[Place], Place | None]:
    """Return the best ready tasks of a class that can run here, of which none goes before `bound`; and where to look on
    after these. None: there is nothing more."""
    passes, kind = lane.passing.passes, tx.class_key(class_id)[1]
    seen = lane.passing.seen(class_id)
    found: list[Place] = []
    at, looked, dull, is_over = bound, 0, 0, False
    while len(found) < most and looked < _MOST and not is_over:
        rows = tx.run("heads_to_weigh", class_id, _STEP, *at).fetchall()
        is_over = len(rows) < _STEP
        for rank, seq, spec in rows:
            looked += 1
            at = rank, seq + 1
            if passes.short(kind, said(spec)) is None:
                found.append((rank, seq))
                dull = 0
                if len(found) == most:
                    is_over = False
                    break
                continue
            dull += 1
            if at > seen.end:
                seen.passed += 1
            elif dull >= DULL and at < seen.end:
                seen.skip(tx.now_ms)
                at, is_over = seen.end, False
                break
    seen.end = max(seen.end, next((place for place in found if place >= seen.end), at))
    tx.looks_on = tx.looks_on or not (is_over or len(found) == most)
    return found, None if is_over else at
