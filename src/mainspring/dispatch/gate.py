"""Where nothing new is to start: desks are shut, and what has not begun there is for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mainspring.dispatch.alone import Alone
from mainspring.dispatch.desk import Desk
from mainspring.dispatch.highwater import HighWater
from mainspring.dispatch.lane import LaneDesk
from mainspring.store.base import Claimed


class Gate:
    """Shuts desks while the machine is full or a task must run alone. Belongs to the event loop."""

    def __init__(
        self,
        desks: Mapping[str, Desk],
        high_water: HighWater,
        alone: Alone,
        hand_back: Callable[[Desk, list[Claimed]], None],
    ) -> None:
        self._desks = desks
        self._high_water = high_water
        self._alone = alone
        self._hand_back = hand_back

    def holds(self, desk: Desk) -> bool:
        return self._high_water.why is not None or self._alone.bars(desk)

    def regulate(self) -> None:
        """One of these reasons has come or gone."""
        one = self._alone.one if self._high_water.why is None else None
        for desk in self._desks.values():
            if self.holds(desk):
                if not desk.is_shut:
                    desk.shut()
                self._hand_back(desk, desk.take(lambda claim: one is None or claim is not one.claim))
                if isinstance(desk, LaneDesk):
                    desk.recall()
            elif desk.is_shut:
                desk.reopen()
                desk.store.demand()
