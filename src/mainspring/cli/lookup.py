"""Small reads that only the command line needs: ids by their end, workers, pauses, registered handlers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.errors import TaskNotFound, UnsupportedTaskType, invalid
from mainspring.tasks import TaskId, TaskType

if TYPE_CHECKING:
    import apsw

    from mainspring.engine import Engine

SHORTEST_END = 6
"""Characters of an id's end that stand for the whole. Its beginning says only when it was made."""
_ID_DIGITS = 32
_SHOWN = 3

_BY_END = "SELECT id FROM task WHERE substr(hex(id), -?) = ? LIMIT ?"
_WORKERS = """
SELECT worker.name, worker.pid, worker.host, worker.started_ms, group_concat(serves.type, ' ')
FROM worker JOIN serves ON serves.worker = worker.id WHERE worker.ended_ms IS NULL GROUP BY worker.id ORDER BY worker.id
"""
_PAUSES = "SELECT namespace, type, grp, since_ms FROM pause ORDER BY since_ms"
_HANDLER = "SELECT options, schema FROM handler WHERE type = ? ORDER BY seen_ms DESC LIMIT 1"
_TYPES = "SELECT DISTINCT type FROM handler ORDER BY type"


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

    def __str__(self) -> str:
        named = (("type", self.type), ("namespace", self.namespace), ("group", self.group))
        return ", ".join(f"{name} {value}" for name, value in named if value) or "everything"


class Registered(msgspec.Struct, frozen=True):
    """A handler as its worker declared it, for submitters without its code."""

    options: dict[str, Any]  # max_retries, timeout, priority
    parameters: tuple[str, ...]
    required: frozenset[str]


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

    def read(connection: apsw.Connection) -> list[TaskId]:
        rows = connection.execute(_BY_END, (len(digits), digits, _SHOWN + 1))
        return [TaskId(id) for (id,) in rows]

    found = await engine.manager.store.read(read)
    if not found:
        raise TaskNotFound(f"no task's id ends in {text!r}; check the id and the store's path")
    if len(found) > 1:
        shown = ", ".join(map(str, found[:_SHOWN]))
        more = " and more" if len(found) > _SHOWN else ""
        raise invalid("task id", text, f"is the end of several: {shown}{more}", "give more of its characters")
    return found[0]


async def workers(engine: Engine) -> list[WorkerRow]:
    """Return the processes that take tasks from this store now."""

    def read(connection: apsw.Connection) -> list[WorkerRow]:
        return [
            WorkerRow(name, pid, host, when(started), sorted(types.split(" ")))
            for name, pid, host, started, types in connection.execute(_WORKERS)
        ]

    return await engine.manager.store.read(read)


async def pauses(engine: Engine) -> list[PauseRow]:
    """Return what is paused, the oldest pause first."""

    def read(connection: apsw.Connection) -> list[PauseRow]:
        return [
            PauseRow(namespace or None, kind or None, group or None, when(since))
            for namespace, kind, group, since in connection.execute(_PAUSES)
        ]

    return await engine.manager.store.read(read)


async def registered(engine: Engine, task_type: TaskType) -> Registered:
    """Return what the store knows of a handler. Raises UnsupportedTaskType for one that no worker ever served."""

    def read(connection: apsw.Connection) -> tuple[Any, list[str]]:
        row = connection.execute(_HANDLER, (str(task_type),)).fetchone()
        return row, [kind for (kind,) in connection.execute(_TYPES)]

    row, known = await engine.manager.store.read(read)
    if row is None:
        names = ", ".join(known) or "none"
        raise UnsupportedTaskType(
            f"task_type = {str(task_type)!r}: no worker has registered it in this store (registered are: {names}); "
            "start a worker whose module declares it"
        )
    schema = msgspec.json.decode(row[1])
    arguments = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return Registered(msgspec.json.decode(row[0]), tuple(arguments["properties"]), frozenset(arguments["required"]))


def when(ms: int) -> datetime:
    """Return a stored time, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
