"""Which handlers the engine has, as its children are told: a handler that runs in one submits calls of others there.

A child imports modules and does not run what registers their functions, so it would know those alone that a decorator
marks on import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, invalid
from mainspring.execution.places import place_of
from mainspring.processors.batch import Batch
from mainspring.processors.calls import call_task, stands_for_task, task_of
from mainspring.processors.custom import Handler
from mainspring.processors.importable import check_importable
from mainspring.tasks import Task, TaskPriority


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A handler, by what a call of it is made with."""

    module: str  # of its function, as a child has it
    qualname: str
    name: str
    batches: bool  # it gets the items of several tasks
    priority: TaskPriority
    max_retries: int
    timeout: float | None
    cache: float | None
    cost: float | None  # None, too, where a function tells: the engine asks that

    def handler(self, function: Callable[..., Any]) -> Handler:
        return Handler(
            function, name=self.name, batch=Batch() if self.batches else None, priority=self.priority,
            retry=self.max_retries, timeout=self.timeout, cache=self.cache, cost=self.cost,
        )  # fmt: skip


def entry_of(handler: Handler) -> Entry | None:
    """Return what a child is told of a handler; None where no name leads it to the function."""
    try:
        check_importable(handler.function, handler.name)
    except InvalidInput:
        return None
    return Entry(
        place_of(handler).imported_as, handler.function.__qualname__, handler.name, handler.batch is not None,
        handler.priority, handler.retry.max_retries, handler.timeout, handler.cache,
        None if callable(handler.cost) else handler.cost,
    )  # fmt: skip


class Directory:
    """What a child knows of the engine's handlers."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        self._handlers: dict[Entry, Handler] = {}

    def learn(self, entries: Sequence[Entry]) -> None:
        """Take what the engine has registered; the newest counts. May be called from any thread."""
        self._entries.update({(entry.module, entry.qualname): entry for entry in entries})

    def handler_of(self, function: Any) -> Handler | None:
        """Return the handler that the engine has registered a function as; None: it has not, as far as a name tells."""
        entry = self._entries.get((getattr(function, "__module__", ""), getattr(function, "__qualname__", "")))
        if entry is None:
            return None
        if entry not in self._handlers:
            self._handlers[entry] = entry.handler(function)
        return self._handlers[entry]


class Calls:
    """Makes tasks of what one attempt submits in a child."""

    def __init__(self, directory: Directory) -> None:
        self.missed = False  # it submitted what this child knows no handler of; the engine may know one
        self._directory = directory

    def task_of(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """See `processors.calls.task_of`. Raises InvalidInput."""
        handler = self._directory.handler_of(function)
        if handler is not None:
            return call_task(handler, args, kwargs)
        if not stands_for_task(function):
            self.missed = True
            if callable(function) and not _has_name(function):
                raise invalid(
                    "handler", function, "has no name by which a child process could tell which handler it is",
                    "move it to the top level of a module with def, or put @engine.task on it where that is imported",
                )  # fmt: skip
        return task_of(function, args, kwargs)


def _has_name(function: Any) -> bool:
    return "<" not in getattr(function, "__qualname__", "<")
