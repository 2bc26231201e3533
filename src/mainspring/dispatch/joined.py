"""Claims that may go into one call, best first."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable
from operator import attrgetter
from typing import Final, NamedTuple

from mainspring.store.base import URGENT, Claimed
from mainspring.store.ready import Place
from mainspring.tasks import TaskPriority


class Member(NamedTuple):
    place: Place
    claim: Claimed
    cost: float
    until: float  # when it waits for others no more, in monotonic seconds

    @property
    def is_urgent(self) -> bool:
        return self.claim.priority > TaskPriority.NORMAL or bool(self.claim.flags & URGENT)


_cost: Final = attrgetter("cost")
_until: Final = attrgetter("until")


class Key(NamedTuple):
    kind: Hashable  # what they have in common
    size: int  # of a call, at most


class Group:
    """Claims that may join: best first."""

    __slots__ = ("cost", "entry", "is_ready", "key", "members", "place", "until", "urgent")

    place: Place  # the first of them

    def __init__(self, key: Key) -> None:
        self.key = key
        self.members: list[Member] = []
        self.cost = 0.0
        self.urgent = 0
        self.until = math.inf  # the first of them
        self.entry: tuple[float, int | Place] | None = None  # where it is listed
        self.is_ready = False  # and among which

    def add(self, member: Member) -> None:
        self.until = min(self.until, member.until)
        members = self.members
        if members and member.place < members[-1].place:
            insort(members, member, key=lambda one: one.place)
        else:  # most come in the order
            members.append(member)
        self.place = members[0].place
        self.cost += member.cost
        self.urgent += member.is_urgent

    def keep(self, members: list[Member]) -> None:
        self.urgent = sum(member.is_urgent for member in members)
        self._hold(members)

    def take(self, n: int) -> list[Member]:
        """Take out the first n; some stay. However many do, they are gone through by the interpreter's own loops."""
        taken = self.members[:n]
        self.urgent -= sum(member.is_urgent for member in taken)
        self._hold(self.members[n:])
        return taken

    def _hold(self, members: list[Member]) -> None:
        self.members = members
        self.place = members[0].place
        self.cost = sum(map(_cost, members))
        self.until = min(map(_until, members))
