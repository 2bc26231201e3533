"""What keeps living workers from running a task, by what they have told of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from mainspring.config import RESOURCE_KINDS
from mainspring.store.sql.transaction import Row
from mainspring.store.sql.weighing import said
from mainspring.store.standing import Shortage
from mainspring.tasks import TaskId
from mainspring.tasks.needs import NOTHING, Passes, Short

if TYPE_CHECKING:
    from mainspring.store.sql.reads import View


class _Alone(msgspec.Struct):
    task: str
    why: str
    lanes: tuple[str, ...]  # those that wait for it; none: all


class Offer(msgspec.Struct):
    """What a worker says of tasks that lack resources."""

    closed: str | None = None  # why nothing starts there, a sentence
    alone: _Alone | None = None  # what runs alone
    stops: bool = False  # it takes nothing any more
    waits: dict[str, str] = {}  # what these tasks lack, by their ids
    never: dict[str, str] = {}  # the same of some that need more than there is; workers of older versions say so
    withheld: dict[str, int] = {}  # how many tasks wait there that are not passed by, by type
    passes: Passes = NOTHING
    in_all: Passes = NOTHING  # the same of whatever it serves, where it may not have met it

    def short(self, kind: str, spec: bytes | None) -> Short | None:
        """Return what there is too little of for a task, as far as this tells."""
        passes = self.passes if kind in self.passes.types else self.in_all
        return passes.short(kind, said(spec)) if passes.has else None


_decoder = msgspec.json.Decoder(Offer)


def offers_of(view: View) -> dict[str, Offer]:
    """Return what living workers tell of tasks that they don't start, by their names."""
    return decoded(view.rows("offers"))


def decoded(rows: Iterable[Row]) -> dict[str, Offer]:
    return {name: _decoder.decode(state) for name, state in rows}


def offer_of(state: bytes) -> Offer:
    return _decoder.decode(state) if state else Offer()


def shortages(
    id: bytes, kind: str, spec: bytes | None, workers: Sequence[str], offers: Mapping[str, Offer], lane: str, *,
    is_held: bool,
) -> dict[str, Shortage]:  # fmt: skip
    """Return what keeps those of these workers from running a task that don't take it when its turn comes; or the one
    that has claimed it, where it is held.

    Of those that can never run it the one comes first that has most of what is missing.
    """
    telling = {name: offers[name] for name in workers if name in offers}
    short = too_little(kind, spec, telling)
    found = {name: Shortage(name, "never", _sentence(one, telling[name])) for name, one in short.items()}
    for name, offer in telling.items():
        one = None if name in short else _shortage(name, offer, str(TaskId(id)), kind, lane)
        if one is not None and not (is_held and one.how == "withheld"):  # it was claimed before
            found[name] = one
    return found


def too_little(kind: str, spec: bytes | None, offers: Mapping[str, Offer]) -> dict[str, Short]:
    """Return which workers have too little of what, the one with the most first."""
    short: dict[str, Short] = {}
    for name, offer in offers.items():
        if (one := offer.short(kind, spec)) is not None:
            short[name] = one
    return dict(sorted(short.items(), key=lambda item: -item[1].capacity))


def _sentence(short: Short, offer: Offer) -> str:
    """Say what there is too little of; of a kind that the worker does not know, which ones of users' own it does."""
    has = offer.passes.has or offer.in_all.has
    if short.kind in has:
        return str(short)
    own = ", ".join(sorted(has.keys() - RESOURCE_KINDS))
    return f"{short} ({f'kinds of your own that it has: {own}' if own else 'it has no kinds of your own'})"


def _shortage(worker: str, offer: Offer, task: str, kind: str, lane: str) -> Shortage | None:
    if offer.closed is not None:
        return Shortage(worker, "closed", offer.closed)
    if (alone := offer.alone) is not None and (not alone.lanes or lane in alone.lanes):
        if alone.task == task:
            return Shortage(worker, "first", alone.why)
        return Shortage(
            worker, "alone", f"task {alone.task} {alone.why} and runs alone; it goes on when that has ended"
        )
    if task in offer.waits:
        return Shortage(worker, "waits", offer.waits[task])
    if task in offer.never:
        return Shortage(worker, "never", offer.never[task])
    if kind in offer.withheld:
        return Shortage(worker, "withheld", str(offer.withheld[kind]))
    return None
