"""What desks take no more of, for now: a desk looks past few tasks that wait for resources, and takes no others behind
them of their types until some of these have begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mainspring.dispatch.desk import Desk, place
from mainspring.environment import Environment
from mainspring.store.base import Claimed, Store
from mainspring.store.lane import ClassKey
from mainspring.store.ready import ANYWHERE, Place
from mainspring.tasks.needs import Need

_MOST_PARKED = 16
_STEP_BACK_S = 0.05
"""For how long at least no more of a type is taken after some were given away: whoever asked is on its way."""
_FEW_S = 5.0
"""For how long no more of a class are taken at once than fit, after one of them did not: what comes too much is handed
back again."""
Call = Sequence[Claimed]


class Waiting(NamedTuple):
    """A call whose need is not free, until it has that: also while it has been called and waits for a slot."""

    desk: Desk
    claims: Sequence[Claimed]
    need: Need
    since: float  # monotonic seconds
    outside_at: float | None = None  # when it was handed back, or let in again; None: it waits at its desk
    may_come: bool = False  # again

    def parked(self) -> list[Claimed]:
        """Return those that were neither called nor taken back; these may have come again since, as other claims."""
        return [claim for claim in self.claims if self.desk.parked.get(claim.id) is claim]

    def call(self) -> Sequence[Claimed]:
        """Return those that wait at the desk, or are expected there."""
        return self.parked() if self.outside_at is None else self.claims


class Withholding:
    """Tells the ports of desks of which types and classes they take only what goes before a place, or a few at once.

    Belongs to the event loop.

    Args:
        waiting: how many wait at a desk, or are expected there.
    """

    def __init__(self, store: Store, env: Environment, waiting: Callable[[Desk], int]) -> None:
        self._store = store
        self._env = env
        self._ends: dict[Desk, dict[str, Place]] = {}
        self._how_many_wait = waiting
        self._few_until: dict[tuple[Desk, ClassKey], float] = {}  # monotonic seconds
        self._steps_back: dict[Desk, float] = {}  # until then at least, monotonic seconds

    def __bool__(self) -> bool:
        return bool(self._ends or self._few_until)

    def make_room(self, desk: Desk, call: Call, waiting: Iterable[Call]) -> list[Call]:
        """Return which of these calls are not to wait at a desk, so that one more may: the last ones in the order,
        among them the new one itself where nothing stands behind it.

        From then on only what goes before all that is left there but the last is taken of their types.
        """
        calls = sorted((*waiting, call), key=_place_of)
        n = sum(map(len, calls))
        goes: list[Call] = []
        while n > _MOST_PARKED and len(calls) > 1:
            goes.append(calls.pop())
            n -= len(goes[-1])
        if goes:
            types = {*self._ends.get(desk, ()), *(one[0].task_type for one in goes)}
            self._withhold(desk, dict.fromkeys(types, _place_of(calls[-1])))
        return goes

    def step_back(self, desk: Desk, kind: str) -> None:
        """Some of a type are given away."""
        self._withhold(desk, {**self._ends.get(desk, {}), kind: ANYWHERE})
        self._steps_back[desk] = self._env.monotonic() + _STEP_BACK_S

    def keep_out(self, desk: Desk, key: ClassKey, end: Place) -> None:
        """Of a class only what goes before a place is taken."""
        desk.port.withheld_classes = {**desk.port.withheld_classes, key: end}

    def let_in(self, desk: Desk, key: ClassKey, most: int) -> None:
        """So many of a class are taken at once, wherever they stand."""
        port = desk.port
        is_out = key in port.withheld_classes
        self._few_until[desk, key] = self._env.monotonic() + _FEW_S
        port.few = {**port.few, key: most}
        port.withheld_classes = {other: end for other, end in port.withheld_classes.items() if other != key}
        self._store.look_anew() if is_out else self._store.demand()

    def is_kept_short(self, desk: Desk, key: ClassKey) -> bool:
        """Whether one of a class did not fit a short while ago."""
        return (desk, key) in self._few_until

    def _withhold(self, desk: Desk, ends: Mapping[str, Place]) -> None:
        self._ends[desk] = dict(ends)
        desk.port.withheld = ends

    def lift(self) -> None:
        """Take tasks of withheld types again where there is room for them at the desk."""
        now = self._env.monotonic()
        for desk, key in [one for one, until in self._few_until.items() if until <= now]:
            del self._few_until[desk, key]
            desk.port.few = {other: most for other, most in desk.port.few.items() if other != key}
        roomy = [desk for desk in self._ends if self._has_room(desk) and self._steps_back.get(desk, now) <= now]
        for desk in roomy:
            desk.port.withheld = {}
            del self._ends[desk]
            self._steps_back.pop(desk, None)
        if roomy:
            self._store.look_anew()

    def told(self) -> dict[str, int]:
        """Return how many tasks go first that are not looked past, by type."""
        full = [desk for desk in self._ends if not self._has_room(desk)]
        return {kind: self._how_many_wait(desk) for desk in full for kind in self._ends[desk]}

    def _has_room(self, desk: Desk) -> bool:
        return self._how_many_wait(desk) <= _MOST_PARKED // 2


def _place_of(call: Call) -> Place:
    return place(call[0])
