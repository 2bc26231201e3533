"""What a lane of a worker can take, which its loop and its store's thread both look at."""

from __future__ import annotations

from collections.abc import Mapping

from mainspring.store.passing import Passing
from mainspring.store.ready import Place, Shared
from mainspring.tasks.needs import Passes


class Lane:
    """What a lane can take. Two counters with one writer each, so that no lock is needed."""

    __slots__ = ("limit", "name", "passing", "ready", "released", "taken", "types", "withheld")

    def __init__(self, name: str, limit: int = 0) -> None:
        self.name = name
        self.limit = limit  # claims held at once; set by the worker
        self.released = 0  # claims that don't count any more; counted by the worker
        self.taken = 0  # claims handed over; counted by the store
        self.types: frozenset[str] = frozenset()
        self.withheld: Mapping[str, Place] = {}  # what goes before these places alone is taken, by type; by the worker
        self.passing = Passing()  # tasks that can never run here
        self.ready = Shared()  # classes that may have ready tasks; kept by the store

    @property
    def passes(self) -> Passes:
        return self.passing.passes

    def room(self) -> int:
        return self.limit + self.released - self.taken
