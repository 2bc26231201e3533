"""What desks take no more of, for now: a desk looks past few tasks that wait for resources, and takes no others behind
them of their types until some of these have begun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mainspring.dispatch.desk import Desk, place
from mainspring.environment import Environment
from mainspring.store.base import Claimed, Store
from mainspring.store.ready import ANYWHERE, Place

_MOST_PARKED = 16
_STEP_BACK_S = 0.05
"""For how long at least no more of a type is taken after some were given away: whoever asked is on its way."""
Call = Sequence[Claimed]


class Withholding:
    """Tells the ports of desks of which types they take only what goes before a place. Belongs to the event loop."""

    def __init__(self, store: Store, env: Environment) -> None:
        self._store = store
        self._env = env
        self._ends: dict[Desk, dict[str, Place]] = {}
        self._steps_back: dict[Desk, float] = {}  # until then at least, monotonic seconds

    def __bool__(self) -> bool:
        return bool(self._ends)

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

    def _withhold(self, desk: Desk, ends: Mapping[str, Place]) -> None:
        self._ends[desk] = dict(ends)
        desk.port.withheld = ends

    def lift(self) -> None:
        """Take tasks of withheld types again where there is room for them at the desk."""
        now = self._env.monotonic()
        roomy = [desk for desk in self._ends if _has_room(desk) and self._steps_back.get(desk, now) <= now]
        for desk in roomy:
            desk.port.withheld = {}
            del self._ends[desk]
            self._steps_back.pop(desk, None)
        if roomy:
            self._store.look_anew()

    def told(self) -> dict[str, int]:
        """Return how many tasks go first that are not looked past, by type."""
        full = [desk for desk in self._ends if not _has_room(desk)]
        return {kind: len(desk.parked) for desk in full for kind in self._ends[desk]}


def _has_room(desk: Desk) -> bool:
    return len(desk.parked) <= _MOST_PARKED // 2


def _place_of(call: Call) -> Place:
    return place(call[0])
