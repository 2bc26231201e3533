"""Tasks that need more than this process has in all: they are for others, and what claims here pass over."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.dispatch.desk import Desk
from mainspring.execution.executor import TaskExecutor
from mainspring.store.base import Store
from mainspring.tasks.needs import NOTHING, Passes, need_of


class PassedOver:
    """Tells the ports of desks of which types they pass tasks over, until there is more. Belongs to the event loop."""

    def __init__(self, executor: TaskExecutor, store: Store, there_is: Callable[[], dict[str, float]]) -> None:
        self._executor = executor
        self._store = store
        self._there_is = there_is
        self._desks: list[Desk] = []
        self._has: dict[str, float] = {}  # what there was in all when this was last judged

    def add(self, desk: Desk, kind: str) -> None:
        """Claim no more tasks of a type that need more than there is."""
        there_is = self._there_is()
        if self._has != there_is:
            self.forget()
            self._has = there_is
        passing = desk.port.passing
        passing.passes = Passes(there_is, {**passing.passes.types, kind: self._needs().get(kind, {})})
        if desk not in self._desks:
            self._desks.append(desk)

    def look(self) -> None:
        """Judge all anew where there is more or less by now."""
        if self._desks and self._has != self._there_is():
            self.forget()

    def forget(self) -> None:
        """What there is has changed, or what handlers say: judge all anew."""
        for desk in self._desks:
            desk.port.passing.passes = NOTHING
        if self._desks:
            self._desks.clear()
            self._store.look_anew()

    def _needs(self) -> dict[str, dict[str, float]]:
        """Return what tasks need that say nothing themselves, by type."""
        handlers = self._executor.handlers.items()
        declared = {kind: need_of(one.resources, one.lane) for kind, one in handlers if one.resources is not None}
        return {kind: need for kind, need in declared.items() if need}

    def in_all(self) -> Passes:
        """Return what others are to know by which they can judge any task, also one that this process has not met."""
        return Passes(self._there_is(), self._needs())

    def told(self) -> Passes | None:
        """Return what others are to know of it; None: nothing is passed over."""
        passed = {kind: need for desk in self._desks for kind, need in desk.port.passing.passes.types.items()}
        return Passes(self._has, passed) if passed else None
