"""What a handler's lines in the log carry: which task they are about, and what the handler added."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from mainspring.tasks import Log

logger = logging.getLogger("mainspring.handler")

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What any record has."""
_LABELS = frozenset({"task_id", "attempt", "type", "namespace", "group", "trace_id", "span_id"})
"""What says which task a line concerns; a task may lack some of them."""


class TaskLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the task's labels to each record, beside what the call brings as `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = labelled(kwargs.get("extra") or {}, self.extra or {})
        return msg, kwargs


def labelled(fields: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a line with those of its task; what has one of their names is kept as `extra_group`."""
    return {f"extra_{name}" if name in _LABELS else name: value for name, value in fields.items()} | {**labels}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record got as `extra`, as values that JSON can say; others as their text."""
    return {name: _plain(value) for name, value in vars(record).items() if name not in _OWN}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def relay(log: Log, labels: dict[str, Any]) -> None:
    """Write a line here that a handler wrote elsewhere."""
    if not logger.isEnabledFor(log.level):
        return
    record = logger.makeRecord(
        logger.name, log.level, log.path, log.line, log.message, (), None, log.function, {**log.fields, **labels}
    )
    record.exc_text = log.exception
    logger.handle(record)


__all__ = ["TaskLog", "fields_of", "labelled", "logger", "relay"]
