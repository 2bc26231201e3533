"""Lines of the log for programs: a JSON object each, with the task that it concerns."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from mainspring.processors.context import current
from mainspring.processors.log import fields_of, labelled


class JsonFormatter(logging.Formatter):
    """Writes `time`, `level`, `logger`, `message`, whatever else the record carries, and `exception` where it has one.

    Use it in a log of your own, with `OfRunningTask` as a filter of the same handler.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = fields_of(record) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line)


class OfRunningTask(logging.Filter):
    """Puts the labels of the task that runs here on records that have none: what libraries write in its handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = current.get()
        if context is not None and not hasattr(record, "task_id"):
            record.__dict__ = labelled(vars(record), context.labels())
        return True


__all__ = ["JsonFormatter", "OfRunningTask"]
