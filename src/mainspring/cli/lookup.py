"""Small reads that only the command line needs: ids by their end, workers, pauses, registered handlers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.errors import TaskNotFound, UnsupportedTaskType, invalid
from mainspring.processors.declared import Declared
from mainspring.tasks import BUILT_IN_TYPES, TaskId, TaskType
from mainspring.tasks.texts import check_text

if TYPE_CHECKING:
    from mainspring.engine import Engine
    from mainspring.store.sql.reads import View

SHORTEST_END = 6
"""Characters of an id's end that stand for the whole. Its beginning says only when it was made."""
_ID_DIGITS = 32
_SHOWN = 3


class WorkerRow(msgspec.Struct, frozen=True):
    """A living process that takes tasks."""

    name: str
    pid: int
    host: str
    started: datetime
    types: list[str]


class PauseRow(msgspec.Struct, frozen=True):
    """What may not start now; None stands for any."""

    namespace: str | None
    type: str | None
    group: str | None
    since: datetime
    who: str  # asked for it; '' where that was not noted

    @classmethod
    def of(cls, row: Sequence[Any]) -> PauseRow:
        namespace, kind, group, since_ms, who = row
        return cls(namespace or None, kind or None, group or None, when(since_ms), who)

    def covers(self, namespace: str, kind: str, group: str) -> bool:
        return self.namespace in (None, namespace) and self.type in (None, kind) and self.group in (None, group)

    def __str__(self) -> str:
        named = (("type", self.type), ("namespace", self.namespace), ("group", self.group))
        return ", ".join(f"{name} {value}" for name, value in named if value) or "everything"


async def find_ids(engine: Engine, texts: Sequence[str]) -> list[TaskId]:
    """Return the tasks that whole ids or ends of ids stand for. A whole id is not looked up.

    Raises: InvalidInput: no id, or the end of several. TaskNotFound: the end of none.
    """
    return [await _find_id(engine, text) for text in texts]


async def _find_id(engine: Engine, text: str) -> TaskId:
    digits = text.strip().replace("-", "").upper()
    if not re.fullmatch(rf"[0-9A-F]{{{SHORTEST_END},{_ID_DIGITS}}}", digits):
        raise invalid(
            "task id",
            text,
            "is neither an id nor the end of one",
            f"give the id as `mainspring ps` prints it, or at least its last {SHORTEST_END} characters",
        )
    if len(digits) == _ID_DIGITS:
        return TaskId(digits)

    rows = await engine.manager.store.view(lambda view: view.rows("ids_by_end", len(digits), digits, _SHOWN + 1))
    found = [TaskId(id) for (id,) in rows]
    if not found:
        raise TaskNotFound(f"no task's id ends in {text!r}; check the id and the store's path")
    if len(found) > 1:
        shown = ", ".join(map(str, found[:_SHOWN]))
        more = " and more" if len(found) > _SHOWN else ""
        raise invalid("task id", text, f"is the end of several: {shown}{more}", "give more of its characters")
    return found[0]


async def workers(engine: Engine) -> list[WorkerRow]:
    """Return the processes that take tasks from this store now."""

    rows = await engine.manager.store.view(lambda view: view.rows("serving_workers"))
    return [
        WorkerRow(name, pid, host, when(started), sorted(types.split(" ")))
        for name, pid, host, started, types, *_ in rows
    ]


async def pauses(engine: Engine) -> list[PauseRow]:
    """Return what is paused, the oldest pause first."""

    rows = await engine.manager.store.view(lambda view: view.rows("pauses_since"))
    return [PauseRow.of(row) for row in rows]


async def is_known(engine: Engine, *, type: str, namespace: str, group: str) -> bool:
    """Whether there is a task of a kind, or has been and is still counted, or a worker of that type."""

    def look(view: View) -> bool:
        kinds = [tuple(row[:3]) for row in view.rows("tallies")]
        kinds += [("", kind, "") for (kind,) in view.rows("handler_types")]
        wanted = (namespace, type, group)
        return any(all(one in ("", has) for one, has in zip(wanted, kind, strict=True)) for kind in kinds)

    return await engine.manager.store.view(look)


async def type_named(engine: Engine, name: str) -> tuple[str, frozenset[str]]:
    """Return the type that `--type` means, also by the bare name of its handler, and all types that the store knows.

    A name that a built-in type has too is that one's; one that nobody knows stays as it is. Raises InvalidInput for
    what can't be a name.
    """
    check_text("type", name)

    def look(view: View) -> frozenset[str]:
        named = [row[1] for statement in ("tallies", "pauses_since") for row in view.rows(statement)]
        return frozenset((*BUILT_IN_TYPES, *named, *(kind for (kind,) in view.rows("handler_types")))) - {""}

    known = await engine.manager.store.view(look)
    is_bare = name not in known and f"custom:{name}" in known
    return f"custom:{name}" if is_bare else name, known


async def registered(engine: Engine, task_type: TaskType) -> Declared:
    """Return what the store knows of a handler. Raises UnsupportedTaskType for one that no worker ever served."""

    def read(view: View) -> tuple[Any, list[str]]:
        row = view.one("newest_handler", str(task_type))
        return row, [kind for (kind,) in view.rows("handler_types")]

    row, known = await engine.manager.store.view(read)
    if row is None:
        names = ", ".join(known) or "none"
        raise UnsupportedTaskType(
            f"task_type = {str(task_type)!r}: no worker has registered it in this store (registered are: {names}); "
            "start a worker whose module declares it"
        )
    return Declared.read(task_type.name, row[0], row[1])


def when(ms: int) -> datetime:
    """Return a stored time, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
