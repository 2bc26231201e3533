"""The batches in the making: which of them may begin is known without a look at each."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import attrgetter

from mainspring.dispatch.joined import Group, Key, Member

_place, _entry = attrgetter("place"), attrgetter("entry")


class Kinds:
    """Groups by what their claims have in common: there may be thousands. A look costs what changed since the last.

    `is_closed` tells whether a group may begin whatever the time is.
    """

    def __init__(self, is_closed: Callable[[Group], bool]) -> None:
        self.queued = 0  # claims in all
        self._is_closed = is_closed
        self._groups: dict[Key, Group] = {}
        self._sizes: dict[Hashable, set[int]] = {}  # of the groups of a kind
        self._changed: set[Group] = set()  # since the last look
        self._ready: list[Group] = []  # may begin, best first
        self._waiting: list[Group] = []  # the others, by when they may

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._groups.values()))

    def add(self, key: Key, member: Member) -> bool:
        """Returns whether it is the first of its group."""
        group = self._groups.get(key)
        is_first = group is None
        if group is None:
            group = self._groups[key] = Group(key)
            self._sizes.setdefault(key.kind, set()).add(key.size)
        group.add(member)
        self.queued += 1
        self._changed.add(group)
        return is_first

    def keep(self, group: Group, members: list[Member]) -> None:
        """Let all others go."""
        self.queued -= len(group.members) - len(members)
        self._changed.add(group)
        if members:
            group.keep(members)
            return
        group.members = members
        kind, size = group.key
        del self._groups[group.key]
        self._sizes[kind].remove(size)
        if not self._sizes[kind]:
            del self._sizes[kind]

    def take(self, group: Group, n: int) -> list[Member]:
        """Take out its first n."""
        if n == len(members := group.members):
            self.keep(group, [])
            return members
        self.queued -= n
        self._changed.add(group)
        return group.take(n)

    def look_again(self, kind: Hashable) -> None:
        """What goes into a call of this kind is another now."""
        self._changed.update(self._groups[Key(kind, size)] for size in self._sizes.get(kind, ()))

    def look(self, now: float) -> None:
        """Put in order what has changed, and what has waited long enough."""
        for group in self._changed:
            if group.entry is not None:
                listed = self._ready if group.is_ready else self._waiting
                del listed[bisect_left(listed, group.entry, key=_entry)]
                group.entry = None
        for group in self._changed:
            if group.members:
                self._list(group, is_ready=group.until <= now or self._is_closed(group))
        self._changed.clear()
        while self._waiting and self._waiting[0].until <= now:
            self._list(self._waiting.pop(0), is_ready=True)

    def _list(self, group: Group, *, is_ready: bool) -> None:
        group.is_ready = is_ready
        group.entry = group.place if is_ready else (group.until, group.place)
        insort(self._ready if is_ready else self._waiting, group, key=_entry)

    # As of the last look

    def ready(self, *, are_all: bool = False) -> Sequence[Group]:
        """Return those that may begin, best first; with `are_all` no group waits for others."""
        return sorted(self._groups.values(), key=_place) if are_all else self._ready

    @property
    def next(self) -> Group:
        """The one that may begin before all others that wait."""
        return self._waiting[0]
