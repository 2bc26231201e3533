"""A handle: the submitter's view of one task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from mainspring.errors import invalid
from mainspring.processors.context import current, waiting_inside
from mainspring.results.waiters import Waiting
from mainspring.tasks import TaskInfo

if TYPE_CHECKING:
    from mainspring.engine.engine import Engine


H = TypeVar("H")


def checked(handles: Iterable[H], kind: type[H]) -> list[H]:
    """Return them as a list. Raises InvalidInput: they are no handles."""
    remedy = "pass a list of what submit or map returned; engine.handle(id) makes one of an id"
    if not isinstance(handles, Iterable):
        raise invalid("handles", handles, "can't be iterated", remedy)
    found = list(handles)
    for handle in found:
        if not isinstance(handle, kind):
            raise invalid("handles", handle, f"is no {kind.__name__}", remedy)
    return found


class TaskHandle(Waiting):
    """Refers to a stored task. As an argument of another submit it is a dependency."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine, key: bytes, known: bool) -> None:
        Waiting.__init__(self, key, known)
        self._engine = engine

    async def result(self, timeout: float | str | None = None) -> Any:
        """Wait for the task and return its plain value; where it returned handles, their values.

        Raises: the task's error with its attempts: ProcessingFailed, TaskTimeout, TaskCancelled, DependencyNotMet,
        InvalidInput; TaskTimeout also when it has not ended within `timeout`, seconds or text (it goes on; 0
        looks once); TaskNotFound.
        """
        if current.get() is not None:
            raise waiting_inside()
        return await self._engine.manager.value(self, timeout)

    async def info(self) -> TaskInfo:
        """Return all the store knows about the task."""
        return await self._engine.manager.get_task(self.id)

    async def cancel(self) -> str:
        """See `TaskManager.cancel_task`."""
        return await self._engine.manager.cancel_task(self.id)

    async def explain(self) -> str:
        """Return one sentence that says why the task is not running, or how it ended."""
        return await self._engine.scheduler.explain(self.id)
