"""Tasks that need more than this process has in all: its claims pass them over, however many of them go first.

Which those are stands in their specs, that no index knows: claims of such a type look at each task. How far they have
looked is remembered for each class, so that a claim costs what is new and not what waits. Where a class gets ready
tasks in front of that, claims look there until `DULL` in a row are passed over, and go on behind. What they miss so, a
task in the midst of others of which nobody said that it came ready there, is found when all are looked at once more:
after a time in proportion to how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.store.ready import ANYWHERE, Place
from mainspring.tasks.needs import NOTHING, Passes

DULL = 64
_LEAST_MS = 1_000
_MOST_MS = 60_000


class Seen:
    """How far claims have looked into a class."""

    __slots__ = ("again_ms", "end", "passed")

    def __init__(self) -> None:
        self.end: Place = ANYWHERE  # what is ready before it is passed over, or came later
        self.passed = 0
        self.again_ms: int | None = None  # when all is looked at once more; None: nothing can have been missed

    def skip(self, now_ms: int) -> None:
        """Something is not looked at again now."""
        if self.again_ms is None:
            self.again_ms = now_ms + min(max(_LEAST_MS, self.passed), _MOST_MS)


class Passing:
    """What a lane passes over: `passes` is set by the worker, all else is kept by the store."""

    __slots__ = ("_seen", "passes")

    def __init__(self) -> None:
        self.passes: Passes = NOTHING
        self._seen: dict[int, Seen] = {}

    def seen(self, class_id: int) -> Seen:
        found = self._seen.get(class_id)
        if found is None:
            found = self._seen[class_id] = Seen()
        return found

    def clear(self) -> None:
        self._seen.clear()

    def due(self, now_ms: int) -> Sequence[int]:
        """Forget how far those classes were looked into that are to be looked at once more, and return them."""
        if not self._seen:
            return ()
        due = [
            class_id for class_id, seen in self._seen.items() if seen.again_ms is not None and seen.again_ms <= now_ms
        ]
        for class_id in due:
            del self._seen[class_id]
        return due
