"""Which handlers the engine has, as its children are told: a handler that runs in one submits calls of others there.

A child imports modules and does not run what registers their functions, so it would know those alone that a decorator
marks on import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from mainspring.errors import InvalidInput, invalid
from mainspring.execution.places import imported_as
from mainspring.processors.batch import Batch
from mainspring.processors.calls import call_task, task_of
from mainspring.processors.custom import Handler
from mainspring.processors.importable import check_importable
from mainspring.tasks import Task, TaskPriority

Names: TypeAlias = tuple[str, str, str]
"""Of a function: its module's, its own and its code's. `functools.wraps` copies the first two, so the third tells a
function from what is wrapped around it."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A handler, by what a call of it is made with."""

    names: Names  # of its function, as a child has it
    function: int  # the same for all that are made of one function
    is_importable: bool  # its names lead to the function
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
    """Return what a child is told of a handler; None where a child can't have its module."""
    module, name, code = _names(handler.function)
    try:
        home = imported_as(module, handler.name)
    except InvalidInput:
        return None
    return Entry(
        (home, name, code), id(handler.function), _is_importable(handler), handler.name, handler.batch is not None,
        handler.priority, handler.retry.max_retries, handler.timeout, handler.cache,
        None if callable(handler.cost) else handler.cost,
    )  # fmt: skip


def _is_importable(handler: Handler) -> bool:
    try:
        check_importable(handler.function, handler.name)
    except InvalidInput:
        return False
    return True


def _names(function: object) -> Names:
    code = getattr(function, "__code__", None)
    return _text(function, "__module__"), _text(function, "__qualname__"), _text(code, "co_qualname")


def _text(thing: object, attribute: str) -> str:
    value = getattr(thing, attribute, "")
    return value if isinstance(value, str) else ""


class Directory:
    """What a child knows of the engine's handlers."""

    def __init__(self) -> None:
        self._entries: dict[Names, dict[int, Entry]] = {}  # of one function the newest
        self._handlers: dict[Entry, Handler] = {}

    def learn(self, entries: Sequence[Entry]) -> None:
        """Take what the engine has registered. May be called from any thread."""
        for entry in entries:
            self._entries[entry.names] = {**self._entries.get(entry.names, {}), entry.function: entry}

    def entries_of(self, function: object) -> Sequence[Entry]:
        """Return those that this function may be, as far as names tell."""
        return tuple(self._entries.get(_names(function), {}).values())

    def handler(self, entry: Entry, function: Callable[..., Any]) -> Handler:
        """Return the handler of a function that has been found to be this one."""
        if entry not in self._handlers:
            self._handlers[entry] = entry.handler(function)
        return self._handlers[entry]


class Calls:
    """Makes tasks of what one attempt submits in a child."""

    def __init__(self, directory: Directory) -> None:
        self.missed = False  # it submitted what the engine may have, and this child can't tell which that is
        self._directory = directory

    def task_of(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """See `processors.calls.task_of`. Raises InvalidInput."""
        entries = self._directory.entries_of(function)
        if not entries or hasattr(function, "__mainspring_builds__"):
            return task_of(function, args, kwargs)
        entry = _chosen(function, entries)
        if entry is not None:
            return call_task(self._directory.handler(entry, function), args, kwargs)
        self.missed = True
        if not entries[0].is_importable:
            raise invalid(
                "handler", function, "has no name by which a child process could tell which handler it is",
                "move it to the top level of a module with def, or put @engine.task on it where that is imported",
            )  # fmt: skip
        known = ", ".join(sorted(entry.name for entry in entries))
        raise invalid(
            "handler", function, f"has the name of several handlers ({known}), which a child process can't tell apart",
            "give each function a name of its own, or put @engine.task on them where they are imported",
        )  # fmt: skip


def _chosen(function: object, entries: Sequence[Entry]) -> Entry | None:
    """Return which one the function is; None: that can't be told."""
    mark = getattr(function, "__mainspring__", None)
    if isinstance(mark, Handler) and mark.function is function:  # `functools.wraps` copies another one's, too
        for entry in entries:
            if entry.name == mark.name:
                return entry
    return entries[0] if len(entries) == 1 and entries[0].is_importable else None
